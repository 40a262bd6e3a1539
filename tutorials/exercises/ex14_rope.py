"""ex14: rotary position encoding (tutorial 11).

Medium, about 20 minutes.
"""

import torch  # noqa: F401


def rope(x, positions):
    """Rotates queries or keys by angles that grow with their position (arXiv 2104.09864, section 3.2.2).

    Neighbouring dimensions (x_0, x_1), (x_2, x_3), ... form pairs. Pair j of a token at position p rotates by the angle
    p w_j, with w_j = 10000^(-2j / d) and j = 0, 1, ..., d/2 - 1:

        (a, b)  ->  (a cos - b sin, a sin + b cos)

    Args:
        x: [B, H, T, d], d even.
        positions: [B, T] integers, which need not start at 0 and need not be in order.
    Returns:
        [B, H, T, d]. The grader passes float64 and compares in float64.

    Example: x = (1, 0) at position 1 with d = 2  ->  (cos 1, sin 1) = (0.54030, 0.84147)
    """
    raise NotImplementedError("ex14: rope")
