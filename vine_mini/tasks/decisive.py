"""Chains of arithmetic in which few lines decide: a policy often gets the multiplications wrong, and nothing else.

    Mia has 7 pens, loses 3, doubles them, buys 5. How many pens now?

    then 7-3=4
    so 4*2=8         <- decisive
    now 8+5=13
    #### 13

One step in four is a multiplication, at random places that are never side by side. The others are additions and subtractions.
A demonstration has mistakes at the multiplications alone, so these are the lines at which the value of the response moves.
Each line begins with a word that does not matter. Such free choices are what credit for whole responses rewards and punishes
without reason.
"""

import random
from functools import partial

from vine_mini.tasks import arithmetic
from vine_mini.types import Problem, UserError

TEMPLATE, ANSWER_MARK = arithmetic.TEMPLATE, arithmetic.ANSWER_MARK
DEFAULTS = {"steps": 12, "max_new_tokens": 140, "eval_temperature": 1.0}
extract_answer, reward = arithmetic.extract_answer, arithmetic.reward
WORDS = ("so", "then", "now", "next", "thus", "here", "well", "again")


def problems(config, places=None) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems. `places(rng, n_steps)` -> the numbers of the decisive steps; left out: anywhere."""
    if config.max_number < 4:
        raise UserError(f"max_number = {config.max_number}: doubling needs at least 4")
    return arithmetic.problems(config, partial(_problem, places=places or anywhere))


def demonstration(problem: Problem, error_rate: float, rng: random.Random) -> str:
    """The solution with a random word before each line, and with random mistakes at the multiplications."""
    *lines, answer = arithmetic.demonstration(problem, error_rate, rng, mistakes_at="*").split("\n")
    return "\n".join([*(f"{rng.choice(WORDS)} {line}" for line in lines), answer])


def anywhere(rng: random.Random, n_steps: int) -> list[int]:
    """A quarter of the steps, at least one, no two of them side by side."""
    count = max(1, n_steps // 4)
    return [place + before for before, place in enumerate(sorted(rng.sample(range(n_steps - count + 1), count)))]


def _problem(rng: random.Random, n_steps: int, max_number: int, places) -> Problem:
    decisive = places(rng, n_steps)

    def operation(step: int, current: int) -> tuple[str, int]:
        if step in decisive:
            return "*", rng.randint(2, min(3, max_number // current))
        low, high = (1, max_number // 2) if step + 1 in decisive else (0, max_number)  # the next result fits too
        result = rng.choice([x for x in range(low, high + 1) if x != current])
        return ("+", result - current) if result > current else ("-", current - result)

    return arithmetic.chain(rng, n_steps, max_number // 2, operation)
