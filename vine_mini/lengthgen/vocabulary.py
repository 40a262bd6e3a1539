"""The vocabulary of all tasks. One pattern cuts text into tokens, and white space only separates them."""

import re

from vine_mini.lengthgen.languages import LANGUAGES

TOKEN = r"\[SEP\]|\[NEXT\]|\*\*|\w+|[^\w\s]"
LOWER, UPPER, DIGITS = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
CHARACTERS = DIGITS + LOWER + UPPER
SYMBOLS = [str(n) for n in range(10, 20)] + "+ - * ** = . , : ? [ ] > ' #".split()
WORDS = """Copy Reverse Replace with in Compute The answer is Evaluate at Sort the following list sorted Is number of even
sequence Yes No If Then what value Solve Thinking step by comp out re carry Thus par sum minimum unsorted portion""".split()

VOCABULARY = list(dict.fromkeys(["<pad>", "<eos>", "[SEP]", "[NEXT]", *CHARACTERS, *SYMBOLS, *WORDS, *LANGUAGES]))
IDS = {token: i for i, token in enumerate(VOCABULARY)}
PAD, EOS = IDS["<pad>"], IDS["<eos>"]


def tokens(text: str) -> list[str]:
    """Text -> tokens."""
    return re.findall(TOKEN, text)


def encode(text: str) -> list[int]:
    """Text -> token ids. Raises KeyError for a token outside the vocabulary."""
    return [IDS[token] for token in tokens(text)]


def decode(ids: list[int]) -> str:
    """Token ids -> tokens with single spaces between them, which `check` reads like the original text."""
    return " ".join(VOCABULARY[i] for i in ids)
