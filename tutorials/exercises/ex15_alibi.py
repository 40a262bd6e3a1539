"""ex15: ALiBi, attention with linear biases (tutorial 11).

Easy, about 10 minutes.
"""

import torch  # noqa: F401


def alibi_bias(distance, heads):
    """The numbers that ALiBi adds to the attention logits to penalise distance (arXiv 2108.12409, section 3).

        bias = -slope_k (t - i),  slope_k = 2^(-8k / H) for the heads k = 1, ..., H

    Args:
        distance: [B, Q, K] integers t - i, from each of Q queries to each of K keys.
        heads: H, a power of two.
    Returns:
        [B, H, Q, K], in PyTorch's default dtype.

    Example: distance [[[1, 0]]], heads 2: the slopes are 1/16 and 1/256  ->  [[[[-0.0625, 0]], [[-0.00390625, 0]]]]
    """
    raise NotImplementedError("ex15: alibi_bias")
