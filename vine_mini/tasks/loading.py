"""Where a task comes from: a built-in module by its name, or a user's own Python file by its path."""

from vine_mini.loading import load_file
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
    module = load_file(name, "task", NAMES)
    if "{question}" not in str(module.TEMPLATE):
        raise UserError(f"{module.__file__}: TEMPLATE must contain {{question}}")
    return module
