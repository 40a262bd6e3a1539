"""What makes the algorithms differ, and only that: how an iteration's rewards become the advantages of its tokens.

    vineppo    the step's change of Monte Carlo value: A = V(after) - V(before)       VinePPO, section 4
    ppo        GAE over a value network                                               VinePPO, section 3
    grpo       (R - mean of the group) / std of the group, for the whole response     arXiv 2402.03300
    rloo       R - mean of the rest of the group, for the whole response              arXiv 2402.14740
    reinforce  R, for the whole response; whitening makes the iteration's mean the baseline

Deviations from the paper: no cap on the number of steps that get a value (the official code stops at 25), and steps are
cut in the sampled tokens, not in text.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vine_mini import tasks
from vine_mini.advantages import gae, group_relative, leave_one_out, spread_to_tokens, step_advantages
from vine_mini.steps import cut_steps
from vine_mini.types import Batch, Problem, Trajectory, on_response
from vine_mini.values import monte_carlo_values


@dataclass
class Episodes:
    """An iteration's experience before credit is given: N problems with G responses each, B = N G rows.

    `fork(trajectories, cuts, k)` is `vines.rollouts` of the policy that sampled them, with the same settings.
    """

    problems: list[Problem]  # of each row
    trajectories: list[Trajectory]
    rewards: torch.Tensor  # [N, G]
    batch: Batch  # with old log-probs, and the critic's values for ppo
    tokenizer: object
    fork: Callable


def vineppo(episodes: Episodes, config) -> tuple[torch.Tensor, dict]:
    """Monte Carlo credit: each step is worth the change it makes to the chance of success."""
    trajectories = episodes.trajectories
    cuts = [cut_steps(t.response_ids, episodes.tokenizer, every=config.step_tokens) for t in trajectories]
    visits = [(i, c) for i, row in enumerate(cuts) for c in row]
    states = [(tuple(trajectories[i].prompt_ids), tuple(trajectories[i].response_ids[:c])) for i, c in visits]
    first_visit = dict(zip(reversed(states), reversed(visits), strict=True))
    cost = {"states": len(states), "unique_states": len(first_visit), "rollout_tokens": 0, "rollouts_truncated": 0.0}

    def rollout(unique, k):
        own = [[] for _ in trajectories]  # each state is forked once, from the first trajectory that visits it
        for row, cut in map(first_visit.get, unique):
            own[row].append(cut)
        return [completions for row in episodes.fork(trajectories, own, k) for completions in row]

    def reward(state, completion):
        cost["rollout_tokens"] += len(completion.response_ids)
        cost["rollouts_truncated"] += (not completion.finished) / (len(first_visit) * config.k)
        problem = episodes.problems[first_visit[state][0]]
        return tasks.reward(problem, [*state[1], *completion.response_ids], completion.finished, episodes.tokenizer)

    values = iter(monte_carlo_values(states, rollout, reward, k=config.k))
    advantages = []
    for t, row, R in zip(trajectories, cuts, episodes.rewards.flatten().tolist(), strict=True):
        steps = step_advantages([next(values) for _ in row], R)
        advantages.append(spread_to_tokens(steps, row, len(t.response_ids)))
    return on_response(advantages, episodes.batch.response_mask), cost


def ppo(episodes: Episodes, config) -> tuple[torch.Tensor, dict]:
    """A value network's credit. Also fills in the returns that the network is trained on."""
    batch, R = episodes.batch, episodes.rewards.flatten()  # [B]
    rewards = torch.zeros_like(batch.response_mask)
    last = batch.attention_mask.sum(dim=1) - 1  # column of the last response token, which earns the reward
    rewards[torch.arange(len(R)), last] = R.to(rewards)
    advantages, batch.returns = gae(rewards, batch.values, batch.response_mask, gamma=config.gamma, lam=config.lam)
    return advantages, {}


def grpo(episodes: Episodes, config) -> tuple[torch.Tensor, dict]:
    """Credit relative to the group, the same for every token."""
    return _whole_response(group_relative(episodes.rewards), episodes), {}


def rloo(episodes: Episodes, config) -> tuple[torch.Tensor, dict]:
    """Credit against the other responses to the same problem, the same for every token."""
    return _whole_response(leave_one_out(episodes.rewards), episodes), {}


def reinforce(episodes: Episodes, config) -> tuple[torch.Tensor, dict]:
    """The reward itself, for every token."""
    return _whole_response(episodes.rewards, episodes), {}


def _whole_response(advantages, episodes: Episodes):
    """[N, G] -> [B, T]"""
    mask = episodes.batch.response_mask
    return advantages.reshape(-1, 1).to(mask) * mask


ALGORITHMS = {f.__name__: f for f in (vineppo, ppo, grpo, rloo, reinforce)}
WHITENED = ("vineppo", "ppo", "reinforce")  # over all response tokens of the iteration, as in the paper
