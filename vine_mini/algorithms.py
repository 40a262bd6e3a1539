"""What makes the algorithms differ, and only that. One record holds all of it; no other module decides by an algorithm's name.

    vineppo    V(after) - V(before) of each step, with Monte Carlo values      VinePPO, section 4
    ppo        GAE over a value network, for each token                        VinePPO, section 3
    grpo       (R - mean of the group) / std of the group, for all tokens      arXiv 2402.03300
    rloo       R - mean of the rest of the group, for all tokens               arXiv 2402.14740
    reinforce  R for all tokens; whitening subtracts the mean of the iteration
    restem     imitates right responses                                        arXiv 2312.06585
    dpo        prefers right responses to wrong ones (DPO-Positive)            arXiv 2402.13228

Deviations from the paper: steps are cut in the sampled tokens, after the line break (official code: before it). Advantages are
whitened over an iteration (official code: over a minibatch). V(s_0) counts the other responses to a problem as rollouts of its
prompt. By default mc_lam = mc_mu = 0.5; the paper has 0. GRPO's loss is a mean over tokens (as published: --divisor sequences).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vine_mini import tasks
from vine_mini.advantages import gae, group_relative, leave_one_out, spread_to_tokens, step_advantages
from vine_mini.divisors import token_weights
from vine_mini.losses import clipped_policy_loss, kl_penalty, masked_mean
from vine_mini.offline import dpo_positive_loss, imitation_loss, pairs, right_responses
from vine_mini.types import Batch, Episodes, on_response
from vine_mini.values import monte_carlo_values

MAX_KL = 10.0  # the KL of a token counts no more than this in the loss, as in the official code


def vineppo(episodes: Episodes, values, roll_out, config):
    """Monte Carlo credit: the advantage of a step is the change that it makes to the expected reward (section 4)."""
    # Each response is cut into steps. The state before a step is the problem and the response so far. [B][step]
    rows = list(zip(episodes.problems, episodes.trajectories, episodes.cuts, strict=True))
    states = [[(problem, tuple(t.response_ids[:cut])) for cut in cuts[: config.max_states]] for problem, t, cuts in rows]
    value, rollouts = state_values(episodes, states, roll_out, config.k)
    # The other responses to a problem are rollouts of its prompt as well. [B] the sum of their rewards
    others = (episodes.rewards.sum(dim=1, keepdim=True) - episodes.rewards).flatten().tolist()
    # With mc_lam = mc_mu = 0 the advantage of a step is the value after it minus the value before it. Its tokens all get this.
    advantages = []
    for (_, t, cuts), of_row, R, rest in zip(rows, states, episodes.rewards.flatten().tolist(), others, strict=True):
        V = [value[state] for state in of_row]
        V[0] = (config.k * V[0] + rest) / (config.k + episodes.rewards.shape[1] - 1)
        V += [R] * (len(cuts) - len(V))  # beyond max_states; at mc_mu = 0 the advantage there is 0, as in the official code
        of_steps = step_advantages(V, R, lam=config.mc_lam, mu=config.mc_mu)
        advantages.append(spread_to_tokens(of_steps, cuts, len(t.response_ids)))
    stats: dict = {"states": sum(map(len, states)), "unique_states": len(value), "rollouts": len(rollouts)}
    stats |= {"rollout_tokens": sum(len(r.response_ids) for r in rollouts)}
    stats |= {"rollouts_truncated": sum(not r.finished for r in rollouts) / len(rollouts)}
    return on_response(advantages, episodes.tokens.response_mask), None, stats


def state_values(episodes: Episodes, states, roll_out, k: int):
    """The Monte Carlo value of each distinct state: the mean reward of k rollouts from it. Equal states share their rollouts.

    states: [B][step] of (problem, response so far). -> {state: value}, the list of all rollouts
    """
    first: dict = {}  # state -> the first response with it, from which it is rolled out; cuts and rollouts keep this order
    for row, of_row in enumerate(states):
        for state in of_row:
            first.setdefault(state, row)
    cuts = [[len(so_far) for problem, so_far in of_row if first[problem, so_far] == row] for row, of_row in enumerate(states)]
    rollouts, graded = roll_out(episodes.trajectories, cuts, k), {}  # [B][state that is rolled out here][k]
    rows = zip(episodes.problems, episodes.trajectories, cuts, rollouts, strict=True)
    rewards = [of for row in rows for of in tasks.grade_rollouts(episodes.task, *row, episodes.tokenizer, graded)]
    value = dict(zip(first, monte_carlo_values(rewards), strict=True))
    return value, [r for of_row in rollouts for of_state in of_row for r in of_state]


def ppo(episodes: Episodes, values, roll_out, config):
    """The credit of a value network. The reward is paid at the last token."""
    mask, R = episodes.tokens.response_mask, episodes.rewards.flatten().tolist()
    rewards = on_response([[0.0] * (len(t.response_ids) - 1) + [r] for t, r in zip(episodes.trajectories, R, strict=True)], mask)
    return *gae(rewards, values, mask, gamma=config.gamma, lam=config.lam), {}


def whole_response(advantage: Callable):
    """The credit of an algorithm that gives all tokens of a response the same advantage. (rewards [N, G], config) -> [N, G]"""

    def credit(episodes: Episodes, values, roll_out, config):
        mask = episodes.tokens.response_mask  # [B, T]
        return advantage(episodes.rewards, config).reshape(-1, 1).to(mask) * mask, None, {}

    return credit


def clipped_loss_with_kl(logprobs, batch: Batch, config, denominator):
    """PPO's clipped loss of logprobs [b, T], plus kl_coef times the KL to a reference if there is one. -> (scalar loss, stats)"""
    mask = batch.response_mask
    logprobs = logprobs.where(mask.bool(), 0.0)
    advantages = batch.advantages * token_weights(batch, denominator, config)  # each weight is 1 by default
    loss, stats = clipped_policy_loss(logprobs, batch.old_logprobs, advantages, mask, clip=config.clip, denominator=denominator)
    if batch.ref_logprobs is not None:
        # exp of a large difference is infinite, and its gradient after the clamp is NaN. So the difference is bounded first.
        reference = torch.minimum(batch.ref_logprobs, logprobs.detach() + 2 * MAX_KL)
        kl = masked_mean(kl_penalty(logprobs, reference).clamp(max=MAX_KL), mask, denominator)
        mean_length = denominator / config.minibatch_size if config.kl_per_response else 1.0
        loss, stats["kl"] = loss + config.kl_coef * mean_length * kl, kl.item()
    return loss, stats


