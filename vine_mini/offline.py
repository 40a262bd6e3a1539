"""The paper's two baselines that learn from a fixed set of graded responses: RestEM and DPO-Positive. Pure functions.

Both sample many responses with the policy, choose examples among them, and fine-tune the *start* policy on the examples.
An example is a list of rows of the set: one row for RestEM, a right and a wrong response to one problem for DPO-Positive.
"""

import random

from torch.nn.functional import logsigmoid

from vine_mini.losses import masked_mean


def right_responses(rewards, limit: int, rng: random.Random) -> list[list[int]]:
    """RestEM's examples (arXiv 2312.06585): at most `limit` of the right responses to each problem. rewards: [N, G] -> [M][1]"""
    chosen = []
    for problem, row in enumerate(rewards.tolist()):
        right = [problem * len(row) + i for i, reward in enumerate(row) if reward == 1]
        chosen += [[i] for i in sorted(rng.sample(right, min(limit, len(right))))]
    return chosen


def pairs(rewards, limit: int, rng: random.Random) -> list[list[int]]:
    """DPO's examples: at most `limit` pairs of a right and a wrong response to each problem. rewards: [N, G] -> [M][2]"""
    chosen = []
    for problem, row in enumerate(rewards.tolist()):
        right = [problem * len(row) + i for i, reward in enumerate(row) if reward == 1]
        wrong = [problem * len(row) + i for i, reward in enumerate(row) if reward != 1]
        every = [[i, j] for i in right for j in wrong]
        chosen += rng.sample(every, min(limit, len(every)))
    return chosen


def imitation_loss(logprobs, ref_logprobs, mask, config, denominator):
    """RestEM's loss: minus the mean log-prob of a token. All [m, 1, T]; `denominator` tokens. -> (scalar, stats)"""
    return masked_mean(-logprobs, mask, denominator), {}


def dpo_positive_loss(logprobs, ref_logprobs, mask, config, denominator):
    """DPO-Positive (arXiv 2402.13228): DPO, plus a penalty where the right response becomes less likely.

    d = log pi - log pi_ref is the log-ratio of a whole response. margin = d_right - d_wrong - dpo_penalty max(0, -d_right).
    The loss is minus the mean of log sigmoid(dpo_beta margin).

    Args:
        logprobs, ref_logprobs, mask: [m, 2, T], the right response of each pair first. Gradients flow through `logprobs` only.
        denominator: the pairs of the minibatch.
    Returns (scalar loss, stats): `margin` (mean) and `pair_accuracy`, the share of pairs with a positive margin.
    """
    right, wrong = (logprobs - ref_logprobs.detach()).where(mask.bool(), 0.0).sum(dim=2).unbind(dim=1)  # [m] each
    margin = right - wrong - config.dpo_penalty * (-right).clamp(min=0)  # [m]
    loss = -logsigmoid(config.dpo_beta * margin).sum() / denominator
    stats = {"margin": margin.sum().item() / denominator, "pair_accuracy": (margin > 0).sum().item() / denominator}
    return loss, stats
