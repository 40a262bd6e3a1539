"""The protocol: every task has the same names, a user's own file is a task, and mistakes in it are one clear line."""

import json
import random
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from vine_mini import tasks
from vine_mini.steps import cut_steps
from vine_mini.tasks import arithmetic, gsm8k, jsonl
from vine_mini.types import Problem, Trajectory, UserError


def of_ids(ids, finished):
    """A response."""
    return Trajectory([], ids, [0.0] * len(ids), finished)


OWN = '''
"""Say how many times the letter a occurs."""
from __future__ import annotations
from dataclasses import dataclass
from vine_mini.types import Problem

TEMPLATE, ANSWER_MARK, DEFAULTS = "How many a: {question}?\\n", "=>", {"max_new_tokens": 8, "eval_temperature": 0.5}

@dataclass
class Word:
    text: str

def problems(config):
    words = [Word(w) for w in config.data.split()]
    both = [Problem(w.text, f"=> {w.text.count('a')}", str(w.text.count("a"))) for w in words]
    return both[1:], both[:1]

def extract_answer(text):
    return text.rpartition("=>")[2].strip() or None

def reward(problem, text):
    given = extract_answer(text) or ""
    return 1 / (1 + abs(int(given) - int(problem.answer))) if given.isdecimal() else 0
'''


def own_task(tmp_path, text=OWN, name="my_task.py"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["arithmetic", "gsm8k", "jsonl"])
def test_every_task_has_the_same_names(name):
    task = tasks.get(name)
    assert isinstance(task, ModuleType) and task.__name__ == f"vine_mini.tasks.{name}" and task.__doc__
    assert "{question}" in task.TEMPLATE and task.ANSWER_MARK == "####"
    assert task.reward(Problem("q", "", "9"), "12-3=9\n#### 9") == 1.0 and task.reward(Problem("q", "", "9"), "#### 8") == 0.0
    assert task.extract_answer("#### $9") == "9" and task.extract_answer("9") is None
    assert callable(task.problems)


def test_defaults():
    assert arithmetic.DEFAULTS == {"steps": 6, "max_new_tokens": 64, "eval_temperature": 1.0}
    assert gsm8k.DEFAULTS == jsonl.DEFAULTS == {"max_new_tokens": 512, "eval_temperature": 0.35}


def test_a_task_from_one_file_of_its_own(tmp_path, tokenizer, monkeypatch):
    path = own_task(tmp_path)
    task = tasks.get(path)
    config = SimpleNamespace(task=path, data="banana apple", prompt=None, chat=False)
    train, test = tasks.load_problems(config)
    assert train == [Problem("apple", "=> 1", "1")] and test[0].answer == "3"
    [ids] = tasks.prompt_ids(train, tokenizer, config)
    assert tokenizer.decode(ids) == "How many a: apple?\n"
    response = tokenizer("a\n=> 1", add_special_tokens=False)["input_ids"]
    assert tasks.grade(task, train[0], of_ids(response, True), tokenizer) == 1.0
    assert tasks.grade(task, test[0], of_ids(response, True), tokenizer) == 1 / 3
    assert tasks.demonstration(task, train[0], 0.0, random.Random(0)) == "=> 1"
    assert len(cut_steps(response, tokenizer, answer_mark=task.ANSWER_MARK)) == 1 < len(cut_steps(response, tokenizer))
    monkeypatch.chdir(tmp_path)
    assert tasks.get("my_task.py") is tasks.get("./my_task.py") is task  # loaded once


def test_own_files_of_one_name_do_not_clash(tmp_path):
    """Neither with each other nor with a module of the standard library."""
    (tmp_path / "other").mkdir()
    first = tasks.get(own_task(tmp_path, name="json.py"))
    second = tasks.get(own_task(tmp_path / "other", OWN.replace("0.5", "0.25"), name="json.py"))
    assert (first.DEFAULTS["eval_temperature"], second.DEFAULTS["eval_temperature"]) == (0.5, 0.25)
    assert sys.modules["json"] is json and tasks.get("arithmetic") is arithmetic


