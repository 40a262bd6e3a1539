"""Monte Carlo values: the value of a state is the mean reward of K rollouts from it (VinePPO, section 4). Pure functions.

The value is unbiased for every K >= 1 when the rollouts are sampled exactly as the trajectories were, each with what is left of
its length limit. A rollout that the limit cuts has reward 0.
"""

import math


def monte_carlo_values(rewards: list[list[float]]) -> list[float]:
    """V_MC(s) = mean reward of the K rollouts from s. rewards: [state][K] -> [state]. Variance: Var(reward) / K."""
    if not all(rewards):
        raise ValueError("a value needs at least one rollout")
    return [sum(row) / len(row) for row in rewards]


def standard_errors(rewards: list[list[float]]) -> list[float]:
    """The standard error of each Monte Carlo value. rewards: [state][K] -> [state].

    It is the deviation of the rewards / sqrt(K). Half a reward of 0 and half a reward of 1 are added to the K rewards. Without
    them, K equal rewards would have error 0. For rewards of 0 and 1 it is sqrt(p (1 - p) / K), p = (V K + 1/2) / (K + 1).
    """
    errors = []
    for row in rewards:
        k = len(row)
        mean, squares = (sum(row) + 0.5) / (k + 1), (sum(x * x for x in row) + 0.5) / (k + 1)
        errors.append(math.sqrt((squares - mean**2) / k))
    return errors
