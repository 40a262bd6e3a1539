"""Factors on the advantages: three published ways to average the policy loss over a minibatch, and importance weights.

tokens      the mean over all tokens. Long responses weigh more. VinePPO's code, DAPO (arXiv 2503.14476).
sequences   the mean over responses of their means over tokens. A token of a long response weighs less. GRPO as published.
constant    the sum over tokens, divided by the responses times the length limit. All tokens weigh the same, in every minibatch.
            Dr. GRPO (arXiv 2503.20783), which also leaves out GRPO's standard deviation.
"""

import torch

from vine_mini.losses import masked_mean

DIVISORS = ("tokens", "sequences", "constant")


def token_weights(batch, denominator, config):
    """Factors [b, T] or [b, 1] on the advantages. A loss divided by `denominator`, the tokens of a minibatch, then has the chosen
    average.

    They are multiplied by the importance weights, if the batch has some. All are positive, so the clip acts as before. The KL is
    not affected.
    """
    mask = batch.response_mask  # [b, T]
    mean_length = denominator / config.minibatch_size
    factor = torch.ones_like(mask[:, :1])  # for the divisor "tokens"
    if config.divisor == "sequences":
        factor = mean_length / mask.sum(dim=1, keepdim=True)
    if config.divisor == "constant":
        factor = factor * mean_length / config.max_new_tokens
    return factor if batch.weights is None else factor * batch.weights


def importance(logprobs, sampler_logprobs, mask, cap: float):
    """Truncated importance weights min(p / q, cap) of tokens that q has sampled for p. All tensors are [B, T].

    q is the sampler, whose bfloat16 differs from the trainer's (F. Yao et al., "Your efficient RL framework secretly brings you
    off-policy RL training", 2025). A weight corrects the distribution of its token. The tokens before and after it are still the
    sampler's. So the expected gradient is closer to on-policy, but not on-policy.

    -> weights, or None for cap 0, and {`sampler_gap`: mean |log p - log q| of a token, `importance_capped`: share of tokens}
    """
    gap = logprobs - sampler_logprobs
    stats = {"sampler_gap": masked_mean(gap.abs(), mask).item()}
    if not cap:
        return None, stats
    stats["importance_capped"] = masked_mean((gap.exp() > cap).to(mask), mask).item()
    return gap.exp().clamp(max=cap).where(mask.bool(), 0.0), stats
