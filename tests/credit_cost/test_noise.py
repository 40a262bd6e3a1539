"""The noise of credit against simulations whose true values are known."""

import pytest
import torch
from conftest import slow

from vine_mini.advantages import step_advantages
from vine_mini.credit_cost import noise
from vine_mini.credit_cost.noise import Pool


def total(of_steps) -> float:
    return float(of_steps.sum())


def chains(slips, m, responses, seed=0):
    """Pools of a chain in which step i fails with probability slips[i] and a failure is final. -> pools, true values [B, n + 1]"""
    g = torch.Generator().manual_seed(seed)
    slips, n = torch.tensor(slips, dtype=torch.float64), len(slips)
    alive = (torch.rand(responses, n, generator=g, dtype=torch.float64) >= slips).double().cumprod(dim=1)
    alive = torch.cat([torch.ones(responses, 1, dtype=torch.float64), alive], dim=1)  # [B, n + 1]
    to_go = torch.cat([(1 - slips).flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.float64)])
    values = alive * to_go
    draws = torch.rand(responses, n, m, generator=g, dtype=torch.float64) < values[:, :n, None]
    places = [i / n for i in range(n)]
    return [
        Pool(draws[b].double(), values[b, n].item(), b, places, torch.ones(n, dtype=torch.float64)) for b in range(responses)
    ], values


def simulated(values, *, k, group, lam, mu, repeats=40, seed=1):
    """The noise of fresh estimates, averaged over responses and repeats."""
    g, total = torch.Generator().manual_seed(seed), 0.0
    for row in values.repeat(repeats, 1):
        counts = torch.full((len(row) - 1,), float(k))
        counts[0] += group - 1
        drawn = torch.binomial(counts.double(), row[:-1], generator=g) / counts
        found = torch.tensor(step_advantages(drawn.tolist(), row[-1].item(), lam=lam, mu=mu), dtype=torch.float64)
        total += float((found - row.diff()).square().sum())
    return total / (repeats * len(values))


@pytest.mark.parametrize("k, group, lam, mu", [(3, 1, 0.0, 0.0), (1, 4, 0.7, 0.5), slow(2, 4, 0.3, 0.9), slow(9, 2, 1.0, 1.0)])
def test_noise_from_a_pool_equals_a_simulation_with_the_true_values(k, group, lam, mu):
    pools, values = chains([0.2, 0.1, 0.4, 0.2], m=8, responses=300)
    of_pools = [total(noise.noise(p, k=k, group=group, lam=lam, mu=mu)) for p in pools]
    mean, error = noise.mean_and_error(pools, of_pools)
    expected = simulated(values, k=k, group=group, lam=lam, mu=mu)
    assert mean == pytest.approx(expected, abs=4 * error)
    assert error < 0.1 * expected  # so that the line above can fail


def test_plain_noise_has_a_closed_form():
    """At lam = mu = 0 each state counts twice, the first one once: sum of V (1 - V) / K."""
    pools, values = chains([0.2, 0.1, 0.4, 0.2], m=16, responses=400)
    variance = values[:, :-1] * (1 - values[:, :-1])
    expected = float((2 * variance.sum(dim=1) - variance[:, 0]).mean() / 3)
    mean, error = noise.mean_and_error(pools, [total(noise.noise(p, k=3, group=1, lam=0.0, mu=0.0)) for p in pools])
    assert mean == pytest.approx(expected, abs=4 * error)


def test_whole_response_credit_has_a_closed_form():
    """n equal advantages R - V(s_0), where V(s_0) is the mean of the other three rewards: n q (1 - q) / 3 more than R - q."""
    pools, values = chains([0.2, 0.1, 0.4, 0.2], m=16, responses=1000)
    q = values[0, 0].item()
    truth = (values[:, -1:] - q - values.diff(dim=1)).square().sum(dim=1).mean().item()
    expected = truth + 4 * q * (1 - q) / 3
    mean, error = noise.mean_and_error(pools, [total(noise.noise(p, k=0, group=4, lam=1.0, mu=1.0)) for p in pools])
    assert mean == pytest.approx(expected, abs=4 * error)


def test_the_signal_is_the_variance_of_the_reward():
    """Values along a response are a martingale, so the squared advantages sum to q (1 - q) on average."""
    pools, values = chains([0.2, 0.1, 0.4, 0.2], m=4, responses=1000)
    q = values[0, 0].item()
    mean, error = noise.mean_and_error(pools, [total(noise.signal(p)) for p in pools])
    assert mean == pytest.approx(q * (1 - q), abs=4 * error)


def test_the_noise_of_other_advantages():
    """The true advantages have no noise, and a constant error c has n c^2."""
    pools, values = chains([0.3, 0.3, 0.3], m=8, responses=500)
    for shift in (0.0, 0.5):
        numbers = [total(noise.critic_noise(p, row.diff() + shift)) for p, row in zip(pools, values, strict=True)]
        mean, error = noise.mean_and_error(pools, numbers)
        assert mean == pytest.approx(3 * shift**2, abs=4 * error)


def test_the_largest_step_tells_one_decisive_step_from_many_small_ones():
    one, _ = chains([0.0, 0.5, 0.0, 0.0], m=32, responses=200)
    share, average = noise.largest_step(one)
    assert share == pytest.approx(1.0, abs=0.05) and average == pytest.approx(0.25, abs=0.001)
    many, _ = chains([0.1] * 8, m=32, responses=300, seed=2)
    assert noise.largest_step(many)[0] < 0.3
    wrong, _ = chains([1.0, 0.0], m=4, responses=5)
    assert noise.largest_step(wrong) is None


def test_best_dials_average_where_few_rollouts_are_noisy():
    pools, _ = chains([0.1] * 12, m=16, responses=60)
    few, many = (noise.best_dials(pools, k=k, group=4) for k in (1, 500))
    assert min(few) >= 0.5 and max(many) <= 0.3


def test_errors_respect_problems():
    """Ten copies of each response, all of the same problem, do not make the error smaller."""
    pools, _ = chains([0.3, 0.3], m=4, responses=50)
    numbers = [total(noise.signal(p)) for p in pools]
    copies = [p for p in pools for _ in range(10)]
    once, often = noise.mean_and_error(pools, numbers), noise.mean_and_error(copies, [x for x in numbers for _ in range(10)])
    assert often == pytest.approx(once)
