"""ex10: PPO's clipped loss (tutorial 05)."""

import torch  # noqa: F401


def clipped_policy_loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """The clipped surrogate as a loss to minimise (VinePPO, section 3; arXiv 1707.06347, equation 7).

        ratio = exp(logprobs - old_logprobs)
        loss  = mean over the masked tokens of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))

    Args:
        logprobs: [B, T] under the policy that is trained. Gradients flow through these alone.
        old_logprobs: [B, T] under the policy that sampled; constants.
        advantages: [B, T]; constants.
        mask: [B, T], 1.0 on response tokens. Padding must not matter.
    Returns:
        scalar tensor. Its gradient is graded, too.

    Example: ratio 2, clip 0.2. A = 1: max(-2, -1.2) = -1.2, without a gradient: it has moved far enough.
        A = -1: max(2, 1.2) = 2, with a gradient: a bad token has become likelier and must come back.
    """
    raise NotImplementedError("ex10: clipped_policy_loss")
