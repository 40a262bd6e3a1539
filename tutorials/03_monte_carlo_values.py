# %% [markdown]
# # 3. Monte Carlo values and their error bars
#
# How good is it to be in the middle of a response? The *value* of a state is the chance that the policy succeeds from there.
# No network is needed to find it out: finish the response $K$ times from that state, and count (VinePPO, section 4). Each
# such completion is a *rollout*:
#
# $$V_{MC}(s) = \frac{1}{K} \sum_{k=1}^{K} R(\text{completion } k)$$
#
# This is possible because a state is only text: we can go back to it as often as we like. The question is how many rollouts
# it takes, and what they cost. So we measure the estimate as one measures an instrument.

# %%
import itertools

import torch
from lesson import QUICK, show, start

from vine_mini import tasks
from vine_mini.evaluate import grade
from vine_mini.app.plots import new_figure
from vine_mini.sampling import sample
from vine_mini.steps import cut_steps
from vine_mini.values import monte_carlo_values
from vine_mini.sampling import rollouts

trainer = start()
policy, tokenizer, eos = trainer.policy, trainer.tokenizer, trainer.eos
settings = dict(max_new_tokens=64, eos_token_id=eos, batch_size=1024)  # the same for trajectories and rollouts

problem, prompt = trainer.test_problems[5], trainer.test_prompts[5]
group = sample(policy, [prompt] * 16, seed=0, **settings)
rewards = [grade(problem, t, tokenizer) for t in group]
right = group[rewards.index(1.0)]
three_steps = right.response_ids[: cut_steps(right.response_ids, tokenizer)[3]]
wrong = next(t for t, R in zip(group, rewards, strict=True) if R == 0 and t.response_ids[: len(three_steps)] == three_steps)
cuts = [cut_steps(t.response_ids, tokenizer) for t in (right, wrong)]
print(problem.question, "\n")
for name, t in (("right", right), ("wrong", wrong)):
    print(f"{name}: {' / '.join(tokenizer.decode(t.response_ids).split(chr(10)))}")

# %% [markdown]
# The two begin with the same three steps. `rollouts` finishes each of their states `k` times. It reads a trajectory (a
# response with its prompt) once for all the completions, or *vines*, that fork off it. We roll out twice, with two seeds: the
# first set is the *ground truth*, the second is what we cut into estimates. (The paper takes 256 rollouts as the ground truth
# of a state.)


# %%
def rewards_of_rollouts(k, seed):
    """-> rewards [2, 6, k] and lengths [2, 6, k] of k completions of each state of the two trajectories"""
    done = rollouts(policy, [right, wrong], cuts, k=k, seed=seed, **settings)  # [trajectory][cut][k]
    R, tokens = torch.zeros(2, len(cuts[0]), k), torch.zeros(2, len(cuts[0]), k)
    for row, t in enumerate((right, wrong)):
        for i, cut in enumerate(cuts[row]):
            for n, c in enumerate(done[row][i]):
                R[row, i, n] = tasks.reward(problem, t.response_ids[:cut] + c.response_ids, c.finished, tokenizer)
                tokens[row, i, n] = len(c.response_ids)
    return R, tokens


ks = (1, 3, 9, 27) if QUICK else (1, 3, 9, 27, 81, 243)
n_rollouts = 3 * ks[-1] if QUICK else 9 * ks[-1]  # for each state
print(f"2 x {2 * len(cuts[0]) * n_rollouts} rollouts ...", flush=True)
reference, tokens = rewards_of_rollouts(n_rollouts, seed=1)
R, _ = rewards_of_rollouts(n_rollouts, seed=2)
truth = reference.mean(dim=2)  # [2, 6]
deviation = (truth * (1 - truth)).sqrt()  # of one rollout, a coin that comes up with chance V
for row, name in enumerate(("right", "wrong")):
    for i in range(len(cuts[row])):
        both = (R[row, i].mean() + truth[row, i]) / 2
        gap = (R[row, i].mean() - truth[row, i]) / (both * (1 - both) * 2 / n_rollouts).sqrt().clamp(min=1e-9)
        print(
            f"{name}, state {i}: V = {truth[row, i]:.3f} ± {deviation[row, i] / n_rollouts**0.5:.3f}; mean of the estimates "
            f"{R[row, i].mean():.3f}, off by {gap:+.1f} standard errors; {tokens[row, i].mean():4.1f} tokens a rollout"
        )

# %% [markdown]
# The mean of the estimates agrees with the value, up to the noise of both: of twelve differences, one or two near 2 standard
# errors are no surprise (states 0 to 3 are the same for both responses, and were measured twice). A mean of $K$ fair samples
# has the right expectation by construction: the estimates are *unbiased*. And this for any $K$, even for $K = 1$, since the
# mean of all estimates does not depend on how many rollouts we put into each. Along the right response the value rises with
# each step that went well. Along the wrong one it falls at the mistake, and then little is left to lose.
#
# ## The error falls as the square root
#
# A rollout is a toss of a coin that comes up with chance $V$. Its variance is $V(1 - V)$, and that of the mean of $K$ independent
# tosses $V(1 - V) / K$. So the standard error should be
#
# $$\sqrt{V(1 - V) / K} \le \frac{1}{2 \sqrt{K}}$$

