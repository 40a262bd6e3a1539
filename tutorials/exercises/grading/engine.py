"""The grader. A learner's function, the package's own function and known wrong answers all go through `grade`.

An exercise is data: a reference function, small inputs, and wrong answers that people give. The grader compares the learner's
outcome with the outcome of the reference in float64. If the two differ, the grader runs the wrong answers on the same inputs. A
wrong answer with the learner's outcome names the mistake. The tests of this project grade every wrong answer in the same way.
"""

import builtins
import copy
import importlib.util
import inspect
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

import vine_mini
from vine_mini.loading import time_limit

FOLDER = Path(__file__).parents[1]  # holds the learner's files
TOLERANCE = 1e-9
SECONDS = 20  # time limit of one call
FEW = 25  # a message shows the numbers of a tensor with at most so many entries
OWN = tuple(f"{place}{os.sep}" for place in (Path(vine_mini.__file__).parent, Path(__file__).parent))  # the project's code


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        file: name of the learner's file, without .py.
        function: name of the function in it.
        reference: the package's own function.
        cases: () -> {name of the case: keyword arguments}, the smallest case first.
        wrong: functions that a learner might write. Each docstring completes the sentence "This is what comes out if ...".
        call: (function, **arguments) -> the outcome that is compared, if this is not simply the result.
        gradient: names of arguments. The gradient of the summed outcome with respect to them is compared as well.
    """

    file: str
    function: str
    reference: Callable
    cases: Callable
    wrong: list
    call: Callable = lambda function, **arguments: function(**arguments)
    gradient: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The learner's file."""
        return FOLDER / f"{self.file}.py"


def load(exercise: Exercise) -> Callable:
    """The learner's function. Raises AssertionError with one line if the file is not valid Python or lacks the function."""
    path = exercise.path
    assert path.is_file(), f"{path.name} is missing; `git checkout` restores it"
    spec = importlib.util.spec_from_file_location(exercise.file, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[exercise.file] = module  # dataclasses need this entry
    try:
        with _undisturbed(), _time_limit():
            spec.loader.exec_module(module)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise AssertionError(f"{path.name}, line {error.lineno}: Python cannot read it, {error.msg}: {line}") from None
    except (Exception, SystemExit) as error:
        raise AssertionError(f"importing {path.name} failed: {_where(error, path)}") from None
    function = getattr(module, exercise.function, None)
    assert callable(function), f"{path.name} has no function {exercise.function}"
    return function


def grade_file(exercise: Exercise) -> None:
    """Grades the learner's file as `grade` does, and refuses an answer that calls a function of the package or of the graders."""
    function, called = load(exercise), set()
    grade(exercise, _watched(function, called))
    assert not called, f"right, but this is the package's own {' and '.join(sorted(called))}: write it yourself"


def _watched(function, called):
    """The function, which adds to `called` the functions of this project that it calls.

    A call counts if no other code of this project stands between it and the answer: through a helper file, a decorator of PyTorch
    or a new thread too. What those functions call in turn does not count. Methods are allowed, because the grader hands over a
    model and a tokenizer. Another process is not watched, nor a thread that was there before.
    """

    def watch(frame, event, _):
        code = frame.f_code
        if event != "call" or not _own(code) or code.co_varnames[:1] == ("self",) or code.co_name.startswith("<"):
            return  # names such as <lambda> and <module> are the grader's hooks and imports
        caller = frame.f_back
        while caller and not _own(caller.f_code):
            caller = caller.f_back
        if caller is None or caller.f_code is answer.__code__:  # a thread has no caller
            called.add(code.co_name)

    def answer(*args, **kwargs):
        sys.setprofile(watch)
        threading.setprofile(watch)
        try:
            return function(*args, **kwargs)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    return answer


def _own(code) -> bool:
    return code.co_filename.startswith(OWN)


def grade(exercise: Exercise, function: Callable) -> None:
    """Returns if the function is right. Raises AssertionError with a message, or NotImplementedError for a stub."""
    for name, arguments in exercise.cases().items():
        expected = _run(exercise, exercise.reference, arguments)
        assert bool(expected.gradients) == bool(exercise.gradient)
        got = _run(exercise, function, arguments)
        at = _failing(got.outcome, expected.outcome)
        title = f'{exercise.function}, on "{name}":\n{_show_inputs(arguments, at)}'
        if got.error:
            raise AssertionError(f"{title}\n  {got.error}")
        difference = got.difference(expected)
        if difference:
            raise AssertionError(f"{title}\n  {difference}{_diagnosis(exercise, function, name)}")
        assert not got.changed, f"{title}\n  your function changed its input {got.changed} in place: work on a copy"


@dataclass
class _Run:
    outcome: object = None
    gradients: dict = field(default_factory=dict)  # name -> gradient or None; empty if the outcome needs none
    error: str = ""
    changed: str = ""

    def difference(self, other: "_Run") -> str:
        """The first difference between this outcome and the other, in words; "" if they agree."""
        found = _difference(self.outcome, other.outcome, "")
        if found:
            return f"{_compared(self.outcome, other.outcome)}\n  {found}"
        flows = any(x is not None and x.any() for x in other.gradients.values())
        if flows and not self.gradients:
            return "the loss is right, but no gradient flows from it: .item(), .detach() or no_grad prevents it"
        for name, right in other.gradients.items():
            mine = self.gradients.get(name)
            if right is None and mine is not None and mine.any():
                return f"the loss is right, but a gradient flows into {name}, which is a constant here: detach it"
            if right is None:
                continue
            mine = torch.zeros_like(right) if mine is None else mine
            found = _difference(mine, right, "")
            if found:
                shown = _compared(mine, right)
                return f"the loss is right, but its gradient with respect to {name} is wrong\n  {shown}\n  {found}"
        return ""


def _run(exercise: Exercise, function, arguments) -> _Run:
    """Calls a function on copies of the arguments, with float64 as the default."""
    own = copy.deepcopy(arguments)
    for name in exercise.gradient:
        own[name].requires_grad_()
    before = copy.deepcopy(arguments)
    try:
        with _undisturbed(), _time_limit():
            torch.set_default_dtype(torch.float64)
            outcome = exercise.call(function, **own)
            gradients = _gradients(outcome, own, exercise.gradient)
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError) and str(error).startswith(exercise.file[:4]):
            raise  # the stub's own error; torch raises NotImplementedError as well
        return _Run(error=_where(error, exercise.path))
    if inspect.iscoroutine(outcome):
        outcome.close()
        return _Run(error="the function is `async`, so a call does nothing: remove this word")
    changed = [name for name in own if _comparable(own[name]) and _difference(_detached(own[name]), before[name], "")]
    return _Run(_detached(outcome), gradients, changed=" and ".join(changed))


