"""Exercises on credit: step advantages, spreading, GAE, whitening, baselines from a group."""

from itertools import pairwise

import torch

from grading.engine import Exercise
from grading.sampling import random
from vine_mini import advantages


def tensor(*rows):
    """A float64 tensor of the given rows."""
    return torch.tensor(rows, dtype=torch.float64)


# ex06: step advantages


def sign_turned(values, reward):
    """before and after are exchanged: an advantage is the value after the step minus the value before it."""
    return [b - a for b, a in zip(values, [*values[1:], reward], strict=True)]


def reward_forgotten(values, reward):
    """the reward is left out of the last step, whose advantage is then minus the last value."""
    return advantages.step_advantages(values, 0.0)


def reward_on_every_step(values, reward):
    """the reward is paid at every step; it is paid once, at the last one."""
    return [a + reward for a in advantages.step_advantages(values, 0.0)]


def against_the_return(values, reward):
    """each step gets R - V(before it), which also credits it with everything that came after."""
    return [reward - v for v in values]


def against_the_question(values, reward):
    """each state is compared with the value of the question, V(s_0), instead of with the state before."""
    return [v - values[0] for v in [*values[1:], reward]]


def last_step_dropped(values, reward):
    """there is no advantage for the last step: n values give n advantages, the last one R - V(s_{n-1})."""
    return [b - a for a, b in pairwise(values)]


def _step_cases():
    return {
        "two steps, a right answer": dict(values=[0.5, 0.75], reward=1.0),
        "three steps, a wrong answer": dict(values=[0.5, 0.75, 0.25], reward=0.0),
        "one step": dict(values=[0.125], reward=1.0),
        "a reward of 1/4": dict(values=[0.5, 0.75], reward=0.25),
        "a reward below 0": dict(values=[-0.5, 0.75], reward=-1.0),
        "six steps": dict(values=[3 / 9, 5 / 9, 5 / 9, 8 / 9, 1 / 9, 0.0], reward=0.0),
    }


# ex07: spread to tokens


def only_the_first_token(step_advantages, cuts, length):
    """only the first token of a step gets its advantage, and the others nothing."""
    spread = [0.0] * length
    for a, cut in zip(step_advantages, cuts, strict=True):
        spread[cut] = a
    return spread


def shared_among_the_tokens(step_advantages, cuts, length):
    """the advantage is divided by the step's tokens: each token took part in the whole step and gets all of it."""
    ends = [*cuts[1:], length]
    return [a / (e - s) for a, s, e in zip(step_advantages, cuts, ends, strict=True) for _ in range(e - s)]


def end_gets_nothing(step_advantages, cuts, length):
    """the last token, the end of the sequence, gets nothing; it belongs to the last step."""
    return [*advantages.spread_to_tokens(step_advantages, cuts, length)[:-1], 0.0]


def cut_belongs_to_the_step_before(step_advantages, cuts, length):
    """the token at a cut goes to the step before it; a cut is where a step starts."""
    spread = advantages.spread_to_tokens(step_advantages, cuts, length)
    return [spread[0], *spread[:-1]]


def stops_at_the_last_cut(step_advantages, cuts, length):
    """the last step ends where it starts, so that the list is too short; the last step runs to `length`."""
    pairs = zip(step_advantages, pairwise(cuts), strict=False)
    return [a for a, (start, end) in pairs for _ in range(end - start)]


def _spread_cases():
    return {
        "two steps": dict(step_advantages=[0.25, -0.5], cuts=[0, 2], length=5),
        "one step": dict(step_advantages=[1.0], cuts=[0], length=3),
        "steps of one token": dict(step_advantages=[0.5, -0.25, 0.75], cuts=[0, 1, 2], length=3),
        "four steps": dict(step_advantages=[0.1, 0.2, -0.3, 0.4], cuts=[0, 3, 4, 9], length=11),
    }


# ex08: GAE


def no_lambda(rewards, values, mask, *, gamma, lam):
    """lambda is left out of the sum."""
    return advantages.gae(rewards, values, mask, gamma=gamma, lam=1.0)


def no_gamma_on_the_next_value(rewards, values, mask, *, gamma, lam):
    """the next value is not discounted: delta is r + gamma V(next) - V."""
    return _gae(rewards, values * mask, mask, gamma, lam, discounted=False)


def value_of_padding(rewards, values, mask, *, gamma, lam):
    """the last token's next value is read from the padding; after the last token there is nothing, worth 0."""
    return _gae(rewards, values, mask, gamma, lam)


def through_the_padding(rewards, values, mask, *, gamma, lam):
    """the sum runs on through padding and prompt, so that numbers from outside the response leak into it."""
    return advantages.gae(rewards, values, torch.ones_like(mask), gamma=gamma, lam=lam)


def returns_without_values(rewards, values, mask, *, gamma, lam):
    """the returns are the advantages alone; the critic's target is advantage plus value."""
    found, _ = advantages.gae(rewards, values, mask, gamma=gamma, lam=lam)
    return found, found


def forwards(rewards, values, mask, *, gamma, lam):
    """the sum runs forwards in time, so that a token gets the credit of what came before it."""
    v = values * mask
    deltas = (rewards + gamma * torch.cat([v[:, 1:], torch.zeros_like(v[:, :1])], 1) - v) * mask
    out, carried = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1]):
        carried = (deltas[:, t] + gamma * lam * carried) * mask[:, t]
        out[:, t] = carried
    return out, (out + v) * mask


