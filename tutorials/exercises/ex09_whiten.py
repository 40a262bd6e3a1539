"""ex09: whitening with a mask (tutorial 04).

Easy, about 10 minutes.
"""

import torch  # noqa: F401

EPS = 1e-8


def whiten(x, mask):
    """Shifts and scales x so that its masked entries have mean 0 and standard deviation 1.

    Args:
        x: [B, T]. Entries outside the mask may be any finite numbers.
        mask: [B, T] of 1.0 and 0.0, with at least two ones. Mean and standard deviation are taken over all masked entries
            together, not row by row. The variance divides by the number of masked entries minus 1. EPS is added to the standard
            deviation, not to the variance.
    Returns:
        [B, T], 0 outside the mask.

    Example: x [[1, 2, 6, 9]], mask [[1, 1, 1, 0]]: the mean is 3 and the standard deviation 2.64575
        ->  [[-0.75593, -0.37796, 1.13389, 0]]
    """
    raise NotImplementedError("ex09: whiten")
