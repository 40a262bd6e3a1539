"""Where a task comes from: a built-in module by its name, or a user's own Python file by its path."""

from pathlib import Path

from vine_mini.loading import OWN_MISTAKES, load_file, told
from vine_mini.tasks import arithmetic, decisive, gsm8k, jsonl, math
from vine_mini.types import Problem, UserError

BUILT_IN = {"arithmetic": arithmetic, "decisive": decisive, "gsm8k": gsm8k, "jsonl": jsonl, "math": math}
NAMES = ("TEMPLATE", "ANSWER_MARK", "DEFAULTS", "problems", "extract_answer", "reward")
FUNCTIONS = {"problems": object, "extract_answer": str | None, "reward": object, "demonstration": str, "step_starts": list}
ASKED = ("max_new_tokens", "eval_temperature", "steps")  # the config fields that are the task's where the user gives none
LISTS = "problems() must return two lists of Problem, whose three fields are text"
FITS = {
    "step_starts": lambda starts: all(type(start) is int and start >= 0 for start in starts) and starts == sorted(starts),
    "demonstration": lambda text: text.encode(errors="ignore").decode() == text,  # no half of a character, as of a cut emoji
}


def get(name: str):
    """The module of a task. `name` is a built-in name, or the path of a `.py` file, which is run once in a process.

    Raises UserError where the name is unknown, or where the file is missing, does not import or lacks a name that a task needs.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if not name.endswith(".py"):
        raise UserError(f"unknown task {name!r}: choose from {', '.join(BUILT_IN)}, or give the path of a .py file")
    module = load_file(name, "task", NAMES)
    limits = module.DEFAULTS if isinstance(module.DEFAULTS, dict) else {"": None}
    for right, says in (
        (isinstance(module.TEMPLATE, str) and "{question}" in module.TEMPLATE, "TEMPLATE must contain {question}"),
        (isinstance(module.ANSWER_MARK, str | None), "ANSWER_MARK must be text or None"),
        (all(type(x) in (int, float) for x in limits.values()), "DEFAULTS must be a dictionary of numbers"),
        (type(limits.get("max_new_tokens", 1)) is int, "DEFAULTS: max_new_tokens must be a whole number"),
        ({*limits} <= {*ASKED}, f"DEFAULTS must set no other field than {', '.join(ASKED)}"),
    ):
        if not right:
            raise UserError(f"{module.__file__}: {says}")
    for function, returns in FUNCTIONS.items():
        if hasattr(module, function):
            setattr(module, function, told(getattr(module, function), Path(module.__file__), returns, FITS.get(function)))
    return module


def load_problems(config) -> tuple[list[Problem], list[Problem]]:
    """The (train, test) problems of `config.task`. Raises UserError where a split is empty, or holds something else."""
    task, found = config.task, get(config.task).problems(config)
    try:
        train, test = (list(part) for part in found)  # a part may be a generator
        texts = [text for problem in {*train, *test} for text in (problem.question, problem.solution, problem.answer)]
        halves = [text for text in texts if isinstance(text, str) and text.encode(errors="ignore").decode() != text]
    except OWN_MISTAKES as error:
        raise UserError(f"{task}: {LISTS} ({type(error).__name__}: {error})") from error
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{task}: {LISTS}")
    if halves:
        raise UserError(f"{task}: {halves[0]!r} holds half a character, such as a cut emoji")
    if not (train and test):
        where = f": {config.data} holds no problem of it" if getattr(config, "data", None) else ""
        raise UserError(f"the {'test' if train else 'train'} split of {task} is empty{where}")
    return train, test
