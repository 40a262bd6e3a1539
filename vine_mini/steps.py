"""Cut a response into reasoning steps, in token indices: nothing is decoded and encoded again (VinePPO, section 4)."""

import re
from bisect import bisect_right
from functools import lru_cache


@lru_cache(maxsize=1 << 18)
def _text(tokenizer, token_id: int) -> str:
    once, twice = (tokenizer.decode([token_id] * n, skip_special_tokens=True) for n in (1, 2))
    return twice[len(once) :]  # the token inside a text, because some tokenizers drop the space at the start of one


def cut_steps(token_ids, tokenizer, *, every: int | None = None, answer_mark: str | None = None, starts=None) -> list[int]:
    """The token indices, ascending from 0, at which the reasoning steps of a response start.

    A step is a line. A line that begins with the answer mark belongs to the step before it. A token belongs to the step of its
    first visible character. A token of white space belongs to the step before, and the end-of-sequence token to the last step.

    Args:
        token_ids, tokenizer: the sampled response tokens; what decodes single tokens, unused when `every` is given.
        every: cut every so many tokens instead.
        answer_mark: what the task's answer line begins with, such as "####"; None: the line is a step of its own.
        starts: text -> where its steps start, in characters; for a task whose steps are not lines.
    """
    if every is not None:
        if every < 1:
            raise ValueError(f"every = {every}: a step needs at least one token")
        return list(range(0, max(len(token_ids), 1), every))
    pieces = [_text(tokenizer, token) for token in token_ids]
    text = "".join(pieces)
    lines = [m for m in re.finditer(r"(?<=\n)[^\n]*\S", text) if not (answer_mark and m[0].lstrip().startswith(answer_mark))]
    offsets = starts(text) if starts else [line.start() for line in lines]
    cuts, end, step = [], 0, None
    for i, piece in enumerate(pieces):
        begins = end + len(piece) - len(piece.lstrip())  # of the visible text
        end += len(piece)
        if begins < end and (number := bisect_right(offsets, begins)) != step:  # the step in which the token's text begins
            cuts.append(i)
            step = number
    return [0, *cuts[1:]]  # the first step starts at token 0, even if its visible text starts later
