"""The shape of the package: who may import whom, and how long things may be. Read it as a table of contents."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vine_mini"

# module -> (modules of this package it may import, outside packages it may import); the order is the reading order
ALLOWED = {
    "types": ([], ["torch"]),
    "config": (["types"], []),
    "flags": (["types", "config"], ["yaml", "transformers"]),
    "tasks.gsm8k": (["types"], ["datasets"]),
    "tasks.arithmetic": (["types"], []),
    "tasks": (["types", "tasks"], []),
    "logprobs": ([], ["torch"]),
    "lengthgen.positions": ([], ["torch"]),
    "lengthgen.model": (["logprobs", "lengthgen.positions"], ["torch", "transformers", "tokenizers"]),
    "models": (["types", "logprobs", "lengthgen.model"], ["torch", "transformers", "tokenizers"]),
    "decoding": (["logprobs"], ["torch", "transformers"]),
    "trunks": (["logprobs", "decoding"], ["torch", "transformers"]),
    "slots": (["logprobs", "decoding", "trunks"], ["torch", "transformers"]),
    "sharing": (["decoding", "trunks", "slots"], ["torch", "transformers"]),
    "sampling": (["types", "decoding", "slots", "sharing"], ["torch"]),
    "vines": (["types", "decoding", "sampling"], []),
    "steps": ([], []),
    "values": ([], []),
    "advantages": ([], ["torch"]),
    "losses": ([], ["torch"]),
    "algorithms": (["types", "tasks", "steps", "values", "advantages"], ["torch"]),
    "evaluate": (["types", "tasks", "logprobs", "losses", "sampling"], ["torch"]),
    "memory": (["logprobs"], []),
    "trainer": (["types", "tasks", "models", "sampling", "vines", "logprobs", "advantages", "losses", "algorithms", "evaluate", "memory"], ["torch", "tqdm"]),
    "checkpoint": (["types", "models"], ["safetensors"]),
    "page": ([], []),
    "plots": (["page"], ["matplotlib", "numpy"]),
    "runs": (["types", "flags", "checkpoint", "plots", "steps"], []),
    "sft": (["types", "tasks", "models", "logprobs", "losses"], ["torch", "tqdm"]),
    "lengthgen.languages": ([], []),
    "lengthgen.tasks": (["lengthgen.languages"], []),
    "lengthgen.scratchpad": (["lengthgen.tasks"], []),
    "lengthgen.config": (["types", "config", "lengthgen.positions", "lengthgen.tasks", "lengthgen.scratchpad"], []),
    "lengthgen.train": (["types", "logprobs", "sampling", "lengthgen.config", "lengthgen.model", "lengthgen.tasks", "lengthgen.scratchpad"], ["torch"]),
    "lengthgen.results": (["types", "lengthgen.config", "lengthgen.model", "lengthgen.train"], []),
    "lengthgen.sweep": (["types", "models", "lengthgen.config", "lengthgen.model", "lengthgen.tasks", "lengthgen.train", "lengthgen.results"], ["torch", "tqdm"]),
    "lengthgen.attention": (["lengthgen.config", "lengthgen.train", "lengthgen.results"], ["torch"]),
    "lengthgen.theory": (["lengthgen.model", "lengthgen.positions"], ["torch"]),
    "lengthgen.paper": ([], []),
    "lengthgen.report": (["types", "lengthgen.paper", "lengthgen.tasks"], []),
    "lengthgen.pictures": (["plots", "lengthgen.paper", "lengthgen.report", "lengthgen.tasks"], []),
    "lengthgen.commands": (["types", "runs", "lengthgen.config", "lengthgen.train", "lengthgen.results", "lengthgen.sweep", "lengthgen.report", "lengthgen.pictures", "lengthgen.attention", "lengthgen.theory"], ["torch", "tqdm"]),
    "commands": (["types", "config", "flags", "checkpoint", "tasks", "models", "sampling", "evaluate", "memory", "plots", "runs", "sft", "trainer"], ["torch", "tqdm"]),
    "credit": (["types", "config", "flags", "checkpoint", "tasks", "models", "logprobs", "sampling", "vines", "steps", "values", "advantages", "evaluate", "page", "plots", "runs", "trainer"], ["torch", "tqdm"]),
    "exercises": (["types"], []),
    "cli": (["types", "config", "flags", "commands", "credit", "exercises", "lengthgen.commands"], []),
}  # fmt: skip


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def files():
    return [
        p for p in sorted(PACKAGE.rglob("*.py")) if name_of(p) not in ("__init__", "__main__", "lengthgen.__init__", "lengthgen")
    ]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = node.module in ("vine_mini", "vine_mini.tasks", "vine_mini.lengthgen")
            found |= {f"{node.module}.{a.name}" for a in node.names} if inside else {node.module}
    return found


def test_every_module_is_in_the_table():
    assert {name_of(p) for p in files()} == set(ALLOWED)


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_imports_keep_the_direction(path):
    import sys

    ours, outside = ALLOWED[name_of(path)]
    for name in imports(path):
        if name.startswith("vine_mini."):
            assert any(name == f"vine_mini.{m}" or name.startswith(f"vine_mini.{m}.") for m in ours), (
                f"{path.name} imports {name}"
            )
        else:
            assert name.split(".")[0] in [*sys.stdlib_module_names, *outside], f"{path.name} imports {name}"


def test_whoever_loads_a_policy_knows_the_decoder():
    """The Auto classes learn of it when its module is imported; nothing else in models.py seems to need that import."""
    assert "vine_mini.lengthgen.model" in imports(PACKAGE / "models.py")


def test_nothing_reaches_back():
    order = list(ALLOWED)
    for name, (ours, _) in ALLOWED.items():
        for other in ours:
            assert other == name or order.index(other) < order.index(name), f"{name} reads {other}, which comes later"


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
    """Rule 9."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__", "pickle.load", "torch.load"), (
                    f"{path.name}: {called}"
                )
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                raise AssertionError(f"{path.name} sets trust_remote_code")
