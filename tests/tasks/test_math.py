r"""MATH: equal answers are right whatever their spelling, near ones are wrong, and nothing that a model writes stalls or runs."""

import json
import os
import random
import subprocess
import sys
import time
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from vine_mini import tasks
from vine_mini.tasks import math
from vine_mini.tasks.math import extract_answer, is_correct, normalize, step_starts
from vine_mini.types import Problem, UserError

MATH500 = Path(__file__).parents[3] / "shared" / "math" / "math500.jsonl"
needs_math_verify = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")
needs_math500 = pytest.mark.skipif(not MATH500.exists(), reason="the real problems of MATH-500 are not here")

RIGHT = [  # a response's answer, the reference
    (r"\frac12", r"\frac{1}{2}"), (r"\dfrac{1}{2}", r"\frac{1}{2}"), ("1/2", r"\frac{1}{2}"), ("0.5", r"\frac{1}{2}"), (".5", "0.50"), (r"\tfrac{6}{4}", r"\frac32"),
    (r"-\frac{3}{8}", r"\frac{-3}{8}"), (r"\frac{-3}{8}", r"-\frac38"), (r"1\frac{4}{5}", r"\frac{9}{5}"), ("1.8", r"1\frac45"), ("1 4/5", r"\frac95"), (r"-1\frac{1}{2}", "-1.5"),
    (r"\frac{270}7", r"\frac{270}{7}\text{ degrees}"), ("5.0", "5"), ("05", "5"), ("+5", "5"), ("-0", "0"), ("5.", "5"), ("$5$", "5"), (r"\(5\)", "5"), ("{5}", "5"), ("(5)", "5"),
    ("5 cm", "5"), ("5 hours", "5"), ("7", "7 miles"), (r"15\mbox{ cm}^2", r"15 \text{ cm}^2"), ("15", r"15\mbox{ cm}^2"), (r"864 \text{ square inches}", r"864 \mbox{ inches}^2"), ("5.4", r"5.4 \text{ cents}"),
    (r"12\,\text{units}", "12"), ("12 square units", "12"), ("12\nsquare\tunits", "12"), ("5~cm", "5"), (r"10\text{ ft}^3", "10"), (r"5\text{ million}", "5"),
    (r"90^\circ", "90"), (r"90^{\circ}", r"90^\circ"), (r"90 \text{ degrees}", r"90^\circ"), ("90\N{DEGREE SIGN}", r"90^\circ"), ("90 degrees", r"90^\circ"), (r"90\,^\circ", "90"),
    (r"\$18.90", "18.9"), ("18.90", r"\$18.90"), (r"\$32,348", r"\$32,\!348"), ("36 dollars", r"\$36"), (r"50\%", "50"), ("50", r"50\%"), ("12.5%", r"12.5\%"),
    ("10080", r"10,\!080"), ("10,080", r"10,\!080"), (r"10{,}080", "10080"), ("58500", "58,500"), ("11,111,111,100", r"11,\! 111,\! 111,\! 100"), ("x = 1,000", "1000"),
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"), (r"11\sqrt2", r"11\sqrt{2}"), (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"), (r"\sqrt[3]{16}", r"2\sqrt[3]{2}"), ("2^{1/2}", r"\sqrt2"),
    ("x=5", "5"), ("5", "x=5"), ("x = 5", "x=5"), ("2x-y+3=0", "y = 2x + 3"), ("y-2x=3", "y = 2x + 3"), ("2x+3", "y = 2x + 3"), ("10x - 14y + 22z + 8 = 0", "5x - 7y + 11z + 4 = 0"), ("f(x)=x^2", "x^2"),
    (r"[-2,7]", r"x \in [-2,7]"), ("(3,4]", r"\left(3, 4\right]"), (r"(0,9)\cup(9,36)", r"(9,36) \cup (0,9)"), (r"\left(-\infty,0.0\right]", r"(-\infty, 0]"), ("x>3", "3 < x"), (r"1 \leq x \leq 3", r"3 \ge x \ge 1"),
    ("-2,1", "1,-2"), (r"\{1,-2\}", "1, -2"), ("1 and -2", "-2, 1"), (r"1 \text{ or } {-2}", "1,-2"), (r"1\text{ and }-2", "1,-2"), ("7, 5, 3", "3, 5, 7"), ("x=1, x=-2", "1,-2"), ("100, 200", "200, 100"),
    (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}"), (r"-2, 1-\sqrt5, 1+\sqrt5", r"\{1\pm\sqrt{5},-2\}"), (r"\frac{3 \pm \sqrt{5}}{2}", r"\frac{3-\sqrt5}{2},\frac{3+\sqrt5}{2}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"), ("(1.5,-13)", r"\left( \frac{3}{2}, -13 \right)"),
    (r"\begin{pmatrix} -\frac13 \\ \frac23 \\ \frac53 \end{pmatrix}", r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}"), (r"\begin{bmatrix}-1&0\\0&-1\end{bmatrix}", r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}"),
    ("Evelyn", r"\text{Evelyn}"), (r"\text{evelyn}", r"\text{Evelyn}"), (r"\textbf{even}", r"\text{even}"), (r"\mathrm{east}", r"\text{east}"), ("C", r"\text{(C)}"), (r"\textbf{(C)}", r"\text{C}"), (r"\text{no solution}", r"\text{No  solution}"),
    ("4210_5", "4210_{5}"), (r"1.5 \times 10^3", "1500"), (r"6.72 \cdot 10^{-5}", ".0000672"), ("2^{10}", "1024"), ("2^{2005}", r"2 \cdot 2^{2004}"), ("5!", "120"), (r"\binom{10}{3}", "120"), ("2(3)", "6"), (r"\ln 8", r"3\ln 2"),
    (r"\theta+\theta", r"2\theta"), (r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3"), (r"10^{45}(\sqrt2+\sqrt3)", r"10^{45}\sqrt{5+2\sqrt6}"), ("10^{-60}", r"10^{-30}\cdot 10^{-30}"), ("10^{4000}", r"10^{2000}\cdot 10^{2000}"),
    ("(x=5, y=3)", "(5,3)"), ("12_3, 5", "5.0, 12_3"), ("x=1/0, x=5", "2x=10, x=1/0"), ("[0.5,1)", r"[\frac12,1)"), ("[1, 2.0]", "[1.0, 2]"), (r"\pm 1 \mp \sqrt2", r"1-\sqrt2, -1+\sqrt2"), (r"\begin{pmatrix}0.5&1\end{pmatrix}", r"\begin{pmatrix}\frac12&1\end{pmatrix}"),
    ("(b+2)(a+5)", "(a+5)(b+2)"), ("x^2+2x+1", "(x+1)^2"), (r"\frac{11}{20}+\frac{9a}{20}", r"\frac{11+9a}{20}"), ("9i+6", "6+9i"), ("(1+2i)(1-2i)", "5"), (r"\frac{\cos x}{\sin x}", r"\cot x"), (r"1.25\pi", r"\frac{5\pi}{4}"), ("3R^2", "3 R^{2}"),
]  # fmt: skip

