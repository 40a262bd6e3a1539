"""Where a task comes from: a built-in module by its name, or a user's own Python file by its path."""

import hashlib
import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path

from vine_mini.tasks import arithmetic, decisive, gsm8k, jsonl, math
from vine_mini.types import UserError

BUILT_IN = {"arithmetic": arithmetic, "decisive": decisive, "gsm8k": gsm8k, "jsonl": jsonl, "math": math}
NAMES = ("TEMPLATE", "ANSWER_MARK", "DEFAULTS", "problems", "extract_answer", "reward")


def get(name: str):
    """The module of a task. `name` is a built-in name, or the path of a `.py` file, which is run once in a process.

    Raises UserError where the name is unknown, or where the file is missing, does not import or lacks a name that a task needs.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if not name.endswith(".py"):
        raise UserError(f"unknown task {name!r}: choose from {', '.join(BUILT_IN)}, or give the path of a .py file")
    return _load(Path(name).expanduser().resolve())


@cache
def _load(path: Path):
    if not path.is_file():
        raise UserError(f"there is no task file {path}")
    # The module's name is a hash of the path, so it cannot replace a module that is imported under the file's own name.
    spec = importlib.util.spec_from_file_location(f"task_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UserError(f"{path}, line {_line(error, path)}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    missing = [name for name in NAMES if not hasattr(module, name)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: a task needs {', '.join(NAMES)}")
    if "{question}" not in str(module.TEMPLATE):
        raise UserError(f"{path}: TEMPLATE must contain {{question}}")
    return module


def _line(error: BaseException, path: Path) -> int | str:
    """The line of the file at which it failed. A syntax error has no frame in the file, but knows its line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else getattr(error, "lineno", None) or "?"
