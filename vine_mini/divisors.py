"""By what the policy loss of a minibatch is divided: three published choices, as factors of the advantages.

tokens      the mean over all tokens. Long responses weigh more. VinePPO's code, DAPO (arXiv 2503.14476).
sequences   the mean over responses of their means over tokens. A token of a long response weighs less. GRPO as published.
constant    the sum over tokens, divided by the responses times the length limit. All tokens weigh the same, in every minibatch.
            Dr. GRPO (arXiv 2503.20783), which also leaves out GRPO's standard deviation.
"""

DIVISORS = ("tokens", "sequences", "constant")


def row_weights(mask, denominator, config):
    """The factors [b, 1] that turn a loss divided by `denominator`, the tokens of a minibatch, into a loss of another divisor.

    mask: [b, T] of the responses. The factors are positive, so the clip acts as before. The KL stays a mean over tokens.
    """
    lengths = {
        "tokens": denominator / config.minibatch_size,
        "sequences": mask.sum(dim=1, keepdim=True),
        "constant": config.max_new_tokens,
    }
    return denominator / (config.minibatch_size * lengths[config.divisor])
