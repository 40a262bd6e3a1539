"""Does VinePPO learn on TRL what it learns here? The same settings and equal episodes, with `train` and with TRL.

    pip install 'trl==1.16.*' accelerate requests
    python -m benchmarks.trl_learns --out results/speed/trl_learns

The shipped policy learns chains of six operations, once in this package and once on TRL with two processes (gloo). The runs take
turns, and each process has one thread. The same command goes on where it was interrupted.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import command, count, machine, mean_error, report, writable
from vine_mini.app.files import append_row, read_rows, write_rows
from vine_mini.integrations.trl import check_trl
from vine_mini.types import UserError

LAUNCH = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "vine_mini.integrations.trl"]
WAYS = {"vine_mini": ["-m", "vine_mini", "train"], "TRL, two processes": LAUNCH}
MEASURE = (  # a child that runs a command and tells the peak memory of its largest process
    "import resource, subprocess, sys; code = subprocess.call([sys.executable, *sys.argv[1:]]); "
    "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def run(*words: str) -> str:
    """Runs Python with one thread. -> what it printed. Raises UserError where it failed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def evaluate(folder: Path, *policy: str) -> float:
    """pass@1 on the test problems at temperature 1, by sixteen samples each."""
    out = folder / "evaluation.json"
    fixed = ["--preset", "arithmetic", "--temperature", "1", "--device", "cpu"]
    run("-m", "vine_mini", "evaluate", *fixed, "--out", str(out), *policy)
    return json.loads(out.read_text(encoding="utf-8"))["pass@1"][0]


def learn(way: str, seed: int, iterations: int, folder: Path) -> dict:
    """One run."""
    runs = folder / "run"
    shutil.rmtree(runs, ignore_errors=True)
    fixed = ["--preset", "arithmetic", "--device", "cpu", "--save_every", str(iterations), "--out", str(runs)]
    printed = run("-c", MEASURE, *WAYS[way], *fixed, "--seed", str(seed), "--iterations", str(iterations))
    rows = [row for row in read_rows(runs / "metrics.jsonl") if row.get("iteration", 0) > 0]
    seconds = [b["seconds"] - a["seconds"] for a, b in pairwise(rows)]
    return dict(
        way=way, seed=seed, iterations=iterations, after=evaluate(folder, "--policy", str(runs / "policy")),
        rewards=[row["reward"] for row in rows], seconds=statistics.median(seconds),
        peak=int(printed.split("PEAK ")[-1].split()[0]) / 1024,
    )  # fmt: skip


def main():
    """Makes the runs that OUT/runs.jsonl lacks, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=count, default=20)
    parser.add_argument("--out", type=writable, default=Path("runs/trl_learns"))
    args = parser.parse_args()
    if args.iterations < 2:
        parser.error("--iterations must be at least 2")
    check_trl()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "runs.jsonl"
    runs = {(r["way"], r["seed"], r["iterations"]): r for r in read_rows(log)}
    write_rows(log, [*runs.values()])  # without a line that a crash has cut, to which the next one would be appended
    wanted = [(way, seed, args.iterations) for seed in args.seeds for way in WAYS]
    for job in tqdm([job for job in wanted if job not in runs], desc="runs", dynamic_ncols=True):
        runs[job] = learn(*job, args.out)
        append_row(log, runs[job])
    before = evaluate(args.out)
    shutil.rmtree(args.out / "run", ignore_errors=True)
    (args.out / "evaluation.json").unlink()
    rows = [["", "test accuracy after, %", "mean reward of all iterations", "seconds an iteration", "peak MB of a process"]]
    for way in WAYS:
        of = [runs[job] for job in wanted if job[0] == way]
        after, reward = ([100 * x for x in xs] for xs in ([r["after"] for r in of], [statistics.mean(r["rewards"]) for r in of]))
        seconds, peak = (statistics.median(r[name] for r in of) for name in ("seconds", "peak"))
        rows.append([way, mean_error(after), mean_error(reward), f"{seconds:.2f}", f"{peak:.0f}"])
    title = f"{args.iterations} iterations, {len(args.seeds)} seeds, ± one standard error; before: {100 * before:.1f} % right. "
    report(args.out, "trl_learns", title + machine("cpu", 1), rows, {"before": before, "runs": [runs[job] for job in wanted]})


if __name__ == "__main__":
    command(main)
