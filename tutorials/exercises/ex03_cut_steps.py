"""ex03: where the steps of a response start (tutorial 02)."""


def cut_steps(token_ids, tokenizer):
    """The token index at which each reasoning step starts.

    A step is a line of text. Rules:
    - The first step starts at 0, whatever stands there.
    - A step starts at the first token with visible text (more than whitespace) after a newline.
    - Blank lines belong to the step before them, those at the very beginning to the first step.
    - The closing line `#### answer` and the end-of-sequence token belong to the last step.
    - A token that has text on two lines ("5\\n7") belongs to the first; the next step starts at the next token with text.

    Args:
        token_ids: list of the response's token ids.
        tokenizer: `tokenizer.decode([id], skip_special_tokens=True)` is the text of one token ("" for the end token).
            "####" may be spread over several tokens. Do not decode the whole and encode it again: what was sampled counts.
    Returns:
        ascending list of token indices; the first is 0.

    Example: the tokens "1+2" "=3" "\\n" "3*4" "=12" "\\n" "####" " 12" <eos>  ->  [0, 3]
    """
    raise NotImplementedError("ex03: cut_steps")
