"""Chains of arithmetic in which few lines decide: a policy gets the multiplications wrong often, and the other lines seldom.

    Mia has 7 pens, loses 3, doubles them, buys 5. How many pens now?

    7-3=4
    4*2=8         <- decisive
    8+5=13
    #### 13

One step in four is a multiplication, at random places that are never side by side. The others are additions and subtractions.
A demonstration has most of its mistakes at the multiplications, so these are the lines at which the value moves most.
"""

import random

from vine_mini.tasks import arithmetic
from vine_mini.types import Problem, UserError

TEMPLATE, ANSWER_MARK = arithmetic.TEMPLATE, arithmetic.ANSWER_MARK
DEFAULTS = {"steps": 12, "max_new_tokens": 140, "eval_temperature": 1.0}
extract_answer, reward = arithmetic.extract_answer, arithmetic.reward
ROUTINE = 0.2  # mistakes at an addition or a subtraction, for each mistake at a multiplication


def problems(config) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems, the same for every seed of a run."""
    if config.max_number < 4:
        raise UserError(f"max_number = {config.max_number}: doubling needs at least 4")
    return arithmetic.problems(config, _problem)


def demonstration(problem: Problem, error_rate: float, rng: random.Random) -> str:
    """The solution with mistakes: at a multiplication with probability about `error_rate`, at the other lines less often."""
    rates = {"*": error_rate, "+": ROUTINE * error_rate, "-": ROUTINE * error_rate}
    return arithmetic.demonstration(problem, rates, rng)


def _places(rng: random.Random, n_steps: int) -> list[int]:
    """The numbers of the decisive steps: a quarter of all, at least one, no two of them side by side."""
    count = max(1, n_steps // 4)
    return [place + before for before, place in enumerate(sorted(rng.sample(range(n_steps - count + 1), count)))]


def _problem(rng: random.Random, n_steps: int, max_number: int) -> Problem:
    decisive = _places(rng, n_steps)

    def operation(step: int, current: int) -> tuple[str, int]:
        if step in decisive:
            return "*", rng.randint(2, min(3, max_number // current))
        low, high = (1, max_number // 2) if step + 1 in decisive else (0, max_number)  # the next result fits too
        among = low <= current <= high
        result = low + rng.choice(range(high - low + 1 - among))  # any of them but the current number
        result += among and result >= current
        return ("+", result - current) if result > current else ("-", current - result)

    return arithmetic.chain(rng, n_steps, max_number // 2, operation)
