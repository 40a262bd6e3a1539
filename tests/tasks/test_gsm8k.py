"""GSM8K's grader: a right answer is never wrong because of its spelling, and no trick makes a wrong one right."""

import json
import os
import random
import sys
import time
from types import SimpleNamespace

import pytest

from vine_mini.tasks import gsm8k
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
     ("\u22125", "-5"), ("- 5", "-5"), ("\u20135", "-5"), ("Total - 72", "72"), ("72kg", "72"), ("3/4", "0.75"), ("0.5", ".5"), ("1/2", "0.50"), ("2.50", "2.5"), ("0", "-0"), (r"\$18", "18"), (r"$\$18$", "18"), (r"-\$1,000.50", "-1000.5"), ("<<2*5=10>>10", "10")],
)  # fmt: skip
def test_spellings_of_other_numbers(spelling, answer):
    assert gsm8k.is_correct(f"#### {spelling}", answer)


@pytest.mark.parametrize(
    "response",
    ["72", "The answer is 72", "#### ", "####", "#### seventy-two", "#### 71", "#### 720", "#### -72", "#### 7 2", "#### 71 or 72", "#### 72 71",
     "#### 71\n#### 72", "#### 72\n#### 71", "#### 72/0", "#### 72.5", "#### 72e1", "#### 72:00", "#### 7,2", "### 72", "#### \n72",
     "#### 72 = 72", "#### 144/2", "#### 72k", "#### 72 million", "#### 72 millions", "#### 72 Dozens", "#### 72 and a half", "#### 72 and three quarters", "#### 72 and three fourths", "#### 72 & a half", "#### 72 and half", "#### 72\u00b2", "#### 0,072", "#### \u201372", "<<#### 72>>", "#### -/72", "#### /72", "#### x/72", "#### -(72)", "#### -**72**", "#### > 72",
     "#### < 72", "#### \u226472", "#### != 72", "#### ~72", "#### \u221a72", "#### |72|", "#### \\72", "#### 72/(x)", "#### 72/", "#### 72 \u00f7 x", "#### 72 ^ x", "#### " + "9" * 9999, "#### 72" + "0" * 9999],
)  # fmt: skip
def test_what_does_not_count_as_72(response):
    assert not gsm8k.is_correct(response, "72")


@pytest.mark.parametrize("spelling", ["--72", "-$-72", "- -72", "-/72", "-(72)", "-**72**"])
def test_two_signs_or_a_sign_apart_are_no_number(spelling):
    assert gsm8k.extract_answer(f"#### {spelling}") is None


def test_the_same_answer_twice_is_one_answer():
    assert gsm8k.is_correct("#### 72\n#### 72.0", "72")


def test_the_grader_is_quick_on_anything():
    """Spaces once took it cubic time: 800 of them ten seconds."""
    start = time.process_time()
    for text in (" " * 20_000, "$ -" * 7_000, "9" * 20_000, "9," * 10_000, "/" * 20_000, "#" * 20_000, "<<" * 10_000):
        assert not gsm8k.is_correct(f"#### {text}", "72")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "line",
    [
        "The answer is 72",
        "**Answer:** 72",
        "Answer 72",
        "x = 72",
        "Total: $72",
        "USD 72",
        "-> 72",
        "=> 72",
        "\u20ac72",
        "Janet makes $72",
        "$72/hour",
        "72 miles / hour",
        "72!",
        "(72)",
    ],
)
def test_words_before_the_number(line):
    assert gsm8k.is_correct(f"#### {line}", "72")


@pytest.mark.parametrize(
    "heading",
    ["Step 1", "Step 1:", "Step 1: Add 3 and 4", "**Step 1**", "Step #1", "Step-1", "STEP 2 - 5 + 6 = 11", "Part (2)", "No. 5", "1. Find the cost",
     "2) **Add** 3 and 4", "Cost for 3 days:", "Answer", "Solution:", "", " ", "---", "x", "\u7b2c\u4e00\u6b65", "\u4e00"],
)  # fmt: skip
def test_a_heading_is_no_answer_line(heading):
    """`#### Step 1` once counted as the answer 1, so that a final `#### 18` was graded as no answer."""
    assert gsm8k.extract_answer(f"#### {heading}") is None
    assert gsm8k.extract_answer(f"#### {heading}\n9 + 9 = 18\n#### 18") == "18"
    assert gsm8k.extract_answer(f"#### 18\n#### {heading}") == "18"
    assert gsm8k.extract_answer(f"#### {heading}\n#### 17\n#### 18") is None