WRONG = [
    ("1,2", "1"), ("1", "1,2"), ("1,2,3", "1,2"), (r"5 \text{ or } 6", "5"), ("5 or 6", "5"), ("5, 6", "6"), (r"5\text{ or }5.1", "5"), ("1,1", "1,2"), ("1,1,2", "1,2,2"), ("3,5,7", "3,5,9"), (r"\{1,2\}", r"\{1,3\}"), ("1+1", "1,1"),
    ("(1,2)", "(2,1)"), ("(1,2)", "1,2"), ("1,2", "(1,2)"), ("[1,2)", "(1,2]"), ("[1,2]", "(1,2)"), ("(1,2,3)", "(1,2)"), ("(1,2)", "(1,3)"), (r"(1,2)\cup(3,4)", "(1,2)"), (r"(0,9)\cup(9,36)", "(0,36)"), (r"(-\infty,2)", r"(-\infty,2]"),
    ("12_3", "12"), ("12", "12_3"), ("12_3", "12_4"), ("12_3", "5"), ("5", "12_3"), ("x^2", "x^3"), ("x^2", "y^2"), ("X", "x"), ("x", "5"), ("ab", "a+b"), ("5r^5", "5r^4"), ("2k+2", "2k"), (r"\frac{11+9a}{20}", r"\frac{11+9b}{20}"),
    ("1/2", "0.49"), ("0.333", r"\frac{1}{3}"), (r"\frac13", "0.3333333333"), ("3.14", r"\pi"), (r"\frac{22}{7}", r"\pi"), ("1.414", r"\sqrt2"), ("33.33", r"33\frac13"), (r"8\pi", "25.13"), (r"8\pi", "8"),
    (r"\text{odd}", r"\text{even}"), ("A", r"\text{(C)}"), (r"\text{(A)}", r"\text{(C)}"), (r"\text{(A) or (C)}", r"\text{(C)}"), (r"\text{not even}", r"\text{even}"), (r"\text{Evelyn and Briana}", r"\text{Evelyn}"), ("5", r"\text{east}"),
    (r"\text{-5}", "5"), (r"\text{12}", "1/2"), (r"\text{}", "5"), ("", "5"), ("?", "5"), ("5?", "5"), ("(5", "5"), ("5)", "5"), (r"5\cdot", "5"),
    ("-5", "5"), ("50", "5"), ("0.5", "5"), ("5.01", "5"), ("1.2.3", "0.36"), ("1000", "1,001"), ("1,000", "1"), ("10,080", "10.080"), ("10^{-20}", "10^{-21}"), ("10^{20}", "10^{20}+1"), ("2^{2005}", "2^{2005}+1"), ("100!", "100!+1"), ("10^{41}", "10^{41}+1"), ("123456789012345678901", "123456789012345678902"), ("100,200", "100, 201"),
    ("0", r"\frac{1}{0}"), (r"\frac{1}{0}", r"\frac{2}{0}"), (r"\infty", r"-\infty"), ("5/0", "0"), ("0.5", r"50\%"), (r"5\%", "0.05"), ("2 3", "5"), ("2 3", "6"), ("2(3)", "5"), ("5 6", "56"), (r"1\frac{4}{5}", r"\frac{4}{5}"), ("3:4", "0.75"),
    ("x=5", "6"), ("0=0", "x=5"), ("x=x", "y=2x+3"), ("x=5", "5x=5x"), ("x=5", "y=5"), ("x=5, y=3", "x=3, y=5"), ("y=2x+3", "y=2x-3"), ("y=2x+3", "y=3x+2"), ("y=2x", "x=2y"), ("2x-y+4=0", "y=2x+3"), ("x>3", r"x \ge 3"), ("x>3", "x<3"), ("x>3", "3"), ("x=3", "x>3"), ("x^2=1", "x=1"), ("2x=10", "5"), ("x=4=5", "5"),
    ("x=5", "x=y=5"), ("1<x<3", "1<x"), ("1<x<3", "1<x<4"), ("y<3", "x<3"), ("(1,2]", "[1,2]"), ("[1,2]", "[2,1]"), ("10^{-35}", "10^{-36}"), (r"10^{-45}\sqrt2", r"10^{-45}\cdot 1.41421356"), ("0", "10^{-70}"), ("10^{2999}+1", "10^{2999}"), ("10^{4000}", r"2\cdot 10^{4000}"),
    (r"2\sqrt{3}", r"3\sqrt{2}"), (r"\sqrt{12}", r"\sqrt{13}"), (r"\sqrt{x^2}", "x"), ("|x|", "x"), (r"1+\sqrt{19}", r"1\pm\sqrt{19}"), (r"1 \pm \sqrt{19}", r"1 \pm \sqrt{18}"), ("6-5i", "6+5i"), ("9+6i", "6+9i"), (r"\sin x", r"\cos x"), (r"\log 2", r"\ln 2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"), (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]  # fmt: skip

CODE = [
    "__import__('os').system('echo pwned')", r"\text{__import__('os').system('echo pwned')}", r"\operatorname{exec}(1)", r"\sum_{n=1}^{\infty}\operatorname{exit}(n)", "x_{__import__('os')}", "().__class__", r"\int_0^1 x^x dx", r"\prod_{n=1}^{10^9} n",
    r"\sum_{n=1}^{\infty} \frac{1}{n! 2^n}", r"\sum_{n=1}^{\infty} \frac{f(n)}{2^n}",  # here SymPy would write a program
]  # fmt: skip
SLOW = [r"10^{10^{10^{10}}}", "9!!!!!", r"\binom{1000000000}{500000000}"]  # these use up their second
MORE_SLOW = ["9" + "!" * 99, "((9!)!)!", r"\sin(10^{10^{8}})", r"e^{e^{e^{e^{e}}}}", "(x+y)^{999999}", r"\sqrt{x+" * 30 + "1" + "}" * 30, "[" * 300, "|" * 300, "x^{x^{x^{x^{x^{x}}}}}"]  # fmt: skip
HOSTILE = [
    r"10^{10^{10}}", r"\sqrt{" * 100 + "2" + "}" * 100, r"\frac{1}{" * 50 + "2" + "}" * 50, "(" * 150 + "1" + ")" * 150, "{" * 150 + "1" + "}" * 150, "1," * 150, "-" * 299 + "1", "9" * 300, "1" + "0" * 298 + "!",
    r"\frac{1}{0}", r"\infty-\infty", "0^{0^{0}}", r"\log 0", r"\tan(\frac{\pi}{2})", r"\arcsin(10^{1000})", r"\sqrt[0]{2}", "1/" * 149 + "1", r"9^{9^9}", "x" * 300,
    r"\begin{pmatrix}" + "1&" * 100 + r"1\end{pmatrix}", r"\begin{pmatrix}", "[1,2,,)", "(,)", r"(-\infty,\infty", r"\cup\cup\cup", r"\pm" * 60 + "1", "=", "<" * 100, r"\in", "x=x=x=x=x",
    *CODE,
    "1e999999999", "1E999999999", "\N{ARABIC-INDIC DIGIT THREE}", "\N{VULGAR FRACTION ONE HALF}", "\ud800", "\x00", "\u2028", "\\", "\\\\", "{", "}", r"\{", r"\frac", r"\frac{", r"\frac12345", r"\sqrt", "^", "_", "____", "$$$", "%%%", r"\left(",
    "a" * 100_000, "1+" * 50_000 + "1", r"\frac{" * 20_000, " " * 100_000, r"\text{a}" * 10_000 + "x", r"5}\boxed{", r"\boxed" * 20_000,
]  # fmt: skip


@needs_math_verify
def test_equal_answers_are_right():
    missed = [pair for pair in RIGHT if not is_correct(rf"So the answer is $\boxed{{{pair[0]}}}$.", pair[1])]
    assert len(RIGHT) >= 45 and missed == []


@needs_math_verify
def test_near_answers_are_wrong():
    accepted = [pair for pair in WRONG if is_correct(rf"So the answer is $\boxed{{{pair[0]}}}$.", pair[1])]
    assert len(WRONG) >= 45 and accepted == []


@needs_math_verify
def test_numbers_of_more_than_3000_digits_are_compared_to_forty_digits():
    assert is_correct(r"\boxed{10^{3000}+1}", "10^{3000}") and not is_correct(r"\boxed{10^{3000}(1+10^{-39})}", "10^{3000}")


@needs_math_verify
def test_an_error_in_the_process_is_a_wrong_answer():
    """The first line raises, because it holds one answer. The second line is still judged."""
    command = [sys.executable, "-P", str(Path(math.__file__).with_name("math_equal.py"))]
    done = subprocess.run(command, input='["1"]\n["1", "1.0"]\n', capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n1\n")


def check_hostile(answers):
    is_correct(r"\boxed{0.5}", "1/2")  # the process is there
    process = math._comparer(os.getpid())
    for answer in answers:
        start = time.perf_counter()
        assert math.reward(Problem("", "", "x^2+1"), rf"\boxed{{{answer}}}") == 0.0
        assert time.perf_counter() - start < 20, answer[:40]  # one second of processor time, on a busy machine
    assert process.poll() is None and math._comparer(os.getpid()) is process and is_correct(r"\boxed{3/2}", "1.5")


@needs_math_verify
def test_nothing_stalls_the_grader_or_makes_it_raise():
    assert len(HOSTILE) >= 25
    check_hostile(HOSTILE + SLOW[:1])


@needs_math_verify
@pytest.mark.slow
def test_slow_and_random_answers_do_not_stall_the_grader():
    rng = random.Random(0)
    pieces = [*"0123456789.,+-*/^_{}()[]|!=<> xyi", r"\frac", r"\sqrt", r"\pm", r"\cup", r"\infty", r"\text{", r"\{", r"\}", r"\\", "&", r"\begin{pmatrix}", r"\end{pmatrix}", r"\in ", r"\le ", r"\binom", r"\log", "\n", "\u0663"]  # fmt: skip
    check_hostile([*SLOW, *MORE_SLOW, *("".join(rng.choices(pieces, k=rng.randrange(25))) + "z" for _ in range(500))])


AUDIT = r"""
import importlib.util, json, os, re, resource, signal, sys
from contextlib import suppress
spec = importlib.util.spec_from_file_location("math_equal", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.same(r"\frac{1}{2}(x^2-\sqrt{4})(a+5)R", r"(5+a)(0.5x^2-1!)R")  # SymPy makes some functions of its own at first
KNOWN = re.compile(r"from sympy import \*|Integer \(\d+ \)")

def hook(event, arguments):
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"):
        print(ascii(answer), event, flush=True)
    if event == "compile" and arguments[0] is not None and arguments[1].startswith("<"):
        source = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()
        if not KNOWN.fullmatch(source):
            print(ascii(answer), source, flush=True)

answer, ended = None, 0
sys.addaudithook(hook)
for answer in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        try:
            with suppress(ValueError):  # macOS
                resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            signal.setitimer(signal.ITIMER_PROF, 0.3)
            module.same(answer, "x^2+1")
            os._exit(7)
        finally:
            os._exit(0)
    ended += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(ended)
"""


@needs_math_verify
def test_only_digits_of_an_answer_reach_eval():
    """SymPy makes numbers with `eval`, and the names in a formula would get there too if any were let through."""
    answers = [*CODE, *SLOW[:1], *(pair[0] for pair in RIGHT[::3])]
    command = [sys.executable, "-P", "-c", AUDIT, str(Path(math.__file__).with_name("math_equal.py"))]
    done = subprocess.run(command, input=json.dumps(answers), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().isdecimal(), done.stdout + done.stderr
    assert int(done.stdout) > len(answers) / 2  # most answers are compared within the time


def rows():
    return [json.loads(line) for line in MATH500.read_text(encoding="utf-8").splitlines()]


@needs_math500
def test_every_real_solution_states_its_answer():
    for row in rows():
        answer = normalize(row["answer"])
        assert extract_answer(row["solution"]) == answer == normalize(answer)
        problem = math.parse_row({k: v for k, v in row.items() if k != "answer"}, "row")
        assert problem == math.parse_row(row, "row") == Problem(row["problem"], row["solution"], answer)
        assert math.reward(problem, row["solution"]) == 1.0


@needs_math_verify
@pytest.mark.parametrize(
    "answer",
    ["100, 200", "5, 100", r"100 \text{ and } 200", r"12\% \text{ and } 312", "x = 100, 200", "-5, 100, 300", r"100, \quad 200",
     r"100,\; 200", r"5 \quad \text{or} \quad 100", r"\, \, 5, 100", "- 5, 100"],
)  # fmt: skip
def test_a_list_stays_a_list_when_it_is_normalized_again(answer):
    """The reference is normalized when its row is read and when a response is compared. `100,200` is a number."""
    digits = "".join(c for c in answer if c.isdigit())
    problem = math.parse_row({"problem": "p", "solution": rf"\boxed{{{answer}}}"}, "row")
    assert math.reward(problem, rf"So \boxed{{{answer}}}") == 1.0
    assert math.reward(problem, rf"\boxed{{{digits}}}") == 0.0
    assert all(normalize(normalize(text)) == normalize(text) for pair in RIGHT + WRONG for text in (*pair, answer))


def test_only_answers_of_at_most_300_characters_are_normalized():
    assert normalize("x" * 298 + r"\!") == "x" * 298 and normalize("x" * 299 + r"\!") == "x" * 299 + r"\!"


@needs_math_verify
def test_only_answers_of_at_most_300_characters_are_compared():
    half = "0.5" + "0" * 297
    assert len(half) == 300 and is_correct(rf"\boxed{{{half}}}", "1/2") and not is_correct(rf"\boxed{{{half}0}}", "1/2")


def test_commands_that_change_only_how_an_answer_looks_are_removed():
    assert normalize(r"\displaystyle 5 \quad") == normalize(r"\left(5\right)\qquad")[1:-1] == "5"


def test_a_box_without_braces_ends_at_the_formula_or_the_line():
    assert extract_answer(r"So $\boxed 5$ and 6.") == extract_answer("So \\boxed 5\nand 6.") == "5"


def test_data_sets_of_the_paper():
    assert (math.HUB, math.TESTED) == ("DigitalLearningGmbH/MATH-lighteval", "HuggingFaceH4/MATH-500")


@needs_math_verify
def test_the_comparing_process_is_in_a_session_of_its_own_and_its_end_is_told():
    """Ctrl-C in a terminal reaches all processes of the session."""
    is_correct(r"\boxed{0.5}", "1/2")
    process = math._comparer(os.getpid())
    assert os.getsid(process.pid) != os.getsid(0)
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="the process that compares answers has ended"):
        is_correct(r"\boxed{0.25}", "2/8")
    assert is_correct(r"\boxed{0.25}", "2/8")


EQUAL = [{"x=5", "5"}]  # by reading the list of pairs: the only two texts among the 292 different answers that mean the same


def check_pairs(random_pairs: int, near_pairs: int):
    rng = random.Random(0)
    answers = sorted({normalize(row["answer"]) for row in rows()})
    pairs = [rng.sample(answers, 2) for _ in range(random_pairs)]
    near = [[a, b] for a in answers for b in get_close_matches(a, answers, n=6, cutoff=0.4) if a != b]
    pairs += rng.sample(near, near_pairs)
    assert [(a, b) for a, b in pairs if is_correct(rf"\boxed{{{a}}}", b) and {a, b} not in EQUAL] == []


@needs_math_verify
@needs_math500
def test_the_answer_of_another_problem_is_wrong():
    check_pairs(100, 60)


@needs_math_verify
@needs_math500
@pytest.mark.slow
def test_the_answers_of_many_other_problems_are_wrong():
    check_pairs(1500, 800)


@pytest.mark.parametrize(
    "text, answer",
    [(r"$\boxed{5}$", "5"), (r"\boxed{4} or \boxed{5}", "5"), (r"\fbox{5}", "5"), (r"\boxed{4}, \fbox{5}", "5"), (r"\boxed 5$.", "5"), (r"\boxed {5}", "5"), (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"), (r"\boxed{\{1, 2\}}", r"\{1,2\}"),
     (r"\boxed{\text{a } b}", r"\text{a}b"), (r"\boxed{\}}", r"\}"), (r"\boxed{{5}}", "{5}"), (r"\boxed{\boxed{5}}", "5"), (r"\boxed{5", None), (r"\boxed{4} \boxed{5", None), (r"\boxed{5\}", None), (r"\boxed{}", None), (r"\boxed{ }", None), (r"\boxed", None),
     (r"\boxedx{5}", None), ("5", None), ("", None), (r"\boxed{6 - 5i}", "6-5i"), (r"\boxed{ 11\sqrt{5}  + 11 }", r"11\sqrt{5}+11"), (r"\boxed{\dfrac 34}", r"\frac{3}{4}"), (r"\boxed{1{,}000}", "1000"), (r"\boxed{\left(1,\,2\right]}", "(1,2]"), (r"\boxed{\cot x.}", r"\cot x")],
)  # fmt: skip
def test_the_last_box_is_the_answer(text, answer):
    assert extract_answer(text) == answer


def write(folder, split, *problems):
    (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in problems), encoding="utf-8")


@needs_math_verify
def test_a_folder(tmp_path):
    write(
        tmp_path,
        "train",
        {"problem": "p", "solution": r"so \boxed{1/2}", "level": "Level 5"},
        {"problem": "q", "solution": "s", "answer": r"\frac12"},
    )
    write(tmp_path, "test", {"problem": "r", "solution": r"\boxed 3$"})
    train, test = tasks.load_problems(SimpleNamespace(task="math", data=tmp_path))
    assert train == [Problem("p", r"so \boxed{1/2}", "1/2"), Problem("q", "s", r"\frac{1}{2}")] and test == [
        Problem("r", r"\boxed 3$", "3")
    ]


@pytest.mark.parametrize(
    "row, says",
    [({"solution": r"\boxed{5}"}, "needs a text field 'problem'"), ({"problem": "p"}, "needs a text field 'solution'"), ([1], "needs a text field 'problem'"), ({"problem": "p", "solution": "5"}, r"needs a text field 'answer', or a 'solution' with \\boxed{answer}"),
     ({"problem": "p", "solution": r"\boxed{5"}, "and its closing brace"), ({"problem": "p", "solution": r"\boxed{5}", "answer": 5}, "needs a text field 'answer'"), ({"problem": "p", "solution": r"\boxed{5}", "answer": "$ $"}, "needs a text field 'answer'")],
)  # fmt: skip
def test_a_bad_row_is_named(row, says):
    with pytest.raises(UserError, match=f"line 7: .*{says}"):
        math.parse_row(row, "line 7")


@needs_math_verify
def test_the_papers_split_from_the_hub(monkeypatch):
    """The test problems that MATH-500 does not have are for training."""
    import datasets

    def row(n):
        return {"problem": f"What is\n {n}?", "solution": rf"\boxed{{{n}}}", "level": "Level 1", "type": "Algebra"}

    hub = {"train": [row(1), row(2)], "test": [row(3), row(4), row(5)]}
    math500 = [{**row(4), "problem": "What is 4?", "answer": "4"}]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split=None: math500 if name == math.TESTED and split == "test" else hub
    )
    train, test = math.problems(SimpleNamespace(data=None))
    assert [problem.answer for problem in train] == ["1", "2", "3", "5"] and test == [Problem("What is 4?", r"\boxed{4}", "4")]

    def offline(*names, **more):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"cannot load DigitalLearningGmbH/MATH-lighteval from the Hub \(ConnectionError\)"):
        math.problems(SimpleNamespace(data=None))


