"""ex07: from steps to tokens (tutorial 04).

Easy, about 10 minutes.
"""


def spread_to_tokens(step_advantages, cuts, length):
    """Gives every token the advantage of its step.

    Args:
        step_advantages: list of n floats, one for each step.
        cuts: list of n token indices at which the steps start; cuts[0] = 0.
        length: number of tokens in the response, including the end-of-sequence token, which belongs to the last step.
    Returns:
        list of `length` floats.

    Example: step_advantages [0.25, -0.5], cuts [0, 2], length 5  ->  [0.25, 0.25, -0.5, -0.5, -0.5]
    """
    raise NotImplementedError("ex07: spread_to_tokens")