def _gradients(outcome, arguments, names) -> dict:
    tensors = [x for x in (outcome if isinstance(outcome, (list, tuple)) else [outcome]) if isinstance(x, torch.Tensor)]
    total = sum((x.sum() for x in tensors), torch.zeros(()))
    if not names or not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, [arguments[name] for name in names], allow_unused=True)
    return dict(zip(names, found, strict=True))


def _difference(got, expected, place: str) -> str:
    """The first place at which two outcomes differ, in words; "" if they agree."""
    here = f"at {place}: " if place else ""
    if isinstance(expected, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return f"{here}this must be a tensor, not {_kind(got)}"
        if got.shape != expected.shape:
            return f"{here}the shape is {list(got.shape)}, not {list(expected.shape)}"
        if got.dtype != expected.dtype and (got.is_floating_point() or expected.is_floating_point()):
            return f"{here}the dtype is {got.dtype}, not {expected.dtype}"
        found = _failing(got, expected)
        if not found:
            return ""
        index, _ = found
        word = f"at {place}{list(index) if index else ''}: " if index or place else ""
        return f"{word}{_instead(got[index].item(), expected[index].item())}"
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)):
            return f"{here}this must be a {type(expected).__name__}, not {_kind(got)}"
        if len(got) != len(expected):
            return f"{here}there are {len(got)} entries, not {len(expected)}"
        return next(filter(None, (_difference(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(got, expected)))), "")  # noqa: B905
    if isinstance(expected, dict):
        return next(filter(None, (_difference(got[key], expected[key], key) for key in expected)), "")
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        return f"{here}this must be a number, not {_kind(got)}"
    got = (float if isinstance(got, float) else int).__pos__(got)  # a plain number, whatever its class says of equality
    close = got == expected or abs(got - expected) <= TOLERANCE * (1 + abs(expected))  # False for NaN
    return "" if close else f"{here}{_instead(got, expected)}"


