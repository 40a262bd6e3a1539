"""The shape of the package: which way imports point, and how long things may be. Read FLOORS as a table of contents."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vine_mini"

# From the ground up. A file uses files of its own floor or of the floors below it.
FLOORS = [
    ["types", "health", "loading", "steps", "values", "advantages", "losses", "offline", "divisors", "hardware"],
    ["logprobs", "decoder"],
    ["sampling", "tasks", "models"],
    ["algorithms", "evaluate"],
    ["trainer", "self_training"],
    ["app"],
    ["credit_page", "credit_cost", "value_errors", "doctor", "lengthgen", "study", "integrations"],
    ["demo"],
    ["cli", "__main__"],
]
# The files of one VinePPO iteration, in reading order.
LESSON = "types steps values advantages losses logprobs tasks/__init__ sampling/plain algorithms trainer".split()
OUTSIDE = {  # packages that a room may import, besides torch, transformers, tqdm and numpy
    "models": {"tokenizers", "bitsandbytes", "huggingface_hub"},
    "decoder": {"tokenizers"},
    "tasks": {"datasets", "math_verify", "latex2sympy2_extended", "sympy", "mpmath"},  # all but the first only for MATH
    "app": {"yaml", "safetensors", "matplotlib"},
    "credit_page": {"jinja2"},
    "integrations": {"trl", "datasets"},
}


def name_of(path: Path) -> str:
    """The path inside the package, with dots: sampling.fast.probe, tasks for tasks/__init__.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@cache
def files() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def floor_of(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name.split(".")[0] in rooms)


@cache
def imports(path: Path) -> tuple[set[str], set[str]]:
    """-> files of this package, outside packages"""
    names = {name_of(p) for p in files()}
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            if node.module.split(".")[0] != "vine_mini":
                outside.add(node.module.split(".")[0])
                continue
            room = node.module.removeprefix("vine_mini").removeprefix(".")
            for alias in node.names:
                full = f"{room}.{alias.name}".removeprefix(".")
                inside.add(full if full in names else room)
    return inside, outside - set(sys.stdlib_module_names)


def test_every_file_has_a_floor():
    assert {name_of(p).split(".")[0] for p in files()} == {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    inside, outside = imports(path)
    for other in inside:
        assert floor_of(other) <= floor_of(name), f"{name} imports {other}, which is on a higher floor"
    room = name.split(".")[0]
    allowed = {"torch"} if floor_of(name) == 0 else {"torch", "transformers", "tqdm", "numpy"} | OUTSIDE.get(room, set())
    assert outside <= allowed, f"{name} imports {sorted(outside - allowed)}"


def test_no_imports_in_a_circle():
    waiting = {name_of(p): imports(p)[0] - {name_of(p)} for p in files()}
    while waiting:
        free = [name for name, needed in waiting.items() if not needed & set(waiting)]
        assert free, f"a circle among {sorted(waiting)}"
        for name in free:
            del waiting[name]


def test_length_generalization_knows_nothing_of_reinforcement_learning():
    """It shares the sampler, models and app's files, fields and pictures. Neither it nor what it imports knows an algorithm."""
    of = {name_of(p): imports(p)[0] for p in files()}
    reached = {name for name in of if name.startswith("lengthgen.")}
    while more := set().union(*(of[name] for name in reached)) - reached:
        reached |= more
    lesson = {
        "steps",
        "values",
        "advantages",
        "losses",
        "divisors",
        "algorithms",
        "trainer",
        "self_training",
        "offline",
        "evaluate",
    }
    assert not {name.split(".")[0] for name in reached} & (lesson | {"tasks", "study"})


def test_nothing_in_the_package_imports_another_engine():
    for path in files():
        if name_of(path).split(".")[0] != "integrations":
            assert not any(name.startswith("integrations") for name in imports(path)[0]), path.name


def test_the_integrations_stay_small():
    assert sum(p.read_text().count("\n") for p in (PACKAGE / "integrations").rglob("*.py")) <= 675


def test_one_iteration_is_ten_short_files():
    lines = {name: (PACKAGE / f"{name}.py").read_text().count("\n") for name in LESSON}
    assert len(lines) == 10 and max(lines.values()) <= 300 and sum(lines.values()) <= 950, lines


def test_vineppo_is_flat_and_fits_on_a_screen():
    tree = ast.parse((PACKAGE / "algorithms.py").read_text())
    [vineppo] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "vineppo"]
    assert vineppo.end_lineno - vineppo.lineno < 40
    assert not any(isinstance(node, (ast.FunctionDef, ast.Lambda)) for node in ast.walk(vineppo) if node is not vineppo)


def test_what_the_lesson_imports_beside_itself_stays_small():
    """A reader of the lesson looks into these files too: models, evaluate, the sampler's entry, health, offline, divisors, ..."""
    lesson = [PACKAGE / f"{name}.py" for name in LESSON]
    more = set().union(*(imports(path)[0] for path in lesson)) - {name_of(path) for path in lesson}
    assert sum(p.read_text().count("\n") for p in files() if name_of(p) in more) <= 800, sorted(more)


def strings_and_names(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.Name):
            yield node.id


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_only_tasks_name_a_task_and_only_algorithms_an_algorithm(path):
    room, tree = name_of(path).split(".")[0], ast.parse(path.read_text())
    docstrings = {
        ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))
    }
    for text in set(strings_and_names(path)) - docstrings:
        if room not in ("tasks", "lengthgen"):
            assert "####" not in text and text not in ("gsm8k", "jsonl"), f"{path.name}: {text!r} belongs to tasks/"
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and room != "lengthgen":
            compared = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            assert not compared & {"vineppo", "ppo", "grpo", "rloo", "reinforce", "restem", "dpo"} or room in (
                "credit_page",
                "study",
            ), f"{path.name}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_files_and_functions_stay_short_and_public_ones_are_explained(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 300 and ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            nested = node not in tree.body and not any(node in c.body for c in tree.body if isinstance(c, ast.ClassDef))
            if not node.name.startswith("_") and not nested:
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name} is too long"


def test_nothing_a_model_wrote_is_run_and_no_pickle_is_read():
    """The one file that runs code is the loader of a user's own file."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__", "pickle.load", "torch.load"), (
                    f"{path.name}: {called}"
                )
                assert not called.endswith("exec_module") or name_of(path) == "loading", f"{path.name}: {called}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", f"{path.name} sets trust_remote_code"


def test_whoever_loads_a_policy_knows_the_decoder():
    """The Auto classes learn of it when its module is imported; nothing else in models.py seems to need that import."""
    assert "decoder.model" in imports(PACKAGE / "models.py")[0]
