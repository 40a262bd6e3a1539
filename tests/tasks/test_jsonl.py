"""A user's own questions and answers: what is graded as a number, what as exact text, and how one file is split."""

import json
import random
import zlib
from types import SimpleNamespace

import pytest

from vine_mini import tasks
from vine_mini.tasks import jsonl
from vine_mini.types import Problem, UserError


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def load(path):
    return tasks.load_problems(SimpleNamespace(task="jsonl", data=str(path)))


def problem(answer):
    return jsonl.parse_row({"question": "q", "answer": answer}, "here")


@pytest.mark.parametrize(
    "reference, line",
    [("72", "$72.00 dollars."), ("$72", "72"), ("72%", "72"), ("1,000", "1000"), ("1/2", "0.50"), (72, "72"), (0.5, "1/2"), (-3, "\u22123"),
     ("-\u20ac3", "-3"), ("so 6 x 12 = <<6*12=72>>72\n#### 72", "72 apples")],
)  # fmt: skip
def test_a_number_alone_is_graded_as_a_number(reference, line):
    assert jsonl.reward(problem(reference), f"so\n#### {line}") == 1.0
    assert jsonl.reward(problem(reference), f"#### Step 1\n#### {line}") == 1.0  # a heading, as in GSM8K
    assert jsonl.reward(problem(reference), "#### 71") == 0.0
    assert jsonl.reward(problem(reference), f"{line}") == 0.0
    assert jsonl.reward(problem(reference), f"#### 71\n#### {line}") == 0.0


@pytest.mark.parametrize(
    "reference",
    [
        "Paris",
        "7th avenue",
        "5 km",
        "Apollo 11",
        "12:30",
        "1. e4",
        "2 3",
        "\u0663",
        "New  York",
        "solution\n#### New York",
        "17 or 18",
    ],
)
def test_any_other_answer_is_exact_text(reference):
    right = problem(reference)
    text = " ".join(reference.split("####")[-1].split())
    assert right.answer == text and jsonl.reward(right, right.solution) == 1.0
    spaced = text.replace(" ", "\t ")
    assert jsonl.reward(right, f"so\n####   {spaced} ") == jsonl.reward(right, f"####{text}\n#### {text}") == 1.0
    for wrong in (text + ".", text.swapcase() + "x", text + " 8", "5", "7", "11", f"**{text}**", ""):
        assert jsonl.reward(right, f"#### {wrong}") == 0.0
    assert (
        jsonl.reward(right, text)
        == jsonl.reward(right, f"#### {text}\n#### Rome")
        == jsonl.reward(right, f"#### Rome\n#### {text}")
        == 0.0
    )


@pytest.mark.parametrize(
    "text, answer",
    [("#### $1,000.00", "1000"), ("#### 72 apples", "72 apples"), ("#### New \t York", "New York"), ("#### Step 1\n#### 18", "18"), ("#### Rome\n#### Paris", None),
     ("####", None), ("Paris", None), ("####\n#### Paris", "Paris"), ("#### 17\n#### 18", None)],
)  # fmt: skip
def test_the_answer_that_votes(text, answer):
    assert jsonl.extract_answer(text) == answer


def test_whatever_a_policy_writes_is_right_or_wrong_and_equal_answers_earn_equal_rewards():
    rng, seen = random.Random(0), {}
    pieces = [
        "#### ",
        "####",
        "\n",
        " ",
        "7",
        "2",
        ".",
        ",",
        "$",
        "-",
        "Paris",
        "Step ",
        "/0",
        "\u0663",
        "\u00bd",
        "\ud800",
        "<<",
        ">>",
    ]
    problems = [problem(answer) for answer in ("72", "7", "Paris", "7 2", "Step 7")]
    for _ in range(5000):
        text = "#### " + "".join(rng.choices(pieces, k=rng.randrange(8)))
        rewards = tuple(jsonl.reward(p, text) for p in problems)
        assert set(rewards) <= {0.0, 1.0} and sum(rewards) <= 1 + (rewards[4] and rewards[1])
        answer = jsonl.extract_answer(text)
        if answer is None:
            assert not any(rewards)
        else:
            assert seen.setdefault(answer, rewards) == rewards
    assert len(seen) > 100


