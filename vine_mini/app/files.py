"""Files and folders that a crash leaves whole, and a lock for a folder that one process alone may write into.

What replaces something is written beside it, under its name and `.partial`, and then renamed. A process that is killed, or a disk
that is full, therefore leaves the old thing or the new one. The next write removes what an interrupted one has left.
"""

import json
import os
import shutil
import socket
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from safetensors import SafetensorError

from vine_mini.health import Diverged
from vine_mini.types import UserError

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole(path: Path):
    """Yields a name beside `path`, for a file, folder or link. It is renamed to `path` where the block ends without an error.

    A file and a link replace an older one. A folder replaces only an empty one. Raises UserError where `path` cannot be written.
    """
    fresh = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(fresh)
        yield fresh
        fresh.replace(path)
    except BaseException as error:
        _remove(fresh)
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:  # the last one is of tokenizers
            raise
        raise UserError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def new_folder(out: str | None, name: str) -> Path:
    """The folder that `--out` names, which must be empty or absent, or else a new name under runs/. Nothing is created yet.

    Raises UserError where the folder cannot be written, before hours of training.
    """
    path = free_name(Path("runs") / name) if out is None else Path(out)
    if path.is_symlink():
        path = Path(os.path.realpath(path))  # a folder cannot be renamed to a link
    if path.name in ("", "..") or path.is_mount():  # nothing can be renamed to it
        raise UserError(f"--out {path}: name a folder inside it")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already holds something: choose another --out, or remove it")
    check_writable(path)
    return path


def free_name(path: Path) -> Path:
    """`path`, or where that is taken, its name with the first free number at the end."""
    return next(p for n in count(1) if not os.path.lexists(p := path if n == 1 else path.with_name(f"{path.name}-{n}")))


def check_writable(path: Path) -> None:
    """Raises UserError where `path` cannot be created: its nearest existing parent is no folder, or may not be written to.

    A name of more than 200 bytes is refused too: the file systems' usual limit is 255, and longer names are made from it.
    """
    if len(os.fsencode(path.name)) > 200:
        raise UserError(f"{path}: this name is too long")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{path} cannot be written: {parent} is not a folder that may be written to")


def file_to_write(path: Path) -> Path:
    """The file that a new one will replace, which is where the links of `path` lead. Raises UserError for what is no file."""
    path = Path(os.path.realpath(path))
    if not path.name:
        raise UserError(f"{path} is a folder: name a file in it")
    check_writable(path)
    for taken in (path, _beside(path)):
        if taken.exists() and not taken.is_file():
            raise UserError(f"{taken} is a folder or no regular file: name another file")
    return path


def write_text(path: Path, text: str) -> None:
    """Writes a text file, or replaces it. Raises UserError where that is impossible; an old file then stays as it is."""
    with whole(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def discard(folder: Path) -> None:
    """Removes a folder, if it is there. It is gone in one moment, not file by file."""
    _remove(_beside(folder))
    if folder.is_dir():
        folder.rename(_beside(folder))
        _remove(_beside(folder))


def read_rows(path: Path) -> list[dict]:
    """The rows of a file of JSON lines; none if there is no file. A last line without its end was cut by a crash and is left out.

    Raises UserError for a file that is not text, and for another line that is no JSON object.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], 1):  # a cut may be in a character
        try:
            rows.append(json.loads(line.decode()))
            if not isinstance(rows[-1], dict):
                raise ValueError
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text; move it away to go on") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON, or no object; mend the line to go on") from error
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """Writes a file of JSON lines, or replaces it. Raises UserError where that is impossible."""
    write_text(path, "".join(map(_line, rows)))


def append_row(path: Path, row: dict) -> None:
    """Appends one JSON line. Raises UserError where that is impossible; `read_rows` leaves out a line that was cut meanwhile."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def write_diverged(folder: Path, error: Diverged, **more) -> None:
    """Writes what is known of a training that diverged to diverged.json, and names this file in the error's message."""
    write_text(folder / "diverged.json", json.dumps({"error": str(error)} | error.found | more))
    error.args = (f"{error}; {folder / 'diverged.json'} has the ids and the metrics",)


@contextmanager
def locked(folder: Path):
    """Keeps other processes that ask for this lock out of a folder. Raises UserError, which names the process that has the lock.

    The system takes the lock from a process that has ended, so a stale one does not exist.
    """
    if fcntl is None:
        yield
        return
    path = folder / "lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file.fileno()).st_nlink:  # the other process has just ended and removed the file
                raise BlockingIOError
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise UserError(f"{folder} is in use by {file.read() or 'another process'}: wait for it, or end it") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
