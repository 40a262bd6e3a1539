# %% [markdown]
# # 8. GRPO and RLOO as special cases of credit
#
# The algorithms of this course train with the same loss and differ in one number a token, the advantage. It always has the same
# form: what came of it, minus what was to be expected. What differs is *whose* expectation:
#
# | | credit of a token in step i | the baseline is the value of | measured by |
# |---|---|---|---|
# | REINFORCE | R - mean of all R | an average problem | all responses of the iteration |
# | RLOO (arXiv 2402.14740) | R - mean R of the others | the prompt, s_0 | the other responses to it |
# | GRPO (arXiv 2402.03300) | (R - mean R of the group) / std | the prompt, s_0 | all responses to it |
# | PPO (VinePPO, section 3; lambda = 1) | R - V(s_t) | the state before the token | a network |
# | VinePPO (section 4) | V(s_{i+1}) - V(s_i) | the state before the step | K rollouts |
#
# Only the last one also replaces R, by the value of the state in which the step ends.

# %%
from dataclasses import replace

import torch
from lesson import QUICK, show, start

from vine_mini.advantages import group_relative, leave_one_out, step_advantages, whiten
from vine_mini.algorithms import ALGORITHMS
from vine_mini.evaluate import grade
from vine_mini.app.plots import new_figure
from vine_mini.sampling import sample
from vine_mini.steps import cut_steps

N, G = (8, 4) if QUICK else (16, 8)
trainer = start(prompts=N, group=G, minibatch_size=N * G)
tokenizer, config, episodes = trainer.tokenizer, trainer.config, trainer.sample_episodes()
rewards, mask = episodes.rewards, episodes.batch.response_mask  # [N, G], [B, T]


def credit(name, **changes):  # an algorithm's advantages for the same episodes, [B, T]
    return ALGORITHMS[name](episodes, replace(config, **changes))[0]


