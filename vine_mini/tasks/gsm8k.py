"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems, and the grader for answers that are numbers.

Whatever a policy writes is right or wrong, never an error. A response gets one guess: all its answer lines must state the same
number, and a line with two numbers makes the whole response wrong.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from vine_mini.types import Problem, UserError

TEMPLATE = "[MATH_TASK] Problem:\n{question}\n\nSolution:"  # the one that the paper's checkpoints were tuned on
ANSWER_MARK = "####"
DEFAULTS = {"max_new_tokens": 512, "eval_temperature": 0.35}  # the temperature is the paper's

CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # annotations of the data set, as in 48/2=<<48/2=24>>24
# A number as people write it. re.ASCII: \d alone would match the digits of every script.
NUMBER = re.compile(
    r"(?P<sign>-?(?:[$\u20ac\u00a3] ?)?|[$\u20ac\u00a3] ?-)"  # minus and currency in either order
    r"(?P<digits>[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))"  # 1,000 or 1000, or nothing before a decimal point
    r"(?P<decimals>(?:\.\d+)?)(?P<below>(?:/\d+)?)",  # .50 or /2
    re.ASCII,
)
CHANGED = re.compile(  # 72k is not 72, and 2 and a half is not 2
    r"\d ?(?:k|(?:dozen|hundred|thousand|million|billion)s?)\b|\d ?\^|(?:\band|&) (?:(?:an?|one|two|three|four|five|seven|\d) )?"
    r"(?:hal[fv]|third|quarter|fourth|fifth|sixth|eighth|tenth)",
    re.IGNORECASE,
)
LONGEST = 60  # characters of a number; a policy that babbles digits must not stall the grader
# What stands beside a number and makes another one of it: /3, -(3), --3, <3, 3/x. But -> 3, and $3/hour.
OPERATOR = re.compile(r"(?:[/\\^<|~\u221a\u00d7\u00f7\u2248\u2260\u2264\u2265]|!=|(?<![-=])>|-[-+(*_ ]*[-+(*_])$")
OPERATOR_AFTER = re.compile(r" ?(?:/(?! ?[a-z])|[\u00d7\u00f7\u221a!]=?(?= ?\w))", re.IGNORECASE)
LIST_NUMBER = re.compile(r"\d+[.)]\W*[^\W\d_]")  # of a heading: `1. Find the cost`
BEFORE_ANSWER = ("answer", "is", "usd")  # `The answer is 18` states a number, `Step 18` does not


