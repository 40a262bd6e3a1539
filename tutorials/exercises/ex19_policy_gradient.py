"""ex19: the loss of the policy gradient (tutorial 05). It belongs before ex10, which adds the ratio and the clip.

Easy, about 10 minutes.
"""

import torch  # noqa: F401


def policy_gradient_loss(logprobs, advantages, mask):
    """A loss whose gradient points against the policy gradient.

        loss = - mean over the masked tokens of A_t log pi(y_t given s_t)

    Args:
        logprobs: [B, T] of the sampled tokens, under the policy that sampled them. Gradients flow through these only.
        advantages: [B, T]; constants.
        mask: [B, T], 1.0 on response tokens. Padding may hold any finite numbers and must not matter. All masked tokens count
            equally.
    Returns:
        scalar tensor. The grader also compares its gradient.

    Example: logprobs [[-0.5, -2.0]], advantages [[1.0, -0.5]], mask all ones:
        the products are -0.5 and 1.0, their mean is 0.25  ->  -0.25, with the gradient [[-0.5, 0.25]]
    """
    raise NotImplementedError("ex19: policy_gradient_loss")