@pytest.mark.parametrize(
    "text, says",
    [("x = 1\n\ny = x +\n", "line 3: SyntaxError: invalid syntax"), ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
     ("def f():\n    return 1 / 0\n\nf()\n", "line 2: ZeroDivisionError: division by zero"), ("import json\n\njson.loads('{')\n", "line 3: JSONDecodeError: Expecting"),
     ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"), ("raise ValueError('two\\nlines')", "line 1: ValueError: two lines$"), ("\0", "SyntaxError"),
     (OWN.replace("def reward", "def rewards"), "my_task.py lacks reward: a task needs TEMPLATE, "), ("TEMPLATE = '{question}'", "lacks ANSWER_MARK, DEFAULTS, problems, extract_answer, reward:"),
     (OWN.replace("{question}", "question"), "TEMPLATE must contain {question}"), (OWN + "TEMPLATE = ['{question}']", "TEMPLATE must contain {question}"),
     (OWN + "ANSWER_MARK = ['=']", "ANSWER_MARK must be text or None"), (OWN + "DEFAULTS = [1]", "DEFAULTS must be a dictionary of numbers"),
     (OWN + "DEFAULTS = {'max_new_tokens': '8'}", "DEFAULTS must be"), (OWN + "DEFAULTS = {'max_new_tokens': 8.5}", "max_new_tokens must be a whole number"),
     (OWN + "DEFAULTS = {'temperature': 0.6}", "must set no other field than max_new_tokens, eval_temperature, steps")],
)  # fmt: skip
def test_mistakes_in_an_own_task_are_one_line(tmp_path, text, says):
    before = set(sys.modules)
    with pytest.raises(UserError, match=says) as raised:
        tasks.get(own_task(tmp_path, text))
    assert "my_task.py" in str(raised.value) and "\n" not in str(raised.value)
    assert "lacks" in says or "must" in says or set(sys.modules) == before


def test_what_the_functions_of_an_own_task_raise_names_the_line(tmp_path, tokenizer):
    task = tasks.get(own_task(tmp_path, OWN + "def reward(problem, text):\n    return {}[text]\n"))
    assert tasks.get(str(tmp_path / "my_task.py")).reward is task.reward  # told once
    line = (OWN + "def reward(problem, text):\n    return").count("\n") + 1
    with pytest.raises(UserError, match=rf"my_task.py, line {line}: KeyError: '=> 1'"):
        tasks.grade(task, Problem("a", "", "1"), of_ids(tokenizer("=> 1")["input_ids"], True), tokenizer)
    cached = (
        OWN + "from functools import cache\n@cache\ndef extract_answer(text):\n    return 1 / 0\n"
    )  # has a __wrapped__ of its own
    with pytest.raises(UserError, match="ZeroDivisionError"):
        tasks.get(own_task(tmp_path, cached, name="cached.py")).extract_answer("x")


@pytest.mark.parametrize(
    "name, body, right, wrong",
    [
        ("extract_answer", "return text", (None, "4"), {"list": [4], "int": 4}),
        ("demonstration", "return text", ("=> 4", "é😀"), {"NoneType": None, r"'\\ud83d=1'": "\ud83d=1"}),
        ("step_starts", "return text", ([0],), {"tuple": (0,)}),
        ("step_starts", "yield 0", (), {"generator": ""}),
        ("step_starts", "return text", ([0, 0, 7], []), {r"\['a'\]": ["a"], r"\[3, 1\]": [3, 1], r"\[0, None\]": [0, None]}),
        ("step_starts", "return text", ([0],), {r"\[-3, 5\]": [-3, 5], r"\[True\]": [True]}),
    ],
)
def test_a_function_of_an_own_task_that_returns_something_else_is_named(name, body, right, wrong, tmp_path):
    path = own_task(tmp_path, OWN + f"\ndef {name}(text):\n    {body}\n")
    function = getattr(tasks.get(path), name)
    assert [function(value) for value in right] == [*right]
    for kind, value in wrong.items():
        with pytest.raises(UserError, match=rf"^{path}: {name}\(\) returned {kind}$"):
            function(value)


@pytest.mark.parametrize("error", ["SystemExit(0)", "GeneratorExit()"])
def test_a_function_of_an_own_task_that_leaves_is_a_mistake(error, tmp_path):
    """SystemExit(0) ended the training with exit code 0."""
    kind = error.split("(")[0]
    with pytest.raises(UserError, match=rf"line \d+: {kind}"):
        tasks.get(own_task(tmp_path, OWN + f"def reward(problem, text):\n    raise {error}\n")).reward(None, "")
    with pytest.raises(UserError, match=rf"line 1: {kind}"):
        tasks.get(own_task(tmp_path, f"raise {error}", name="other.py"))


