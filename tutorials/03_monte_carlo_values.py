# %% [markdown]
# # 3. Monte Carlo values and their error bars
#
# The *value* of a state is the probability that the policy answers right when it continues from there. No network is needed to
# estimate it. From the state, we sample $K$ continuations to the end and average their rewards $R$ (VinePPO, section 4). Such a
# continuation is called a *rollout*:
#
# $$V_{MC}(s) = \frac{1}{K} \sum_{k=1}^{K} R(\text{rollout } k)$$
#
# We can return to a state as often as we like, because a state is only a sequence of tokens. A value belongs to one policy. An
# update changes the policy and so the values. VinePPO therefore samples new rollouts in every iteration. Two questions remain:
# how many rollouts are needed, and what do they cost? This tutorial measures both.

# %%
import torch
from lesson import QUICK, rewards_of_rollouts, show, start

from vine_mini.app.plots import new_figure
from vine_mini.sampling import rollouts, sample
from vine_mini.steps import cut_steps
from vine_mini.tasks import grade
from vine_mini.values import monte_carlo_values

trainer = start()
policy, tokenizer, task, sampling = trainer.policy, trainer.tokenizer, trainer.task, trainer.sampling


def cut(t):
    """The token indices at which the steps of a response start."""
    return cut_steps(t.response_ids, tokenizer, answer_mark=task.ANSWER_MARK)


problem, prompt = trainer.test_problems[5], trainer.test_prompts[5]
group = sample(policy, [prompt] * 16, sampling, seed=0)
rewards = [grade(task, problem, t, tokenizer) for t in group]
right = group[rewards.index(1.0)]
three_steps = right.response_ids[: cut(right)[3]]
wrong = next(t for t, R in zip(group, rewards, strict=True) if R == 0 and t.response_ids[: len(three_steps)] == three_steps)
pair, cuts = [right, wrong], [cut(right), cut(wrong)]
print(problem.question, "\n")
for name, t in zip(("right", "wrong"), pair, strict=True):
    text = tokenizer.decode(t.response_ids).replace("\n", " / ")
    print(f"{name}: {text}")

# %% [markdown]
# Both responses start with the same three steps. The function `rollouts` samples `k` rollouts from each of their states. The
# arguments are *trajectories*, which are responses with their prompts, and the token indices of the states. For
# the right response and $K = 9$ we grade the rollouts and average their rewards by hand.

# %%
[of_states] = rollouts(policy, [right], [cuts[0]], sampling, k=9, seed=0)  # [state][K], for one response
for i, (start_of_step, nine) in enumerate(zip(cuts[0], of_states, strict=True)):
    so_far = right.response_ids[:start_of_step]  # a rollout continues it, so both are graded together
    graded = [grade(task, problem, r, tokenizer, so_far) for r in nine]
    length = sum(len(r.response_ids) for r in nine) / 9
    print(f"state {i}: rewards {[int(x) for x in graded]}, value {sum(graded) / 9:.2f}; {length:4.1f} tokens a rollout")

# %% [markdown]
# How far can we trust such a value? We sample many more rollouts, in two independent sets. The mean of the first set serves as
# the *ground truth*. We divide the second set into estimates with $K$ rollouts each. (The paper takes 256 rollouts of a state as
# its ground truth.) The function `rewards_of_rollouts` does the same as the loop above, for all states of several responses.

# %%
ks = (1, 3, 9, 27) if QUICK else (1, 3, 9, 27, 81, 243)
n_rollouts = 3 * ks[-1] if QUICK else 9 * ks[-1]  # for each state
print(f"2 x {2 * len(cuts[0]) * n_rollouts} rollouts ...", flush=True)
first_set, R = (
    torch.tensor(rewards_of_rollouts(trainer, [problem] * 2, pair, cuts, k=n_rollouts, seed=seed)) for seed in (1, 2)
)  # [2, 6, n_rollouts] each
truth = first_set.mean(dim=2)  # [2, 6]
deviation = (truth * (1 - truth)).sqrt()  # standard deviation of the reward of one rollout
for row, name in enumerate(("right", "wrong")):
    for i in range(len(cuts[row])):
        # the pooled mean, and the difference in units of its standard error
        both = (R[row, i].mean() + truth[row, i]) / 2
        gap = (R[row, i].mean() - truth[row, i]) / (both * (1 - both) * 2 / n_rollouts).sqrt().clamp(min=1e-9)
        print(
            f"{name}, state {i}: V = {truth[row, i]:.3f} ± {deviation[row, i] / n_rollouts**0.5:.3f}; mean of the estimates "
            f"{R[row, i].mean():.3f}, off by {gap:+.1f} standard errors"
        )

