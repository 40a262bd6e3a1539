"""Credit: closed forms, slow references and the invariants that every algorithm must keep."""

from itertools import product

import pytest
import torch

from vine_mini.advantages import gae, group_relative, leave_one_out, spread_to_tokens, step_advantages, whiten


def slow_gae(rewards, values, mask, gamma, lam):
    """The definition, sum over l of (gamma lam)^l delta_{t+l}, one row and one token at a time."""
    out = torch.zeros_like(rewards)
    for b in range(rewards.shape[0]):
        tokens = mask[b].nonzero()[:, 0].tolist()
        deltas = []
        for t in tokens:
            after = values[b, t + 1] if t + 1 in tokens else 0.0
            deltas.append(rewards[b, t] + gamma * after - values[b, t])
        for i, t in enumerate(tokens):
            out[b, t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(tokens)))
    return out


def random_rows(seed=0):
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 8, generator=g, dtype=torch.float64)
    mask = torch.zeros(3, 8, dtype=torch.float64)
    mask[0, 2:8] = mask[1, 3:4] = mask[2, 1:5] = 1.0  # to the end, a single token, in the middle
    return rewards, values, mask


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0), (0.5, 1.0)])
def test_gae_equals_its_definition(gamma, lam):
    rewards, values, mask = random_rows()
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    expected = slow_gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, (expected + values) * mask, rtol=0, atol=1e-12)


def test_gae_with_lambda_1_is_return_minus_value():
    rewards, values, mask = random_rows(1)
    advantages, returns = gae(rewards, values, mask)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_go, rtol=0, atol=1e-12)
    torch.testing.assert_close(advantages, to_go - values * mask, rtol=0, atol=1e-12)


def test_gae_of_a_single_token():
    one = torch.ones(2, 1, dtype=torch.float64)
    advantages, returns = gae(3 * one, 0.5 * one, one)
    assert advantages.tolist() == [[2.5], [2.5]] and returns.tolist() == [[3.0], [3.0]]


def test_gae_ignores_what_is_outside_the_mask_and_leaves_its_inputs_alone():
    rewards, values, mask = random_rows(2)
    kept = rewards.clone(), values.clone(), mask.clone()
    noisy = gae(rewards + 9 * (1 - mask), values - 7 * (1 - mask), mask, lam=0.9)
    torch.testing.assert_close(noisy, gae(rewards, values, mask, lam=0.9), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(kept, (rewards, values, mask), strict=True))


def test_step_advantages_by_hand():
    # The second step lost the problem, the third did not matter.
    assert step_advantages([0.5, 0.75, 0.0], 0.0) == [0.25, -0.75, 0.0]
    assert step_advantages([0.25], 1.0) == [0.75]


