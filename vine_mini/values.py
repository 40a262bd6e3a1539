"""Monte Carlo values: the value of a state is the mean reward of K rollouts from it (VinePPO, section 4). Pure functions.

The value is unbiased for every K >= 1 when the rollouts are sampled exactly as the trajectories were, each with what is left of
its length limit. A rollout that the limit truncates has reward 0.
"""


def monte_carlo_values(rewards: list[list[float]]) -> list[float]:
    """V_MC(s) = mean reward of the K rollouts from s. rewards: [state][K] -> [state]. Variance: Var(reward) / K."""
    if not all(rewards):
        raise ValueError("a value needs at least one rollout")
    return [sum(row) / len(row) for row in rewards]
