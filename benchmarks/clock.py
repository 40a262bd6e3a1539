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
from vine_mini.study.claims import mean_at, paired, runs_of
from vine_mini.study.config import ALGORITHMS, NAMES, PAPERS, SHARED, TASKS
from vine_mini.study.prices import Clock, with_prices
from vine_mini.study.runs import trainer_of
from vine_mini.study.statistics import interval, verdict

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


def if_seconds_were(factor: float, task: str, name: str, runs: list[dict]) -> str:
    """The difference in test accuracy, with its verdict, if each of VinePPO's seconds were `factor` seconds."""
    mine, other = [0.9, 1.0], [0.9, 1.0]  # of the seconds that both runs have
    mine, other = ([x / factor for x in mine], other) if factor > 1 else (mine, [x * factor for x in other])
    gaps = []
    for a, b in paired(*(runs_of(runs, task, ALGORITHMS[task][n]) for n in ("vineppo", name))):
        end = min(run["checks"][-1]["seconds"] for run in (a, b))
        means = [mean_at(run, "seconds", "test", [x * end for x in at]) for run, at in ((a, mine), (b, other))]
        gaps.append(100 * (means[0] - means[1]))
    found = interval(gaps, len(ALGORITHMS[task]) - 1)
    return f"{found[0]:+.1f} [{found[1]:+.1f}, {found[2]:+.1f}] {verdict(found)}"


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
    rows = [["task", "VinePPO less", *(f"if its seconds cost {factor:.2f}" for factor in (1 / ERROR, 1, ERROR))]]
    for task in TASKS:
        for name in [name for name in ALGORITHMS[task] if name != "vineppo"]:
            rows.append([task, NAMES[name], *(if_seconds_were(factor, task, name, runs) for factor in (1 / ERROR, 1, ERROR))])
    report(args.out, "cheaper-and-dearer", "Test accuracy after as many seconds, points", rows, {"rows": rows})


if __name__ == "__main__":
    command(main)
