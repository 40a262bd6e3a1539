"""Generated chains of arithmetic in the form of GSM8K: the task that a tiny policy learns on a CPU.

    Mia has 7 pens, buys 5, loses 3. How many pens now?

    7+5=12
    12-3=9
    #### 9

Two settings make the problems harder: `steps`, the number of operations, and `max_number`, the largest number in a solution.
The train and test splits share no problem, because a checksum of the question says which split a problem belongs to.
"""

import operator
import random
import re
import zlib
from collections.abc import Callable

from vine_mini.tasks import gsm8k
from vine_mini.types import Problem, UserError

TEMPLATE = "{question}\n"
DEFAULTS = {"steps": 6, "max_new_tokens": 64, "eval_temperature": 1.0}
ANSWER_MARK, extract_answer, reward = gsm8k.ANSWER_MARK, gsm8k.extract_answer, gsm8k.reward  # answers are stated as in GSM8K
TRAIN_SIZE, TEST_SIZE = 10_000, 500
NAMES = ("Mia", "Tom", "Ana", "Leo", "Zoe", "Sam")
THINGS = ("pens", "coins", "cards", "shells", "stamps", "beads")
GAINS, LOSSES = ("buys", "finds", "gets"), ("loses", "sells", "drops")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def problems(config, make_problem=None) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems. They do not depend on the run's seed, so that runs with other seeds can be compared."""
    if config.data is not None:
        raise UserError(f"{config.task} makes its own problems: leave out --data, or name another --task")
    fewest = config.steps if config.min_steps is None else config.min_steps
    settings = dict(steps=(fewest, config.steps), max_number=config.max_number, seed=0, make_problem=make_problem)
    return generate("train", TRAIN_SIZE, **settings), generate("test", TEST_SIZE, **settings)


def generate(split: str, n: int, *, steps: tuple[int, int], max_number: int, seed: int, make_problem=None) -> list[Problem]:
    """At most n different problems of a split, each with steps[0] to steps[1] operations. Easy settings have fewer problems.

    `make_problem(rng, number of operations, max_number)` makes one problem. Raises UserError for settings that allow none.
    """
    if not 1 <= steps[0] <= steps[1] or max_number < 3:
        raise UserError(f"generated problems need 1 <= min_steps <= steps and max_number >= 3, not {steps} and {max_number}")
    rng = random.Random(f"{split} {steps} {max_number} {seed}")
    found: dict[str, Problem] = {}
    for _ in range(50 * n):
        if len(found) == n:
            break
        problem = (make_problem or _problem)(rng, rng.randint(*steps), max_number)
        if (zlib.crc32(problem.question.encode()) % 10 == 0) == (split == "test"):
            found.setdefault(problem.question, problem)
    return list(found.values())


def demonstration(problem: Problem, error_rate: float | dict[str, float], rng: random.Random) -> str:
    """The solution with random mistakes. `error_rate` is the probability of one in a step, or such a number for each operation.

    A mistake is a random number from 0 to the largest result of the problem, which is sometimes the right one. Later steps go
    on from the number that was written. A policy that imitates many of these demonstrations has the right result as its most
    likely token, and makes mistakes when it samples.
    """
    rates = error_rate if isinstance(error_rate, dict) else dict.fromkeys(OPERATIONS, error_rate)
    steps = [re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", line).groups() for line in problem.solution.split("\n")[:-1]]
    top, current, lines = max(int(result) for *_, result in steps), int(steps[0][0]), []
    for _, operation, right, _ in steps:
        result = rng.randint(0, top) if rng.random() < rates[operation] else OPERATIONS[operation](current, int(right))
        lines.append(f"{current}{operation}{right}={result}")
        current = result
    return "\n".join([*lines, f"{ANSWER_MARK} {current}"])


def chain(rng: random.Random, n_steps: int, most: int, operation: Callable) -> Problem:
    """A problem that starts with a number from 1 to `most`. `operation(step, current)` -> (operation, right-hand number)"""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    current = rng.randint(1, most)
    story, lines = [f"{name} has {current} {thing}"], []
    for step in range(n_steps):
        symbol, right = operation(step, current)
        result = OPERATIONS[symbol](current, right)
        story.append(_words(rng, symbol, right))
        lines.append(f"{current}{symbol}{right}={result}")
        current = result
    question = f"{', '.join(story)}. How many {thing} now?"
    return Problem(question, "\n".join([*lines, f"{ANSWER_MARK} {current}"]), str(current))


def _words(rng: random.Random, symbol: str, right: int) -> str:
    if symbol == "*":
        return "doubles them" if right == 2 else "triples them"
    return f"{rng.choice(GAINS if symbol == '+' else LOSSES)} {right}"


def _problem(rng: random.Random, n_steps: int, max_number: int) -> Problem:
    """Random operations whose results lie in 0..max_number."""

    def operation(step: int, current: int) -> tuple[str, int]:
        possible = {"+": current < max_number, "-": current > 0, "*": 0 < 2 * current <= max_number}
        symbol = rng.choice([name for name in possible if possible[name]])
        low, high = {"+": (1, max_number - current), "-": (1, current), "*": (2, min(3, max_number // max(current, 1)))}[symbol]
        return symbol, rng.randint(low, high)

    return chain(rng, n_steps, max_number, operation)
