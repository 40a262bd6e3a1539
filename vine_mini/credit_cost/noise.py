"""The noise of credit, from a pool of rollouts. Pure functions.

The noise of an estimate of the advantages is (estimate - advantage)^2 at each step, expected over the rollouts. VinePPO's
estimate is linear in the values and in the reward. So the noise of every K, lam and mu follows from the mean and the variance
of the rewards at each state. One pool of m rollouts a state gives both without bias. No rollout is drawn twice, and the noise
that the pool itself has is subtracted.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch

from vine_mini.advantages import step_advantages
from vine_mini.evaluate import clustered_mean

DIALS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Pool:
    """One response of n steps, and m rollouts from the state before each of them."""

    rewards: torch.Tensor  # [n, m], float64
    reward: float  # R of the response
    problem: int  # responses to one problem are not independent
    places: list[float]  # [n] where each step starts, as a share of the response
    freedom: torch.Tensor  # [n] the sum of `squared_gradients` over the tokens of the step


@cache
def coefficients(n: int, lam: float, mu: float):
    """W [n, n] and c [n] with advantages = W values + c R."""
    columns = [step_advantages(unit, 0.0, lam=lam, mu=mu) for unit in torch.eye(n).tolist()]
    of_reward = step_advantages([0.0] * n, 1.0, lam=lam, mu=mu)
    return torch.tensor(columns, dtype=torch.float64).T, torch.tensor(of_reward, dtype=torch.float64)


def noise(pool: Pool, *, k: float, group: int, lam: float, mu: float):
    """[n] the noise of VinePPO's credit at each step. The other group - 1 rewards count for the value of the prompt.

    RLOO's credit is lam = mu = 1 with k = 0: then only the group counts for V(s_0). GRPO's is the same up to its scale.
    """
    n, m = pool.rewards.shape
    values, variances = pool.rewards.mean(dim=1), pool.rewards.var(dim=1)
    w, c = coefficients(n, lam, mu)
    w_true, c_true = coefficients(n, 0.0, 0.0)
    counts = torch.full((n,), float(k), dtype=torch.float64)
    counts[0] += group - 1
    off = (w - w_true) @ values + (c - c_true) * pool.reward  # [n] what stays when k goes to infinity, and the pool's noise
    drawn = torch.where(w == 0, 0.0, w.square() * (variances / counts))
    return off.square() - (w - w_true).square() @ (variances / m) + drawn.sum(dim=1)


def critic_noise(pool: Pool, advantages):
    """[n] the noise of any other advantages [n], for example a critic's."""
    true, error = squares(pool)
    return (torch.as_tensor(advantages).double() - true).square() - error


def squares(pool: Pool):
    """-> the advantages [n] by the whole pool, and the variance [n] that they have because the pool is finite"""
    n, m = pool.rewards.shape
    w, c = coefficients(n, 0.0, 0.0)
    return w @ pool.rewards.mean(dim=1) + c * pool.reward, w.square() @ (pool.rewards.var(dim=1) / m)


def signal(pool: Pool):
    """[n] the squared advantage of each step, without bias. A single one may be below 0."""
    advantages, error = squares(pool)
    return advantages.square() - error


def largest_step(pools: list[Pool]) -> tuple[float, float] | None:
    """Of the value that right responses gain, the share gained in the largest step, and the share of an average step.

    One half of the pool says which step is the largest, the other half says how much is gained there. Most wrong
    responses lose their value in one step, so they do not tell few decisive steps from many small ones.
    """
    largest, every, average = 0.0, 0.0, 0.0
    for p in (p for p in pools if p.reward == 1):
        halves = [squares(replace(p, rewards=p.rewards[:, start::2]))[0] for start in (0, 1)]  # advantages [n]
        for choosing, measuring in (halves, halves[::-1]):
            largest += float(measuring[choosing.argmax()])
            every += float(measuring.sum())
            average += float(measuring.mean())
    return (largest / every, average / every) if every > 0 else None


def mean_and_error(pools: list[Pool], numbers: list[float]) -> tuple[float, float]:
    """The mean over responses, and its standard error over problems."""
    return clustered_mean(numbers, [p.problem for p in pools])


def best_dials(pools: list[Pool], *, k: int, group: int) -> tuple[float, float]:
    """The lam and the mu at which the noise is least, each step weighted by the freedom of the policy.

    The same pools choose them, so their weighted noise is a little too low.
    """

    def total(dials):
        return sum(float(p.freedom @ noise(p, k=k, group=group, lam=dials[0], mu=dials[1])) for p in pools)

    return min(product(DIALS, DIALS), key=total)
