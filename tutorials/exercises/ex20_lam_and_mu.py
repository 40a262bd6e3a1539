"""ex20: less noise from the same rollouts, with lam and mu (tutorial 04). It belongs after ex06 and ex08.

Medium, about 15 minutes.
"""


def step_advantages(values, reward, *, lam, mu):
    """Advantages that average Monte Carlo values along the response. A_i = Q_i - B_i for the steps i = 0, ..., n - 1.

        Q_i = (1 - lam) V(s_{i+1}) + lam Q_{i+1}      Q_{n-1} = R      values after step i, averaged from the end
        B_i = (1 - mu)  V(s_i)     + mu  B_{i-1}      B_0 = V(s_0)     values before step i, averaged from the start

    Args:
        values: list of n >= 1 floats V(s_0) ... V(s_{n-1}), the value of the state before each step.
        reward: R of the whole response.
        lam, mu: numbers from 0 to 1. At lam = mu = 0 the result is that of ex06. At lam = mu = 1 it is R - V(s_0) for every step.
    Returns:
        list of n floats. Do not change the input.

    Example: values [0.5, 0.75], reward 1.0, lam 0.5, mu 0.5:
        Q_1 = 1, Q_0 = 0.375 + 0.5 = 0.875 and B_0 = 0.5, B_1 = 0.375 + 0.25 = 0.625  ->  [0.375, 0.375]
    """
    raise NotImplementedError("ex20: step_advantages")
