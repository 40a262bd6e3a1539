"""Each command once in a process that may open no socket, unpickle nothing and start no other process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GUARDED = """
import pickle, shutil, sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib.font_manager  # asks the system for fonts when it is imported for the first time
import torch
from vine_mini import cli, tasks
from vine_mini.lengthgen import parts
from vine_mini.study import command, runs
from vine_mini.tasks import arithmetic

arithmetic.TRAIN_SIZE = 300
parts.ROWS = parts.SIX = parts.RATED = ["copy"]
parts.SHORT = {"copy": parts.SHORT["copy"]}
whole = command.jobs
command.jobs = lambda claim, of: [job | dict(limits=dict(seconds=0.2), problems=4) for job in whole(claim, of)][:2]
runs.ProcessPoolExecutor = ThreadPoolExecutor  # `study` announces its processes: --workers

FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "pty.", "pickle.")
running, ran = "", set()


def hook(event, arguments):
    if running == "exercises" and event == "os.fork":  # the board grades each answer in a child, which it stops after 5 seconds
        return
    if event.startswith(FORBIDDEN) and event != "socket.gethostname":  # the name goes into the lock of a run folder
        if not (running.startswith("doctor") and event.startswith("socket.")):  # it asks the Hub about presets, and does without
            print(f"FORBIDDEN in {running}: {event} {arguments}", flush=True)
        raise PermissionError(event)


def refuse(*args, **kwargs):
    raise PermissionError("unpickling")


sys.addaudithook(hook)
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
small = "--steps 2 --prompts 2 --group 2 --minibatch_size 4 --k 1 --device cpu"
few = "--eval_problems 2 --eval_samples 1"
sweep = "--encodings nope alibi --seeds 0 1 --updates 2 --hidden 32 --layers 2 --heads 2 --examples 2 --processes 1 --device cpu"
for line in f'''
demo --seconds 0.1 --problems 2 --out demo
sft --updates 1 --batch_size 2 --hidden 16 --layers 1 {few} --out tiny
train {small} {few} --iterations 2 --eval_every 1 --validation 2 --keep_every 1 --algorithm ppo --out run
train --resume run --iterations 3
evaluate --policy run/policy --problems 2 --n 1 --out numbers.json
sample --policy run/policy --n 1
credit --run run --k 1 --group 2 --out page
credit-cost {small} --problems 2 --pool 4 --ks 1 --out cost
analyze values --run run --problems 2 --responses 1 --truth 4 --ks 1 --states 2 --choices 2 --out values
study --quick --claims accuracy --workers 1 --out claims
doctor {small} --seconds 0.1
exercises
lengthgen --task copy --train_lengths 2 3 --test_lengths 4 4 {sweep} --out sweep
lengthgen study --quick --parts rows --processes 1 --out paper
lengthgen rank sweep --out rank
lengthgen attention sweep --examples 1
lengthgen probe sweep --examples 2
lengthgen theory --length 7 --out theory
lengthgen full-size --task copy --train_lengths 2 3 --test_lengths 4 4 {sweep} --out full
'''.strip().splitlines():
    running = line
    code = cli.main(line.split())
    assert code == 0, f"{line}: {code}"
    ran.add(max((name for name in cli.COMMANDS if f"{line} ".startswith(f"{name} ")), key=len))
assert ran == set(cli.COMMANDS), set(cli.COMMANDS) - ran
print("all ran")
"""


@pytest.mark.slow
def test_no_command_opens_a_socket_unpickles_or_starts_a_process(tmp_path):
    """Some commands announce processes: `study` runs its jobs in threads here, a sweep of `lengthgen` has --processes 1, and the
    board of `exercises` may fork."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (tmp_path / "tutorials").symlink_to(ROOT / "tutorials")  # for `exercises`
    done = subprocess.run([sys.executable, "-c", GUARDED], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "FORBIDDEN" not in done.stdout and done.stdout.endswith("all ran\n"), done.stdout[-500:] + done.stderr[-2000:]
