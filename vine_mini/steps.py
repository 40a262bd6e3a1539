"""Cut a response into reasoning steps, in token indices: nothing is decoded and encoded again (VinePPO, section 4)."""

from functools import lru_cache


@lru_cache(maxsize=1 << 18)
def _text(tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=True)


def cut_steps(token_ids: list[int], tokenizer, *, every: int | None = None, answer_mark: str | None = None) -> list[int]:
    """The token indices, ascending from 0, at which the reasoning steps of a response start.

    A step is a line. Blank lines belong to the step before them, and to the first step at the start. A line that begins with
    the answer mark belongs to the step before it. So does the end-of-sequence token. A token on two lines belongs to the first.

    Args:
        token_ids: the sampled response tokens.
        tokenizer: decodes single tokens; unused when `every` is given.
        every: cut every so many tokens instead.
        answer_mark: what the task's answer line begins with, such as "####"; None: the line is a step of its own.
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
        if line_ended and step_has_text and not _begins_with(pieces[i : i + len(answer_mark or "")], answer_mark):
            starts.append(i)
        step_has_text, line_ended = True, "\n" in visible
    return starts


def _begins_with(pieces: list[str], mark: str | None) -> bool:
    return bool(mark) and "".join(pieces).lstrip().startswith(mark)
