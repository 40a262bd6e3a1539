"""Problems with few decisive steps: right, within their settings, always the same; mistakes mostly at the multiplications."""

import hashlib
import random
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest

from vine_mini.tasks import arithmetic, decisive
from vine_mini.types import UserError


def make(steps=12, max_number=20, min_steps=None):
    config = SimpleNamespace(task="decisive", data=None, steps=steps, min_steps=min_steps, max_number=max_number)
    return decisive.problems(config)


@pytest.fixture(scope="module")
def problems():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "TRAIN_SIZE", 500)
        return make()


def test_problems_are_right_and_stay_within_the_largest_number(problems):
    for problem in problems[0][:300]:
        *lines, last = problem.solution.split("\n")
        assert len(lines) == 12 and last == f"#### {problem.answer}" == f"#### {lines[-1].split('=')[1]}"
        for before, line in zip([None, *lines], lines, strict=False):
            left, right = line.split("=")
            assert eval(left) == int(right) and 0 <= int(right) <= 20  # a line that this project wrote
            assert before is None or line.startswith(before.split("=")[1])


def test_a_quarter_of_the_steps_are_multiplications_never_side_by_side(problems):
    seen = set()
    for problem in problems[0][:500]:
        at = [i for i, line in enumerate(problem.solution.split("\n")[:-1]) if "*" in line]
        assert len(at) == 3 and min(b - a for a, b in pairwise(at)) > 1
        seen |= set(at)
    assert seen == set(range(12))  # at varying places, the first and the last step included


@pytest.mark.parametrize("steps, decisive_steps", [(1, 1), (2, 1), (8, 2), (16, 4)])
def test_other_lengths(steps, decisive_steps):
    train, test = make(steps, max_number=4)
    assert train and {p.solution.count("*") for p in train + test} == {decisive_steps}


def test_the_splits_are_disjoint_and_never_change(problems):
    train, test = problems
    assert not {p.question for p in train} & {p.question for p in test}
    text = "\n".join(f"{p.question}|{p.solution}|{p.answer}" for p in [*train[:100], *test[:100]])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "4c9d31ee0fb9e2b2"  # the shipped policy was trained on them


def test_demonstrations_err_often_at_multiplications_and_seldom_elsewhere(problems):
    wrong, lines = Counter(), Counter()
    for seed, problem in enumerate(problems[0][:300]):
        *steps, last = decisive.demonstration(problem, 0.5, random.Random(seed)).split("\n")
        for step in steps:
            left, right = step.split("=")
            kind = "*" if "*" in left else "routine"
            lines[kind] += 1
            wrong[kind] += eval(left) != int(right)  # a line that this project wrote
        assert last == f"#### {steps[-1].split('=')[1]}"
        assert decisive.demonstration(problem, 0.0, random.Random(seed)) == problem.solution
    assert 0.4 < wrong["*"] / lines["*"] < 0.5  # 0.5, less the random numbers that happen to be right
    assert 0.07 < wrong["routine"] / lines["routine"] < 0.11


def test_bad_settings():
    with pytest.raises(UserError, match="max_number = 3: doubling needs at least 4"):
        make(max_number=3)
    with pytest.raises(UserError, match="min_steps <= steps"):
        make(steps=2, min_steps=3)
    with pytest.raises(UserError, match="decisive makes its own problems: leave out --data"):
        decisive.problems(SimpleNamespace(task="decisive", data="folder", steps=6, min_steps=None, max_number=20))
