"""ex03: where the steps of a response start (tutorial 02).

Hard, about 30 minutes.
"""


def cut_steps(token_ids, tokenizer, *, answer_mark=None):
    """The token index at which each reasoning step starts.

    A step is a line of text. These rules say where a step starts:
    - The first step starts at token 0, whatever this token is.
    - Every other step starts at the first token with visible text (more than whitespace) after a newline.
      The newline may stand in the same token: a token "\\n7" starts a step. Only the character "\\n" is a newline.
    - Blank lines belong to the step before them. Blank lines at the beginning belong to the first step, with the line
      after them.
    - A line that begins with the answer mark belongs to the step before it. Whitespace in front of the mark does not count.
      The mark may begin in the token that ends the line before.
    - The end-of-sequence token belongs to the last step.
    - A token with text on two lines ("5\\n7") belongs to the first of them. The second line's step starts at the next
      token with text, even if that token begins an answer line.

    Args:
        token_ids: list of the response's token ids.
        tokenizer: `tokenizer.decode([id], skip_special_tokens=True)` is the text of one token, and "" for the end-of-sequence
            token. Do not encode decoded text again: the indices must be indices of the sampled tokens.
        answer_mark: the text that an answer line begins with, such as "####". The mark may be spread over several tokens. With
            None there are no answer lines.
    Returns:
        ascending list of token indices. The first is 0.

    Example: the tokens "1+2" "=3" "\\n" "3*4" "=12" "\\n" "##" "##" " 12" <eos> with the mark "####"  ->  [0, 3]
    """
    raise NotImplementedError("ex03: cut_steps")
