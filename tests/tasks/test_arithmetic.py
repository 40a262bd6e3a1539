"""Generated problems: right, within their settings, always the same."""

import hashlib
import random
from types import SimpleNamespace

import pytest

from vine_mini.tasks import arithmetic, gsm8k
from vine_mini.types import UserError


def solve(question: str) -> int:
    """An independent reader of the generated questions."""
    words = question.split(". How many")[0].replace(",", "").split()
    total, i = int(words[2]), 4
    while i < len(words):
        if words[i] in ("doubles", "triples"):
            total *= 2 if words[i] == "doubles" else 3
        else:
            total += int(words[i + 1]) * (1 if words[i] in ("buys", "finds", "gets") else -1)
        i += 2
    return total


@pytest.mark.parametrize("steps, max_number", [((1, 1), 3), ((6, 6), 20), ((2, 8), 20), ((4, 4), 1000)])
def test_arithmetic_problems_are_right_and_within_the_dial(steps, max_number):
    for problem in arithmetic.generate("train", 300, steps=steps, max_number=max_number, seed=1):
        assert str(solve(problem.question)) == problem.answer == gsm8k.extract_answer(problem.solution)
        *lines, last = problem.solution.split("\n")
        assert steps[0] <= len(lines) <= steps[1] and last == f"#### {problem.answer}"
        for line in lines:
            left, right = line.split("=")
            assert eval(left) == int(right) and 0 <= int(right) <= max_number  # a line that this project wrote


def test_arithmetic_is_seeded_and_its_splits_are_disjoint():
    def make(split, seed):
        return arithmetic.generate(split, 400, steps=(2, 3), max_number=9, seed=seed)

    assert make("train", 0) == make("train", 0) != make("train", 1)
    train, test = ({p.question for s in range(3) for p in make(split, s)} for split in ("train", "test"))
    assert len(test) > 400 and not train & test


def test_settings_with_few_problems_give_all_there_are():
    few = arithmetic.generate("test", 500, steps=(1, 1), max_number=3, seed=0)
    assert 0 < len(few) < 500
    with pytest.raises(UserError, match="min_steps <= steps"):
        arithmetic.problems(SimpleNamespace(task="arithmetic", data=None, steps=2, min_steps=3, max_number=20))


def test_demonstrations_slip_and_go_on_from_the_slip():
    problem = arithmetic.generate("train", 1, steps=(6, 6), max_number=20, seed=0)[0]
    assert arithmetic.demonstration(problem, 0.0, random.Random(0)) == problem.solution
    wrong = 0
    for seed in range(200):
        *lines, last = arithmetic.demonstration(problem, 0.3, random.Random(seed)).split("\n")
        results = [line.split("=")[1] for line in lines]
        assert all(line.startswith(before) for before, line in zip(results, lines[1:], strict=False))
        assert last == f"#### {results[-1]}"
        wrong += sum(eval(line.split("=")[0]) != int(line.split("=")[1]) for line in lines)
    assert 0.2 < wrong / (200 * 6) < 0.35  # 0.3, less the random numbers that happen to be right


def test_the_problems_never_change():
    """Results in this project and policies that were trained on these problems refer to them."""
    problems = [p for split in ("train", "test") for p in arithmetic.generate(split, 200, steps=(2, 8), max_number=20, seed=0)]
    text = "\n".join(f"{p.question}|{p.solution}|{p.answer}" for p in problems)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "5405eb008f8d0563"


def test_data_is_refused():
    with pytest.raises(UserError, match="arithmetic makes its own problems: leave out --data"):
        arithmetic.problems(SimpleNamespace(task="arithmetic", data="folder", steps=6, min_steps=None, max_number=20))