def graded(n_problems, n, **more):  # rewards of n responses to each of the first test problems, [P, n]
    prompts = [p for p in trainer.test_prompts[:n_problems] for _ in range(n)]
    responses = sample(trainer.policy, prompts, max_new_tokens=config.max_new_tokens, eos_token_id=trainer.eos, **more)
    return torch.tensor([grade(trainer.test_problems[i // n], t, tokenizer) for i, t in enumerate(responses)]).view(-1, n)


# %% [markdown]
# ## One group, many credits
#
# A wrong and a right response to one problem. The truth beside them is VinePPO's own formula with many rollouts for each state.

# %%
halves = [credit("vineppo", k=4 if QUICK else 64) for _ in range(2)]  # two, so that we know the error of their mean
truth = (halves[0] + halves[1]) / 2
credits = {
    "REINFORCE": whiten(credit("reinforce"), mask),  # whitening takes the mean off: that is its baseline
    "RLOO": credit("rloo"),
    "GRPO": credit("grpo"),
    **{f"VinePPO, K = {k}": credit("vineppo", k=k) for k in (1, 3, 9)},
}
mixed, columns_of = next(n for n in range(N) if 0 < rewards[n].sum() < G), {}
print(f"{episodes.problems[mixed * G].question}\nrewards of the group: {[int(r) for r in rewards[mixed]]}\n")
print("   ".join(credits), "  truth")
for row in (mixed * G + rewards[mixed].argmin().item(), mixed * G + rewards[mixed].argmax().item()):
    t = episodes.trajectories[row]
    cuts = cut_steps(t.response_ids, tokenizer)
    columns_of[row] = [len(t.prompt_ids) + cut for cut in cuts]  # of each step's first token
    for cut, end, column in zip(cuts, [*cuts[1:], None], columns_of[row], strict=True):
        numbers = [f"{a[row, column]:+{len(name)}.2f}" for name, a in credits.items()]
        text = " ".join(tokenizer.decode(t.response_ids[cut:end]).split())
        print("   ".join(numbers), f"  {truth[row, column]:+5.2f}   {text}")

# %% [markdown]
# REINFORCE, RLOO and GRPO tell every step the same. That is no *bias*: good steps are found in more right responses than bad
# ones, and over many responses the rest cancels. It is noise.
#
# ## RLOO is Monte Carlo at the prompt
#
# The other members of the group are completions of $s_0$ that know nothing of this response: exactly rollouts, with $K = G - 1$.
# So RLOO is VinePPO with one step a response, and its rollouts are there already:
#
# $$R_i - \frac{1}{G-1}\sum_{j \ne i} R_j = \frac{G}{G-1}\left(R_i - \frac{1}{G}\sum_{j} R_j\right)$$

# %%
rloo = leave_one_out(rewards)
print("RLOO = G/(G-1) (R - mean):", torch.allclose(rloo, G / (G - 1) * group_relative(rewards, scale_by_std=False)))
[credit_of_first] = step_advantages([rewards[mixed, 1:].mean().item()], rewards[mixed, 0].item())
print("RLOO = a single step, valued by the others:", abs(credit_of_first - rloo[mixed, 0].item()) < 1e-6)
one_step = credit("vineppo", step_tokens=config.max_new_tokens, k=G - 1)  # no cuts, and fresh rollouts
first = [len(t.prompt_ids) for t in episodes.trajectories]
print(f"VinePPO without cuts: std of the credit {one_step[range(N * G), first].std():.3f}; of RLOO {rloo.std():.3f}")

# Is the baseline right on average? Three problems, many groups for each, against the success rate of separate responses.
many = 80 if QUICK else 1200
for groups, alone in zip(graded(3, many, seed=1).view(3, -1, 8), graded(3, many, seed=2), strict=True):
    baselines = groups - leave_one_out(groups)  # [n, 8]
    v, error = alone.mean(), (alone.var() / many + baselines.mean(dim=1).var() / (many / 8)) ** 0.5
    print(f"mean baseline {baselines.mean():.3f}, V(s_0) {v:.3f}, error of the difference {error:.3f}; ", end="")
    print(f"variance of a baseline {baselines.var():.3f}, V(1 - V) / (G - 1) {v * (1 - v) / 7:.3f}")

# %% [markdown]
# ## What the division by std does
#
# GRPO divides by the group's standard deviation, which is largest where half of the responses are right. So very easy and very
# hard problems weigh more than they would. And where all rewards are equal, both credits are zero: the prompt was sampled for
# nothing. How often is that? The colder sampler stands in for a policy that has learned something.

# %%
groups = torch.ones(8, 8).tril()[:7]  # row n: n + 1 of 8 right
pull = {"GRPO": group_relative(groups).abs().sum(dim=1), "RLOO": leave_one_out(groups).abs().sum(dim=1)}  # of a whole problem
for n, (a, b) in enumerate(zip(group_relative(groups), leave_one_out(groups), strict=True)):
    print(f"{n + 1} of 8 right: GRPO {a[0]:+.2f} and {a[-1]:+.2f}, RLOO {b[0]:+.2f} and {b[-1]:+.2f}, ", end="")
    print(f"sums of |A| {pull['GRPO'][n]:.2f} and {pull['RLOO'][n]:.2f}: {pull['GRPO'][n] / pull['RLOO'][n]:.2f} times")
for temperature in (1.0, 0.7, 0.5):
    r = graded(8 if QUICK else 100, 8, seed=3, temperature=temperature)
    silent = [f"{(r[:, :g].std(dim=1) == 0).float().mean():.0%} with G = {g}" for g in (4, 8)]
    print(f"temperature {temperature}: {r.mean():.0%} right; groups without signal: {', '.join(silent)}")

# %% [markdown]
# VinePPO need not be silent there: if all eight are wrong, the step that lowered the value is still blamed, and the right
# steps before it are not.
#
# ## Whose credit is right?
#
# The correlation of each credit with the truth over tokens, in parts of the batch. It does not mind a common shift or scale,
# so whitening does not matter. GRPO divides each group by another number; that could matter, and we shall see that it hardly
# does. The truth is noisy itself; its two halves tell what a perfect credit would reach.


# %%
def correlation(x, y, parts=2 if QUICK else 4):  # [B, T] each -> mean over parts of the batch, its standard error
    pairs = [torch.stack([x[rows], y[rows]])[:, mask[rows].bool()] for rows in torch.arange(N * G).chunk(parts)]
    values = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    return values.mean().item(), values.std().item() / parts**0.5


agreement = {name: correlation(a, truth) for name, a in credits.items()}
between, _ = correlation(*halves)
perfect = (2 * between / (1 + between)) ** 0.5  # the mean of two halves that agree so far, with what they measure
print("\n".join(f"{name:15} correlation with the truth {r:.2f} ± {error:.2f}" for name, (r, error) in agreement.items()))
print(f"a perfect credit would reach {perfect:.2f}")

# %% [markdown]
# With one rollout a state, an advantage is the difference of two coin flips, and worse than a group's credit. Three are
# better, nine clearly so. What is gained is less noise, not another aim; that helps where noise limits training. Here it does
# not (README: for the same number of episodes, VinePPO, GRPO and PPO learn alike).

# %%
figure, ((response_axis, pull_axis, agreement_axis),) = new_figure(3)
styles = {"RLOO": ("#CC79A7", "^-"), "GRPO": ("#009E73", "s-"), "VinePPO, K = 9": ("#0072B2", "o-")}
row, columns = next(iter(columns_of.items()))
steps = range(1, len(columns) + 1)
for name, (colour, style) in styles.items():
    response_axis.plot(steps, credits[name][row, columns], style, color=colour, label=name)
response_axis.plot(steps, truth[row, columns], "k--", label="truth")
response_axis.set(title="One wrong response", xlabel="step", ylabel="credit of the step's tokens")
for name, sums in pull.items():
    pull_axis.plot(range(1, 8), sums / sums[3], styles[name][1], color=styles[name][0], label=name)
pull_axis.set(title="How a problem weighs", xlabel="right responses of 8", ylabel="sum of |A|, 4 of 8 = 1", ylim=(0, None))
means, errors = zip(*agreement.values(), strict=True)
agreement_axis.barh(list(agreement), means, xerr=errors, color=["#E69F00", "#CC79A7", "#009E73"] + ["#0072B2"] * 3, capsize=3)
agreement_axis.axvline(perfect, color="black", ls="--", label="a perfect credit, measured against this truth")
agreement_axis.set(title="Agreement with the truth", xlabel="correlation over tokens", xlim=(0, 1))
agreement_axis.invert_yaxis()
for axis in (response_axis, pull_axis, agreement_axis):
    axis.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
show(figure, "08_grpo_and_rloo")

# %% [markdown]
# ## Questions
#
# 1. GRPO's mean contains the response's own reward. Why does that not spoil the credit, up to scale?
# 2. One right response in a group of 8: what does the division by std do to it? And with 7 right, to the wrong one?
# 3. VinePPO's V(s_0) could be the mean reward of the group, for nothing. What goes wrong if the response's own reward is in it?
# 4. When would credit to whole responses be just as good as credit to steps?
#
# Exercise: `ex12` (group baselines).
# Read next: `vine_mini/algorithms.py`, where the five stand side by side.
