"""Worker processes that end when the process that has started them ends, in whatever way."""

import multiprocessing
import os
import threading

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's locks, and could not use a GPU


def end_with_parent() -> None:
    """In a worker: ends it with its parent. A killed parent ends no process, and the workers would go on or wait for ever."""
    if multiprocessing.parent_process():
        threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end():
    multiprocessing.parent_process().join()
    os._exit(1)
