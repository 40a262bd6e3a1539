"""How a process ends when it has lost another process or the vLLM server: with one line, and at once.

Cleaning up would wait for what is lost. So nothing is cleaned up, and the next run goes on from the last checkpoint.
"""

import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import torch

from vine_mini.types import UserError

RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # the launcher sets them
START_SECONDS = 60.0  # in which a server must answer for the first time
ANSWER_SECONDS, LOOK_SECONDS, FAILURES = 10.0, 5.0, 3  # for an answer to /health; between two questions; until it is lost


@contextmanager
def lost(folder: Path):
    """Yields `end(why)`: it writes one line, says how to go on with the run in `folder`, and ends the process with code 1.

    An error of the block that says that something was lost calls it. So does SIGTERM, if there are several processes. Raises
    UserError for a vLLM server that was started without what TRL needs, and where memory does not suffice.
    """

    def end(why) -> None:
        after = f"go on with --resume {folder}" if (folder / "policy").exists() else f"{folder} has no checkpoint yet"
        os.write(2, f"process {RANK} ends: {' '.join(str(why).split())[:300]}; {after}\n".encode())
        os._exit(1)

    if RANKS > 1:
        _hear_sigterm(lambda: end("SIGTERM, which a launcher sends where another process was lost"))
    try:
        yield end
    except Exception as error:
        if isinstance(error, RuntimeError) and re.search("vLLM server at|vLLM's NCCL", str(error)):
            raise UserError(str(error)) from error
        if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error)):
            raise UserError(f"not enough memory: lower --sample_batch_size or --micro_batch_tokens ({error})") from error
        gone = isinstance(error, (torch.distributed.DistError, ConnectionError)) or re.search("gloo|Request failed", str(error))
        if gone or type(error).__module__.startswith(("requests.", "urllib3.")):
            end(error)
        raise


def _hear_sigterm(act: Callable[[], None]) -> None:
    """Acts on SIGTERM in a thread. A handler in Python would wait while the main thread waits for another process."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writes)  # Python writes the number of each signal there at once

    def hear() -> None:
        while os.read(reads, 1)[0] != signal.SIGTERM:
            pass
        act()

    threading.Thread(target=hear, daemon=True).start()


def trouble(server: str) -> str:
    """-> why GET /health of the server fails; an empty string where it answers with status 200"""
    try:
        with urllib.request.urlopen(f"{server}/health", timeout=ANSWER_SECONDS) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except (OSError, ValueError, HTTPException) as error:
        return str(error) or type(error).__name__


def wait_for(server: str) -> None:
    """Waits until the server is healthy. Raises UserError after a minute."""
    start = time.monotonic()
    while why := trouble(server):
        if time.monotonic() - start > START_SECONDS:
            raise UserError(f"no vLLM server at {server}: /health gives {why}; start `vllm serve`, or correct the address")
        time.sleep(1)


def watch(server: str, end: Callable[[str], None]) -> None:
    """Calls `end` in a thread when the server has failed three times in a row: 45 seconds after its last answer at most.

    vLLM answers /health while it generates, so a long generation is no failure.
    """

    def look() -> None:
        failures, why = 0, ""
        while failures < FAILURES:
            time.sleep(LOOK_SECONDS)
            why = trouble(server)
            failures = failures + 1 if why else 0
        end(f"the vLLM server at {server} is lost: /health gives {why}")

    threading.Thread(target=look, daemon=True).start()
