"""Whether the prices of `study` agree with the time that training takes.

    python -m benchmarks.clock --out results/claims/clock

`study` charges a run for its work, at prices that were measured in its first iterations. Here every setting trains with another
seed. The settings take turns, an iteration each, so a machine that is slower for a while is slower for all. The first table shows
measured / charged. The machine must do nothing else. The second table shows VinePPO's accuracy less another algorithm's after as
many seconds, by the runs in results/claims, for other prices: if VinePPO's seconds were cheaper or dearer, and if all cost what
was measured here.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import command, count, machine, report, writable
from vine_mini.app.files import read_rows
from vine_mini.study.claims import judge
from vine_mini.study.config import NAMES, PAPERS, SETTINGS, SHARED, TASKS
from vine_mini.study.prices import Clock, with_prices
from vine_mini.study.runs import trainer_of

CLAIMS = Path(__file__).parents[1] / "results" / "claims"
ERROR = 1.15


def ratios(jobs: dict[tuple[str, str], dict], rounds: int) -> dict[tuple[str, str], float]:
    """measured / charged of each setting, after an iteration to warm up. The median of all is 1."""
    trainers = {which: trainer_of(job) for which, job in jobs.items()}
    loops = {which: trainer.train() for which, trainer in trainers.items()}
    measured, charged = defaultdict(float), defaultdict(float)
    for turn, which in tqdm([*product(range(1 + rounds), jobs)], desc="iterations", dynamic_ncols=True):
        clock = Clock(jobs[which]["prices"])
        clock.updates = trainers[which].updates
        metrics, episodes, _ = next(loops[which])
        clock.count(trainers[which], metrics, episodes)
        if turn:
            measured[which] += sum(x for name, x in metrics.items() if name.startswith("seconds_"))
            charged[which] += clock.seconds
    found = {which: measured[which] / charged[which] for which in jobs}
    usual = statistics.median(found.values())
    return {which: ratio / usual for which, ratio in found.items()}


def repriced(runs: list[dict], factor: Callable[[dict], float]) -> list[dict]:
    """The runs, with seconds that cost `factor` of their task and setting."""
    return [run | dict(checks=[c | dict(seconds=factor(run) * c["seconds"]) for c in run["checks"]]) for run in runs]


def at_equal_seconds(runs: list[dict]) -> dict[tuple[str, str], str]:
    """(task, what) -> what was found"""
    found = [f for f in judge("accuracy", runs) if f.part == "equal seconds"]
    return {(f.task, f.what): ", ".join([*f.text, f.verdict]) for f in found}


def main():
    """Trains each setting and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=3, help="iterations of each setting, after one to warm up")
    parser.add_argument("--out", type=writable, help="folder for the tables and their JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    jobs = {}
    for task in TASKS:
        shared = dict(task=task, seed=100, problems=200, shared=SHARED | TASKS[task])
        for name, config in {**SETTINGS[task], "K = 9": PAPERS[task]}.items():
            jobs[task, NAMES.get(name, "VinePPO, K = 9")] = shared | dict(config=config)
    priced = with_prices(list(jobs.values()), CLAIMS / "prices.json")
    found = ratios(dict(zip(jobs, priced, strict=True)), args.rounds)
    rows = [["task", "algorithm", "measured / charged, where the median of all is 1"]]
    rows += [[*which, f"{ratio:.2f}"] for which, ratio in found.items()]
    report(args.out, "clock", machine("cpu", 1), rows, {" ".join(which): of for which, of in found.items()})
    runs = read_rows(CLAIMS / "runs.jsonl")
    of_setting = {(job["task"], str(job["config"])): found[which] for which, job in jobs.items()}
    ways: dict[str, Callable[[dict], float]] = {
        f"VinePPO's seconds cost {x:.2f}": lambda run, x=x: x if run["config"]["algorithm"] == "vineppo" else 1.0
        for x in (1 / ERROR, 1, ERROR)
    }
    ways["all cost what the clock says"] = lambda run: of_setting.get((run["task"], str(run["config"])), 1.0)
    columns = [at_equal_seconds(repriced(runs, way)) for way in ways.values()]
    rows = [["task", "difference", *ways], *([*which, *(column[which] for column in columns)] for which in columns[0])]
    report(args.out, "cheaper-and-dearer", "Test accuracy after as many seconds, points", rows, {"rows": rows})


if __name__ == "__main__":
    command(main)
