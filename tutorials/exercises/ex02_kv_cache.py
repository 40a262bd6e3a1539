"""ex02: decode n tokens with a KV cache (tutorial 01).

Easy, about 15 minutes.
"""

import torch  # noqa: F401
from transformers import DynamicCache  # noqa: F401


def decode_greedily(model, prompt, n):
    """The n most likely tokens after a prompt, one after the other. The model must read each token only once.

    Args:
        model: a Hugging Face causal LM. `cache = DynamicCache(config=model.config)` makes an empty cache.
            `model(input_ids=ids, past_key_values=cache).logits` reads ids [1, T] after the tokens in the cache and adds them
            to the cache. The result has one row of logits for each of the ids: [1, T, V].
        prompt: list of L token ids, L >= 1.
        n: number of tokens to decode, at least 1. Nothing ends the loop earlier.
    Returns:
        list of n token ids. The grader also counts the tokens that the model reads.

    Example: the prompt has 3 tokens and n = 3. The model reads the 3 tokens of the prompt, then the first new token, then the
        second new token. The third new token must not be read. The model reads 5 tokens in all.
    """
    raise NotImplementedError("ex02: decode_greedily")