def test_a_folder_with_both_splits(tmp_path):
    write(
        tmp_path / "train.jsonl",
        {"question": "Capital of France?", "answer": "Paris"},
        "",
        {"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
    )
    write(tmp_path / "test.jsonl", {"question": "Half of 1?", "answer": 0.5})
    train, test = load(tmp_path)
    assert train == [Problem("Capital of France?", "#### Paris", "Paris"), Problem("2+2?", "2+2=4\n#### 4", "4")]
    assert test == [Problem("Half of 1?", "#### 0.5", "1/2")]


def test_a_tenth_of_one_file_is_the_test_split(tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(2000)]
    train, test = load(write(tmp_path / "all.jsonl", *rows))
    assert len(train) + len(test) == 2000 and 150 < len(test) < 250
    assert [p.question for p in test] == [row["question"] for row in rows if zlib.crc32(row["question"].encode()) % 10 == 0]
    random.Random(0).shuffle(rows)
    again, test_again = load(write(tmp_path / "shuffled.jsonl", *rows, *rows[:5]))  # neither order nor repetition matters
    assert {p.question for p in test_again} == {p.question for p in test} and {p.question for p in again} == {
        p.question for p in train
    }


@pytest.mark.parametrize(
    "row, says",
    [("{", "line 2: not JSON"), ({"question": "q"}, "line 2: needs a text field 'answer'"), ({"answer": "4"}, "needs a text field 'question'"),
     ({"question": "q", "answer": True}, "needs a text field 'answer'"), ({"question": "q", "answer": " "}, "needs a text field 'answer'"),
     ([1], "needs a text field 'question'"), ({"question": "q", "answer": "a\nb"}, "must be one line"), ({"question": "q", "answer": "####"}, "must be one line"),
     ({"question": "q", "answer": "#### Rome\n#### Paris"}, "or end in one line '#### answer'"), ({"question": "q", "answer": "#### 4\nDone"}, "must be one line")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, row, says):
    with pytest.raises(UserError, match=says):
        load(write(tmp_path / "all.jsonl", {"question": "q", "answer": "4"}, row))


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"needs --data: a folder with train\.jsonl and test\.jsonl, or one file"):
        jsonl.problems(SimpleNamespace(data=None))
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"cannot read .*\.jsonl"):
            load(missing)
    with pytest.raises(UserError, match="but none of these; give more, or use a folder"):
        load(write(tmp_path / "one.jsonl", {"question": "q", "answer": "4"}))
    with pytest.raises(UserError, match="the train split of jsonl is empty"):
        load(write(tmp_path / "empty.jsonl", ""))


def test_the_prompt_tells_how_to_end():
    assert "{question}" in jsonl.TEMPLATE and jsonl.TEMPLATE.endswith('End with one line "#### answer".\n')


@pytest.mark.parametrize(
    "answer, text",
    [("0.00001", "0.00001"), ("1e22", "10000000000000000000000"), ("1e-05", "0.00001"), ("-0.5", "-0.5"), ("1" * 400, "1" * 400)],
)
def test_a_json_number_is_the_number_that_was_written(answer, text):
    problem = jsonl.parse_row(json.loads(f'{{"question": "q", "answer": {answer}}}'), "line 1")
    assert jsonl.reward(problem, f"#### {text}") == 1.0


@pytest.mark.parametrize("answer", ["NaN", "Infinity", "1e400"])
def test_what_is_no_number_is_refused(answer):
    with pytest.raises(UserError, match=r"line 1: 'answer' is .*, which is no number"):
        jsonl.parse_row(json.loads(f'{{"question": "q", "answer": {answer}}}'), "line 1")


def test_the_answer_is_what_follows_the_last_mark():
    assert jsonl.parse_row({"question": "q", "answer": "####\n#### 4"}, "line 1").answer == "4"
    with pytest.raises(UserError, match="must be one line"):
        jsonl.parse_row({"question": "q", "answer": "#### 4 ####"}, "line 1")


def test_a_letter_beside_a_number_makes_it_text():
    for answer in ("4X", "4 m"):
        assert jsonl.reward(problem(answer), f"#### {answer}") == 1.0 and jsonl.reward(problem(answer), "#### 4") == 0.0


def test_half_a_character_is_refused():
    for name in ("question", "answer"):
        with pytest.raises(UserError, match=f"needs a text field '{name}'"):
            jsonl.parse_row({"question": "q", "answer": "a"} | {name: "cut \ud83d"}, "line 1")


def test_accents_may_be_spelled_in_two_ways():
    """Files from a Mac hold two characters where others hold one."""
    two, one = "Malmo\N{COMBINING DIAERESIS}", "Malm\N{LATIN SMALL LETTER O WITH DIAERESIS}"
    for asked, given in ((one, two), (two, one)):
        assert jsonl.reward(jsonl.parse_row({"question": "q", "answer": asked}, "here"), f"#### {given}") == 1.0
