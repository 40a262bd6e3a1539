"""ex18: this program is silently wrong (tutorial 02). Find out why, mend it, and delete the line that raises."""

import torch


def response_mask(input_ids, prompt_lengths, eos):
    """Which tokens the policy chose, and therefore is trained on.

    Its users say: nothing crashes and rewards rise at first, but the responses grow longer and longer, until all of them are
    cut by the limit.

    Args:
        input_ids: [B, T]: prompt, response, then padding. The tokenizer has no padding token of its own: `eos` pads.
        prompt_lengths: list of B, tokens of each prompt. A prompt may hold `eos`, too: chat templates end turns with it.
        eos: the id that ends a response. A response that was cut by the limit has none.
    Returns:
        [B, T] float64, 1.0 on every token that the policy chose.

    Example: input_ids [[5, 6, 7, 2, 2, 2]], prompt_lengths [2], eos 2: the policy chose the 7 and then to stop
        ->  [[0, 0, 1, 1, 0, 0]]
    """
    raise NotImplementedError("ex18: find the mistake below, then delete this line")
    columns = torch.arange(input_ids.shape[1])  # [T]
    after_prompt = columns >= torch.tensor(prompt_lengths)[:, None]  # [B, T]
    padding = input_ids == eos
    return (after_prompt & ~padding).to(torch.float64)
