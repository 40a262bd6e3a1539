"""Losses: pure functions of [B, T] tensors.

A token's ratio is its probability now, divided by its probability when it was sampled: 1 at an iteration's first update. Each
loss is a sum over masked tokens divided by `denominator`. The trainer passes the number of tokens of the whole minibatch with
every micro-batch. So losses, gradients and statistics of micro-batches add up.

Deviations from the paper's code: the policy loss and the KL are both means over tokens. The official code sums the KL over each
response, so its weight grows with the length (kl_per_response). The default weight is 0.1 (the presets: 1e-4, as in the paper).
"""

import torch


def masked_mean(x, mask, denominator=None):
    """The sum of x [B, T] over the masked entries, divided by `denominator` (left out: their number). 0 without tokens."""
    return x.where(mask.bool(), 0.0).sum() / torch.as_tensor(mask.sum() if denominator is None else denominator).clamp(min=1)


def clipped_policy_loss(logprobs, old_logprobs, advantages, mask, *, clip: float = 0.2, denominator=None):
    """PPO's clipped surrogate (VinePPO, section 3; arXiv 1707.06347, equation 7), as a loss to minimise.

    ratio = exp(logprobs - old_logprobs);  loss = mean of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)).

    Args:
        logprobs, old_logprobs, advantages, mask: [B, T]. Gradients flow through `logprobs` only.
        clip: no gradient where A > 0 and the ratio is above 1 + clip, or A < 0 and the ratio is below 1 - clip.
        denominator: see the first lines of the module.
    Returns (scalar loss, stats): `ratio` (mean), `clip_frac` (share of tokens whose gradient the clip stopped) and `approx_kl`
    (KL(old || new), by k3), each divided by the same denominator.
    """
    log_ratio = (logprobs - old_logprobs.detach()).where(mask.bool(), 0.0)  # 0 on padding, so that exp cannot overflow there
    ratio, advantages = log_ratio.exp(), advantages.detach()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(plain, clipped), mask, denominator)
    with torch.no_grad():
        stats = {
            "ratio": masked_mean(ratio, mask, denominator).item(),
            "clip_frac": masked_mean((clipped > plain).to(ratio.dtype), mask, denominator).item(),
            "approx_kl": masked_mean(ratio - 1 - log_ratio, mask, denominator).item(),
        }
    return loss, stats


def value_loss(values, old_values, returns, mask, *, clip: float = 0.2, denominator=None):
    """PPO's clipped value loss: 0.5 * mean of max((v - return)^2, (v_clipped - return)^2). v_clipped is the old value +- `clip`.

    All tensors are [B, T]. Gradients flow through `values` only. -> (scalar loss, stats): `value_clip_frac` and `value_error`,
    the mean absolute error against the returns.
    """
    values, old_values, returns = (x.where(mask.bool(), 0.0) for x in (values, old_values.detach(), returns.detach()))
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    plain_error, clipped_error = (values - returns).square(), (clipped - returns).square()
    loss = 0.5 * masked_mean(torch.maximum(plain_error, clipped_error), mask, denominator)
    clip_frac = masked_mean((clipped_error > plain_error).to(values.dtype), mask, denominator).item()
    error = masked_mean((values.detach() - returns).abs(), mask, denominator).item()
    return loss, {"value_clip_frac": clip_frac, "value_error": error}


def kl_penalty(logprobs, ref_logprobs, *, kind: str = "k3"):
    """An estimate of KL(policy || reference) at each token, for tokens sampled from the policy.

    With d = ref_logprobs - logprobs:  k1 = -d (unbiased, noisy, can be negative);  k2 = d^2 / 2 (biased, never negative);
    k3 = exp(d) - d - 1 (unbiased, never negative). Source: J. Schulman, "Approximating KL Divergence", 2020.
    A loss differentiates the estimate. On average the gradient of k1 is zero, the gradient of k2 is the gradient of
    KL(policy || reference), and the gradient of k3 is the gradient of KL(reference || policy). VinePPO uses k3.
    Shapes are equal and kept. The result is in nats.
    """
    d = ref_logprobs - logprobs
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return d.exp() - d - 1
    raise ValueError(f"kind = {kind!r}: k1, k2 or k3")