def test_without_math_verify_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(math, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^--task math needs math-verify to compare answers: pip install 'math-verify\[antlr4_13_2\]'$"
    ):
        math.problems(SimpleNamespace(data=tmp_path))


def test_a_process_that_ends_is_an_error_and_the_next_answer_starts_another(monkeypatch):
    started = []

    def comparer(process_id):
        started.append(process_id)
        code = "input()" if len(started) == 1 else "input(); print(1)"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1, text=True)

    monkeypatch.setattr(math, "_comparer", math.cache(comparer))
    with pytest.raises(UserError, match=r"does math-verify work\? pip install"):
        is_correct(r"\boxed{7/8}", "0.876")
    assert is_correct(r"\boxed{7/8}", "0.876") and started == [os.getpid()] * 2
    math._mean_the_same.cache_clear()


def test_the_names_of_a_task():
    assert (
        tasks.get("math") is math
        and math.ANSWER_MARK is None
        and math.DEFAULTS == {"max_new_tokens": 1024, "eval_temperature": 0.35}
    )
    assert math.TEMPLATE == "[MATH_TASK] Problem:\n{question}\n\nSolution:"


def steps(text):
    starts = step_starts(text)
    assert starts[0] == 0 and starts == sorted(set(starts))
    return [text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


LONG = "The first of these numbers is even and larger than six, so that the second of them has to be odd and below it"


@pytest.mark.parametrize(
    "parts",
    [
        ["We know that $x$ is positive.", " Therefore it is at least one.", "\nThe other one is negative."],
        ["We use the method of Mr. Smith and J. Doe as well.", " It is e.g. good for $x. Y$ and more."],
        ["So the sum is certainly $a + b = 7.$", " Now we can see that $b = 2.$"],
        ["Then\n\\[x + y + z + 12345 = 0.\\]", "Hence we see that it is so."],
        ["So it is.\nThen that is 7."],  # short parts are joined
        ["We see that all is well. So it is."],  # to the one before them at the end
        ["We know all of this:", "\n\\begin{align*}\na + b &= c \\\\", "\nd &= e + f", "\n\\end{align*}"],
        ["A picture of the whole thing:", "\n[asy]\ndraw((0,0)--(1,1));", "\ndot((0,0));", "\n[/asy]"],
        ["The first of these numbers is even and larger than six,", LONG[55:] + "."],
        [
            "The first of these numbers is even and larger than $(x, y) = (1, 2)$ is and",
            " so that the second of them has to be odd here.",
        ],
        ["$" + "a" * 60 + " =", " " + "b" * 60 + "$ holds."],
        ["x" * 150],
        [""],
    ],
)
def test_steps(parts):
    assert steps("".join(parts)) == parts


def test_steps_of_anything_take_no_time():
    start = time.process_time()
    for piece in ("$", r"\[", r"\begin{a}", "[asy]", "a. B", "\n", "a=b+", "a,", "x", " ", "$.$", "\x00"):
        steps(piece * (4096 // len(piece)))
    assert time.process_time() - start < 4


@needs_math500
def test_steps_of_real_solutions():
    lengths = [len(step) for row in rows() for step in steps(row["solution"])]
    assert len(lengths) == 4809 and sorted(lengths)[len(lengths) * 9 // 10] <= 100
