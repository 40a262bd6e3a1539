"""Monte Carlo values against a process whose true values are known."""

import itertools
import math
import random

import pytest
import torch
from conftest import VOCAB, ragged_prompts

from vine_mini.advantages import step_advantages
from vine_mini.sampling import sample
from vine_mini.values import monte_carlo_values, where_values_move
from vine_mini.vines import rollouts

# A walk on 0..4 that ends at 0 (return 0) or 4 (return 1), a step up with probability UP: the gambler's ruin.
UP = 0.55


def true_value(position: int) -> float:
    r = (1 - UP) / UP
    return (1 - r**position) / (1 - r**4)


def walker(seed):
    rng = random.Random(seed)

    def finish(state):
        position = state[-1]
        while 0 < position < 4:
            position += 1 if rng.random() < UP else -1
        return position

    return lambda states, k: [[finish(s) for _ in range(k)] for s in states]


def paid(state, completion):
    return float(completion == 4)


def test_values_are_unbiased():
    """K = 3 and 6,000 states of each kind: a false alarm (5 standard errors, three states) about twice in a million."""
    n, k = 6000, 3
    for position in (1, 2, 3):
        states = [(i, position) for i in range(n)]  # the number makes the states different
        values = monte_carlo_values(states, walker(position), paid, k=k)
        v = true_value(position)
        assert abs(sum(values) / n - v) < 5 * math.sqrt(v * (1 - v) / (n * k))
        variance = sum((x - v) ** 2 for x in values) / n
        assert variance == pytest.approx(v * (1 - v) / k, rel=0.1)  # falls as 1 / K


def test_values_of_a_real_policy_are_unbiased(llama):
    """A random Llama, one token to go, success = ending on an even token: the true value is a sum of its probabilities.

    3 states x 4,000 rollouts: off by more than 5 standard errors about twice in a million times.
    """
    k, good = 4000, list(range(0, VOCAB, 2))
    trajectories = sample(llama, ragged_prompts(3), max_new_tokens=3, eos_token_id=VOCAB, seed=0)
    states = [tuple(t.prompt_ids + t.response_ids[:2]) for t in trajectories]

    def rollout(unique, k):
        assert unique == states
        forks = rollouts(llama, trajectories, [[2]] * 3, k=k, max_new_tokens=3, eos_token_id=good, seed=1)
        return [group for row in forks for group in row]

    values = monte_carlo_values(states, rollout, lambda _, completion: float(completion.finished), k=k)
    for state, value in zip(states, values, strict=True):
        truth = llama(torch.tensor([state])).logits[0, -1].softmax(-1)[good].sum().item()
        assert abs(value - truth) < 5 * math.sqrt(truth * (1 - truth) / k)


def test_equal_states_are_estimated_once_and_shared():
    asked = []

    def rollout(states, k):
        asked.append((states, k))
        return [[s[-1]] * k for s in states]

    states = [[7, 1], (7, 4), [7, 1], [7, 4], (7, 2)]  # lists of ids do as well as tuples
    values = monte_carlo_values(states, rollout, paid, k=2)
    assert asked == [([(7, 1), (7, 4), (7, 2)], 2)]
    assert values == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_value_is_the_mean_return():
    values = monte_carlo_values([(1,)], lambda states, k: [[4, 4, 0, 4]], paid, k=4)
    assert values == [0.75]


def test_bad_arguments():
    with pytest.raises(ValueError, match="k = 0"):
        monte_carlo_values([(1,)], walker(0), paid, k=0)
    with pytest.raises(ValueError, match="2 completions of a state, not k = 3"):
        monte_carlo_values([(1,)], lambda states, k: [[4, 4]], paid, k=3)
    assert monte_carlo_values([], walker(0), paid, k=1) == []


def test_bias_error_and_cost_of_stopping_early():
    """Every sequence of k completions of a state, weighted with its probability, against the docstring's formulas."""
    for k, first in ((9, 3), (5, 2), (3, 2)):
        for V in (0.1, 0.5, 0.83, 0.95):
            mean = squares = rollouts = 0.0
            for outcomes in itertools.product((0.0, 1.0), repeat=k):
                p = math.prod(V if x else 1 - V for x in outcomes)
                drawn, asked = iter(outcomes), []

                def rollout(states, n, drawn=drawn, asked=asked):
                    asked.append(n)
                    return [[next(drawn) for _ in range(n)] for _ in states]

                [value] = monte_carlo_values([[1]], rollout, lambda s, c: c, k=k, k_first=first)
                mean, squares, rollouts = mean + p * value, squares + p * (value - V) ** 2, rollouts + p * sum(asked)
            q = 1 - V
            assert mean - V == pytest.approx((1 - first / k) * V * q * (V ** (first - 1) - q ** (first - 1)), abs=1e-12)
            assert k - rollouts == pytest.approx((k - first) * (V**first + q**first))
            if (k, first, V) == (9, 3, 0.95):
                assert squares == pytest.approx(0.0043, abs=5e-5) and V * q / rollouts == pytest.approx(0.0123, abs=5e-5)


def test_undecided_states_alone_get_all_their_rollouts():
    asked = []

    def rollout(states, k):
        asked.append((states, k))
        return [[1.0] * k if s == (1,) else [float(i % 2) for i in range(k)] for s in states]

    values = monte_carlo_values([[1], [2], [1]], rollout, lambda s, c: c, k=6, k_first=2)
    assert asked == [([(1,), (2,)], 2), ([(2,)], 4)]
    assert values == [1.0, 0.5, 1.0]
    for wrong in (0, 6, 7):
        with pytest.raises(ValueError, match="k_first"):
            monte_carlo_values([[1]], rollout, lambda s, c: c, k=6, k_first=wrong)


def test_halving_finds_the_step_where_the_value_falls():
    """Values known without noise: one wrong step of eight is found with half of the states, and credit telescopes."""
    true = [[0.9, 0.9, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0], [0.9] * 8, [0.0]]
    rounds = []

    def estimate(points):
        rounds.append(points)
        return [true[row][i] for row, i in points]

    known = where_values_move([8, 8, 1], [0.0, 1.0, 1.0], estimate, k=1000)
    assert known[0] == {0: 0.9, 4: 0.9, 5: 0.0, 6: 0.0} and known[2] == {0: 0.0}
    assert 0 in known[1] and len(rounds) <= 4 and len({p for r in rounds for p in r}) == sum(map(len, rounds))
    credit = step_advantages(list(known[0].values()), 0.0)
    assert credit == pytest.approx([0.0, -0.9, 0.0, 0.0]) and sum(credit) == pytest.approx(0.0 - 0.9)
    quiet = where_values_move([8], [1.0], lambda points: [1.0] * len(points), k=9)
    assert quiet == [{0: 1.0}]  # a response that goes as expected asks for its first state alone


def test_halving_with_noise_telescopes_and_keeps_the_order():
    rng = random.Random(0)
    for _ in range(50):
        sizes = [rng.randint(1, 12) for _ in range(4)]
        rewards = [float(rng.random() < 0.5) for _ in sizes]
        known = where_values_move(sizes, rewards, lambda points: [rng.randint(0, 4) / 4 for _ in points], k=4)
        for n, R, row in zip(sizes, rewards, known, strict=True):
            assert list(row) == sorted(row) and min(row) == 0 and list(row)[-1] < n
            assert sum(step_advantages(list(row.values()), R)) == pytest.approx(R - row[0])
