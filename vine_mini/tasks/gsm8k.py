"""GSM8K (Cobbe et al. 2021): grade-school word problems, and the grader that every task here uses."""

import json
import re
from fractions import Fraction
from pathlib import Path

from vine_mini.types import Problem, UserError

TEMPLATE = "[MATH_TASK] Problem:\n{question}\n\nSolution:"  # the one that the paper's checkpoints were tuned on
CALCULATOR = re.compile(r"<<[^<>\n]*>>")
# A number as people write it: sign and currency in either order, thousands separators, decimals, or a fraction.
NUMBER = re.compile(
    r"(?P<sign>-?(?:\$ ?)?-?)(?P<digits>[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?P<decimals>(?:\.\d+)?)(?P<below>(?:/\d+)?)"
)
CHANGED = re.compile(r"\d ?(?:k|dozen|hundred|thousand|million|billion)\b|\d[\u00b2\u00b3^]", re.IGNORECASE)  # 72k is not 72
LONGEST = 60  # characters of a number; a policy that babbles digits must not stall the grader


def load(config) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems from `config.data`, a folder with train.jsonl and test.jsonl, or from the Hub."""
    if config.data is not None:
        return tuple(read_jsonl(Path(config.data) / f"{split}.jsonl") for split in ("train", "test"))
    try:
        from datasets import load_dataset

        hub = load_dataset("openai/gsm8k", "main")
    except Exception as error:  # whatever the Hub client raises without a network
        raise UserError(
            f"cannot load openai/gsm8k from the Hub ({type(error).__name__}); give a local folder with --data"
        ) from error
    return tuple([parse_row(row, f"openai/gsm8k {split}") for row in hub[split]] for split in ("train", "test"))


def read_jsonl(path: Path) -> list[Problem]:
    """Problems from a file with one {"question": ..., "answer": ...} a line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: --data needs a folder with train.jsonl and test.jsonl in UTF-8") from error
    problems = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from error
            problems.append(parse_row(row, f"{path}, line {number}"))
    return problems


def parse_row(row, where: str) -> Problem:
    """One row of GSM8K -> Problem, without the calculator annotations `<<48/2=24>>`."""
    for name in ("question", "answer"):
        if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
            raise UserError(f"{where}: needs a text field {name!r}")
    solution = CALCULATOR.sub("", row["answer"])
    answer = extract_answer(solution)
    if answer is None:
        raise UserError(f"{where}: 'answer' must end in a line '#### number'")
    return Problem(row["question"], solution, answer)


def demonstration(problem: Problem, error_rate: float, rng) -> str:
    """What supervised fine-tuning imitates: the human solution. `error_rate` has no meaning for text and must be 0."""
    if error_rate:
        raise UserError("error_rate makes wrong steps in generated arithmetic; gsm8k's human solutions need --error_rate 0")
    return problem.solution


def extract_answer(text: str) -> str | None:
    """The number on a response's `#### ...` line as plain digits, or None where there is not exactly one.

    Separators, currency, units and a closing full stop do not matter: `#### $1,000.00 dollars.` gives `1000`. Lines that
    disagree, or a line with two numbers, answer nothing: a list of guesses earns no reward.
    """
    answers = {_only_number(line) for line in re.findall(r"####([^\n]*)", CALCULATOR.sub("", text))}
    return answers.pop() if len(answers) == 1 else None


def is_correct(response: str, answer: str) -> bool:
    """Whether the response's `####` line states the same number as `answer` (a number, or text with a `####` line)."""
    given = extract_answer(response)
    return given is not None and given == (extract_answer(answer) if "####" in answer else _only_number(answer))


def _only_number(text: str) -> str | None:
    """The one number in a piece of text in lowest terms: '$1,000.50' -> '2001/2', '-7.0' -> '-7'; None if not exactly one."""
    text = " ".join(text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-").split())
    text = text.replace("- ", "-", 1) if text.startswith("- ") else text
    match = NUMBER.search(text)
    if match is None or len(match[0]) > LONGEST or CHANGED.search(text):
        return None
    if re.search(r"\d", text[: match.start()] + text[match.end() :]):
        return None
    number = match["digits"].replace(",", "") + match["decimals"]
    if match["below"]:
        if set(match["below"]) <= {"/", "0"} or str(Fraction(number + match["below"])) != number + match["below"]:
            return None  # 144/2 leaves the last step to the reader
        number += match["below"]
    value = Fraction(number)
    return str(-value if "-" in match["sign"] else value)
