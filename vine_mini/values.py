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

    Rewards of 0 and 1 have the error sqrt(p (1 - p) / K). There p counts half a success and half a failure more, because K
    equal rewards do not show that the others cannot occur. Other rewards have the sample's standard deviation / sqrt(K).
    """
    errors = []
    for row in rewards:
        k, mean = len(row), sum(row) / len(row)
        p = (sum(row) + 0.5) / (k + 1)
        binary = k == 1 or set(row) <= {0, 1}
        variance = p * (1 - p) if binary else sum((x - mean) ** 2 for x in row) / (k - 1)
        errors.append(math.sqrt(variance / k))
    return errors
