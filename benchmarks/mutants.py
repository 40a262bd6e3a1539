"""Puts one small mistake after the other into the mathematics, and counts those that the tests notice.

    python -m benchmarks.mutants --out results/reliability

A mutant is a module with one change: another comparison, operator, function, number, truth value, text or returned value. The
tests of the module run until the first failure. A mutant that no test notices is listed with its line. Some of these are
*equivalent*: they compute the same for every input. EQUIVALENT names each of them with the reason. Results are kept in
mutants.json after each module, and a second call makes what is missing. A mutant counts as noticed where it computes for more
than a minute, takes more than three, or needs more than MEMORY.
"""

import argparse
import ast
import importlib.abc
import importlib.machinery
import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tqdm import tqdm

from benchmarks.common import command, count, machine, writable
from vine_mini.app.files import write_text
from vine_mini.app.tables import columns

ROOT = Path(__file__).parents[1]
TESTS = {  # module -> its tests
    "steps": "test_steps.py",
    "values": "test_values.py",
    "advantages": "test_advantages.py",
    "losses": "test_losses.py",
    "logprobs": "test_logprobs.py",
    "divisors": "test_divisors.py",
    "decoder.positions": "decoder",
    "decoder.later": "decoder",
    "tasks.gsm8k": "tasks/test_gsm8k.py",
    "tasks.jsonl": "tasks/test_jsonl.py",
    "tasks.math": "tasks/test_math.py",
    "tasks.math_equal": "tasks/test_math.py",
}
ONE_COLUMN = "there is only one column"
BOUNDARY = "differs only where a deviation is exactly the limit"
SAME_LENGTH = "the lists have the same length at this place"
OWN_BUCKET = "the bucket of a distance below 16 is the distance itself"
ALL_KEPT = "with p at least 1 no frequency is left out"
PADDING = "padding may hold any finite number here, because it is left out later"
ANY_POINT = "formulas are compared at other points"
PRECISION = "the digits are more than the comparison needs"
DRAW = "(-1) ** point {} random.Random(f'{{x}} {{point}}').randint(1, 10 ** 6)"
CLOSE = "abs(p - q) {} min(1e-40 * abs(q), 1e-30) + 1e-80"
ASKS = "math-verify does not read formulas: is antlr4-python3-runtime installed?"
GPU = "input_ids.is_cuda {}not torch.is_autocast_enabled('cuda'){}"
A_MASK = "with padding on the right a mask changes the time, not the result"
BRACES = "{'{': 1, '}': -1}.get(brace[0], 0)"
ANY_TWO = "any two answers show whether the process runs"
A_LIMIT = "another limit of processor time or memory, and comparisons within both limits have the same verdict"
# (module, description without the line) -> why no test can tell it from the module
EQUIVALENT: dict[tuple[str, str], str] = {
    ("losses", "clipped_policy_loss: 0.0 -> 1.0"): PADDING,
    ("losses", "clipped_policy_loss: 0.0 -> -1.0"): PADDING,
    ("losses", "value_loss: 0.0 -> 1.0"): PADDING,
    ("losses", "value_loss: 0.0 -> -1.0"): PADDING,
    ("advantages", "whiten: 0.0 -> 1.0"): PADDING,
    ("advantages", "whiten: 0.0 -> -1.0"): PADDING,
    ("advantages", "gae: 0 -> -1"): "any column has the shape that is needed",
    ("advantages", "group_relative: std > ROUNDING -> std >= ROUNDING"): BOUNDARY,
    ("advantages", "whiten: std > ROUNDING -> std >= ROUNDING"): BOUNDARY,
    ("advantages", "step_advantages: True -> False"): SAME_LENGTH,
    ("advantages", "step_advantages: 1 -> 0"): "B_0 is then computed once more, from V(s_0) alone",
    ("advantages", "spread_to_tokens: True -> False"): SAME_LENGTH,
    ("advantages", "spread_to_tokens: True -> False (2)"): SAME_LENGTH,
    ("logprobs", "response_logprobs: 1.0 -> 0.0"): "temperature 0 is scored at 1",
    ("logprobs", "score: 0 -> -1"): ONE_COLUMN,
    ("logprobs", "response_values: 0 -> -1"): ONE_COLUMN,
    ("logprobs", "score: -1 -> +1"): "the last dimension of a matrix is dimension 1",
    ("logprobs", "response_logprobs: True -> False"): "both are split into equally many pieces",
    ("logprobs", "hidden_before: False -> True"): "a cache that nobody reads costs memory only",
    ("logprobs", "response_logprobs: False -> True"): "both kinds of checkpoint compute the same here",
    ("logprobs", f"hidden_before: {GPU.format('and (', ')')} -> {GPU.format('or ', '')}"): A_MASK,
    ("logprobs", "hidden_before: not torch.is_autocast_enabled('cuda') -> not not torch.is_autocast_enabled('cuda')"): A_MASK,
    ("logprobs", "hidden_before: 'cuda' -> 'cudaXX'"): A_MASK,
    ("decoder.positions", "freqs_cis: 1.0 -> 2.0"): ALL_KEPT,
    ("decoder.positions", "freqs_cis: 1 -> 2"): ALL_KEPT,
    ("decoder.positions", "freqs_cis: p < 1 -> p <= 1"): ALL_KEPT,
    ("decoder.positions", "rope: 1.0 -> 2.0 (2)"): ALL_KEPT,
    ("decoder.positions", "freqs_cis: 2 -> 1"): "1 is odd, and refused for that",
    ("decoder.positions", "t5_bucket: distance < exact -> distance <= exact"): "both give the same bucket there",
    ("decoder.positions", "t5_bucket: 1 -> 2 (2)"): OWN_BUCKET,
    ("decoder.positions", "t5_bucket: 1 -> 0 (2)"): OWN_BUCKET,
    ("tasks.jsonl", "_is_number: set(text) <= OF_NUMBERS -> set(text) < OF_NUMBERS"): "no number has all these characters",
    ("tasks.math", "_comparer: '-P' -> '-PXX'"): "Python reads it as -P and an option -X of no meaning",
    ("tasks.math", "_comparer: 1 -> 0"): "without a buffer each line is written at once too",
    ("tasks.math", "module: '-?[1-9]\\\\d*|0' -> '-?[1-9]\\\\d*|0XX'"): "the process compares 0 with integers in the same way",
    ("tasks.math", f"extract_answer: depth += {BRACES} -> depth -= {BRACES}"): "depth is counted with the other sign",
    ("tasks.math", "extract_answer: 1 -> 2 (3)"): "what stands after the first end is not read",
    ("tasks.math", "extract_answer: 1 -> 0 (3)"): "what stands after the first end is not read",
    ("tasks.math", "problems: '0.5' -> '0.5XX'"): ANY_TWO,
    ("tasks.math", "problems: '1/2' -> '1/2XX'"): ANY_TWO,
    ("tasks.math_equal", "module: 1.0 -> 2.0"): A_LIMIT,
    ("tasks.math_equal", "module: 1 -> 2"): A_LIMIT,
    ("tasks.math_equal", "module: 30 -> 31"): A_LIMIT,
    ("tasks.math_equal", "module: 30 -> 29"): A_LIMIT,
    ("tasks.math_equal", "module: 'none' -> 'noneXX'"): "math-verify asks whether it is 'all' or 'last'",
    ("tasks.math_equal", "_values: 'no_fallback' -> 'no_fallbackXX'"): "math-verify asks whether it is 'first_match'",
    ("tasks.math_equal", "_values: 0 -> -1"): "without a fallback there is one reading",
    ("tasks.math_equal", "_enclosed: 4 -> 5"): "the fourth part is an empty text that nobody reads",
    ("tasks.math_equal", "_parts: 0 -> 1 (5)"): "the minimum of 0 and 1 is the minimum of 0 and 0",
    ("tasks.math_equal", "_values: 1 < size < mpmath.mpf(10) ** DIGITS -> 1 <= size < mpmath.mpf(10) ** DIGITS"): "log 1 is 0",
    ("tasks.math_equal", "_values: 1 -> 2 (2)"): "from 1 to 2 the logarithm, rounded down, is 0",
    ("tasks.math_equal", f"_values: {DRAW.format('*')} -> {DRAW.format('/')}"): ANY_POINT,
    ("tasks.math_equal", "_values: 1 -> 2"): ANY_POINT,
    ("tasks.math_equal", "_values: 1 -> 0"): ANY_POINT,
    ("tasks.math_equal", "_values: 10 ** 6 -> 10 * 6"): ANY_POINT,
    ("tasks.math_equal", "_values: 10 ** 5 -> 10 * 5"): ANY_POINT,
    ("tasks.math_equal", "_values: 1 -> 2 (3)"): ANY_POINT,
    ("tasks.math_equal", "_values: 10 -> 11"): ANY_POINT,
    ("tasks.math_equal", "_values: 10 -> 9"): ANY_POINT,
    ("tasks.math_equal", "_values: 6 -> 7"): ANY_POINT,
    ("tasks.math_equal", "_values: 6 -> 5"): ANY_POINT,
    ("tasks.math_equal", "_values: 10 -> 11 (2)"): ANY_POINT,
    ("tasks.math_equal", "_values: 10 -> 9 (2)"): ANY_POINT,
    ("tasks.math_equal", "_values: 5 -> 6"): ANY_POINT,
    ("tasks.math_equal", "_values: 5 -> 4"): ANY_POINT,
    ("tasks.math_equal", "_values: 50 -> 51"): PRECISION,
    ("tasks.math_equal", "_values: 50 -> 49"): PRECISION,
    ("tasks.math_equal", "_values: 0 -> 1 (2)"): PRECISION,
    ("tasks.math_equal", "_values: 0 -> -1 (2)"): PRECISION,
    ("tasks.math_equal", "_values: 15 -> 14"): PRECISION,
    ("tasks.math_equal", f"close: {CLOSE.format('<=')} -> {CLOSE.format('<')}"): BOUNDARY,
    ("tasks.math_equal", f"module: {ASKS!r} -> {ASKS + 'XX'!r}"): "a message",
    ("tasks.math_equal", "module: 1 -> 2 (4)"): "any exit code but 0 says that the answers differ",
}
LIMIT = 60  # seconds of processor time
MEMORY = 8 * 2**30  # bytes of address space
OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
PAIRS = ("min", "max"), ("minimum", "maximum"), ("sum", "mean"), ("any", "all")
NAMES = dict(PAIRS) | {second: first for first, second in PAIRS}


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(description, source) of each mutant: line, function, and what changes. Equal ones of a function are numbered."""
    seen: Counter[str] = Counter()
    original = ast.parse(source)
    functions = {n: f.name for f in ast.walk(original) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}  # the innermost
    for index, node in enumerate(ast.walk(original)):
        for variant in range(2):
            tree = ast.parse(source)
            target = [*ast.walk(tree)][index]
            if not _change(target, variant, tree):
                break
            what = f"{functions.get(node, 'module')}: {ast.unparse(node)} -> {ast.unparse(target)}"
            seen[what] += 1
            number = "" if seen[what] == 1 else f" ({seen[what]})"
            yield f"line {getattr(node, 'lineno', '?')}, {what}{number}", ast.unparse(tree)


def _change(node: ast.AST, variant: int, tree: ast.Module) -> bool:
    """Makes the change with this number to a node. -> whether there is one"""
    if isinstance(node, ast.Compare | ast.BoolOp | ast.BinOp | ast.AugAssign) and variant == 0:
        operator = node.ops[0] if isinstance(node, ast.Compare) else node.op
        other = OPERATORS.get(type(operator))
        if other is None:
            return False
        if isinstance(node, ast.Compare):
            node.ops[0] = other()
        else:
            node.op = other()
        return True
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub) and variant == 0:
        if isinstance(node.op, ast.USub):
            node.op = ast.UAdd()
        else:
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        return True
    if isinstance(node, ast.Constant) and not _is_text(node, tree):
        if isinstance(node.value, bool):
            node.value = not node.value
            return variant == 0
        if isinstance(node.value, int | float):
            node.value += (1, -1)[variant]
            return True
        if isinstance(node.value, str):
            node.value += "XX"
            return variant == 0
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant) and variant == 0:
        node.value = ast.Constant(None)
        return True
    if isinstance(node, ast.Attribute | ast.Name) and variant == 0:
        name = "attr" if isinstance(node, ast.Attribute) else "id"
        if getattr(node, name) in NAMES and isinstance(node.ctx, ast.Load):
            setattr(node, name, NAMES[getattr(node, name)])
            return True
    return False


def _is_text(node: ast.Constant, tree: ast.Module) -> bool:
    """Whether a constant is a docstring, a part of a message, an annotation, or the size of a cache in a decorator."""
    for parent in ast.walk(tree):
        if any(n is node for each in getattr(parent, "decorator_list", []) for n in ast.walk(each)):
            return True
        if isinstance(parent, ast.Expr) and parent.value is node:
            return True
        if isinstance(parent, ast.Raise | ast.JoinedStr | ast.AnnAssign | ast.arg) and any(n is node for n in ast.walk(parent)):
            return not (isinstance(parent, ast.AnnAssign) and parent.value and any(n is node for n in ast.walk(parent.value)))
    return False


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source."""

    def __init__(self, name: str, source: str):
        self.name, self.source = name, source

    def find_spec(self, fullname, path=None, target=None):
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self.name else None

    def exec_module(self, module):
        module.__file__ = str(ROOT / f"{self.name.replace('.', '/')}.py")
        exec(compile(self.source, module.__file__, "exec"), module.__dict__)