def problems(config) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems from `config.data`, a folder with train.jsonl and test.jsonl, or from the Hub."""
    if config.data is not None:
        return read_jsonl(Path(config.data) / "train.jsonl"), read_jsonl(Path(config.data) / "test.jsonl")
    try:
        from datasets import load_dataset

        hub = load_dataset("openai/gsm8k", "main")
    except Exception as error:  # whatever the Hub client raises without a network
        reason = type(error).__name__
        raise UserError(f"cannot load openai/gsm8k from the Hub ({reason}); give a local folder with --data") from error
    train, test = ([parse_row(row, f"openai/gsm8k {split}") for row in hub[split]] for split in ("train", "test"))
    return train, test


def parse_row(row, where: str) -> Problem:
    """One row of GSM8K -> Problem, without the calculator annotations. `where` names the row in messages."""
    question, solution = text_field(row, "question", where), CALCULATOR.sub("", text_field(row, "answer", where))
    answer = extract_answer(solution)
    if answer is None:
        raise UserError(f"{where}: 'answer' must end in a line '#### number'")
    return Problem(question, solution, answer)


def text_field(row, name: str, where: str) -> str:
    """`row[name]`. Raises UserError where that is not a text, is blank, or holds half a character (a cut emoji)."""
    if not isinstance(row, dict):
        raise UserError(f'{where}: needs a text field {name!r}; write one JSON object a line, {{"{name}": ...}}')
    text = row.get(name)
    if name in row and not isinstance(text, str):
        raise UserError(f"{where}: needs a text field {name!r}, not {json.dumps(text, default=str)[:40]}")
    if not isinstance(text, str) or not text.strip() or text.encode(errors="ignore").decode() != text:
        raise UserError(f"{where}: needs a text field {name!r}")
    return text


def read_jsonl(path: Path, parse: Callable[..., Any] = parse_row) -> list:
    """What `parse(row, where)` makes of each row of a file with one JSON object a line; of GSM8K a Problem. Raises UserError."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading a device or a pipe may not end
        raise UserError(f"{path} is no regular file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        hint = "; a folder for --data holds train.jsonl and test.jsonl" if path.name in ("train.jsonl", "test.jsonl") else ""
        raise UserError(f"cannot read {path} ({reason}){hint}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}); write one JSON object a line") from error
            rows.append(parse(row, f"{path}, line {number}"))
    return rows


def reward(problem: Problem, text: str) -> float:
    """1.0 where a response states the problem's answer, else 0.0."""
    return float(is_correct(text, problem.answer))


def is_correct(response: str, answer: str) -> bool:
    """Whether the response's `####` line states the same number as `answer` (a number, or text with a `####` line)."""
    given = extract_answer(response)
    return given is not None and given == (extract_answer(answer) if ANSWER_MARK in answer else read_number(answer))


def extract_answer(text: str) -> str | None:
    """The number on a response's `#### ...` line in canonical form, or None where there is not exactly one.

    Separators, currency, units and a closing full stop do not matter: `#### $1,000.00 dollars.` gives `1000`. A line that
    states no number, such as `#### Step 1`, is no answer line. Answer lines that disagree answer nothing. An answer line that
    cannot be read, such as `#### 17 or 18` or `#### 72k`, answers nothing either, whatever the other lines say.
    """
    answers = {read_number(line) for line in answer_lines(text) if _states_a_number(_plain(line))}
    return answers.pop() if len(answers) == 1 else None


def answer_lines(text: str) -> list[str]:
    """What follows #### on each line that has it. Calculator annotations are removed first."""
    return re.findall(f"{ANSWER_MARK}(.*)", CALCULATOR.sub("", text))


@lru_cache(maxsize=10_000)  # the rollouts of an iteration state few different numbers
def read_number(text: str) -> str | None:
    """The one number in a text, in lowest terms: '$1,000.50' -> '2001/2', '-7.0' -> '-7'. None where there is not exactly one.

    Digits of other scripts, superscripts and characters such as the fraction one half are numbers too, but they are not read.
    """
    text = _plain(text)
    match = NUMBER.search(text)
    if match is None or len(match[0]) > LONGEST or CHANGED.search(text):
        return None
    before, after = text[: match.start()].rstrip(), text[match.end() :]
    signs = before.endswith("-") and "-" in match["sign"]
    if signs or OPERATOR.search(before) or OPERATOR_AFTER.match(after) or _first_digit(before + after) is not None:
        return None
    number, below = match["digits"].replace(",", "") + match["decimals"], match["below"]
    if below and (match["decimals"] or int(below[1:]) == 0 or str(Fraction(number + below)) != number + below):
        return None  # 144/2 leaves the last step to the reader
    value = Fraction(number + below)
    canonical = str(-value if "-" in match["sign"] else value)
    return canonical if len(canonical) <= LONGEST else None


def _states_a_number(line: str) -> bool:
    """False for a heading: no digit, a word right before the first one (`Step 1`), or a list number (`1. Find the cost`)."""
    first = _first_digit(line)
    if first is None:
        return False
    before = line[:first].removesuffix("-").rstrip(" .*_#('\"")
    word = re.split(r"[\W_]", before)[-1].lower()  # empty where a symbol stands between: `Total: 18`, `x = 18`, `Cost $18`
    return (not word or word in BEFORE_ANSWER) and not LIST_NUMBER.match(line[first:])


def _plain(text: str) -> str:
    """The text with single spaces, ASCII minus signs and plain dollar signs."""
    text = " ".join(text.replace("\\$", "$").replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-").split())
    return "-" + text[2:] if text.startswith("- ") else text


def _first_digit(text: str) -> int | None:
    """Where the first digit or other numeral of any script stands. Chinese numerals are letters to Unicode, and here too."""
    return next((i for i, c in enumerate(text) if unicodedata.category(c)[0] == "N"), None)
