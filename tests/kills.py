"""Faults that a test can make and survive: a kill before a change of the file system, a full disk, a second process."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path


class Killed(BaseException):
    """What a kill looks like in this process: no `except` clause of the program catches it."""


_watched: dict = {"left": None, "below": ""}


def _at_each_change(event, arguments):
    """Raises instead of the n-th change of the file system below a folder, and instead of every later one."""
    if _watched["left"] is None:
        return
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, str) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event in ("os.rename", "os.symlink", "os.link"):
        path = arguments[1]
    elif event in ("os.mkdir", "os.remove", "os.rmdir"):
        path = _watched["below"] if arguments[-1] != -1 else arguments[0]  # shutil.rmtree names files by folder and name
    else:
        return
    if os.path.abspath(path).startswith(_watched["below"]):
        if _watched["left"] == 0:
            raise Killed
        _watched["left"] -= 1


@contextmanager
def killed_before_change(n: int, folder: Path):
    """Ends the block before its n-th change (from 0) of the file system below the folder. -> whether it was ended, as a list"""
    if not _watched["below"]:
        sys.addaudithook(_at_each_change)  # it cannot be removed, only kept silent
    _watched.update(left=n, below=str(folder.absolute()))
    ended = []
    try:
        yield ended
    except Killed:
        ended.append(True)
    finally:
        _watched["left"] = None


@contextmanager
def largest_file(size: int):
    """In the block, writing beyond so many bytes of a file fails, as it does on a full disk."""
    before, bytecode = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python would not notice that a file of compiled code was cut
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(f"process {os.getpid()} on moon"), file.flush()
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def locked_by_another_process(folder: Path):
    """In the block, another process has the lock of a folder. At its end that process is killed. -> the process"""
    command = [sys.executable, "-c", HOLDER, str(folder / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
