"""Runs a user's own Python file, the only outside code that the package runs, and limits the time of a block of code."""

import hashlib
import importlib.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path

from vine_mini.types import UserError

OWN_MISTAKES = (Exception, SystemExit, GeneratorExit)  # what a user's file may raise; Ctrl-C is not the file's


@contextmanager
def time_limit(seconds: float):
    """Raises TimeoutError in a block that takes longer. There is no limit in other threads than the main one, and on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError(f"it takes more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def load_file(name: str, what: str, needed: Sequence[str]):
    """Runs a Python file once in a process. -> its module

    Args:
        name: the path.
        what: the kind of file, for messages, such as "task".
        needed: names that the file must define.

    Raises UserError where the file is missing, does not import or lacks a name.
    """
    path = Path(os.path.expanduser(name)).resolve()  # `Path.expanduser` raises where there is no such user
    if not path.is_file():
        raise UserError(f"there is no {what} file {path}")
    module = _run(path)
    missing = [each for each in needed if not hasattr(module, each)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: a {what} needs {', '.join(needed)}")
    return module


def told(function: Callable, path: Path, returns=object, fits: Callable | None = None) -> Callable:
    """The function of a user's file, whose mistakes become UserErrors that name the line. A wrapped one is returned unchanged.

    Args:
        returns: the type that the function must return.
        fits: whether a returned value of this type is right.
    """
    if hasattr(function, "told"):
        return function

    @wraps(function)
    def call(*args, **more):
        try:
            found = function(*args, **more)
        except UserError:
            raise
        except OWN_MISTAKES as error:
            raise UserError(_says(error, path)) from error
        right = isinstance(found, returns)
        if not right or (fits and not fits(found)):
            what = repr(found)[:100] if right else type(found).__name__
            raise UserError(f"{path}: {getattr(function, '__name__', 'a function')}() returned {what}")
        return found

    call.told = True  # type: ignore[attr-defined]
    return call


def _says(error: BaseException, path: Path) -> str:
    return f"{path}, line {_line(error, path)}: {type(error).__name__}: {' '.join(str(error).split())}"


@cache
def _run(path: Path):
    # The module's name is a hash of the path, so it cannot replace a module that is imported under the file's own name.
    spec = importlib.util.spec_from_file_location(f"own_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look their module up here
    try:
        vars(module)["__digest__"] = hashlib.sha256(path.read_bytes()).hexdigest()
        spec.loader.exec_module(module)
    except OWN_MISTAKES as error:
        del sys.modules[spec.name]
        raise UserError(_says(error, path)) from error
    return module


def _line(error: BaseException, path: Path) -> int | str:
    """The line of the file at which it failed. A syntax error has no frame in the file, but knows its line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else getattr(error, "lineno", None) or "?"
