"""ex07: from steps to tokens (tutorial 04)."""


def spread_to_tokens(step_advantages, cuts, length):
    """Gives every token the advantage of the step that it is part of.

    Args:
        step_advantages: list of n floats, one for each step.
        cuts: list of n token indices, where each step starts; cuts[0] = 0.
        length: tokens in the response, the end-of-sequence token included; it belongs to the last step.
    Returns:
        list of `length` floats.

    Example: step_advantages [0.25, -0.5], cuts [0, 2], length 5  ->  [0.25, 0.25, -0.5, -0.5, -0.5]
    """
    raise NotImplementedError("ex07: spread_to_tokens")
