"""ex05: the value of a state is the mean reward of its rollouts (tutorial 03).

Easy, about 5 minutes.
"""


def monte_carlo_values(rewards):
    """The Monte Carlo value of each state (VinePPO, section 4).

        V(s) = (1 / K) sum over k of R(rollout k from s)

    Args:
        rewards: [state][K]. For each state, a list with the rewards of its K >= 1 rollouts. K may differ between states. A
            reward is a number from 0 to 1. A rollout that the length limit truncated has reward 0 and counts like any other.
    Returns:
        list of floats, one value for each state, in the same order. Do not change the input.

    Example: two of four rollouts from the first state are right, and three of four from the second:
        rewards [[1, 0, 0, 1], [1, 1, 0, 1]]  ->  [0.5, 0.75]
    """
    raise NotImplementedError("ex05: monte_carlo_values")
