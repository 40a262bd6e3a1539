"""ex06: the advantage of each step (tutorial 04).

Easy, about 5 minutes.
"""


def step_advantages(values, reward):
    """VinePPO's advantages. An advantage is the change of the value that a step causes (section 4, with gamma = 1).

        A_i = r_i + V(s_{i+1}) - V(s_i)

    Args:
        values: list of n >= 1 floats V(s_0) ... V(s_{n-1}), the value of the state before each step.
        reward: R of the whole response, which is paid at the last step. For all other steps, r_i = 0. The value of the state
            after the last step is 0.
    Returns:
        list of n floats. Check your result: its sum is R - V(s_0).

    Example: values [0.5, 0.75], reward 1.0  ->  [0.25, 0.25]
    """
    raise NotImplementedError("ex06: step_advantages")
