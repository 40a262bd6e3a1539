"""ex01: choose the next token (tutorial 01)."""

import torch  # noqa: F401


def choose(logits, uniform, temperature, top_p):
    """Pick one token in each row.

    Args:
        logits: [A, V], A rows over V tokens.
        uniform: [A] numbers in [0, 1), one for each row: all the randomness there is.
        temperature: the logits are divided by it. 0 takes the most likely token, and its log-prob at temperature 1.
        top_p: keep the smallest set of most likely tokens whose probability (at the temperature) reaches top_p. The token that
            makes the sum reach it is kept, too. 1.0 keeps all.
    Returns:
        token [A] (integers) and logprob [A].
        token: scale the kept probabilities so that they sum to 1, add them up in the order of the token ids, and take the
            first token whose sum is above the uniform number.
        logprob: of that token under softmax(logits / temperature), all tokens counted, also those that top_p left out.

    Example: logits = log [[0.5, 0.3, 0.2]], uniform = [0.6], temperature = 1.0
        top_p = 1.0: the sums are 0.5, 0.8, 1.0           -> token [1], logprob [log 0.3]
        top_p = 0.7: tokens 0, 1 stay, sums 0.625, 1.0    -> token [0], logprob [log 0.5]
    """
    raise NotImplementedError("ex01: choose")
