"""A user's own questions and answers from JSON lines: `--task jsonl --data PATH`. No Python is needed.

PATH is a folder with train.jsonl and test.jsonl, or one file. Of one file, the questions whose checksum is divisible by ten are
the test split: about a tenth, always the same ones. A line is {"question": ..., "answer": ...}. The answer is the answer alone,
or a solution that ends in `#### answer`, as in GSM8K.

How a response is graded:
- An answer that is a number alone (sign, currency and % aside) is graded as a number, with the rules of `gsm8k`: `#### $1,000`
  and `#### 1000 eggs` are both right for 1000.
- Any other answer is graded as exact text: `#### paris` is wrong for Paris. Only white space and the Unicode spelling of accents
  do not matter.
- The answer is what follows #### on its line. Several such lines that disagree are wrong: a response gets one guess.
- Calculator annotations of GSM8K are removed from data and responses.
"""

import math
import unicodedata
import zlib
from decimal import Decimal
from pathlib import Path

from vine_mini.tasks import gsm8k
from vine_mini.types import Problem, UserError

TEMPLATE = '{question}\n\nThink step by step, one short line for each step. End with one line "#### answer".\n'
ANSWER_MARK, DEFAULTS = gsm8k.ANSWER_MARK, gsm8k.DEFAULTS
OF_NUMBERS = set("0123456789.,/$\u20ac\u00a3%+- \N{MINUS SIGN}\N{EN DASH}")  # an answer of other characters is text


def problems(config) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems from `config.data`, a folder or a file."""
    if config.data is None:
        raise UserError("--task jsonl needs --data: a folder with train.jsonl and test.jsonl, or one file")
    path = Path(config.data)
    if path.is_dir():
        return gsm8k.read_jsonl(path / "train.jsonl", parse_row), gsm8k.read_jsonl(path / "test.jsonl", parse_row)
    train, test = [], []
    for problem in gsm8k.read_jsonl(path, parse_row):
        (test if zlib.crc32(problem.question.encode()) % 10 == 0 else train).append(problem)
    if train and not test:
        raise UserError(f"{path}: about a tenth of the questions are for testing, but none of these; give more, or use a folder")
    return train, test


def parse_row(row, where: str) -> Problem:
    """One line -> Problem. The answer may be a JSON number. `where` names the line in messages."""
    row = with_text_answer(row, where)
    question, answer = gsm8k.text_field(row, "question", where), gsm8k.text_field(row, "answer", where)
    solution = gsm8k.CALCULATOR.sub("", answer if ANSWER_MARK in answer else f"{ANSWER_MARK} {answer}")
    problem = Problem(question, solution, _canonical(solution.split(ANSWER_MARK)[-1]))
    if not reward(problem, solution):
        raise UserError(f"{where}: 'answer' must be one line, or end in one line '#### answer'")
    return problem


def with_text_answer(row, where: str):
    """The row with its answer as text, if that is a JSON number. Raises UserError for NaN and Infinity."""
    answer = row.get("answer") if isinstance(row, dict) else None
    if type(answer) not in (int, float):
        return row
    if isinstance(answer, float) and not math.isfinite(answer):
        raise UserError(f"{where}: 'answer' is {answer}, which is no number")
    return row | {"answer": format(Decimal(str(answer)), "f")}  # 0.00001 and not 1e-05


def reward(problem: Problem, text: str) -> float:
    """1.0 where a response states the problem's answer, else 0.0."""
    return gsm8k.reward(problem, text) if _is_number(problem.answer) else float(_stated(text) == problem.answer)


def extract_answer(text: str) -> str | None:
    """The answer of a response: a number in the canonical form of `gsm8k` where it is one, else text. None: no one answer.

    A number with more beside it, such as `17 apples`, is text here: whether a number is asked for is not known.
    """
    stated = _stated(text)
    return gsm8k.extract_answer(text) if stated is None else _canonical(stated)  # beside headings, only a number can be told


def _stated(text: str) -> str | None:
    """What the answer lines say, with single spaces. None where they say nothing or disagree."""
    answers = {_plain(line) for line in gsm8k.answer_lines(text)} - {""}
    return answers.pop() if len(answers) == 1 else None


def _plain(text: str) -> str:
    """With single spaces, and one spelling of accents: files of a Mac hold two characters for an o with dots."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _canonical(text: str) -> str:
    text = _plain(text)
    return gsm8k.read_number(text) if _is_number(text) else text


def _is_number(text: str) -> bool:
    return set(text) <= OF_NUMBERS and gsm8k.read_number(text) is not None
