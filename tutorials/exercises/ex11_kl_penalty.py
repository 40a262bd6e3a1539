"""ex11: three estimates of the KL to the reference (tutorial 06)."""

import torch  # noqa: F401


def kl_penalty(logprobs, ref_logprobs, *, kind):
    """An estimate of KL(policy || reference) at each token that was sampled from the policy.

    With d = log p_ref - log p:
        k1 = -d              right on average, but noisy and often negative
        k2 = d^2 / 2         never negative, a little off on average
        k3 = exp(d) - d - 1  never negative and right on average; VinePPO's choice

    Args:
        logprobs, ref_logprobs: of the same shape, in nats. A gradient flows through `logprobs`.
        kind: "k1", "k2" or "k3".
    Returns:
        The same shape.

    Example: logprobs [-1.0], ref_logprobs [-1.2], so that d = -0.2  ->  k1 [0.2], k2 [0.02], k3 [0.01873]
    """
    raise NotImplementedError("ex11: kl_penalty")
