"""Monte Carlo values against a process whose true values are known."""

import itertools
import math
import random

import pytest
import torch
from conftest import VOCAB, ragged_prompts

from vine_mini.evaluate import standard_errors
from vine_mini.sampling import rollouts, sample
from vine_mini.types import Sampling
from vine_mini.values import monte_carlo_values

# A walk on 0..4 that ends at 0 (reward 0) or 4 (reward 1), a step up with probability UP: the gambler's ruin.
UP = 0.55


def true_value(position: int) -> float:
    r = (1 - UP) / UP
    return (1 - r**position) / (1 - r**4)


def finish(position: int, rng: random.Random) -> float:
    while 0 < position < 4:
        position += 1 if rng.random() < UP else -1
    return float(position == 4)


def test_values_are_unbiased():
    """K = 3 and 6,000 states of each kind: a false alarm (5 standard errors, three states) about twice in a million."""
    n, k = 6000, 3
    for position in (1, 2, 3):
        rng = random.Random(position)
        values = monte_carlo_values([[finish(position, rng) for _ in range(k)] for _ in range(n)])
        v = true_value(position)
        assert abs(sum(values) / n - v) < 5 * math.sqrt(v * (1 - v) / (n * k))
        variance = sum((x - v) ** 2 for x in values) / n
        assert variance == pytest.approx(v * (1 - v) / k, rel=0.1)  # falls as 1 / K


def test_values_of_a_real_policy_are_unbiased(llama):
    """A random Llama, one token to go, success = ending on an even token: the true value is a sum of its probabilities.

    3 states x 4,000 rollouts: off by more than 5 standard errors about twice in a million times.
    """
    k, good = 4000, tuple(range(0, VOCAB, 2))
    trajectories = sample(llama, ragged_prompts(3), Sampling(3, (VOCAB,)), seed=0)
    done = rollouts(llama, trajectories, [[2]] * 3, Sampling(3, good), k=k, seed=1)
    values = monte_carlo_values([[float(r.finished) for r in group] for [group] in done])
    for t, value in zip(trajectories, values, strict=True):
        state = torch.tensor([t.prompt_ids + t.response_ids[:2]])
        truth = llama(state).logits[0, -1].softmax(-1)[list(good)].sum().item()
        assert abs(value - truth) < 5 * math.sqrt(truth * (1 - truth) / k)


def test_value_is_the_mean_reward():
    assert monte_carlo_values([[1.0, 1.0, 0.0, 1.0], [0.25, 0.5]]) == [0.75, 0.375]
    assert monte_carlo_values([]) == []
    with pytest.raises(ValueError, match="at least one rollout"):
        monte_carlo_values([[1.0], []])


def test_the_error_of_binary_rewards_is_close_to_the_true_one_and_never_0():
    """K rollouts of a state of value V, every outcome weighted with its probability: the mean squared error that is reported
    lies between 1 and 1.6 times the true variance for values that are not near 0 or 1, and is above it near 0 and 1."""
    for k in (2, 4, 9):
        for V in (0.02, 0.3, 0.5, 0.9):
            reported = 0.0
            for outcomes in itertools.product((0.0, 1.0), repeat=k):
                p = math.prod(V if x else 1 - V for x in outcomes)
                [error] = standard_errors([list(outcomes)])
                assert error > 0
                reported += p * error**2
            true = V * (1 - V) / k
            assert reported > 0.7 * true and (not 0.2 < V < 0.8 or reported < 1.6 * true)


def test_standard_errors_by_hand():
    none, half, graded, single = standard_errors([[0.0] * 9, [0.0, 1.0], [0.2, 0.4, 0.9], [0.3]])
    assert none == pytest.approx((0.05 * 0.95 / 9) ** 0.5)
    assert half == pytest.approx((0.25 / 2) ** 0.5)
    assert graded == pytest.approx(((1.51 / 4 - 0.25) / 3) ** 0.5)  # squares 1.01 + 1/2 and sum 1.5 + 1/2, over 3 + 1
    assert 0.3 < single <= 0.5  # one rollout does not show the spread
    assert standard_errors([[0.25] * 9])[0] > 0.05  # equal rewards do not either
