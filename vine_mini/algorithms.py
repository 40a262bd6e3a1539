"""What makes the algorithms differ, and only that: how an iteration's rewards become the advantages of its tokens.

    vineppo    the step's change of Monte Carlo value: A = V(after) - V(before)       VinePPO, section 4
    ppo        GAE over a value network                                               VinePPO, section 3
    grpo       (R - mean of the group) / std of the group, for the whole response     arXiv 2402.03300
    rloo       R - mean of the rest of the group, for the whole response              arXiv 2402.14740
    reinforce  R, for the whole response; whitening makes the iteration's mean the baseline

Deviations from the paper: no cap on the number of steps that get a value (the official code stops at 25), and steps are
cut in the sampled tokens, not in text.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vine_mini import tasks
from vine_mini.advantages import gae, group_relative, leave_one_out, spread_to_tokens, step_advantages
from vine_mini.steps import cut_steps
from vine_mini.types import Batch, Problem, Trajectory, on_response
from vine_mini.values import monte_carlo_values, where_values_move


@dataclass
class Episodes:
    """An iteration's experience before credit is given: N problems with G responses each, B = N G rows.

    `fork(trajectories, cuts, k)` is `vines.rollouts` of the policy that sampled them, with the same settings; new
    completions in every call.
    """

    problems: list[Problem]  # of each row
    trajectories: list[Trajectory]
    rewards: torch.Tensor  # [N, G]
    batch: Batch  # with old log-probs, and the critic's values for ppo
    tokenizer: object
    fork: Callable


def vineppo(episodes: Episodes, config) -> tuple[torch.Tensor, dict]:
    """Monte Carlo credit: each step is worth the change it makes to the chance of success."""
    trajectories, stats = episodes.trajectories, defaultdict(int)
    cuts = [cut_steps(t.response_ids, episodes.tokenizer, every=config.step_tokens) for t in trajectories]
    met_first = {}  # state -> row and cut. A state is a prompt and the response so far; equal ones are forked once

    def state(row, i):
        t, cut = trajectories[row], cuts[row][i]
        key = tuple(t.prompt_ids), tuple(t.response_ids[:cut])
        met_first.setdefault(key, (row, cut))
        return key

    def rollout(unique, k):
        where = sorted(range(len(unique)), key=lambda n: met_first[unique[n]])  # the order in which they come back
        forks_at = [[] for _ in trajectories]
        for n in where:
            row, cut = met_first[unique[n]]
            forks_at[row].append(cut)
        groups = [group for row in episodes.fork(trajectories, forks_at, k) for group in row]  # [state][k]
        stats["rollouts"] += k * len(unique)
        stats["rollout_tokens"] += sum(len(c.response_ids) for group in groups for c in group)
        stats["rollouts_truncated"] += sum(not c.finished for group in groups for c in group)
        return [group for _, group in sorted(zip(where, groups, strict=True), key=lambda pair: pair[0])]

    def reward(state, completion):
        problem = episodes.problems[met_first[state][0]]
        response = [*state[1], *completion.response_ids]
        return tasks.reward(problem, response, completion.finished, episodes.tokenizer)

    value = {}

    def estimate(points):
        states = [state(row, i) for row, i in points]
        new = [s for s in dict.fromkeys(states) if s not in value]
        value.update(zip(new, monte_carlo_values(new, rollout, reward, k=config.k, k_first=config.k_first), strict=True))
        return [value[s] for s in states]

    n_states, rewards = [len(starts) for starts in cuts], episodes.rewards.flatten().tolist()
    if config.bisect:
        values = where_values_move(n_states, rewards, estimate, k=config.k)
    else:
        flat = iter(estimate([(row, i) for row, n in enumerate(n_states) for i in range(n)]))
        values = [{i: next(flat) for i in range(n)} for n in n_states]
    advantages = []
    for t, starts, known, R in zip(trajectories, cuts, values, rewards, strict=True):
        of_steps = step_advantages(list(known.values()), R)
        advantages.append(spread_to_tokens(of_steps, [starts[i] for i in known], len(t.response_ids)))
    stats["rollouts_truncated"] /= stats["rollouts"]
    stats |= {"states": sum(n_states), "valued_states": sum(map(len, values)), "unique_states": len(value)}
    return on_response(advantages, episodes.batch.response_mask), dict(stats)


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