# %% [markdown]
# The mean of the estimates agrees with the ground truth within their errors. Among twelve differences, two above 2 standard
# errors happen by chance in one run of ten. (States 0 to 3 are the same for both responses and were measured twice.)
#
# The estimate is *unbiased*: its expectation is the value of the state. This holds for every $K$, even for $K = 1$, because the
# expectation of a mean is the expectation of one reward.
#
# Along the right response the value rises with each right step. Along the wrong response the value falls to almost 0 at the
# mistake.
#
# ## The error falls as 1 / sqrt(K)
#
# The reward of a rollout is 1 with probability $V$ and 0 otherwise. The variance of this reward is $V(1 - V)$. The mean of $K$
# independent rewards has variance $V(1 - V) / K$. The standard error should therefore be
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
# An error three times smaller needs nine times as many rollouts. For any $K$, the error is smallest where $V$ is near 0 or 1 and
# largest where $V = 1/2$.
#
# How many rollouts are enough? A right step raises $V$ by about 0.1 here. Such a rise is the difference of two estimates, so its
# error with $K = 9$ is $\sqrt 2$ times 0.145, about 0.2. Only the mistake, a fall of 0.55, stands out in one response. Training
# averages over many responses, so noisy values can still teach. But on chains of twelve steps, training with $K = 1$ learns
# almost nothing (`results/claims.md`). It learns well if the values are also averaged along the response, as in tutorial 4.
#
# The left picture below shows four states. Points lie off their line for two reasons. For large $K$ only a few estimates are
# averaged, and the ground truth has an error too. Near $V = 0$ the line is uncertain, because it is computed from $V$.
#
# ## What it costs
#
# Several responses to one prompt share states. All of them share $s_0$, and responses with equal first steps share more states.
# The package samples $K$ rollouts from each distinct state only once. Rollouts from late states are cheap, because few tokens
# are left to write.

# %%
group_cuts = [cut(t) for t in group]
place = {}  # a state -> the response and the token index at which it occurs first
for n, (t, row) in enumerate(zip(group, group_cuts, strict=True)):
    for c in row:
        place.setdefault(tuple(t.response_ids[:c]), (n, c))  # the prompt is the same for all
distinct_cuts = [[c for row, c in place.values() if row == n] for n in range(len(group))]


def tokens_of_rollouts(cuts):
    done = rollouts(policy, group, cuts, sampling, k=9, seed=3)  # [response][state][K]
    return sum(len(r.response_ids) for row in done for of_state in row for r in of_state)


shared, separate = tokens_of_rollouts(distinct_cuts), tokens_of_rollouts(group_cuts)
own = sum(len(t.response_ids) for t in group)
print(f"{len(group)} responses have {sum(map(len, group_cuts))} states, of which {len(place)} are distinct")
print(f"the responses have {own} tokens, the rollouts with K = 9 have {shared} ({shared / own:.1f} times as many)")
print(f"rollouts from every state, equal states included, would have {separate} tokens ({separate / own:.1f} times as many)")

# %% [markdown]
# An algorithm without rollouts pays for the responses only. The next tutorials ask whether the values are worth the additional
# tokens. Tutorial 4 also shows how to make do with fewer rollouts. In training the groups are smaller, so responses share fewer
# states. Tutorial 7 counts them.

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
    nine = monte_carlo_values(R[row, :, :9].tolist())  # [state][K] -> [state]
    value_axis.errorbar(x, nine, deviation[row] / 3, fmt=marker, color=colour, capsize=3, label=f"{name}, K = 9")
value_axis.set(xlabel="state before step", ylabel="value", title="Values along two responses; bars: theory for K = 9")
value_axis.legend(frameon=False, fontsize=8)
show(figure, "03_monte_carlo_values")

# %% [markdown]
# ## Questions
#
# 1. Nine of nine rollouts fail. The error estimate $\sqrt{\hat V (1 - \hat V) / 9}$ is then 0. Is the value 0? Which values of
#    $V$ make nine failures likely?
# 2. A rollout is also a sampled response. Why is the policy not trained on rollouts as well? Think of the states at which they
#    start.
# 3. What do rollouts at temperature 0 measure? Try it: give `rollouts` the settings `replace(sampling, temperature=0.0)`, with
#    `replace` from `dataclasses`.
# 4. After the mistake, the value of the wrong response is not exactly 0. What must happen for such a response to be right?
#
# Exercise: `ex05` (Monte Carlo values).
# Read next: `vine_mini/values.py`, and `vine_mini/sampling/__init__.py`, which turns states into requests.
