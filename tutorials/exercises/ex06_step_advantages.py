"""ex06: the advantage of each step (tutorial 04)."""


def step_advantages(values, reward):
    """VinePPO's advantages: how much better did each step make things? (section 4, with gamma = 1)

        A_i = r_i + V(s_{i+1}) - V(s_i)

    Args:
        values: list of n floats V(s_0) ... V(s_{n-1}), the value of the state before each step, n >= 1.
        reward: R of the whole response. It is paid at the last step: r_i is 0 before. After that step there is nothing: V = 0.
    Returns:
        list of n floats. Their sum is R - V(s_0): check it.

    Example: values [0.5, 0.75], reward 1.0  ->  [0.25, 0.25]
    """
    raise NotImplementedError("ex06: step_advantages")
