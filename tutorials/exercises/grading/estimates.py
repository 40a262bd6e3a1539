"""Exercises on advantages of tokens and groups: GAE, whitening, GRPO and RLOO."""

import torch

from grading.engine import Exercise
from grading.inputs import random, tensor
from vine_mini import advantages

# ex08: GAE


def no_lambda(rewards, values, mask, *, gamma=1.0, lam=1.0):
    """lambda is left out of the sum."""
    return advantages.gae(rewards, values, mask, gamma=gamma, lam=1.0)


def no_gamma_on_the_next_value(rewards, values, mask, *, gamma=1.0, lam=1.0):
    """the next value is not discounted. delta is r + gamma V(next) - V."""
    return _gae(rewards, values * mask, mask, gamma, lam, discounted=False)


def value_of_padding(rewards, values, mask, *, gamma=1.0, lam=1.0):
    """the next value of the last token is read from the padding. The value after the last token is 0."""
    return _gae(rewards, values, mask, gamma, lam)


def through_the_padding(rewards, values, mask, *, gamma=1.0, lam=1.0):
    """the sum runs through padding and prompt. Numbers from outside the response then enter it."""
    return advantages.gae(rewards, values, torch.ones_like(mask), gamma=gamma, lam=lam)


def returns_without_values(rewards, values, mask, *, gamma=1.0, lam=1.0):
    """the returns are the advantages alone. The critic's target is advantage plus value."""
    found, _ = advantages.gae(rewards, values, mask, gamma=gamma, lam=lam)
    return found, found


def forwards(rewards, values, mask, *, gamma=1.0, lam=1.0):
    """the sum runs forwards in time. A token then gets credit for the tokens before it."""
    v = values * mask
    deltas = (rewards + gamma * torch.cat([v[:, 1:], torch.zeros_like(v[:, :1])], 1) - v) * mask
    out, carried = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1]):
        carried = (deltas[:, t] + gamma * lam * carried) * mask[:, t]
        out[:, t] = carried
    return out, (out + v) * mask


def one_delta(rewards, values, mask, *, gamma=1.0, lam=1.0):
    """the advantage is delta alone, as with lambda = 0. The advantage must also contain all later deltas."""
    return advantages.gae(rewards, values, mask, gamma=gamma, lam=0.0)


def other_defaults(rewards, values, mask, *, gamma=0.99, lam=0.95):
    """gamma and lam have other defaults, such as 0.99 and 0.95. Left out, both are 1."""
    return advantages.gae(rewards, values, mask, gamma=gamma, lam=lam)


def _gae(rewards, values, mask, gamma, lam, discounted=True):
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = (rewards + (gamma if discounted else 1.0) * following - values) * mask
    out, later = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        later = (deltas[:, t] + gamma * lam * later) * mask[:, t]
        out[:, t] = later
    return out, (out + values) * mask


def _gae_cases():
    mask = tensor([0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0])
    return {
        "three tokens, lambda 1": dict(
            rewards=tensor([0, 0, 1]), values=tensor([0.5, 0.75, 0.25]), mask=tensor([1, 1, 1]), gamma=1.0, lam=1.0
        ),
        "three tokens, lambda 0.5": dict(
            rewards=tensor([0, 0, 1]), values=tensor([0.5, 0.75, 0.25]), mask=tensor([1, 1, 1]), gamma=1.0, lam=0.5
        ),
        "gamma and lambda left out": dict(rewards=tensor([0, 0, 1]), values=tensor([0.5, 0.75, 0.25]), mask=tensor([1, 1, 1])),
        "gamma 0.5": dict(
            rewards=tensor([0, 0, 1]), values=tensor([0.5, 0.75, 0.25]), mask=tensor([1, 1, 1]), gamma=0.5, lam=1.0
        ),
        "padding with a value": dict(
            rewards=tensor([0, 1, 0]), values=tensor([0.5, 0.75, 9.0]), mask=tensor([1, 1, 0]), gamma=1.0, lam=0.5
        ),
        "a reward in the padding": dict(
            rewards=tensor([0, 1, 7]), values=tensor([0.5, 0.75, 9.0]), mask=tensor([1, 1, 0]), gamma=1.0, lam=1.0
        ),
        "three rows": dict(rewards=random(3, 6, seed=1), values=random(3, 6, seed=2), mask=mask, gamma=0.9, lam=0.8),
    }


