"""The unified scratchpad (section 6): a target with steps before its answer. A format says which parts a step has.

    Thinking step by step: in 6, 7 comp 6 + 7 + carry = 13 + 0 = 13 out 3 [ carry: 1 ] re 7 2 + 5 # ...
                           i       c                                o     v            r
    . Thus, The answer is 7 8 3.

The steps have the form of the official code with the short markers of its final runs. They are computed from the prompt's text.
Sorting and LEGO have no variable, so the part v writes nothing there.
"""

import re
from collections.abc import Iterator

from vine_mini.lengthgen.tasks import rank_of, spaced
from vine_mini.lengthgen.vocabulary import tokens

LETTERS = "icovr"  # input, computation, output, variable, remaining input, in the order within a step
FORMATS = {"none": "", "full": LETTERS, "minimal": "co"}
START, END = "Thinking step by step: ", " . Thus, "


def parts_of(name: str) -> str:
    """The parts of a format: "none", "full", "minimal", or letters such as "icor". Raises ValueError for any other format."""
    parts = FORMATS.get(name, name)
    if name not in FORMATS and (not name or "".join(part for part in LETTERS if part in name) != name):
        raise ValueError(f"unknown scratchpad {name!r}: choose from {', '.join(FORMATS)}, or letters of {LETTERS} in this order")
    return parts


def expand(task: str, prompt: str, target: str, parts: str) -> str:
    """The target with the steps before it. Without parts, the target alone."""
    if not parts:
        return target
    shown = []
    for i, c, o, v, r in STEPS[task](prompt):
        step = {"i": f"in {i}", "c": f"comp {c}".strip(), "o": f"out {o}", "v": v and f"[ {v} ]", "r": f"re {r}".strip()}
        shown.append(" ".join(step[part] for part in parts if step[part]))
    return START + " # ".join(shown) + END + target


def final_answer(text: str, parts: str) -> str:
    """The text after the steps, or "" unless the end of the steps, `Thus`, occurs exactly once."""
    if not parts:
        return text
    words = tokens(text)
    ends = [i for i, word in enumerate(words) if word == "Thus"]
    return " ".join(words[ends[0] + 2 :]) if len(ends) == 1 and words[ends[0] + 1 :][:1] == [","] else ""


# A function for each task takes a prompt and yields (input, computation, output, variable, remaining input) for each step.
Steps = Iterator[tuple[str, str, str, str, str]]


def _addition(prompt: str) -> Steps:
    a, b = (part.split() for part in prompt[len("Compute") : -2].split("+"))
    carry = 0
    while a or b or carry:
        x, y = int(a.pop()) if a else 0, int(b.pop()) if b else 0
        total = x + y + carry
        computation = f"{x} + {y} + carry = {x + y} + {carry} = {total}"
        carry = total // 10
        left = [" ".join(n) or ("0" if a or b else "") for n in (a, b)]
        yield f"{x}, {y}", computation, str(total % 10), f"carry: {carry}", " + ".join(left).strip()


def _parity(prompt: str) -> Steps:
    bits, parity = re.findall(r"[01]", prompt[prompt.index("[") :]), 0
    for i, bit in enumerate(bits):
        computation = f"{bit} ** par = {bit} ** {parity}"  # the scratchpad writes ** for exclusive or
        parity ^= int(bit)
        yield bit, computation, str(parity), f"par: {parity}", _list(bits[i + 1 :])


def _sum(prompt: str) -> Steps:
    digits, total = re.findall(r"\d", prompt), 0
    for i, digit in enumerate(digits):
        computation, total = f"{digit} + sum = {digit} + {total} =", total + int(digit)
        output, total = " ".join(str(total)), total % 10
        yield digit, computation, output, f"sum: {output} = {total}", " + ".join(digits[i + 1 :])


def _sort(prompt: str) -> Steps:
    items = [item.strip() for item in prompt[prompt.index("[") + 1 : prompt.index("]")].split(",")]
    while items:  # selection sort
        smallest = min(items, key=rank_of)
        first, items[items.index(smallest)] = items[0], items[0]
        items = items[1:]
        yield first, "The minimum of the unsorted portion", smallest, "", _list(items)


def _polynomial(prompt: str) -> Steps:
    at, text = re.fullmatch(r"Evaluate at x = (.*) in (.*) \? ", prompt).groups()
    x, total = int(at.replace(" ", "")), 0
    terms = text.split(" + ")
    for i, term in enumerate(terms):
        c, d = term.split(" * x ** ")
        power = x ** int(d)
        value = int(c.replace(" ", "")) * power
        computation = f"{c} * {spaced(x)} ** {d} = {c} * {spaced(power)}"
        before, total = total, (total + value) % 10
        yield term, computation, spaced(value), f"sum: {before} + {spaced(value)} = {total}", " + ".join(terms[i + 1 :])


def _lego(prompt: str) -> Steps:
    clauses, asked = re.fullmatch(r"If (.*)\. Then, what is the value of (.)\? ", prompt).groups()
    clauses = clauses.split(", ")
    value = ""
    for i, clause in enumerate(clauses):
        name, says = clause.split(" = ")
        computation = f"{says} = {says[0]} {value}" if value else ""  # "- q = - -1"; the first variable needs none
        value = "+1" if says[0] == (value or "+")[0] else "-1"
        yield name, computation, value, "", ", ".join(clauses[i + 1 :])
        if name == asked:
            return


def _list(items: list[str]) -> str:
    return f"[ {', '.join(items)} ]" if items else "[ ]"


WITHOUT_VARIABLE = ("sort", "sort-numbers", "lego")
STEPS = {
    "addition": _addition,
    "parity": _parity,
    "sum": _sum,
    "sort": _sort,
    "sort-numbers": _sort,
    "polynomial": _polynomial,
    "lego": _lego,
}
