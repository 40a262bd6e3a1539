"""ex08: generalized advantage estimation, PPO's way to compute advantages (tutorial 04).

Medium, about 20 minutes.
"""

import torch  # noqa: F401


def gae(rewards, values, mask, *, gamma=1.0, lam=1.0):
    """Advantages from the values of a critic (arXiv 1506.02438; VinePPO, section 3).

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
        A_t     = delta_t + gamma lam A_{t+1}          0 after the last token
        returns = A + V                                the targets of the critic (the sum of rewards only if lam = 1)

    Args:
        rewards: [B, T] reward of each token.
        values: [B, T] V(s_t), the value of the state before token t was chosen.
        mask: [B, T] 1.0 on response tokens, which are adjacent. Rewards and values outside the mask may be any finite numbers
            and must not matter. The value of the state after the last token is 0.
    Returns:
        (advantages, returns), [B, T] each, 0 outside the mask. Do not change the inputs.

    Example: rewards [[0, 0, 1]], values [[0.5, 0.75, 0.25]], mask all ones, lam 0.5:
        the deltas are 0.25, -0.5, 0.75  ->  advantages [[0.1875, -0.125, 0.75]], returns [[0.6875, 0.625, 1.0]]
    """
    raise NotImplementedError("ex08: gae")