def test_problems_may_be_generators(tmp_path):
    """It said that the train split is empty."""
    each = "(Problem(q, q, q) for q in 'ab')"
    path = own_task(tmp_path, OWN + f"def problems(config):\n    return {each}, {each}\n")
    assert [len(part) for part in tasks.load_problems(SimpleNamespace(task=path))] == [2, 2]
    path = own_task(tmp_path, OWN + "def problems(config):\n    return (1 / 0 for _ in 'a'), []\n", name="other.py")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        tasks.load_problems(SimpleNamespace(task=path))


def test_a_function_without_a_name_that_returns_something_else_is_refused(tmp_path):
    path = own_task(tmp_path, OWN + "\nfrom functools import partial\nextract_answer = partial(max, [1])\n")
    with pytest.raises(UserError, match=r"a function\(\) returned list"):
        tasks.get(path).extract_answer([0])


@pytest.mark.parametrize(
    "returns", ["[]", "[1], [2]", "[('q', 's', 'a')], []", "[Problem('q', 's', 1)], [Problem('q', 's', 'a')]"]
)
def test_problems_of_an_own_task_are_two_lists_of_problems(returns, tmp_path):
    path = own_task(tmp_path, OWN + f"def problems(config):\n    return {returns}\n")
    with pytest.raises(UserError, match=r"problems\(\) must return two lists of Problem, whose three fields are text"):
        tasks.load_problems(SimpleNamespace(task=path))


@pytest.mark.parametrize(
    "row, says",
    [
        ("type('P', (Problem,), {'__hash__': None})('q', 's', 'a')", "unhashable type"),
        ("Problem('q', 's', chr(0xD83D))", "holds half a character"),
    ],
)
def test_problems_that_cannot_be_compared_or_written_are_one_line(row, says, tmp_path):
    """They ended in tracebacks, one of them after the first iteration."""
    path = own_task(tmp_path, OWN + f"def problems(config):\n    return [{row}], [Problem('q', 's', 'a')]\n")
    with pytest.raises(UserError, match=says):
        tasks.load_problems(SimpleNamespace(task=path))


def test_a_task_that_does_not_exist(tmp_path):
    names = "arithmetic, decisive, gsm8k, jsonl, math"
    with pytest.raises(UserError, match=rf"unknown task 'olympiad': choose from {names}, or give the path of a \.py file"):
        tasks.get("olympiad")
    for missing in (tmp_path / "none.py", tmp_path):
        with pytest.raises(UserError, match=r"there is no task file|unknown task"):
            tasks.get(str(missing))


def test_an_empty_split_is_refused(tmp_path):
    for split, rows in (("train", json.dumps({"question": "q", "answer": "#### 4"})), ("test", "")):
        (tmp_path / f"{split}.jsonl").write_text(rows)
    with pytest.raises(UserError, match="the test split of gsm8k is empty"):
        tasks.load_problems(SimpleNamespace(task="gsm8k", data=str(tmp_path)))


def test_reward_needs_an_ending(tokenizer):
    problem = Problem("q", "#### 9", "9")
    ids = tokenizer("12-3=9\n#### 9")["input_ids"]
    assert tasks.grade(arithmetic, problem, of_ids([*ids, tokenizer.eos_token_id], True), tokenizer) == 1.0
    assert tasks.grade(arithmetic, problem, of_ids(ids, False), tokenizer) == 0.0  # cut by the limit, whatever it says


@pytest.mark.parametrize("reward", [0, 1, True, 0.25, np.float32(0.5), np.float64(1), np.int64(1)])
def test_a_reward_is_a_number_from_0_to_1(tokenizer, reward):
    grade = tasks.grade(SimpleNamespace(reward=lambda problem, text: reward), Problem("q", "", ""), of_ids([1], True), tokenizer)
    assert type(grade) is float and grade == reward


@pytest.mark.parametrize("reward", [-0.1, 1.1, float("nan"), float("inf"), 10**400, None, "1", [1.0], 1j])
def test_anything_else_is_refused(tokenizer, reward):
    with pytest.raises(UserError, match=r"the task's reward\(\) must return a number from 0 to 1, not "):
        tasks.grade(SimpleNamespace(reward=lambda problem, text: reward), Problem("q", "", ""), of_ids([1], True), tokenizer)


def test_demonstrations_of_a_task_without_its_own():
    problem = Problem("q", "1+1=2\n#### 2", "2")
    for task in (gsm8k, jsonl):
        assert tasks.demonstration(task, problem, 0.0, random.Random(0)) == problem.solution
        with pytest.raises(UserError, match="needs --error_rate 0"):
            tasks.demonstration(task, problem, 0.1, random.Random(0))
    assert tasks.demonstration(arithmetic, problem, 0.0, random.Random(0)) == problem.solution
