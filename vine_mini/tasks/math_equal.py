r"""Whether two answers of MATH mean the same. `math.py` runs this file as a process of its own.

The order counts in points, intervals and matrices. It does not count in lists and sets. Equations are compared up to a factor. A
formula inside is read by math-verify. Two formulas are equal where they have the same value at three random points, to 40 digits,
and in numbers of up to 3,000 digits to all digits before the point. The `verify` of math-verify is not used: to it, 10^{-20}
equals 10^{-21}, X equals x, and 0.333333 equals 1/3.

SymPy passes parts of a formula to `eval`: digits always, names inside a sum. So a formula may hold only letters, digits, signs
and the commands below. No such list makes SymPy quick: think of 9!!!!! and of towers of powers. So each comparison runs in a fork
that may use one second of processor time, and a gigabyte. Where that is not enough, the answers are not the same.
"""

import json
import logging
import os
import random
import re
import resource
import signal
import sys
from contextlib import suppress
from functools import cache

import mpmath
import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse

DIGITS = 3000  # numbers with no more digits are compared digit by digit
SECONDS, MEMORY = 1.0, 1 << 30  # processor time and bytes for a comparison
COMMANDS = (
    "frac sqrt pi cdot times div infty binom sin cos tan cot sec csc arcsin arccos arctan log ln alpha beta gamma delta theta"
)
FORMULA = re.compile(rf"(?:[\w+\-*/^{{}}()\[\]|!. ]|\\(?:{COMMANDS.replace(' ', '|')})(?![a-zA-Z]))+", re.ASCII)
UNREADABLE = re.compile(r"\d_|\d\s+[\d.]|\.\d*\.")  # 12_3 is a number in base 3; `2 3` would be read as 2 + 3
READING = LatexExtractionConfig(normalization_config=NormalizationConfig(malformed_operators=True, boxed="none"))
TOKEN = re.compile(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
DEPTH = dict.fromkeys(["(", "[", "{", r"\{", r"\begin{pmatrix}"], 1) | dict.fromkeys([")", "]", "}", r"\}", r"\end{pmatrix}"], -1)
RELATION = re.compile(r"([=<>]|\\(?:le|ge|ne|in)(?![a-zA-Z]))")
FLIPPED = {">": "<", r"\ge": r"\le"}
NAMED = re.compile(r"^[a-zA-Z](?:\([a-z]\))? ?(?:=|\\in(?![a-zA-Z]))")  # x = 5, f(x) = 5, x \in [0, 5]


@mpmath.workdps(50)
def same(a: str, b: str) -> bool:
    """Whether two answers mean the same. Both are as `math.normalize` returns them."""
    if a.split() == b.split():
        return True
    if r"\text" in a + b:  # \text{(C)} is C
        return len({re.sub(r"\\text|[\s{}()]", "", x).casefold() for x in (a, b)}) == 1
    if bool(RELATION.search(a)) != bool(RELATION.search(b)):
        a, b = (NAMED.sub("", x) for x in (a, b))
    for separator in (",", r"\cup"):
        left, right = _list(a, separator), _list(b, separator)
        if len(left) != len(right):
            return False
        if len(left) > 1:
            for x in left:  # each item has a partner of its own
                partner = next((i for i, y in enumerate(right) if same(x, y)), None)
                if partner is None:
                    return False
                del right[partner]
            return True
        [a], [b] = left, right
    if RELATION.search(a) and RELATION.search(b):
        return _relations(RELATION.split(a), RELATION.split(b))
    if (left := _enclosed(a)) and (right := _enclosed(b)):
        left, right = ([x[0], *_parts(x[1], (",", "&", r"\\")), x[2]] for x in (left, right))
        return len(left) == len(right) and all(map(same, left, right))
    return bool(values := _values(b)) and _equal(_values(a), values)  # b is the reference


def _parts(text: str, separators) -> list[str]:
    """The text, cut at the separators that no bracket encloses: part, separator, part, and so on."""
    parts, depth = [""], 0
    for token in TOKEN.findall(text):
        if depth + min(0, DEPTH.get(token, 0)) == 0 and token in separators:
            parts += [token, ""]
        else:
            parts[-1] += token
        depth += DEPTH.get(token, 0)
    return [part.strip() for part in parts]


def _enclosed(text: str) -> list[str]:
    """Opening bracket, content and closing bracket of a point, interval, matrix or set. Empty for a text that is none."""
    parts = _parts(text, DEPTH)
    return parts[1:4] if len(parts) == 5 and not parts[0] + parts[4] else []


def _list(text: str, separator: str) -> list[str]:
    """The answers in a list or a set. The sign plus or minus makes two of one."""
    if (parts := _enclosed(text)) and parts[0] in ("{", r"\{"):
        return _list(parts[1], separator)
    items = _parts(text, (separator,))[::2]
    both = [item.replace(r"\pm", "-").replace(r"\mp", "+") for item in items if r"\pm" in item]
    return [item.replace(r"\pm", "+").replace(r"\mp", "-") for item in items] + both


def _relations(left: list[str], right: list[str]) -> bool:
    """Whether two relations say the same. [x, <, 3] is also 3 > x, and [x, =, 3] is 2x = 6."""
    left, right = ([FLIPPED.get(x, x) for x in reversed(r)] if r[1] in FLIPPED else r for r in (left, right))
    signs = left[1::2]
    if signs != right[1::2]:
        return False
    if signs != ["="]:
        return all(map(same, left[::2], right[::2]))
    x, y = (_values(f"{r[0]}-({r[2]})") for r in (left, right))
    ratios = [p / q for p, q in zip(x, y, strict=False) if q]
    return any(ratios) and _equal(ratios, ratios[:1] * 3)  # 0 = 0 says nothing


def _equal(x: list, y: list) -> bool:
    def close(p, q):
        return abs(p - q) <= min(1e-40 * abs(q), 1e-30) + 1e-80  # 100! + 1 is not 100!

    return 3 == len(x) == len(y) and all(map(close, x, y))


@cache
def _values(formula: str) -> list:
    """The values of a formula at three points, each variable being negative at one of them. Fewer where it has no such values."""
    if not FORMULA.fullmatch(formula) or UNREADABLE.search(formula):
        return []
    formula = re.sub(r"(\d*)\.(\d+)", lambda m: rf"(\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}})", formula)  # no rounding
    formula = re.sub(r"((?<![_^\d])\d+|\))\s*\(", r"\1\\cdot(", formula)  # math-verify reads 2(3) as two and three
    formula = re.sub(r"[A-Z]", lambda m: f"{{{m[0].lower()}_9}}", formula)  # and A as a
    values = []
    with suppress(Exception):  # whatever math-verify and SymPy raise
        expression = parse(f"${formula}$", [READING], fallback_mode="no_fallback", parsing_timeout=None)[0]
        for point in range(3):
            at = {x: (-1) ** point * random.Random(f"{x} {point}").randint(1, 10**6) for x in expression.free_symbols}
            at = {x: sympy.I if x.name == "i" else sympy.Rational(number, 10**5) for x, number in at.items()}
            value = expression.subs(at)
            size = abs(mpmath.mpc(*value.evalf(15).as_real_imag()))
            digits = 50 + (int(mpmath.log10(size)) if 1 < size < mpmath.mpf(10) ** DIGITS else 0)
            with mpmath.workdps(digits):
                values.append(mpmath.mpc(*value.evalf(digits).as_real_imag()))
    return values


if __name__ == "__main__":  # reads two answers as a JSON list from each line, and writes 1 where they mean the same, else 0
    logging.disable()  # math-verify warns of every formula that it cannot read
    with suppress(ValueError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if not same(r"\frac{1}{2}(x^2-\sqrt{4})(a+5)R", r"(5+a)(0.5x^2-1!)R"):  # which also loads what a comparison needs
        sys.exit("math-verify does not read formulas: is antlr4-python3-runtime installed?")
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            try:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process, whatever is running
                os._exit(not same(*json.loads(line)))
            finally:
                os._exit(1)
        print(int(os.waitpid(child, 0)[1] == 0), flush=True)
