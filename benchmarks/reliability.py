"""Kills runs at random moments, goes on with them, and compares them with a run that was never stopped, bit for bit.

    python -m benchmarks.reliability --out results/reliability

Each kill is a real SIGKILL, as of a machine that runs out of memory. Compared are the metrics without their times, the samples,
the policy, the best policy, the critic and AdamW's moments. Of `lengthgen` these are results.json and the models, of `sft` the
policy. `train --resume` goes on with a run of `train`. The same command again goes on with a sweep of `lengthgen`, whose single
runs begin anew. `sft` begins anew. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.common import command, count, machine, writable
from vine_mini.app import runs
from vine_mini.app.checkpoint import STATE
from vine_mini.app.files import write_text
from vine_mini.app.tables import columns
from vine_mini.cli import main as vine_mini
from vine_mini.tasks import arithmetic

LOGS = ("metrics.jsonl", "samples.jsonl", "results.json")
TINY = "--steps 2 --max_number 9 --max_new_tokens 16 --prompts 4 --group 2 --minibatch_size 4 --k 2 --lr 1e-3 --device cpu"
TINY += " --eval_problems 4 --eval_samples 1 --eval_every 3 --validation 8 --keep_every 4 --save_every 2"
OTHERS = {  # commands beside `train`
    "sft": "--updates 60 --batch_size 4 --hidden 16 --layers 1 --steps 2 --max_new_tokens 24 --eval_problems 4 --eval_samples 1",
    "lengthgen": "--encodings nope t5 --seeds 0 1 --updates 20 --hidden 16 --layers 1 --heads 2 --examples 4 --processes 1",
}
ALGORITHMS = ("vineppo", "ppo", "grpo", "restem", *OTHERS)
NAMES = (
    "algorithm or command",
    "kills",
    "runs",
    "refused to go on",
    "lines compared",
    "lines lost or doubled",
    "runs equal bit for bit",
)


def start(command: list[str], log: Path) -> int:
    """Runs a command in a process of its own, which has imported everything already. -> its process id"""
    if process := os.fork():
        return process
    code = 1
    try:
        target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(target, 1), os.dup2(target, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = vine_mini(command)
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        os._exit(code)


def wait(process: int, kill_after: float | None = None) -> int:
    """Waits for a process, and kills it after so many seconds. -> exit code, negative after a signal"""
    begin = time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if kill_after is not None and time.monotonic() - begin > kill_after:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)


def rows(path: Path) -> list[dict]:
    """The lines of a log, or the runs of a results.json, without times."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = json.loads(text)["runs"] if path.name == "results.json" and text else map(json.loads, text.splitlines())
    return [{name: x for name, x in row.items() if not name.startswith("seconds")} for row in found]


def differences(whole: Path, run: Path) -> tuple[int, list[str]]:
    """What differs between two finished runs. -> lines that are lost or doubled, names of all that differs"""
    wrong, named = 0, []
    for name in LOGS:
        expected, found = ([json.dumps(row, sort_keys=True) for row in rows(folder / name)] for folder in (whole, run))
        lost_or_doubled = sum(found.count(line) != expected.count(line) for line in {*expected, *found})
        wrong += lost_or_doubled
        named += [name] if found != expected else []
    kept = [str(path.relative_to(whole)) for path in (*whole.glob("checkpoints/*"), *whole.glob("models/*"))]
    for name in (*kept, "policy", "best", "."):
        for file in ("model.safetensors", STATE):
            if (whole / name / file).exists():
                expected, found = load_file(whole / name / file), load_file(run / name / file)
                same = set(expected) == set(found) and all(torch.equal(x, found[key]) for key, x in expected.items())
                named += [] if same else [f"{name}/{file}"]
    left = {path.name for path in run.iterdir()} ^ {path.name for path in whole.iterdir()}
    return wrong, named + sorted(left)


def kill_and_compare(algorithm: str, kills: int, iterations: int, work: Path, rng: random.Random) -> list[str]:
    """Kills runs of an algorithm so many times, at most four times each. -> a row of the table, then all that differs"""
    log, fresh = work / "log", ["train", "--algorithm", algorithm, "--iterations", str(iterations), *TINY.split()]
    if algorithm in OTHERS:
        fresh = [algorithm, *OTHERS[algorithm].split()]
    whole = work / f"{algorithm}-whole"
    begin = time.monotonic()
    if wait(start([*fresh, "--out", str(whole)], log)):
        raise SystemExit(f"{algorithm}: {log.read_text()[-500:]}")
    span = time.monotonic() - begin
    lines = sum(len(rows(whole / name)) for name in LOGS)
    made = count = refused = wrong = equal = 0
    named: list[str] = []
    while made < kills:
        run, mine, code = work / f"{algorithm}-{count}", 0, -signal.SIGKILL
        while code == -signal.SIGKILL:
            if algorithm == "sft" and run.exists():  # whole, but killed before its evaluation was written
                shutil.rmtree(run)
            begun = run.exists() and algorithm not in OTHERS
            command = ["train", "--resume", str(run)] if begun else [*fresh, "--out", str(run)]
            code = wait(start(command, log), rng.uniform(0, span) if mine < 4 and made < kills else None)
            mine, made = mine + (code < 0), made + (code < 0)
        count += 1
        if code:
            refused, named = refused + 1, [*named, log.read_text()[-500:]]
            continue
        more, different = differences(whole, run)
        wrong, equal, named = wrong + more, equal + (not different), named + different
    counts = made, count, refused, count * lines, wrong, f"{equal} of {count}"
    return [algorithm, *map(str, counts), *named]


def main() -> int:
    """Prints the table, and what differs. -> exit code"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--kills", type=count, default=15, help="of each algorithm")
    parser.add_argument("--iterations", type=count, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--out", type=writable, help="folder of kills.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    arithmetic.TRAIN_SIZE = 300  # ten thousand problems take each start a second
    runs.plot_run = lambda rows, path, title: write_text(path, title)  # most kills would fall into the drawing of a real picture
    with tempfile.TemporaryDirectory() as work:
        with redirect_stdout(StringIO()):  # imports what is imported late
            vine_mini(["sample", "--n", "1"])
        found = [kill_and_compare(a, args.kills, args.iterations, Path(work), random.Random(args.seed)) for a in args.algorithms]
    text = f"{machine('cpu', 1)}\n\n{columns([list(NAMES), *(row[: len(NAMES)] for row in found)])}\n"
    if args.out:
        write_text(args.out / "kills.md", text)
    print(text)
    wrong = [f"{row[0]}: {name}" for row in found for name in row[len(NAMES) :]]
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    command(main)