# %%
measured = {}
for k in ks:
    estimates = R.view(2, len(cuts[0]), -1, k).mean(dim=3)  # [2, 6, n_rollouts / k]
    squares = (estimates - truth[..., None]).square().mean(dim=2)  # [2, 6]
    measured[k] = squares.sqrt()
    theory = (deviation.square() / k).mean().sqrt()
    print(f"K = {k:3}: error {squares.mean().sqrt():.3f}, theory {theory:.3f}   ({n_rollouts // k} estimates of each state)")

# %% [markdown]
# Three times the accuracy costs nine times the rollouts. A state that is nearly decided has a small error with any $K$, a state
# with even chances the largest. Two things wobble: the last lines, which have few estimates, and states with $V$ near 0, where
# successes are so rare that the theory, too, is computed from an uncertain $V$.
#
# ## What it costs
#
# `monte_carlo_values` asks once for equal states: all responses to a prompt share $s_0$, and those that begin alike share more.
# Late states are cheaper, because little is left to write.

# %%
seeds, counted = itertools.count(3), []


def rollout(states, k):
    """-> [state][k] of completions, each with what its state has left of the limit"""
    prompts = [list(state) for state in states for _ in range(k)]
    left = [64 - (len(state) - len(prompt)) for state in prompts]
    flat = sample(policy, prompts, seed=next(seeds), **settings | {"max_new_tokens": left})
    counted.append((len(states), sum(len(c.response_ids) for c in flat)))
    return [flat[i : i + k] for i in range(0, len(flat), k)]


def reward(state, completion):
    return tasks.reward(problem, [*state[len(prompt) :], *completion.response_ids], completion.finished, tokenizer)


states = [prompt + t.response_ids[:cut] for t in group for cut in cut_steps(t.response_ids, tokenizer)]
values = monte_carlo_values(states, rollout, reward, k=9)
rollout(states, 9)  # the same without sharing
(unique, shared), (_, alone) = counted
own = sum(len(t.response_ids) for t in group)
print(f"{len(group)} responses have {len(states)} states, {unique} of them different")
print(f"tokens: {own} in the responses, {shared} in the rollouts of K = 9 ({shared / own:.1f} times), {alone} without sharing")

# %% [markdown]
# An ordinary algorithm would pay for the responses only. Whether the values are worth the rest is the question of the next
# tutorials. In training the groups are smaller, so less is shared; tutorial 6 counts it.

# %%
figure, ((error_axis, value_axis),) = new_figure(2)
shown = ((0, 0, "#0072B2", "o"), (0, 3, "#009E73", "s"), (0, 5, "#E69F00", "^"), (1, 4, "#D55E00", "v"))
for row, i, colour, marker in shown:
    label = f"{('right', 'wrong')[row]}, state {i}: V = {truth[row, i]:.2f}"
    error_axis.plot(ks, [measured[k][row, i] for k in ks], marker, color=colour, label=label)
    error_axis.plot(ks, [deviation[row, i] / k**0.5 for k in ks], "--", color=colour, linewidth=1)
error_axis.set(xscale="log", yscale="log", xlabel="rollouts K", ylabel="root mean square error", title="Dashed: theory")
error_axis.set_xticks(ks, map(str, ks))
error_axis.minorticks_off()
error_axis.legend(frameon=False, fontsize=8)
for row, name, colour, marker in ((0, "right", "#0072B2", "o"), (1, "wrong", "#D55E00", "s")):
    x = torch.arange(len(cuts[row])) + (row - 0.5) * 0.12
    value_axis.plot(x, truth[row], "-", color=colour, label=f"{name}, ground truth")
    few = R[row, :, :9].mean(dim=1)
    value_axis.errorbar(x, few, deviation[row] / 3, fmt=marker, color=colour, capsize=3, label=f"{name}, K = 9")
value_axis.set(xlabel="state before step", ylabel="value", title="Along two responses; bars: theory for K = 9")
value_axis.legend(frameon=False, fontsize=8)
show(figure, "03_monte_carlo_values")

# %% [markdown]
# ## Questions
#
# 1. After nine failures in nine rollouts the plug-in error $\sqrt{\hat V (1 - \hat V) / 9}$ is 0. Is the value 0? Which values
#    of $V$ make nine failures likely?
# 2. A rollout is also a sampled response. Why are rollouts not used for updates as well? Think of the states they start from.
# 3. What if the rollouts were sampled at temperature 0? Try it: `temperature=0.0` in `rollouts`. What does it measure then?
# 4. The wrong response's value after the mistake is not exactly 0. What has to happen for such a response to be right?
#
# Exercise: `ex05` (Monte Carlo values).
# Read next: `vine_mini/values.py`, with two ways to roll out less, and `vine_mini/vines.py`, 45 lines.
