"""Errors of value estimates, and how often they find the best next step. Pure functions of lists.

The paper takes 256 rollouts of a state as its truth. Its error, sqrt(V (1 - V) / 256) <= 0.032, is part of every error here.
"""

import statistics
from dataclasses import dataclass, replace
from itertools import combinations

from vine_mini.evaluate import clustered_mean

CONSTANT = "best constant"  # an estimator that knows the distribution of the true values and nothing about a state


@dataclass(frozen=True)
class State:
    """A state of a trajectory, with its value by each estimator."""

    problem: int  # states of one problem are not independent
    step: int  # number of the step that begins here
    steps: int  # of the trajectory
    truth: float
    values: dict[str, float]  # estimator -> value


@dataclass(frozen=True)
class Choice:
    """Distinct next steps from one state, each with the value after it by the truth and by each estimator."""

    problem: int
    truth: list[float]
    values: dict[str, list[float]]
    rollouts: int  # whose mean reward is the truth

    def differ(self, a: float, b: float) -> bool:
        """Whether two of the true values are more than two standard errors of their difference apart."""
        n = self.rollouts
        variances = [p * (1 - p) / n for p in ((a * n + 0.5) / (n + 1), (b * n + 0.5) / (n + 1))]  # as in standard_errors
        return abs(a - b) > 2 * sum(variances) ** 0.5

    @property
    def clear(self) -> bool:
        """Whether one next step is better than all others, beyond the error of the truth."""
        second, first = sorted(self.truth)[-2:]
        return self.differ(first, second)


def with_constant(states: list[State]) -> list[State]:
    """The states with one more value: the number with the least error of all constants, which is the median of the truth."""
    median = statistics.median(s.truth for s in states)
    return [replace(s, values=s.values | {CONSTANT: median}) for s in states]


def errors(states: list[State], name: str) -> dict[str, tuple[float, float | None]]:
    """The mean absolute error and the bias (mean of value - truth) of an estimator, each with its standard error."""
    off, problems = [s.values[name] - s.truth for s in states], [s.problem for s in states]
    return {"error": clustered_mean([abs(x) for x in off], problems), "bias": clustered_mean(off, problems)}


def error_by_place(states: list[State], name: str, places: int) -> list[float | None]:
    """The mean absolute error in each of `places` equal parts of the trajectory; None where there is no state. -> [places]"""
    parts: list[list[float]] = [[] for _ in range(places)]
    for s in states:
        parts[s.step * places // s.steps].append(abs(s.values[name] - s.truth))
    return [sum(part) / len(part) if part else None for part in parts]


def agreement(choices: list[Choice], name: str) -> dict[str, tuple[float, float | None]]:
    """How often an estimator agrees with the truth about the next steps, each with its standard error; {} without clear choices.

    Clear choices alone count: where no step is the best beyond the error of the truth, any answer is right by chance. `top`: the
    step that it values most is the best one. Steps that it values equally share the vote. `chance`: the same for a random step.
    `pairs`: of two steps whose true values differ, the better one is valued more; equal values count half.
    """
    top, chance, pairs = [], [], []
    for choice in filter(lambda choice: choice.clear, choices):
        best = [t == max(choice.truth) for t in choice.truth]
        values = choice.values[name]
        voted = [right for right, v in zip(best, values, strict=True) if v == max(values)]
        top.append((choice.problem, sum(voted) / len(voted)))
        chance.append((choice.problem, sum(best) / len(best)))
        for (t, v), (u, w) in combinations(zip(choice.truth, values, strict=True), 2):
            if choice.differ(t, u):
                pairs.append((choice.problem, 0.5 if v == w else float((t > u) == (v > w))))
    measured = {"top": top, "chance": chance, "pairs": pairs} if top else {}
    return {what: clustered_mean([x for _, x in of], [problem for problem, _ in of]) for what, of in measured.items()}
