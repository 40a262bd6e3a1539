"""ex02: write n tokens with a KV cache (tutorial 01)."""

import torch  # noqa: F401
from transformers import DynamicCache  # noqa: F401


def decode_greedily(model, prompt, n):
    """The n most likely tokens after a prompt, one by one, reading no token twice.

    Args:
        model: a Hugging Face causal LM. `cache = DynamicCache(config=model.config)` makes an empty cache, and
            `model(input_ids=ids, past_key_values=cache).logits` reads ids [1, T] after what the cache holds, adds them to the
            cache, and returns a row of logits for each of them: [1, T, V].
        prompt: list of L token ids, L >= 1.
        n: how many tokens to write, at least 1.
    Returns:
        list of n token ids. The grader also counts the tokens that the model reads.

    Example: a prompt of 3 tokens and n = 3. The model reads the 3 tokens of the prompt, then the first new one, then the second;
        the third need not be read. It reads 5 tokens in all.
    """
    raise NotImplementedError("ex02: decode_greedily")
