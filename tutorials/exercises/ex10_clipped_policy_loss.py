"""ex10: PPO's clipped loss (tutorial 06).

Medium, about 20 minutes.
"""

import torch  # noqa: F401


def clipped_policy_loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """The clipped surrogate as a loss that is minimised (VinePPO, section 3; arXiv 1707.06347, equation 7).

        ratio = exp(logprobs - old_logprobs)
        loss  = mean over the masked tokens of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))

    Args:
        logprobs: [B, T] under the policy that is trained. Gradients flow through these only.
        old_logprobs: [B, T] under the policy that sampled the tokens; constants.
        advantages: [B, T]; constants.
        mask: [B, T], 1.0 on response tokens. Padding may hold any finite numbers and must not matter.
    Returns:
        scalar tensor. The grader also compares its gradient.

    Example: ratio 2, clip 0.2.
        A = 1: max(-2, -1.2) = -1.2, without a gradient, because the ratio has moved far enough.
        A = -1: max(2, 1.2) = 2, with a gradient, because a bad token has become more likely.
    """
    raise NotImplementedError("ex10: clipped_policy_loss")