def noticed(module: str, source: str, tests: str) -> bool:
    """Whether a test fails with this source. The tests run in a process of their own, which forks from this one."""
    with TemporaryDirectory() as folder:
        return _noticed(module, source, tests, folder)


def _noticed(module: str, source: str, tests: str, folder: str) -> bool:
    process = os.fork()
    if not process:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(3 * LIMIT)
        os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide a missing flush
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        for name, loaded in [*sys.modules.items()]:
            if (getattr(loaded, "__file__", None) or "").startswith((f"{ROOT / 'vine_mini'}/", f"{ROOT / 'tests'}/")):
                del sys.modules[name]  # the package and the tests are imported again, with the change
        sys.meta_path.insert(0, _Finder(f"vine_mini.{module}", source))
        code = 1
        try:
            if module == "tasks.math_equal":  # a script that `tasks.math` starts, and looks for beside its own file
                Path(folder, "math_equal.py").write_text(source, encoding="utf-8")
                importlib.import_module("vine_mini.tasks.math").__file__ = f"{folder}/math.py"
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(ROOT / "tests" / tests)])
        finally:
            os._exit(int(code))
    return os.waitpid(process, 0)[1] != 0


def measure(module: str, tests: str, processes: int, is_noticed: Callable = noticed) -> dict:
    """-> {"mutants": how many, "survived": descriptions}. Raises RuntimeError where the tests fail without a mistake."""
    source = (ROOT / "vine_mini" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    if is_noticed(module, ast.unparse(ast.parse(source)), tests):
        raise RuntimeError(f"the tests of {module} fail without any change")
    every = [*mutants(source)]
    with ThreadPoolExecutor(processes) as pool:
        found = pool.map(lambda mutant: is_noticed(module, mutant[1], tests), every)
        shown = tqdm(zip(every, found, strict=True), desc=module, total=len(every), dynamic_ncols=True)
        survived = [what for (what, _), caught in shown if not caught]
    return {"mutants": len(every), "survived": survived}


def table(results: dict) -> str:
    """Mutants by module, then every one that survived and is not equivalent."""
    rows = [["module", "mutants", "noticed", "equivalent", "neither", "noticed of those that are not equivalent, %"]]
    totals, left = [0, 0, 0], []
    for module, found in results.items():
        same = [what for what in found["survived"] if (module, what.split(", ", 1)[1]) in EQUIVALENT]
        left += [f"- {module}, {what}" for what in found["survived"] if what not in same]
        numbers = [found["mutants"], found["mutants"] - len(found["survived"]), len(same)]
        totals = [a + b for a, b in zip(totals, numbers, strict=True)]
        rows.append([module, *_cells(*numbers)])
    rows.append(["all", *_cells(*totals)])
    return "\n".join([columns(rows), "", "Not noticed, and not equivalent:", "", *(left or ["- none"])])


def _cells(made: int, caught: int, same: int) -> list[str]:
    return [str(made), str(caught), str(same), str(made - caught - same), f"{100 * caught / max(1, made - same):.1f}"]


def main():
    """Measures the modules that are not in mutants.json yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", choices=list(TESTS), default=list(TESTS), help="names of modules")
    parser.add_argument("--processes", type=count, default=2, help="mutants at the same time")
    parser.add_argument("--out", type=writable, required=True, help="folder for mutants.json and mutants.md")
    arguments = parser.parse_args()
    path = arguments.out / "mutants.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    import transformers  # noqa: F401 (each forked process then has it already)

    for module in arguments.modules:
        if module not in results:
            results[module] = measure(module, TESTS[module], arguments.processes)
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(results, indent=1) + "\n")
    text = f"{table(results)}\n\n{machine('cpu', 1)}\n"
    print(text)
    write_text(arguments.out / "mutants.md", text)


if __name__ == "__main__":
    command(main)
