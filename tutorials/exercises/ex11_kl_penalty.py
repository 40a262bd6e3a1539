"""ex11: three estimates of the KL to the reference (tutorial 07).

Easy, about 10 minutes.
"""

import torch  # noqa: F401


def kl_penalty(logprobs, ref_logprobs, *, kind):
    """An estimate of KL(policy || reference) at each token that was sampled from the policy.

    With d = log p_ref - log p:
        k1 = -d              unbiased, but noisy and often negative
        k2 = d^2 / 2         never negative, but biased
        k3 = exp(d) - d - 1  unbiased and never negative; VinePPO uses it

    Args:
        logprobs, ref_logprobs: tensors of equal shape, in nats. Gradients flow through `logprobs`.
        kind: "k1", "k2" or "k3".
    Returns:
        a tensor of the same shape.

    Example: logprobs [-1.0], ref_logprobs [-1.2], so d = -0.2  ->  k1 [0.2], k2 [0.02], k3 [0.01873]
    """
    raise NotImplementedError("ex11: kl_penalty")
