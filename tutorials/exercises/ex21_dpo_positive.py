"""ex21: the loss of DPO-Positive, a baseline of the paper without policy gradients (after tutorial 09).

Medium, about 15 minutes.
"""

import torch  # noqa: F401


def dpo_positive_loss(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """Prefers the right response of each pair, and punishes a right response that becomes less likely (arXiv 2402.13228).

        d      = log pi(response) - log pi_ref(response)                    one d for each response of a pair
        margin = d_right - d_wrong - penalty max(0, -d_right)
        loss   = - mean over the pairs of log sigmoid(beta margin)

    Args:
        right, wrong: [P] log-probs of whole responses under the policy. Gradients flow through these only.
        ref_right, ref_wrong: [P] the same under the reference; constants.
        beta, penalty: numbers >= 0. With penalty 0 this is DPO.
    Returns:
        scalar tensor. It must be finite for every margin. The grader also compares its gradient.

    Example: one pair, d_right = -0.1, d_wrong = -0.5, beta 1, penalty 2:
        the margin is -0.1 + 0.5 - 0.2 = 0.2  ->  log(1 + exp(-0.2)) = 0.59814
    """
    raise NotImplementedError("ex21: dpo_positive_loss")
