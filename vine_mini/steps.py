"""Cut a response into reasoning steps, in token indices: nothing is decoded and encoded again (VinePPO, section 4)."""

from functools import lru_cache

ANSWER_MARK = "####"


@lru_cache(maxsize=1 << 18)
def _text(tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=True)


def cut_steps(token_ids: list[int], tokenizer, *, every: int | None = None) -> list[int]:
    """Where each reasoning step of a response starts.

    A step is a line. Blank lines belong to the step before them (the first ones to the first step), and the
    closing `#### answer` line and the end-of-sequence token to the last step. A token with text on two lines belongs
    to the first of them.

    Args:
        token_ids: the sampled response tokens.
        tokenizer: used to look at the text of single tokens; unused when `every` is given.
        every: cut every so many tokens instead.
    Returns:
        Ascending token indices, the first of which is 0.
    """
    if every is not None:
        if every < 1:
            raise ValueError(f"every = {every}: a step needs at least one token")
        return list(range(0, max(len(token_ids), 1), every))
    pieces = [_text(tokenizer, token) for token in token_ids]
    starts, step_has_text, line_ended = [0], False, False
    for i, piece in enumerate(pieces):
        visible = piece.lstrip()
        line_ended = line_ended or "\n" in piece[: len(piece) - len(visible)]
        if not visible:
            continue
        if line_ended and step_has_text and not _opens_answer(pieces[i : i + len(ANSWER_MARK)]):
            starts.append(i)
        step_has_text, line_ended = True, "\n" in visible
    return starts


def step_texts(token_ids: list[int], cuts: list[int], tokenizer) -> list[str]:
    """The text of each step, special tokens included."""
    return [tokenizer.decode(token_ids[a:b]) for a, b in zip(cuts, [*cuts[1:], len(token_ids)], strict=True)]


def _opens_answer(pieces: list[str]) -> bool:
    return "".join(pieces).lstrip().startswith(ANSWER_MARK)
