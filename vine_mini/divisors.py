"""Three published ways to average the policy loss over a minibatch. Each is a factor on the advantages.

tokens      the mean over all tokens. Long responses weigh more. VinePPO's code, DAPO (arXiv 2503.14476).
sequences   the mean over responses of their means over tokens. A token of a long response weighs less. GRPO as published.
constant    the sum over tokens, divided by the responses times the length limit. All tokens weigh the same, in every minibatch.
            Dr. GRPO (arXiv 2503.20783), which also leaves out GRPO's standard deviation.
"""

import torch

DIVISORS = ("tokens", "sequences", "constant")


def row_weights(mask, denominator, config):
    """The factors [b, 1] that turn a loss divided by `denominator`, the tokens of a minibatch, into a loss of another divisor.

    mask: [b, T] of the responses. The factors are positive, so the clip acts as before. The KL stays a mean over tokens.
    """
    mean_length = denominator / config.minibatch_size
    factors = {
        "tokens": torch.ones_like(mask[:, :1]),
        "sequences": mean_length / mask.sum(dim=1, keepdim=True),
        "constant": torch.ones_like(mask[:, :1]) * mean_length / config.max_new_tokens,
    }
    return factors[config.divisor]
