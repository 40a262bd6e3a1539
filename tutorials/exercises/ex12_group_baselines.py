"""ex12: GRPO's and RLOO's advantages (tutorial 09).

Easy, about 15 minutes.
"""

import torch  # noqa: F401

EPS = 1e-8


def group_baselines(rewards):
    """Advantages that compare the G responses to one problem with each other.

        GRPO   (R - mean of the group) / (standard deviation of the group + EPS)    arXiv 2402.03300
        RLOO   R - mean of the other G - 1 responses                                arXiv 2402.14740

    Args:
        rewards: [N, G], G >= 2 responses to each of N problems.
    Returns:
        (grpo, rloo), [N, G] each. The standard deviation divides by G - 1. A group with equal rewards gets zeros.

    Example: rewards [[1, 0, 0, 0]]  ->  grpo [[1.5, -0.5, -0.5, -0.5]], rloo [[1, -0.33333, -0.33333, -0.33333]]
    """
    raise NotImplementedError("ex12: group_baselines")
