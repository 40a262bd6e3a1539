"""What the tests of runs on TRL share: how a run is started and watched."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vine_mini.integrations import trl

ROOT = Path(__file__).parents[2]
needs_trl = pytest.mark.skipif(
    trl.GRPOTrainer is object, reason=f"TRL {trl.TESTED} is not installed: pip install 'trl=={trl.TESTED}.*'"
)
COMMAND = ["-m", "vine_mini.integrations.trl"]
SMALL = ["--prompts", "4", "--group", "2", "--k", "1", "--minibatch_size", "8", "--epochs", "1", "--device", "cpu"]
RUN = ["--preset", "arithmetic", "--steps", "3", *SMALL, "--save_every", "1"]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def launcher() -> list[str]:
    """The beginning of a command that starts two processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]


def begin(words, log, **more) -> subprocess.Popen:
    """Starts a command whose output goes into a file."""
    return subprocess.Popen(words, cwd=ROOT, env=environment() | more, stdout=log, stderr=log)


def finish(words, timeout=170):
    """Runs a command to its end."""
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout, check=False)


def wait_until(condition, process, seconds=120) -> None:
    """Until the condition holds, while the process runs."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.2)
    assert condition(), process.poll()


def child(process, rank: int) -> int:
    """The process with this rank that a launcher has started."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)
    raise AssertionError(f"no process with rank {rank}")