# ex09: whitening


def mean_with_padding(x, mask):
    """the mean counts padding. The sum must be divided by the number of masked entries."""
    mean = (x * mask).mean()
    deviation = (((x - mean).square() * mask).sum() / (mask.sum() - 1)).sqrt()
    return (x - mean) / (deviation + advantages.EPS) * mask


def population_deviation(x, mask):
    """the variance is divided by n instead of n - 1."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return (x - mean) / ((((x - mean).square() * mask).sum() / n).sqrt() + advantages.EPS) * mask


def padding_not_zeroed(x, mask):
    """the result is not masked. After the shift, padding is no longer 0 and would enter the loss."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    deviation = (((x - mean).square() * mask).sum() / (n - 1)).sqrt()
    return (x - mean) / (deviation + advantages.EPS)


def row_by_row(x, mask):
    """each row is whitened separately. Mean and standard deviation are taken over the whole batch."""
    n = mask.sum(1, keepdim=True)
    mean = (x * mask).sum(1, keepdim=True) / n
    variance = ((x - mean).square() * mask).sum(1, keepdim=True) / (n - 1).clamp(min=1)
    return (x - mean) / (variance.sqrt() + advantages.EPS) * mask


def only_scaled(x, mask):
    """the numbers are scaled but not shifted. The mean then does not become 0."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    variance = ((x - mean).square() * mask).sum() / (n - 1).clamp(min=1)
    return x / (variance.sqrt() + advantages.EPS) * mask


def no_eps(x, mask):
    """nothing is added to the divisor. If all entries are equal, the result is 0 / 0."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return (x - mean) / (((x - mean).square() * mask).sum() / (n - 1)).sqrt() * mask


def eps_under_the_root(x, mask):
    """EPS is added to the variance, under the root. EPS must be added to the standard deviation."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return (x - mean) / (((x - mean).square() * mask).sum() / (n - 1) + advantages.EPS).sqrt() * mask


def masked_before_the_deviation(x, mask):
    """entries outside the mask are set to 0 and then counted in the deviation, as in x.std() of the masked x."""
    n = mask.sum()
    centred = (x - (x * mask).sum() / n) * mask
    return centred / (centred.std() + advantages.EPS)


def zeros_are_padding(x, mask):
    """entries that are 0 are taken for padding. The mask alone says what padding is."""
    return advantages.whiten(x, mask * (x != 0))


def difference_of_two_means(x, mask):
    """the variance is computed as E[x^2] - E[x]^2. A large mean then eats its digits: square the differences to the mean."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    variance = ((x.square() * mask).sum() / n - mean.square()) * n / (n - 1)
    return (x - mean) / (variance.clamp(min=0).sqrt() + advantages.EPS) * mask


def signs_lost(x, mask):
    """entries below 0 lose their sign (abs). They are numbers like any other."""
    return advantages.whiten(x.abs(), mask)


def limited(x, mask):
    """the result is limited to three standard deviations. Nothing is limited here."""
    return advantages.whiten(x, mask).clamp(-3, 3)


def _whiten_cases():
    mask = tensor([1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 1])
    return {
        "three numbers": dict(x=tensor([1, 2, 6]), mask=tensor([1, 1, 1])),
        "with padding": dict(x=tensor([1, 2, 6, 9]), mask=tensor([1, 1, 1, 0])),
        "two rows": dict(x=tensor([1, 2, 0], [6, 9, 3]), mask=tensor([1, 1, 0], [1, 1, 1])),
        "all equal": dict(x=tensor([1, 1], [1, 5]), mask=tensor([1, 1], [1, 0])),
        "zeros that are not padding": dict(x=tensor([0, 2, 4, 7], [0, 1, 3, 0]), mask=tensor([1, 1, 1, 0], [1, 1, 1, 0])),
        "numbers below 0": dict(x=tensor([-1, 2, -6, 9]), mask=tensor([1, 1, 1, 0])),
        "three rows": dict(x=random(3, 5, seed=3) + 2, mask=mask),
        "one of twenty": dict(x=tensor([1] + 19 * [0]), mask=tensor(20 * [1])),
        "a large mean": dict(x=tensor([30001, 30002, 30006, 9]), mask=tensor([1, 1, 1, 0])),
        "numbers that differ little": dict(x=tensor([0.5, 0.50001, 0.50002, 0.5]), mask=tensor([1, 1, 1, 1])),
    }


