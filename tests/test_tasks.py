"""Problems and the grader: a right answer is never wrong because of its spelling, and no trick makes a wrong one right."""

import json
import random
import time
from types import SimpleNamespace

import pytest

from vine_mini import tasks
from vine_mini.config import TrainConfig
from vine_mini.tasks import arithmetic, gsm8k
from vine_mini.types import Problem, UserError


@pytest.mark.parametrize(
    "spelling",
    [
        "72",
        "72.",
        "72.0",
        "$72",
        " 72 ",
        "72.00 dollars.",
        "72 apples",
        "**72**",
        "\\boxed{72}",
        "72%",
        "+72",
        "$72.00",
        "072",
    ],
)
def test_spellings_of_72(spelling):
    assert gsm8k.is_correct(f"6 x 12 = 72\n#### {spelling}", "72")
    assert gsm8k.is_correct(f"#### {spelling}", "so\n#### 72")


@pytest.mark.parametrize(
    "spelling, answer",
    [("1,000", "1000"), ("1000", "1,000"), ("$1,000.00", "1000"), ("1,234,567", "1234567"), ("-5", "-5"), ("-$5", "-5"), ("$-5", "-5"),
     ("\u22125", "-5"), ("- 5", "-5"), ("\u20135", "-5"), ("Total - 72", "72"), ("72kg", "72"), ("3/4", "0.75"), ("0.5", ".5"), ("1/2", "0.50"), ("2.50", "2.5"), ("0", "-0"), ("<<2*5=10>>10", "10")],
)  # fmt: skip
def test_spellings_of_other_numbers(spelling, answer):
    assert gsm8k.is_correct(f"#### {spelling}", answer)


@pytest.mark.parametrize(
    "response",
    ["72", "The answer is 72", "#### ", "####", "#### seventy-two", "#### 71", "#### 720", "#### -72", "#### 7 2", "#### 71 or 72", "#### 72 71",
     "#### 71\n#### 72", "#### 72\n#### 71", "#### 72/0", "#### 72.5", "#### 72e1", "#### 72:00", "#### 7,2", "### 72", "#### \n72",
     "#### 72 = 72", "#### 144/2", "#### 72k", "#### 72 million", "#### 72\u00b2", "#### 0,072", "#### \u201372", "<<#### 72>>", "#### " + "9" * 9999, "#### 72" + "0" * 9999],
)  # fmt: skip
def test_what_does_not_count_as_72(response):
    assert not gsm8k.is_correct(response, "72")


def test_the_same_answer_twice_is_one_answer():
    assert gsm8k.is_correct("#### 72\n#### 72.0", "72")


def test_the_grader_is_quick_on_anything():
    """Spaces once took it cubic time: 800 of them ten seconds."""
    start = time.perf_counter()
    for text in (" " * 20_000, "$ -" * 7_000, "9" * 20_000, "9," * 10_000, "/" * 20_000, "#" * 20_000, "<<" * 10_000):
        assert not gsm8k.is_correct(f"#### {text}", "72")
    assert time.perf_counter() - start < 1.0


def test_the_grader_never_stumbles():
    rng = random.Random(0)
    for _ in range(3000):
        text = "####" + "".join(rng.choice("0123456789.,-/$# \n<>x\u0663\u00b2") for _ in range(rng.randrange(25)))
        answer = gsm8k.extract_answer(text)
        assert answer is None or gsm8k.is_correct(f"#### {answer}", answer)


def test_every_real_problem_grades_its_own_solution(gsm8k_folder):
    train, test = gsm8k.load(SimpleNamespace(data=gsm8k_folder))
    assert (len(train), len(test)) == (7473, 1319)
    for problem in train + test:
        assert gsm8k.is_correct(problem.solution, problem.answer)
        assert not gsm8k.is_correct(problem.solution, str(int(problem.answer) + 1))
        assert "<<" not in problem.solution


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_jsonl(tmp_path):
    path = write(
        tmp_path / "train.jsonl",
        {"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
        "",
        {"question": "q", "answer": "#### 1,000"},
    )
    assert gsm8k.read_jsonl(path) == [Problem("2+2?", "2+2=4\n#### 4", "4"), Problem("q", "#### 1,000", "1000")]


def test_jsonl_may_hold_any_unicode(tmp_path):
    row = {"question": "a\u2028b\u0085c", "answer": "#### 4"}
    (tmp_path / "train.jsonl").write_text("\ufeff" + json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert gsm8k.read_jsonl(tmp_path / "train.jsonl")[0].question == row["question"]


@pytest.mark.parametrize(
    "row, says",
    [("{", "line 2: not JSON"), ({"question": "q"}, "line 2: needs a text field 'answer'"), ({"answer": "#### 4"}, "needs a text field 'question'"),
     ({"question": "q", "answer": 4}, "needs a text field 'answer'"), ([1], "needs a text field 'question'"),
     ({"question": "q", "answer": "4"}, "must end in a line '#### number'")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, row, says):
    path = write(tmp_path / "train.jsonl", {"question": "q", "answer": "#### 4"}, row)
    with pytest.raises(UserError, match=f"train.jsonl, {says}" if says.startswith("line") else says):
        gsm8k.read_jsonl(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*train.jsonl"):
        gsm8k.load(SimpleNamespace(data=tmp_path))


def test_an_empty_data_set_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", {"question": "q", "answer": "#### 4"})
    write(tmp_path / "test.jsonl", "")
    with pytest.raises(UserError, match="the test split of gsm8k is empty"):
        tasks.load_problems(TrainConfig(task="gsm8k", data=str(tmp_path)))


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


def test_a_dial_with_few_problems_gives_all_there_are():
    few = arithmetic.generate("test", 500, steps=(1, 1), max_number=3, seed=0)
    assert 0 < len(few) < 500
    with pytest.raises(UserError, match="min_steps <= steps"):
        tasks.load_problems(TrainConfig(steps=2, min_steps=3))


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


def test_reward_needs_an_ending(tokenizer):
    problem = Problem("q", "#### 9", "9")
    ids = tokenizer("12-3=9\n#### 9")["input_ids"]
    assert tasks.reward(problem, [*ids, tokenizer.eos_token_id], True, tokenizer) == 1.0
    assert tasks.reward(problem, ids, False, tokenizer) == 0.0  # cut by the limit, whatever it says


def test_prompts(tokenizer):
    config = TrainConfig()
    [ids] = tasks.prompt_ids([Problem("Mia has 7 pens. How many pens now?", "", "")], tokenizer, config)
    assert tokenizer.decode(ids) == "Mia has 7 pens. How many pens now?\n"
    with pytest.raises(UserError, match="no chat template"):
        tasks.prompt_ids([Problem("q", "", "")], tokenizer, TrainConfig(chat=True))
    tasks.check_prompts([[1] * 10], 20, 10)
    with pytest.raises(UserError, match="longest prompt has 10 tokens and max_new_tokens is 11, but the model sees only 20"):
        tasks.check_prompts([[1] * 10], 20, 11)
