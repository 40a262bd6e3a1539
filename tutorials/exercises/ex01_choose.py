"""ex01: choose the next token (tutorial 01).

Medium, about 20 minutes.
"""

import torch  # noqa: F401


def choose(logits, uniform, temperature, top_p):
    """Choose one token in each row.

    Args:
        logits: [A, V], A rows over V tokens.
        uniform: [A] random numbers in [0, 1), one for each row. Nothing else is random.
        temperature: the logits are divided by it. At 0, choose the most likely token and give its log-prob at temperature 1.
        top_p: keep the smallest set of most likely tokens whose probability at the temperature reaches top_p. The token with
            which the sum reaches top_p belongs to the set. 1.0 keeps all tokens.
    Returns:
        token [A] (integers) and logprob [A].
        token: scale the kept probabilities so that they sum to 1. Add them up in the order of the token ids. Choose the first
            token whose sum is above the uniform number.
        logprob: the token's log-prob under softmax(logits / temperature) over all tokens, including those that top_p removed.

    Example: logits = log [[0.5, 0.3, 0.2]], uniform = [0.6], temperature = 1.0
        top_p = 1.0: the sums are 0.5, 0.8, 1.0                     -> token [1], logprob [log 0.3]
        top_p = 0.7: tokens 0 and 1 remain, the sums are 0.625, 1.0 -> token [0], logprob [log 0.5]
    """
    raise NotImplementedError("ex01: choose")
