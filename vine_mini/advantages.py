"""Advantages: how much better an action was than what the policy does on average. Pure functions.

GRPO and whitening divide by the sample standard deviation, with n - 1. The papers do not say whether theirs has n or n - 1.
"""

import torch

EPS, ROUNDING = 1e-8, 1e-6  # GRPO and whitening divide by deviation + EPS; a deviation below ROUNDING counts as 0


def gae(rewards, values, mask, *, gamma: float = 1.0, lam: float = 1.0):
    """Generalized advantage estimation, for PPO with a value network (VinePPO, section 3; arXiv 1506.02438).

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t);  A_t = delta_t + gamma lam A_{t+1};  returns = A + V.

    Args:
        rewards: [B, T] reward of each token's action.
        values: [B, T] V(s_t), the value of the state before token t was chosen.
        mask: [B, T] 1.0 on response tokens, which stand side by side. After the last one, value and advantage are 0.
    Returns (advantages, returns), [B, T] each, zero outside the mask.
    """
    values, rewards = (x.where(mask.bool(), 0.0) for x in (values, rewards))
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)  # [B, T]
    deltas = rewards + gamma * next_values - values  # [B, T]
    advantages = torch.zeros_like(deltas)
    later = torch.zeros_like(deltas[:, 0])  # [B]
    for t in reversed(range(deltas.shape[1])):
        later = (deltas[:, t] + gamma * lam * later) * mask[:, t]
        advantages[:, t] = later
    return advantages, (advantages + values) * mask


def step_advantages(values: list[float], reward: float, *, lam: float = 0.0, mu: float = 0.0) -> list[float]:
    """The advantage of each of n steps from Monte Carlo values: A_i = Q_i - B_i (VinePPO, section 4; gamma = 1).

    values: V(s_0) .. V(s_{n-1}), s_i is the state before step i; reward: R, paid at the last step. At lam = mu = 0, VinePPO's,
    A_i = V(s_{i+1}) - V(s_i), and A_{n-1} = R - V(s_{n-1}). Their sum is R - V(s_0). At lam = mu = 1 each A_i is R - V(s_0).
    Q_i = (1 - lam) V(s_{i+1}) + lam Q_{i+1}, Q_{n-1} = R: an unbiased estimate of the mean reward after step i, as in GAE.
    B_i = (1 - mu) V(s_i) + mu B_{i-1}, B_0 = V(s_0): a baseline, because it depends on nothing after s_i.
    """
    if not values:
        raise ValueError("a response has at least one step, so at least the value of its prompt is needed")
    n = len(values)
    q, b = [reward] * n, [values[0]] * n
    for i in reversed(range(n - 1)):
        q[i] = (1 - lam) * values[i + 1] + lam * q[i + 1]
    for i in range(1, n):
        b[i] = (1 - mu) * values[i] + mu * b[i - 1]
    return [after - before for after, before in zip(q, b, strict=True)]


def spread_to_tokens(step_advantages: list[float], cuts: list[int], length: int) -> list[float]:
    """Give each of the `length` tokens of a response the advantage of its step.

    `cuts` are the token indices at which the steps start; cuts[0] = 0. The end-of-sequence token belongs to the last step.
    """
    ends = [*cuts[1:], length]
    if len(step_advantages) != len(cuts) or cuts[0] != 0 or any(a >= b for a, b in zip(cuts, ends, strict=True)):
        raise ValueError(f"{len(step_advantages)} advantages do not fit cuts {cuts} of a response of {length} tokens")
    return [a for a, start, end in zip(step_advantages, cuts, ends, strict=True) for _ in range(end - start)]


def group_relative(rewards, *, scale_by_std: bool = True):
    """GRPO's advantage: the reward minus the mean of its group, in units of the group's standard deviation. [N, G] -> [N, G]

    The advantage is zero where all rewards of a group are equal. `scale_by_std=False` leaves out the division (Dr. GRPO, arXiv
    2503.20783). Source: DeepSeekMath, arXiv 2402.03300, section 4.1.
    """
    _needs_group(rewards)
    centred, std = rewards - rewards.mean(dim=1, keepdim=True), rewards.std(dim=1, keepdim=True)
    return centred * (std > ROUNDING) / (std + EPS) if scale_by_std else centred


def leave_one_out(rewards):
    """RLOO's advantage: the reward minus the mean of the other members of its group (arXiv 2402.14740). [N, G] -> [N, G]"""
    _needs_group(rewards)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def whiten(x, mask):
    """Shift and scale x to mean 0 and sample standard deviation 1 over the masked entries; 0 elsewhere. [B, T] each"""
    # The size of an update then does not depend on the scale of the rewards. An advantage of 0 does not stay 0.
    n, x = mask.sum().clamp(min=1), x.where(mask.bool(), 0.0)
    mean = (x * mask).sum() / n
    std = (((x - mean).square() * mask).sum() / (n - 1).clamp(min=1)).sqrt()
    return (x - mean) * (std > ROUNDING) / (std + EPS) * mask


def _needs_group(rewards):
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)}: [N, G] with G >= 2 responses a prompt needed")
