"""Where the reasoning steps of a solution of MATH start, much as the paper's code cuts them.

Of the 500 solutions of MATH-500, 461 have the same steps as there, white space aside, and 99.1 % of all steps start at the same
places (compared once). What differs is where a long step is cut. The paper's code counts every formula as 60 characters when it
looks for the middle of a step. It treats the rest of a formula that has been cut as text.
"""

import re

FORMULAS = r"\[asy\].*?\[/asy\]|\\begin\{([^}]*)\}.*?\\end\{\1\}|\\\(.*?\\\)|\\\[.*?\\\]|(?<!\\)(\$\$?).*?[^\\]\2"
FORMULA = re.compile(FORMULAS, re.DOTALL)
OPENING = re.compile(r"\$\$?|\\[(\[]|\\begin\{[^}]*\}|\[asy\]")
WITH_PERIOD = (".$", ".$$", r".\)", r".\]")  # ends of a formula that ends a sentence
SENTENCE_END = re.compile(r"([A-Za-z]{0,3})\.(?=\s+[A-Z])")
IN_TEXT, IN_FORMULA = (",", r"\sand(?=\s)", ":", r"\sto(?=\s)"), (r",\$|,\\[)\]]", "=", r"\\equiv", r"\+")  # where to halve


def step_starts(text: str) -> list[int]:
    """Character offsets, ascending from 0, at which steps start: lines, sentences, and halves of what is long."""
    masked = FORMULA.sub(lambda m: "\0" * len(m[0]), text)
    ends = [m.end() for m in SENTENCE_END.finditer(masked) if len(m[1]) not in (1, 2)]  # not after `Mr.` or an initial
    ends += [m.start() for m in re.finditer("\n", masked)]
    ends += [m.end() for m in FORMULA.finditer(text) if m[0].endswith(WITH_PERIOD)]
    starts = _joined(text, ends, lambda part: len(part) < 20 and not part.endswith(WITH_PERIOD))
    lines = {m.start() for m in re.finditer("\n", text)}.difference(ends)  # those inside formulas
    starts = _joined(text, lines.union(starts), lambda part: len(part) < 3 or OPENING.fullmatch(part.strip()))
    return [start for a, b in zip(starts, [*starts[1:], len(text)], strict=True) for start in _halves(text, masked, a, b)]


def _joined(text: str, cuts, is_short) -> list[int]:
    """The starts of the parts between cuts. A short part is joined to the next one, or to the one before it at the end."""
    starts = [0]
    for cut in sorted(cuts):
        if not is_short(text[starts[-1] : cut]):
            starts.append(cut)
    return starts[:-1] if len(starts) > 1 and is_short(text[starts[-1] :]) else starts


def _halves(text: str, masked: str, a: int, b: int) -> list[int]:
    """The starts of the parts of a step from a to b. A long part is cut outside formulas, or else inside one."""
    for part, places, shortest in ((masked[a:b], IN_TEXT, 40), (text[a:b], IN_FORMULA, 20)) if b - a > 100 else ():
        for pattern in places:
            ends = [m.end() for m in re.finditer(pattern, part)]
            cut = min(ends, key=lambda end: abs(2 * end - len(part)), default=0)  # near the middle
            if min(cut, len(part) - cut) >= shortest:
                return _halves(text, masked, a, a + cut) + _halves(text, masked, a + cut, b)
    return [a]