@pytest.mark.parametrize(
    "guesses",
    ["17", "17 18", "17 or 18", "Answer: 17 or 18", "Answer 17 18", "The answer is 17", "17k", "34/2", "17/0", "1.5/2", "17 = 17", "17. 18", "17^2",
     "\u0661\u0667", "17\u0661", "17\u00b2", "17\u00bd", "\u00bd", "\u2460", "\uff11\uff17", "9" * 100, "Total: 17", "1. 17"],
)  # fmt: skip
def test_a_guess_is_never_ignored(guesses):
    """An answer line that is wrong or cannot be read makes the response wrong, whatever the other lines say."""
    assert gsm8k.extract_answer(f"#### {guesses}\n#### 18") is None
    assert gsm8k.extract_answer(f"#### 18\n#### {guesses}") is None


@pytest.mark.parametrize(
    "answer", ["1.5/2", "3/\u0660", "3/0", "\u0663/0", "3/00", ".5/1", "\u0663/\u0660", "1,000/\u0660", "$-.1/9"]
)
def test_no_fraction_is_an_error(answer):
    """The first two once ended a run with a ValueError and a ZeroDivisionError."""
    assert gsm8k.extract_answer(f"#### {answer}") is None
    assert not gsm8k.is_correct(f"#### {answer}", "3") and not gsm8k.is_correct("#### 3", answer)


@pytest.mark.parametrize(
    "text",
    [
        "\u0667\u0662",
        "\uff17\uff12",
        "72\u0660",
        "\u066072",
        "7\u0662",
        "72\u00bd",
        "72\u2082",
        "72\u2460",
        "\U0001d7d5\U0001d7d0",
    ],
)
def test_digits_of_other_scripts_are_not_read(text):
    """They are wrong, alone and beside ASCII digits: part of a number must not be read as the whole."""
    assert gsm8k.read_number(text) is None and not gsm8k.is_correct(f"#### {text}", "72")


HOSTILE = [*"0123456789.,-/$# \n<>x=:()*_'\\{}+%^", "####", "\n#### ", "Step ", "Total ", "answer ", "is ", "k", " dozen", "/0", "1/", "\u0663", "\u0660",
           "\u00b2", "\u00bd", "\uff17", "\u2212", "\u2013", "\u4e00", "\u2160", "\u2460", "\ud800", "\u200b", "\u2028", "\x00", "\U0001d7d8", "\u20ac"]  # fmt: skip


def test_whatever_a_policy_writes_is_right_or_wrong():
    rng, answered = random.Random(0), 0
    for _ in range(5000):
        text = rng.choice(["#### ", "", "#### Step 1\n#### "]) + "".join(rng.choices(HOSTILE, k=rng.randrange(20)))
        answer = gsm8k.extract_answer(text)
        assert gsm8k.reward(Problem("", "", "72"), text) in (0.0, 1.0)
        if answer is not None:
            answered += 1
            assert gsm8k.extract_answer(f"#### {answer}") == answer and gsm8k.is_correct(text, answer)
    assert answered > 200


def test_long_numbers_have_a_canonical_form_that_can_be_read():
    for text in ("." + "1" * 58, "0." + "1" * 40, "9" * 60, "1," + "000," * 10 + "000"):
        answer = gsm8k.extract_answer(f"#### {text}")
        assert answer is None or gsm8k.read_number(answer) == answer


def test_a_number_has_at_most_sixty_characters():
    assert gsm8k.read_number("1" * 60) == "1" * 60 and gsm8k.read_number("1" * 61) is None
    small = "0." + "0" * 55 + "1"  # in lowest terms 1/1000..., with a character more for each zero
    assert len(gsm8k.read_number(small)) == 59 and len(gsm8k.read_number(f"-{small}")) == 60
    assert gsm8k.read_number(f"-{small[:2]}0{small[2:]}") is None