@pytest.mark.parametrize("seed", range(5))
def test_step_advantages_telescope(seed):
    values = torch.rand(seed + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    for reward in (0.0, 1.0):
        assert sum(step_advantages(values, reward)) == pytest.approx(reward - values[0], abs=1e-12)


DIALS = [(0.0, 0.0), (0.5, 0.5), (0.7, 0.2), (0.0, 1.0), (1.0, 1.0)]


def test_the_two_ends_of_the_dial():
    values, R = [0.5, 0.75, 0.25, 0.9], 1.0
    assert step_advantages(values, R, lam=0.0, mu=0.0) == step_advantages(values, R)
    assert step_advantages(values, R, lam=1.0, mu=1.0) == [R - values[0]] * 4
    assert step_advantages(values, R, lam=1.0, mu=0.0) == [R - value for value in values]
    assert step_advantages(values, R, lam=0.0, mu=1.0) == pytest.approx([v - values[0] for v in [*values[1:], R]])


@pytest.mark.parametrize("lam, mu", DIALS)
def test_lam_and_mu_equal_their_definition_as_sums(lam, mu):
    values, R = [0.5, 0.75, 0.25, 0.9, 0.1], 1.0
    after, n = [*values[1:], R], 5
    for i, advantage in enumerate(step_advantages(values, R, lam=lam, mu=mu)):
        q = sum((1 - lam) * lam ** (j - i) * after[j] for j in range(i, n - 1)) + lam ** (n - 1 - i) * R
        b = sum((1 - mu) * mu ** (i - j) * values[j] for j in range(1, i + 1)) + mu**i * values[0]
        assert advantage == pytest.approx(q - b, abs=1e-12)


class Tree:
    """Three steps with three actions each: random logits at each state, reward 0 or 1 at each leaf."""

    def __init__(self, steps=3, actions=3):
        g = torch.Generator().manual_seed(3)
        self.states = [s for n in range(steps) for s in product(range(actions), repeat=n)]
        self.leaves = list(product(range(actions), repeat=steps))
        self.logits = torch.randn(len(self.states), actions, generator=g, dtype=torch.float64, requires_grad=True)
        self.reward = {leaf: float(torch.rand((), generator=g) < 0.4) for leaf in self.leaves}

    def logprobs(self, leaf):
        """[steps] of the actions on the way to the leaf."""
        rows = self.logits.log_softmax(dim=1)
        return [rows[self.states.index(leaf[:i]), action] for i, action in enumerate(leaf)]

    def value(self, state):
        below = [leaf for leaf in self.leaves if leaf[: len(state)] == state]
        return sum(sum(self.logprobs(leaf)[len(state) :]).exp() * self.reward[leaf] for leaf in below)


@pytest.mark.parametrize("lam, mu", DIALS)
def test_the_expected_gradient_is_exact_for_every_lam_and_mu(lam, mu):
    """All trajectories of a small tree, and all outcomes of one rollout for each of their states, with their probabilities."""
    tree = Tree()
    [exact] = torch.autograd.grad(tree.value(()), tree.logits)
    values = {state: tree.value(state).item() for state in tree.states}
    surrogate = 0.0
    for leaf in tree.leaves:
        logprobs = tree.logprobs(leaf)
        chance, on_the_way = sum(logprobs).exp().item(), [values[leaf[:i]] for i in range(3)]
        for outcome in product((0.0, 1.0), repeat=3):  # the rewards of the rollouts, K = 1
            p = torch.tensor([v if x else 1 - v for x, v in zip(outcome, on_the_way, strict=True)], dtype=torch.float64).prod()
            advantages = step_advantages(list(outcome), tree.reward[leaf], lam=lam, mu=mu)
            surrogate += chance * p.item() * sum(a * logprob for a, logprob in zip(advantages, logprobs, strict=True))
    [expected] = torch.autograd.grad(surrogate, tree.logits)
    torch.testing.assert_close(expected, exact, rtol=0, atol=1e-12)


def test_spread_gives_each_token_its_step():
    assert spread_to_tokens([1.0, -2.0, 0.5], [0, 2, 5], 6) == [1.0, 1.0, -2.0, -2.0, -2.0, 0.5]


@pytest.mark.parametrize(
    "steps, cuts, length", [([1.0], [0, 2], 4), ([1.0], [1], 4), ([1.0, 2.0], [0, 4], 4), ([1.0, 2.0], [0, 0], 4)]
)
def test_spread_refuses_cuts_that_do_not_fit(steps, cuts, length):
    with pytest.raises(ValueError, match="do not fit"):
        spread_to_tokens(steps, cuts, length)


def test_group_relative_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    std = (4 * 0.25 / 3) ** 0.5
    expected = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0] * 4], dtype=torch.float64)
    torch.testing.assert_close(group_relative(rewards), expected / std, rtol=0, atol=1e-6)
    torch.testing.assert_close(group_relative(rewards, scale_by_std=False), expected, rtol=0, atol=1e-12)


def test_leave_one_out_by_hand():
    expected = torch.tensor([[1.0, -0.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(leave_one_out(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)), expected)


def test_leave_one_out_is_the_centred_reward_times_g_over_g_minus_1():
    rewards = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(leave_one_out(rewards), group_relative(rewards, scale_by_std=False) * 5 / 4)


@pytest.mark.parametrize("rewards", [torch.ones(3, 1), torch.ones(3)])
def test_group_baselines_need_a_group(rewards):
    for baseline in (group_relative, leave_one_out):
        with pytest.raises(ValueError, match="G >= 2"):
            baseline(rewards)


def test_whiten():
    x, _, mask = random_rows(3)
    white = whiten(x, mask)
    inside = white[mask.bool()]
    assert inside.mean().abs() < 1e-7 and (inside.std() - 1).abs() < 1e-6
    assert (white * (1 - mask)).abs().sum() == 0
    torch.testing.assert_close(whiten(x + 100 * (1 - mask), mask), white, rtol=0, atol=0)


def test_whiten_of_equal_numbers_is_zero():
    assert torch.equal(whiten(torch.full((2, 3), 4.0), torch.ones(2, 3)), torch.zeros(2, 3))


def test_whiten_without_tokens_or_with_one_is_zero():
    x = torch.tensor([[3.0, 5.0]])
    for mask in ([[0.0, 0.0]], [[0.0, 1.0]]):
        assert torch.equal(whiten(x, torch.tensor(mask)), torch.zeros(1, 2))


@pytest.mark.parametrize("gap, equal", [(1e-7, True), (4e-6, False), (1.0, False)])
def test_deviations_below_rounding_count_as_zero(gap, equal):
    x = torch.tensor([[0.0, gap]], dtype=torch.float64)
    std = gap / 2**0.5
    expected = torch.tensor([[-gap / 2, gap / 2]], dtype=torch.float64) / (std + 1e-8) * (0.0 if equal else 1.0)
    for got in (group_relative(x), whiten(x, torch.ones_like(x))):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


def test_two_responses_are_a_group():
    pair = torch.tensor([[1.0, 0.0]])
    assert leave_one_out(pair).tolist() == [[1.0, -1.0]] and group_relative(pair, scale_by_std=False).tolist() == [[0.5, -0.5]]


def test_a_response_without_steps_has_no_advantages():
    with pytest.raises(ValueError, match="at least one step"):
        step_advantages([], 1.0)
