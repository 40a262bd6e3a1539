"""ex22: forgetting attention (FoX), an encoding that came after the paper (after `ex15`).

Medium, about 15 minutes.
"""

import torch  # noqa: F401


def forget_bias(log_f):
    """The numbers that forgetting attention adds to the attention logits (arXiv 2503.02130).

    Each token j has a gate f_j between 0 and 1, in each head its own. A query at token t sees a key at token i through the gates
    of the tokens i + 1 to t:

        bias = log f_{i+1} + log f_{i+2} + ... + log f_t

    It is 0 for i = t. A query sees no key after it, so there the bias is minus infinity. With one gate for all tokens this is
    ALiBi with the slope -log f.

    Args:
        log_f: [B, H, T], finite and at most 0.
    Returns:
        [B, H, T, T], queries before keys.

    Example: log_f (-1, -2, -3)  ->  query 0: (0, -inf, -inf); query 1: (-2, 0, -inf); query 2: (-5, -3, 0)
    """
    raise NotImplementedError("ex22: forget_bias")