def one_delta(rewards, values, mask, *, gamma, lam):
    """only one step ahead is looked at: the advantage is delta alone, as for lambda = 0."""
    return advantages.gae(rewards, values, mask, gamma=gamma, lam=0.0)


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
    """the mean is taken over padding, too: divide by the number of masked entries, not by all."""
    mean = (x * mask).mean()
    deviation = (((x - mean).square() * mask).sum() / (mask.sum() - 1)).sqrt()
    return (x - mean) / (deviation + advantages.EPS) * mask


def population_deviation(x, mask):
    """the variance is divided by n instead of n - 1."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return (x - mean) / ((((x - mean).square() * mask).sum() / n).sqrt() + advantages.EPS) * mask


def padding_not_zeroed(x, mask):
    """the result is not masked: after the shift, padding is no longer 0 and would enter the loss."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    deviation = (((x - mean).square() * mask).sum() / (n - 1)).sqrt()
    return (x - mean) / (deviation + advantages.EPS)


def row_by_row(x, mask):
    """each row is whitened for itself; the mean and the deviation are those of the whole batch."""
    n = mask.sum(1, keepdim=True)
    mean = (x * mask).sum(1, keepdim=True) / n
    variance = ((x - mean).square() * mask).sum(1, keepdim=True) / (n - 1).clamp(min=1)
    return (x - mean) / (variance.sqrt() + advantages.EPS) * mask


def only_scaled(x, mask):
    """the numbers are scaled but not shifted: their mean stays."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    variance = ((x - mean).square() * mask).sum() / (n - 1).clamp(min=1)
    return x / (variance.sqrt() + advantages.EPS) * mask


def no_eps(x, mask):
    """nothing is added to the divisor: where all entries are equal, this is 0 / 0."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return (x - mean) / (((x - mean).square() * mask).sum() / (n - 1)).sqrt() * mask


def eps_under_the_root(x, mask):
    """EPS is added to the variance, under the root; it belongs to the deviation."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return (x - mean) / (((x - mean).square() * mask).sum() / (n - 1) + advantages.EPS).sqrt() * mask


def masked_before_the_deviation(x, mask):
    """the masked entries are set to 0 first and then counted in the deviation: x.std() of the masked tensor."""
    n = mask.sum()
    centred = (x - (x * mask).sum() / n) * mask
    return centred / (centred.std() + advantages.EPS)


def _whiten_cases():
    mask = tensor([1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 1])
    return {
        "three numbers": dict(x=tensor([1, 2, 6]), mask=tensor([1, 1, 1])),
        "with padding": dict(x=tensor([1, 2, 6, 9]), mask=tensor([1, 1, 1, 0])),
        "two rows": dict(x=tensor([1, 2, 0], [6, 9, 3]), mask=tensor([1, 1, 0], [1, 1, 1])),
        "all equal": dict(x=tensor([1, 1], [1, 5]), mask=tensor([1, 1], [1, 0])),
        "three rows": dict(x=random(3, 5, seed=3) + 2, mask=mask),
    }


# ex12: baselines from a group


def own_reward_in_the_mean(rewards):
    """RLOO's baseline contains the response's own reward; it is left out, or the baseline depends on the action."""
    return advantages.group_relative(rewards), rewards - rewards.mean(dim=1, keepdim=True)


def mean_of_the_batch(rewards):
    """the baseline is the mean over all groups: hard problems are then blamed for being hard."""
    grpo = (rewards - rewards.mean()) / (rewards.std(dim=1, keepdim=True) + advantages.EPS)
    return grpo, advantages.leave_one_out(rewards)


def deviation_of_the_batch(rewards):
    """GRPO is divided by the standard deviation over all groups instead of each group's own."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std() + advantages.EPS), advantages.leave_one_out(rewards)


def biased_deviation(rewards):
    """the standard deviation divides by G instead of G - 1 (correction=0)."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, correction=0, keepdim=True) + advantages.EPS), advantages.leave_one_out(rewards)


def equal_rewards_divide_by_zero(rewards):
    """nothing is added to the divisor: a group of equal rewards gives 0 / 0."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / rewards.std(dim=1, keepdim=True), advantages.leave_one_out(rewards)


def not_divided(rewards):
    """GRPO is not divided by the standard deviation (that is Dr. GRPO)."""
    return advantages.group_relative(rewards, scale_by_std=False), advantages.leave_one_out(rewards)


def _baselines(rewards):
    return advantages.group_relative(rewards), advantages.leave_one_out(rewards)


def _group_cases():
    return {
        "one group": dict(rewards=tensor([1, 0, 0, 1])),
        "one of four": dict(rewards=tensor([1, 0, 0, 0])),
        "all right": dict(rewards=tensor([1, 1, 1])),
        "two groups": dict(rewards=tensor([1, 0, 0], [1, 1, 0])),
        "rewards of any size": dict(rewards=random(4, 5, seed=4)),
    }


EXERCISES = [
    Exercise(
        "ex06_step_advantages",
        "step_advantages",
        advantages.step_advantages,
        _step_cases,
        [sign_turned, reward_forgotten, reward_on_every_step, against_the_return, against_the_question, last_step_dropped],
    ),
    Exercise(
        "ex07_spread_to_tokens",
        "spread_to_tokens",
        advantages.spread_to_tokens,
        _spread_cases,
        [
            only_the_first_token,
            shared_among_the_tokens,
            end_gets_nothing,
            cut_belongs_to_the_step_before,
            stops_at_the_last_cut,
        ],
    ),
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
        ],
    ),
]
