"""Whether the prices of `study` agree with the time that training takes: each algorithm trains for 60 seconds by the clock.

    python -m benchmarks.clock --out results/claims/clock

`study` charges a run for its work at prices that were measured in its first iterations. This command trains with one seed,
measures what each iteration takes, and prints measured / charged. The machine must do nothing else. Only the differences between
algorithms matter: the machine may be faster or slower than it was when the prices were measured. A second table shows what would
follow from an error of 15 %: VinePPO's accuracy less another algorithm's after as many seconds, by the runs in results/claims.
"""

import argparse
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import command, machine, report
from vine_mini.app.files import read_rows
from vine_mini.study.claims import judge
from vine_mini.study.config import ALGORITHMS, NAMES, PAPERS, SHARED, TASKS
from vine_mini.study.prices import Clock, with_prices
from vine_mini.study.runs import trainer_of

CLAIMS = Path(__file__).parents[1] / "results" / "claims"
ERROR = 1.15


def ratios(job: dict, seconds: float) -> tuple[float, float]:
    """measured / charged, in the first and in the second half of the seconds."""
    trainer, clock = trainer_of(job), Clock(job["prices"])
    points = [(0.0, 0.0)]
    for metrics, episodes, _ in trainer.train():
        clock.count(trainer, metrics, episodes)
        points.append((sum(trainer.seconds.values()), clock.seconds))
        if points[-1][0] >= seconds:
            break
    half = min(points, key=lambda point: abs(point[0] - points[-1][0] / 2))
    parts = (points[0], half), (half, points[-1])
    return tuple((b[0] - a[0]) / max(b[1] - a[1], 1e-9) for a, b in parts)


def if_seconds_were(factor: float, runs: list[dict]) -> dict[tuple[str, str], str]:
    """The findings at equal seconds, if each of VinePPO's seconds were `factor` seconds. -> (task, what) -> what was found"""
    runs = [
        run | dict(checks=[check | dict(seconds=factor * check["seconds"]) for check in run["checks"]])
        if run["config"]["algorithm"] == "vineppo"
        else run
        for run in runs
    ]
    found = [f for f in judge("accuracy", runs) if f.part == "equal seconds"]
    return {(f.task, f.what): ", ".join([*f.text, f.verdict]) for f in found}


def main():
    """Trains each setting and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="folder for the table and its JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    jobs = {}
    for task in TASKS:
        shared = dict(task=task, seed=0, problems=200, shared=SHARED | TASKS[task])
        for name, config in {**ALGORITHMS[task], "K = 9": PAPERS[task]}.items():
            jobs[task, NAMES.get(name, "VinePPO, K = 9")] = shared | dict(config=config)
    priced = with_prices(list(jobs.values()), CLAIMS / "prices.json")
    found = {}
    for which, job in tqdm([*zip(jobs, priced, strict=True)], desc="settings", dynamic_ncols=True):
        found[which] = ratios(job, args.seconds)
    usual = statistics.median(x for of in found.values() for x in of)
    rows = [["task", "algorithm", "measured / charged, first half", "second half", "both, where the median of all is 1"]]
    for (task, name), of in found.items():
        rows.append([task, name, *(f"{x:.2f}" for x in of), f"{statistics.mean(of) / usual:.2f}"])
    report(args.out, "clock", machine("cpu", 1), rows, {" ".join(which): of for which, of in found.items()})
    runs = read_rows(CLAIMS / "runs.jsonl")
    factors = (1 / ERROR, 1, ERROR)
    rows = [["task", "difference", *(f"if VinePPO's seconds cost {factor:.2f}" for factor in factors)]]
    columns = [if_seconds_were(factor, runs) for factor in factors]
    rows += [[*which, *(column[which] for column in columns)] for which in columns[0]]
    report(args.out, "cheaper-and-dearer", "Test accuracy after as many seconds, points", rows, {"rows": rows})


if __name__ == "__main__":
    command(main)
