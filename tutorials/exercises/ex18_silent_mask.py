"""ex18: this program has a silent mistake (tutorial 02). Find the mistake, fix it, and delete the line that raises.

Medium, about 15 minutes.
"""

import torch


def response_mask(input_ids, prompt_lengths, eos):
    """Marks the tokens that the policy chose. The policy is trained on these tokens.

    The users of this function report: nothing crashes and rewards rise at first, but the responses become longer and longer,
    until the length limit truncates all of them.

    Args:
        input_ids: [B, T]: prompt, response, then padding. The tokenizer has no padding token, so `eos` is used as padding.
        prompt_lengths: list of B numbers, the tokens of each prompt. A prompt may contain `eos`, because chat templates end
            turns with it.
        eos: the id that ends a response. A response that the length limit truncated has no `eos`, and no padding follows it:
            otherwise nobody could tell the padding from an end.
    Returns:
        [B, T] float64, 1.0 on every token that the policy chose.

    Example: input_ids [[5, 6, 7, 2, 2, 2]], prompt_lengths [2], eos 2: the policy chose the token 7 and then the first 2
        ->  [[0, 0, 1, 1, 0, 0]]
    """
    raise NotImplementedError("ex18: find the mistake below, then delete this line")
    columns = torch.arange(input_ids.shape[1])  # [T]
    after_prompt = columns >= torch.tensor(prompt_lengths)[:, None]  # [B, T]
    padding = input_ids == eos
    return (after_prompt & ~padding).to(torch.float64)
