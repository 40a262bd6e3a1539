"""SCAN and PCFG SET: commands from a grammar, and their meanings.

The 20,910 commands of SCAN (Lake and Baroni 2018) are enumerated. The commands of PCFG SET (Hupkes et al. 2020) are random
combinations of ten string functions. Each language has a generator and a checker. The generator makes a command together with its
meaning. The checker reads the command's text.

Deviation: PCFG SET is a fixed corpus. Its lengths and depths follow English sentences. Here the shapes of its commands are
random, with few letters and short outputs.
"""

from functools import cache
from itertools import product
from random import Random

# --- SCAN ------------------------------------------------------------------------------------------------------------------

VERBS = {"walk": "Walk", "look": "Look", "run": "Run", "jump": "Jump"}  # the paper strips the I_ of I_WALK
TURNS = {"left": "Left", "right": "Right"}
SCAN_LENGTHS = (*range(1, 23), 24, 25, 26, 27, 28, 30, 32, 33, 36, 40, 48)  # numbers of actions that some command takes


@cache
def scan_commands() -> dict[int, list[tuple[str, str]]]:
    """number of actions -> all commands with so many actions, each with its actions, enumerated from the grammar's rules"""
    phrases = [(verb, [action]) for verb, action in VERBS.items()]
    for side, turn in TURNS.items():
        for verb, action in [*[(v, [a]) for v, a in VERBS.items()], ("turn", [])]:
            phrases.append((f"{verb} {side}", [turn, *action]))
            phrases.append((f"{verb} opposite {side}", [turn, turn, *action]))
            phrases.append((f"{verb} around {side}", [turn, *action] * 4))
    sentences = [(p + word, actions * n) for p, actions in phrases for word, n in (("", 1), (" twice", 2), (" thrice", 3))]
    commands = list(sentences)
    for (first, a), (second, b) in product(sentences, repeat=2):
        commands += [(f"{first} and {second}", a + b), (f"{first} after {second}", b + a)]
    by_length: dict[int, list[tuple[str, str]]] = {}
    for command, actions in commands:
        by_length.setdefault(len(actions), []).append((f"Solve: {command}[SEP] ", " ".join(actions)))
    return by_length


def count_scan(length: int) -> int:
    """The number of commands with `length` actions."""
    return len(scan_commands()[length])


def make_scan(length: int, rng: Random) -> tuple[str, str]:
    """A random command with `length` actions. -> (prompt, target)"""
    return rng.choice(scan_commands()[length])


def check_scan(prompt: str, answer: str) -> bool:
    """Whether the answer is the command's meaning. The command is read word by word."""
    words = prompt.removeprefix("Solve: ").removesuffix("[SEP] ").split()
    for joint in ("and", "after"):
        if joint in words:
            at = words.index(joint)
            parts = [words[:at], words[at + 1 :]]
            expected = [action for part in (parts if joint == "and" else parts[::-1]) for action in _do(part)]
            return answer.split() == expected
    return answer.split() == _do(words)


def _do(words: list[str]) -> list[str]:
    times = {"twice": 2, "thrice": 3}.get(words[-1])
    if times:
        return _do(words[:-1]) * times
    action = [VERBS[words[0]]] if words[0] != "turn" else []
    if len(words) == 1:
        return action
    turn = [TURNS[words[-1]]]
    return {"around": (turn + action) * 4, "opposite": turn + turn + action}.get(words[1], turn + action)


# --- PCFG SET --------------------------------------------------------------------------------------------------------------

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # 520 in the original
LONGEST = 20  # tokens of an output; in the original, the corpus sets the bound
UNARY = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "shift": lambda x: x[1:] + x[:1],
    "echo": lambda x: x + x[-1:],
    "swap_first_last": lambda x: x if len(x) < 2 else x[-1:] + x[1:-1] + x[:1],
    "repeat": lambda x: x + x,
}
BINARY = {
    "append": lambda x, y: x + y,
    "prepend": lambda x, y: y + x,
    "remove_first": lambda x, y: y,
    "remove_second": lambda x, y: x,
}
JOINTS = "and after twice thrice turn around opposite".split()
LANGUAGES = [*JOINTS, *VERBS, *VERBS.values(), *TURNS, *TURNS.values(), *UNARY, *BINARY]  # all words of both languages


def make_pcfg(length: int, rng: Random) -> tuple[str, str]:
    """A random command of `length` functions whose output has at most LONGEST tokens. -> (prompt, target)"""
    while True:
        text, value = _expression(length, rng)
        if len(value) <= LONGEST:
            return f"Solve: {text}[SEP] ", " ".join(value)


def _expression(functions: int, rng: Random) -> tuple[str, list[str]]:
    if functions == 0:
        letters = rng.choices(LETTERS, k=rng.randint(1, 4))
        return " ".join(letters), letters
    if rng.random() < 0.5:
        name = rng.choice([*UNARY])
        text, x = _expression(functions - 1, rng)
        return f"{name} {text}", UNARY[name](x)
    name, left = rng.choice([*BINARY]), rng.randrange(functions)
    (a, x), (b, y) = _expression(left, rng), _expression(functions - 1 - left, rng)
    return f"{name} {a} , {b}", BINARY[name](x, y)


def check_pcfg(prompt: str, answer: str) -> bool:
    """Whether the answer is the command's value. The words are read backwards with a stack of strings."""
    words = prompt.removeprefix("Solve: ").removesuffix("[SEP] ").split()
    stack, current = [], ""  # strings of letters; one character a letter
    for word in reversed(words):
        if word == ",":
            stack, current = [*stack, current], ""
        elif len(word) == 1:
            current = word + current
        elif word in ("append", "prepend", "remove_first", "remove_second"):
            x, y = current, stack.pop()
            current = {"append": x + y, "prepend": y + x, "remove_first": y, "remove_second": x}[word]
        elif word == "swap_first_last":
            current = current if len(current) == 1 else current[-1] + current[1:-1] + current[0]
        else:
            turned = {"copy": current, "reverse": "".join(reversed(current)), "shift": current[1:] + current[0]}
            current = (turned | {"echo": current + current[-1], "repeat": 2 * current})[word]
    return answer.split() == list(current) and not stack