def test_a_single_letter_before_the_number_makes_a_heading():
    assert gsm8k.extract_answer("#### X 5") is None and gsm8k.extract_answer("#### X 5\n#### 7") == "7"


def test_the_prompt_and_the_limits_are_those_of_the_paper_s_code():
    assert gsm8k.TEMPLATE == "[MATH_TASK] Problem:\n{question}\n\nSolution:"
    assert gsm8k.DEFAULTS == {"max_new_tokens": 512, "eval_temperature": 0.35}


def test_half_a_character_and_other_encodings_are_told(tmp_path):
    with pytest.raises(UserError, match="here: needs a text field 'question'"):
        gsm8k.text_field({"question": "\ud83d"}, "question", "here")
    for name, hint in (("train.jsonl", "; a folder for --data holds train.jsonl and test.jsonl"), ("mine.jsonl", "")):
        (tmp_path / name).write_bytes(b"\xff\xfe")
        with pytest.raises(UserError) as raised:
            gsm8k.read_jsonl(tmp_path / name)
        assert str(raised.value) == f"cannot read {tmp_path / name} (not UTF-8){hint}"
    with pytest.raises(UserError) as raised:
        gsm8k.read_jsonl(tmp_path / "test.jsonl")
    says = (
        f"cannot read {tmp_path / 'test.jsonl'} (No such file or directory); a folder for --data holds train.jsonl and test.jsonl"
    )
    assert str(raised.value) == says


def test_every_real_problem_grades_its_own_solution(gsm8k_folder):
    train, test = gsm8k.problems(SimpleNamespace(data=gsm8k_folder))
    assert (len(train), len(test)) == (7473, 1319)
    for problem in train + test:
        assert gsm8k.is_correct(problem.solution, problem.answer)
        assert not gsm8k.is_correct(problem.solution, str(int(problem.answer) + 1))
        assert "<<" not in problem.solution


def test_the_verdicts_of_openai_on_solutions_of_models(gsm8k_folder):
    """On all 5,276. The file is example_model_solutions.jsonl of github.com/openai/grade-school-math, whose answer mark is `A:`."""
    path = gsm8k_folder / "example_model_solutions.jsonl"
    if not path.exists():
        pytest.skip("the graded solutions are not here")
    same = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        truth = row.pop("ground_truth").replace("A:", "####")
        graded = [of for of in row.values() if isinstance(of, dict)]
        same += [gsm8k.is_correct(of["solution"].replace("A:", "####"), truth) == of["is_correct"] for of in graded]
    assert len(same) == sum(same) == 5276


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
     ({"question": "q", "answer": "4"}, "must end in a line '#### number'"), ("[" * 100_000, "line 2: not JSON"), ("7", "needs a text field"),
     ('{"question": "q", "answer": ' + "9" * 5000 + "}", "line 2: not JSON"), ("null", "needs a text field")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, row, says):
    path = write(tmp_path / "train.jsonl", {"question": "q", "answer": "#### 4"}, row)
    with pytest.raises(UserError, match=f"train.jsonl, {says}" if says.startswith("line") else says):
        gsm8k.read_jsonl(path)


def test_a_pipe_is_no_file_of_problems(tmp_path):
    """Reading it did not end."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=r"pipe.jsonl is no regular file"):
        gsm8k.read_jsonl(tmp_path / "pipe.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*train.jsonl"):
        gsm8k.problems(SimpleNamespace(data=tmp_path))


def test_the_splits_of_the_hub(monkeypatch):
    """On a Hub that is made here."""

    def load_dataset(*names):
        assert names == ("openai/gsm8k", "main")
        return {split: [{"question": split, "answer": "<<4=4>>#### 4"}] * n for split, n in (("test", 1), ("train", 2))}

    def offline(*names):
        raise ConnectionError

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    train, test = gsm8k.problems(SimpleNamespace(data=None))
    assert train == [Problem("train", "#### 4", "4")] * 2 and test == [Problem("test", "#### 4", "4")]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(UserError, match=r"cannot load openai/gsm8k from the Hub \(ConnectionError\); give a local folder"):
        gsm8k.problems(SimpleNamespace(data=None))