def _failing(got, expected) -> tuple[tuple, tuple] | None:
    """The index of the first wrong entry, and the shape, of the first wrong tensor. None if there is none of the right shape."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
            return None
        got = got.to(expected.dtype)  # any integer type is accepted
        wrong = ~torch.isclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)  # the reference has no NaN
        return (tuple(wrong.nonzero()[0].tolist()), tuple(expected.shape)) if wrong.any() else None
    if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
        return next(filter(None, map(_failing, got, expected)), None)
    return None


def _compared(got, expected) -> str:
    at = _failing(got, expected)
    return f"expected {_show(expected, at)}\n  you gave {_show(got, at)}"


def _instead(got, expected) -> str:
    almost = isinstance(got, float) and 0 < abs(got - expected) < 1e-6 * (1 + abs(expected))
    hint = ". This is close: is something computed in float32, or is an epsilon missing or misplaced?" if almost else ""
    return f"{_number(got)} instead of {_number(expected)}{hint}"


def _diagnosis(exercise: Exercise, function, failed: str) -> str:
    """A sentence that names a wrong answer with this outcome on the failed case; of several, the one that fits most cases.

    It must fit at least half of the cases on which the learner is wrong. Otherwise its name would mislead.
    """
    cases = exercise.cases()
    try:
        mine = {name: _run(exercise, function, arguments) for name, arguments in cases.items()}
    except NotImplementedError:  # the stub's line is still in some branch
        return ""
    right = {name: _run(exercise, exercise.reference, arguments) for name, arguments in cases.items()}
    failing = {name for name in cases if not _same(mine[name], right[name])}
    best, most = None, 0  # a wrong answer, and the number of cases on which it has the learner's outcome
    for wrong in exercise.wrong:

        def agrees(name, wrong=wrong):
            return _same(mine[name], _run(exercise, wrong, cases[name]))

        alike = set(filter(agrees, cases)) if agrees(failed) else set()
        if len(alike) > most and 2 * len(alike & failing) >= len(failing):
            best, most = wrong, len(alike)
    if best is None:
        return ""
    on = "This" if most == len(cases) else "On this input, but not on all, this"
    return f"\n  {on} is what comes out if {' '.join(best.__doc__.split())}"


def _same(run: _Run, other: _Run) -> bool:
    if run.error or other.error or run.changed != other.changed:
        return False
    return not (run.difference(other) or other.difference(run))


def _where(error: BaseException, path: Path) -> str:
    """The error and the learner's line that caused it, without the grader's own lines."""
    if isinstance(error, TimeoutError):
        return f"your function did not return within {SECONDS} s: is there an endless loop?"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    where = (
        f"{path.name}, line {lines[-1].lineno}: {lines[-1].line}"
        if lines
        else "the grader calls your function with keyword arguments"
    )
    return f"{what} ({where})"


@contextmanager
def _undisturbed():
    """Undoes changes of PyTorch's global settings and functions, and hides warnings."""
    dtype = torch.get_default_dtype()
    before = [(place, dict(vars(place))) for place in (torch.Tensor, torch, builtins)]
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for place, names in before:
                for name, value in names.items():
                    if callable(value) and vars(place).get(name) is not value:
                        setattr(place, name, value)
            for name in vars(torch.Tensor).keys() - before[0][1].keys():
                delattr(torch.Tensor, name)  # it hides a method of the class below
            torch.set_default_dtype(dtype)


@contextmanager
def _time_limit():
    """`time_limit` for a call of an answer. There is none in a debugger."""
    if sys.gettrace() or not hasattr(signal, "setitimer"):
        yield
        return

    def breakpoint_(*args, **kwargs):
        signal.setitimer(signal.ITIMER_REAL, 0)
        return hook(*args, **kwargs)

    hook, sys.breakpointhook = sys.breakpointhook, breakpoint_
    try:
        with time_limit(SECONDS):
            yield
    finally:
        sys.breakpointhook = hook


def _comparable(x) -> bool:
    return isinstance(x, (torch.Tensor, list, tuple, int, float)) and not (
        isinstance(x, (list, tuple)) and x and not all(map(_comparable, x))
    )


def _detached(x):
    if isinstance(x, torch.Tensor):
        return x.detach()
    return type(x)(map(_detached, x)) if type(x) in (list, tuple) else x


def _kind(x) -> str:
    return "None: is there a `return`?" if x is None else f"{type(x).__name__} {str(x)[:40]}"


def _number(x) -> str:
    return f"{x:.10g}" if isinstance(x, float) else str(x)


def _show(x, at=None) -> str:
    """A value in few characters. Of a large tensor: the part that holds the wrong entry, `at` as `_failing` gives it."""
    if isinstance(x, torch.Tensor):
        part, taken = x, []
        for i, size in zip(*at or ((), ()), strict=True):
            if part.numel() <= FEW or not part.dim() or len(part) != size:
                break
            part, taken = part[i], [*taken, i]
        if part.numel() > FEW:
            return f"a tensor of shape {list(x.shape)}"
        return f"{_show(part.tolist())} at {taken}, of shape {list(x.shape)}" if taken else _show(part.tolist())
    if isinstance(x, float):
        return f"{x:.5g}"
    if isinstance(x, (list, tuple)):
        text = ", ".join(_show(y, at) for y in x)
        return f"[{text}]" if isinstance(x, list) else f"({text}{',' * (len(x) == 1)})"
    if isinstance(x, dict):
        return ", ".join(f"{key}: {_show(value)}" for key, value in x.items())
    return str(x) if len(str(x)) < 400 else f"{str(x)[:400]} ..."


def _show_inputs(arguments: dict, at=None) -> str:
    shown = {name: x for name, x in arguments.items() if _comparable(x) or type(x).__repr__ is not object.__repr__}
    width = max(map(len, shown), default=0)
    return "\n".join(f"  {name.ljust(width)} = {_show(x, at)}" for name, x in shown.items() if not isinstance(x, torch.nn.Module))