@dataclass(frozen=True)
class Algorithm:
    """All that differs between the algorithms."""

    credit: Callable  # (episodes, critic's values or None, Trainer.roll_out, config) -> advantages, returns or None, stats
    # Trainer: (logprobs [b, T], batch, config, denominator); SelfTrainer: see `offline`. -> scalar loss, stats
    loss: Callable = clipped_loss_with_kl
    whiten_advantages: bool = False  # over all response tokens of the iteration (official code: of a minibatch)
    needs_rollouts: bool = False
    needs_critic: bool = False
    needs_group: bool = False  # two or more responses to each problem
    needs_reference: bool = True  # log-probs of the frozen start policy
    choose_examples: Callable | None = None  # (rewards, limit, rng) -> rows: `SelfTrainer` fine-tunes the start policy on them


ALGORITHMS = {
    "vineppo": Algorithm(vineppo, whiten_advantages=True, needs_rollouts=True),
    "ppo": Algorithm(ppo, whiten_advantages=True, needs_critic=True),
    "grpo": Algorithm(whole_response(lambda R, config: group_relative(R, scale_by_std=config.scale_by_std)), needs_group=True),
    "rloo": Algorithm(whole_response(lambda R, config: leave_one_out(R)), needs_group=True),
    "reinforce": Algorithm(whole_response(lambda R, config: R), whiten_advantages=True),
    "restem": Algorithm(whole_response(lambda R, _: R), imitation_loss, needs_reference=False, choose_examples=right_responses),
    "dpo": Algorithm(whole_response(lambda R, config: R), dpo_positive_loss, needs_group=True, choose_examples=pairs),
}
