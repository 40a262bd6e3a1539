"""Where failed responses take their largest fall of the value. Pure functions.

Some rollouts choose the step of a response that fell most, and fresh rollouts measure its size. A size is therefore unbiased,
whether it is significant or not. Means are over all chosen steps, because the significant ones alone are a selection again.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from vine_mini.credit_page.measure import Change
from vine_mini.evaluate import clustered_mean, standard_errors
from vine_mini.values import monte_carlo_values

OPERATION = re.compile(r"(?<=[\d)])\s*([-+*/×÷−^])\s*(?=[$(]*\d)")
FALSE_ALARMS = 0.023  # a difference without a cause is below minus two standard errors with this probability


@dataclass
class Instead:
    """A next step that the policy writes from the state before the fall."""

    text: str
    count: int  # of the fresh rollouts
    value: float  # the mean reward of these
    error: float  # its standard error
    taken: bool  # the response took the same step


@dataclass
class Fall:
    """The step of one failed response that fell most."""

    problem: int
    response: int
    question: str
    step: int  # from 0
    steps: int
    text: str
    chosen_by: float  # the size by the rollouts that chose the step, on average too large
    change: Change
    other: Change | None  # the same step, judged by the other policy
    size: float = field(init=False)  # below 0
    error: float = field(init=False)
    significant: bool = field(init=False)  # beyond two standard errors
    kind: str = field(init=False)
    instead: list[Instead] = field(init=False)

    def __post_init__(self):
        self.size, self.error, self.kind = self.change.size, self.change.error, kind_of(self.text)
        self.significant = self.size < 0 and self.change.measured.sure(0)
        self.instead = next_steps(self.change, self.text)


@dataclass
class Row:
    """The largest falls at one step number, or at one kind of line."""

    name: str
    lines: int  # of this kind, in the failed responses
    falls: int  # how many of them fell most in their response
    significant: int
    size: tuple[float, float | None] | None  # the mean over all `falls`, its standard error over problems (one problem: None)
    other: tuple[float, float | None] | None  # the same by the other policy
    difference: tuple[float, float | None] | None  # the other policy's size minus the first's


def kind_of(text: str) -> str:
    """The arithmetic operations in a line, such as "*" or "+ -"; else whether it has a number."""
    found = sorted(set(OPERATION.findall(text)))
    return " ".join(found) or ("a number, no operation" if re.search(r"\d", text) else "no number")


def next_steps(change: Change, text: str) -> list[Instead]:
    """The fresh rollouts from before the step, grouped by the step that they take, the most frequent first."""
    groups: dict[str, list[float]] = {}
    for r in change.rollouts:
        groups.setdefault(r.step.strip(), []).append(r.reward)
    rows = zip(groups, monte_carlo_values([*groups.values()]), standard_errors([*groups.values()]), strict=True)
    found = [Instead(step, len(groups[step]), value, error, step == text.strip()) for step, value, error in rows]
    return sorted(found, key=lambda x: (-x.count, x.text))


def table(falls: list[Fall], lines: Counter, key: Callable[[Fall], str]) -> list[Row]:
    """A row for each name that `key` gives to a fall or that `lines` counts."""
    rows = []
    for name, count in lines.items():
        those = [fall for fall in falls if key(fall) == name]
        size, judged = _mean(those, [fall.size for fall in those]), [fall for fall in those if fall.other]
        other = _mean(judged, [fall.other.size for fall in judged])
        difference = _mean(judged, [fall.other.size - fall.size for fall in judged])
        rows.append(Row(name, count, len(those), sum(fall.significant for fall in those), size, other, difference))
    return rows


def _mean(falls: list[Fall], numbers: list[float]) -> tuple[float, float | None] | None:
    return clustered_mean(numbers, [fall.problem for fall in falls]) if falls else None


def share_of(falls: list[Fall], kind: str) -> tuple[float, float | None]:
    """The share of the significant falls, one or more, that are at this kind of line, and its standard error over problems.

    If all problems have the same share, half a problem with such falls only and half a problem without them are added, as in
    `standard_errors`. Otherwise the error would be 0.
    """
    those = [fall for fall in falls if fall.significant]
    share, error = clustered_mean([float(fall.kind == kind) for fall in those], [fall.problem for fall in those])
    if error == 0:
        [error] = standard_errors([[share] * len({fall.problem for fall in those})])
    return share, error