# ex12: baselines from a group


def own_reward_in_the_mean(rewards):
    """RLOO's baseline contains the response's own reward. A baseline must not depend on the response itself."""
    return advantages.group_relative(rewards), rewards - rewards.mean(dim=1, keepdim=True)


def mean_of_the_batch(rewards):
    """the baseline is the mean over all groups. Responses to hard problems are then blamed for the problem."""
    grpo = (rewards - rewards.mean()) / (rewards.std(dim=1, keepdim=True) + advantages.EPS)
    return grpo, advantages.leave_one_out(rewards)


def deviation_of_the_batch(rewards):
    """GRPO divides by the standard deviation over all groups. Each group must be divided by its own."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std() + advantages.EPS), advantages.leave_one_out(rewards)


def biased_deviation(rewards):
    """the standard deviation divides by G instead of G - 1 (correction=0)."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, correction=0, keepdim=True) + advantages.EPS), advantages.leave_one_out(rewards)


def equal_rewards_divide_by_zero(rewards):
    """nothing is added to the divisor. A group of equal rewards then gives 0 / 0."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / rewards.std(dim=1, keepdim=True), advantages.leave_one_out(rewards)


def small_deviations_are_zero(rewards):
    """a small standard deviation gives zeros. Only a group of equal rewards gets zeros."""
    grpo, rloo = _baselines(rewards)
    return grpo * (rewards.std(dim=1, keepdim=True) > 1e-3), rloo


def not_divided(rewards):
    """GRPO is not divided by the standard deviation, as in Dr. GRPO."""
    return advantages.group_relative(rewards, scale_by_std=False), advantages.leave_one_out(rewards)


def _baselines(rewards):
    return advantages.group_relative(rewards), advantages.leave_one_out(rewards)


def _group_cases():
    return {
        "one group": dict(rewards=tensor([1, 0, 0, 1])),
        "one of four": dict(rewards=tensor([1, 0, 0, 0])),
        "two responses": dict(rewards=tensor([1, 0], [0.25, 0.75])),
        "all right": dict(rewards=tensor([1, 1, 1])),
        "two groups": dict(rewards=tensor([1, 0, 0], [1, 1, 0])),
        "rewards that differ little": dict(rewards=tensor([0.5, 0.50001, 0.5, 0.5], [0.5, 0.51, 0.5, 0.52])),
        "rewards of any size": dict(rewards=random(4, 5, seed=4)),
    }


EXERCISES = [
    Exercise(
        "ex08_gae",
        "gae",
        advantages.gae,
        _gae_cases,
        [
            no_lambda,
            no_gamma_on_the_next_value,
            value_of_padding,
            through_the_padding,
            returns_without_values,
            forwards,
            one_delta,
            other_defaults,
        ],
    ),
    Exercise(
        "ex09_whiten",
        "whiten",
        advantages.whiten,
        _whiten_cases,
        [
            mean_with_padding,
            population_deviation,
            padding_not_zeroed,
            row_by_row,
            only_scaled,
            no_eps,
            eps_under_the_root,
            masked_before_the_deviation,
            zeros_are_padding,
            difference_of_two_means,
            signs_lost,
            limited,
        ],
    ),
    Exercise(
        "ex12_group_baselines",
        "group_baselines",
        _baselines,
        _group_cases,
        [
            own_reward_in_the_mean,
            mean_of_the_batch,
            deviation_of_the_batch,
            biased_deviation,
            equal_rewards_divide_by_zero,
            not_divided,
            small_deviations_are_zero,
        ],
    ),
]
