r"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): competition problems with an answer in a box, \boxed{...}.

The last box of a response is its answer. An answer that is spelled like the reference is right at once, spaces and such aside.
Any other is compared by `math_equal.py`, which needs math-verify. Units, degrees, currency and percent signs do not count: 5 cm
is 5, and 50\% is 50, not 0.5. Text is compared without case and spaces. A rounded decimal is wrong.

A majority vote counts spellings: 0.5 and 1/2 are two answers there. The comparison needs Linux or macOS.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from vine_mini.tasks import gsm8k
from vine_mini.tasks.math_steps import step_starts as step_starts  # part of the task
from vine_mini.types import Problem, UserError

TEMPLATE, ANSWER_MARK, DEFAULTS = gsm8k.TEMPLATE, None, {"max_new_tokens": 1024, "eval_temperature": 0.35}
HUB, TESTED = "DigitalLearningGmbH/MATH-lighteval", "HuggingFaceH4/MATH-500"
INSTALL = "pip install 'math-verify[antlr4_13_2]'"
LONGEST = 300  # characters of an answer that is compared; a longer one is right only if it is spelled like the reference
BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
INTEGER = re.compile(r"-?[1-9]\d*|0", re.ASCII)
UNITS = "degrees|dollars|cents|units|inches|feet|cm|km|meters|miles|hours|minutes|seconds|days|years"
SPELLINGS: list = [  # what does not change the meaning of an answer
    (r"\s+", " "),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?|\\(?:displaystyle|q?quad)(?![a-zA-Z])", ""),
    (r"\\[dtc](?=frac|binom)", r"\\"),
    (r"\\(?:mbox|text[a-z]+|math(?:rm|bf|it)|operatorname)(?= ?\{)", r"\\text"),
    (r"\{[bB]matrix\}", "{pmatrix}"),
    (r"\\([lgn]e)q(?![a-zA-Z])", r"\\\1"),
    (r"(?:,(?<!\\,)\\!|\{,\}) ?(?=\d{3})", ""),  # thousands, as LaTeX spells them
    (r"(?<!\\)\\[!,;:> ]|~", " "),
    (r"\\?[$%]|(?<!\\)\\[()]|\^ ?\{? ?\\circ ?\}?|\\degree|\N{DEGREE SIGN}", ""),
    (r"^ ?(?:[a-z] ?= ?)?-?\d{1,3}(?:,\d{3})+(?![\d,]| ,)", lambda m: m[0].replace(",", "")),  # but `100, 200` is a list
    (r",? ?\\text ?\{ ?(?:and|or) ?\}|,? (?:and|or) ", ","),
    (r" (?![a-zA-Z0-9])|(?<![a-zA-Z0-9]) ", ""),
    (r"^((?:[a-z]=)?-?\d{1,3}),(?=\d{3}(?!\d))", r"\1,+"),  # a list; `100,200` would be a number the next time
    (r"\.+$", ""),
    (r"(?<=[\w)}])(?:\\text\{[^{}]*\}(?:\^\{?\d\}?)?)+$", ""),
    (rf"(?<=[\d)}}]) ?(?:square )?(?:{UNITS})(?:\^\{{?\d\}}?)?$", ""),
    (r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),
    (r"^(-?\d+) (\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
    (r"_\{(\d+)\}$", r"_\1"),
]


def problems(config) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems from `config.data`, a folder with train.jsonl and test.jsonl, or the paper's split from the Hub."""
    if find_spec("math_verify") is None:
        raise UserError(f"--task math needs math-verify to compare answers: {INSTALL}")
    _mean_the_same("0.5", "1/2")  # an installation that does not work is an error here, not after an hour
    if config.data is not None:
        folder = Path(config.data)
        return gsm8k.read_jsonl(folder / "train.jsonl", parse_row), gsm8k.read_jsonl(folder / "test.jsonl", parse_row)
    try:
        from datasets import load_dataset

        hub, tested = load_dataset(HUB), load_dataset(TESTED, split="test")
    except Exception as error:  # whatever the Hub client raises without a network
        raise UserError(f"cannot load {HUB} from the Hub ({type(error).__name__}); give a local folder with --data") from error
    test = [parse_row(row, TESTED) for row in tested]
    rest = [parse_row(row, f"{HUB} {split}") for split in ("train", "test") for row in hub[split]]
    taken = {"".join(problem.question.split()) for problem in test}
    return [problem for problem in rest if "".join(problem.question.split()) not in taken], test


def parse_row(row, where: str) -> Problem:
    """One row of MATH -> Problem. Without a field `answer`, the answer is the solution's last box. `where` names the row."""
    question, solution = gsm8k.text_field(row, "problem", where), gsm8k.text_field(row, "solution", where)
    answer = extract_answer(solution) if row.get("answer") is None else normalize(gsm8k.text_field(row, "answer", where))
    if not answer:
        raise UserError(f"{where}: needs a text field 'answer', or a 'solution' with \\boxed{{answer}} and its closing brace")
    return Problem(question, solution, answer)


def reward(problem: Problem, text: str) -> float:
    """1.0 where a response states the problem's answer, else 0.0."""
    return float(is_correct(text, problem.answer))


def is_correct(response: str, answer: str) -> bool:
    """Whether the last box of a response means the same as `answer`."""
    given, answer = extract_answer(response), normalize(answer)
    if given is None or len(given) > LONGEST or (INTEGER.fullmatch(given) and INTEGER.fullmatch(answer)):
        return given == answer
    return given == answer or _mean_the_same(given, answer)


def extract_answer(text: str) -> str | None:
    """What stands in the last box of a text, normalized. None where there is no box, or nothing in it, or no end of it."""
    *before, content = BOX.split(text)
    if not before:
        return None
    if not content.startswith("{"):
        return normalize(re.split(r"[$\n]", content, maxsplit=1)[0]) or None  # \boxed 5
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", content, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return normalize(content[1 : brace.start()]) or None
    return None


def normalize(answer: str) -> str:
    """An answer without what does not change its meaning: spaces, units, and commands that change only how it looks."""
    for pattern, replacement in SPELLINGS if len(answer) <= LONGEST else ():
        answer = re.sub(pattern, replacement, answer)
    return answer


@lru_cache(maxsize=1 << 16)
def _mean_the_same(given: str, answer: str) -> bool:
    process, verdict = _comparer(os.getpid()), ""
    try:
        print(json.dumps([given, answer]), file=process.stdin)
        verdict = process.stdout.readline()
    except BrokenPipeError:
        pass  # told below
    finally:
        if not verdict:  # it has ended, or Ctrl-C came first: the next answer must not get this one's verdict
            _comparer.cache_clear()
    if not verdict:
        raise UserError(f"the process that compares answers has ended; does math-verify work? {INSTALL}")
    return verdict == "1\n"


@cache
def _comparer(process_id: int) -> subprocess.Popen:
    """The process that compares answers for this process; a fork gets its own. -P: there, `import math` is not this file."""
    command, pipe = [sys.executable, "-P", str(Path(__file__).with_name("math_equal.py"))], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=1, text=True, start_new_session=True)
