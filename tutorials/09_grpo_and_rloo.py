# %% [markdown]
# # 9. GRPO and RLOO as special cases of credit assignment
#
# The algorithms in this table use the same loss and differ in the advantage of each token. The advantage has one form, an outcome
# minus its expectation (two rows also divide). The expectation is called the *baseline*. The algorithms differ in the state whose
# value is the baseline, and in how they estimate this value:
#
# | | advantage of a token in step i | the baseline is the value of | it is estimated with |
# |---|---|---|---|
# | REINFORCE, whitened | (R - mean R over all tokens) / std | an average problem | all responses of the iteration |
# | RLOO (arXiv 2402.14740) | R - mean R of the others | the prompt, s_0 | the other responses to it |
# | GRPO (arXiv 2402.03300) | (R - mean R of the group) / std | the prompt, s_0 | all responses to it |
# | PPO (VinePPO, section 3; lambda = 1) | R - V(s_t) | the state before the token | a network |
# | VinePPO (section 4) | V(s_{i+1}) - V(s_i) | the state before the step | K rollouts |
#
# VinePPO's outcome is the value of the state after the step. The others take R. Without whitening, REINFORCE has the advantage
# R and no baseline. If R is 0 or 1, it only imitates right responses.

# %%
from dataclasses import replace
from functools import partial

import torch
from lesson import QUICK, mean_and_error, show, start

from vine_mini.advantages import group_relative, leave_one_out, step_advantages, whiten
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.plots import new_figure
from vine_mini.sampling import sample
from vine_mini.tasks import grade

N, G = (8, 4) if QUICK else (16, 8)
trainer = start(prompts=N, group=G, minibatch_size=N * G, mc_lam=0.0, mc_mu=0.0)  # the paper's, but V(s_0) counts the group
tokenizer, config, episodes = trainer.tokenizer, trainer.config, trainer.sample_episodes()
rewards, mask = episodes.rewards, episodes.tokens.response_mask  # [N, G], [B, T]


def credit(name, draw="rollouts", **changes):
    """An algorithm's advantages for the episodes, [B, T]. Another `draw` gives other rollouts."""
    roll_out = partial(trainer.roll_out, name=draw)
    return ALGORITHMS[name].credit(episodes, None, roll_out, replace(config, **changes))[0]


def graded(n_problems, n, seed, temperature=1.0):
    """Rewards of n responses to each of the first test problems, [P, n]."""
    prompts = [p for p in trainer.test_prompts[:n_problems] for _ in range(n)]
    responses = sample(trainer.policy, prompts, replace(trainer.sampling, temperature=temperature), seed=seed)
    found = [grade(trainer.task, trainer.test_problems[i // n], t, tokenizer) for i, t in enumerate(responses)]
    return torch.tensor(found).view(-1, n)


# %% [markdown]
# ## One group, many advantages
#
# We take a wrong and a right response to one problem. The truth, in the last column, comes from 128 rollouts of each state.

# %%
halves = [credit("vineppo", draw=f"truth {i}", k=4 if QUICK else 64) for i in (1, 2)]  # their agreement gives the error
truth = (halves[0] + halves[1]) / 2
credits = {
    "REINFORCE, whitened": whiten(credit("reinforce"), mask),
    "RLOO": credit("rloo"),
    "GRPO": credit("grpo"),
    **{f"VinePPO, K = {k}": credit("vineppo", draw=f"K = {k}", k=k) for k in (1, 3, 9)},
}
mixed, columns_of = next(n for n in range(N) if 0 < rewards[n].sum() < G), {}
print(f"{episodes.problems[mixed * G].question}\nrewards of the group: {[int(r) for r in rewards[mixed]]}\n")
print("   ".join(credits), "  truth")
for row in (mixed * G + rewards[mixed].argmin().item(), mixed * G + rewards[mixed].argmax().item()):
    t, cuts = episodes.trajectories[row], episodes.cuts[row]
    columns_of[row] = [len(t.prompt_ids) + cut for cut in cuts]  # of each step's first token
    for cut, end, column in zip(cuts, [*cuts[1:], None], columns_of[row], strict=True):
        shown = [f"{a[row, column]:+{len(name)}.2f}" for name, a in credits.items()]
        text = " ".join(tokenizer.decode(t.response_ids[cut:end]).split())
        print("   ".join(shown), f"  {truth[row, column]:+5.2f}   {text}")

# %% [markdown]
# REINFORCE, RLOO and GRPO give every step of a response the same advantage. A good step occurs in more right responses than a
# bad step. So its mean advantage over many responses is higher. In one response, a shared advantage is mostly noise.
#
# The right response above (in a full run) shows how large this noise can be. Two mistakes in it, 4-3=14 and 17+5=9, cancel each
# other. The truth gives the first mistake a negative advantage and the second one a positive advantage.
#
# ## RLOO is Monte Carlo at the prompt
#
# The other members of a group are sampled from $s_0$, independently of this response. So they are rollouts from $s_0$ with
# $K = G - 1$. RLOO is therefore VinePPO with one step in each response, and it needs no additional rollouts:
#
# $$R_i - \frac{1}{G-1}\sum_{j \ne i} R_j = \frac{G}{G-1}\left(R_i - \frac{1}{G}\sum_{j} R_j\right)$$

# %%
rloo = leave_one_out(rewards)
print("RLOO = G/(G-1) (R - mean):", torch.allclose(rloo, G / (G - 1) * group_relative(rewards, scale_by_std=False)))
[of_first] = step_advantages([rewards[mixed, 1:].mean().item()], rewards[mixed, 0].item())
print("RLOO = one step whose value comes from the other responses:", abs(of_first - rloo[mixed, 0].item()) < 1e-6)

# Is the baseline right on average? For three problems, many groups are compared with the success rate of other responses.
many = 80 if QUICK else 1200
for groups, alone in zip(graded(3, many, seed=1).view(3, -1, 8), graded(3, many, seed=2), strict=True):
    baselines = groups - leave_one_out(groups)  # [n, 8]
    v, error = alone.mean(), (alone.var() / many + baselines.mean(dim=1).var() / (many / 8)) ** 0.5
    print(f"mean baseline {baselines.mean():.3f}, V(s_0) {v:.3f}, error of the difference {error:.3f}; ", end="")
    print(f"variance of a baseline {baselines.var():.3f}, V(1 - V) / (G - 1) {v * (1 - v) / 7:.3f}")

# %% [markdown]
# ## What the division by the standard deviation does
#
# GRPO divides by the standard deviation of the group, which is largest where half of the responses are right. Very easy and very
# hard problems therefore count more than without the division. This is a bias: the mean update is then no longer proportional to
# the gradient of the mean reward. Dr. GRPO leaves the division out (arXiv 2503.20783; here the setting `scale_by_std`).
#
# Where all rewards of a group are equal, GRPO and RLOO give advantage 0, and the group teaches nothing. We count how often this
# happens. A lower temperature stands for a policy that has already learned something.

# %%
groups = torch.ones(8, 8).tril()[:7]  # in row n, n + 1 of 8 responses are right
weight = {"GRPO": group_relative(groups).abs().sum(dim=1), "RLOO": leave_one_out(groups).abs().sum(dim=1)}  # of a problem
for n, (a, b) in enumerate(zip(group_relative(groups), leave_one_out(groups), strict=True)):
    print(f"{n + 1} of 8 right: GRPO {a[0]:+.2f} and {a[-1]:+.2f}, RLOO {b[0]:+.2f} and {b[-1]:+.2f}, ", end="")
    print(f"sums of |A| {weight['GRPO'][n]:.2f} and {weight['RLOO'][n]:.2f}, ratio {weight['GRPO'][n] / weight['RLOO'][n]:.2f}")
for temperature in (1.0, 0.7, 0.5):
    r = graded(8 if QUICK else 100, 8, seed=3, temperature=temperature)
    shares = [mean_and_error(r), *(mean_and_error((r[:, :g].std(dim=1) == 0).float()[:, None]) for g in (4, 8))]
    right, four, eight = (f"{share:.0%} ± {error:.0%}" for share, error in shares)
    print(f"temperature {temperature}: {right} right; groups of equal rewards: {four} with G = 4, {eight} with G = 8")

# %% [markdown]
# VinePPO can learn from such groups, as long as rollouts succeed from some states. If all eight responses are wrong, the step
# that lowered the value still gets a negative advantage.

# %%
equal = mask.bool() & (rewards.std(dim=1) == 0).repeat_interleave(G)[:, None]  # [B, T], tokens of groups with equal rewards
for name in ("RLOO", "VinePPO, K = 9"):
    print(f"equal rewards, {name}: {(credits[name][equal] != 0).float().mean():.0%} of the tokens have an advantage other than 0")

# %% [markdown]
# ## Which advantages are closest to the truth?
#
# We compute the correlation of each algorithm's advantages with the truth over all tokens, in four parts of the batch that share
# no problem. A common shift or scale, as in whitening, does not change a correlation. (GRPO's divisors differ between groups.)
# The truth is noisy itself. Its halves have nearly independent noise (V(s_0) counts the same group in both), so from their
# correlation $c$ we know what perfect advantages would reach: $\sqrt{2c/(1+c)}$.


# %%
def correlation(x, y, parts=2 if QUICK else 4):
    """x, y [B, T] -> mean correlation over parts of the batch, standard error. A part holds whole groups."""
    pairs = [torch.stack([x[rows], y[rows]])[:, mask[rows].bool()] for rows in torch.arange(N * G).chunk(parts)]
    values = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    return values.mean().item(), values.std().item() / parts**0.5


agreement = {name: correlation(a, truth) for name, a in credits.items()}
between, _ = correlation(*halves)
perfect = (2 * between / (1 + between)) ** 0.5  # correlation of the mean of both halves with what they estimate
print("\n".join(f"{name:19} correlation with the truth {r:.2f} ± {error:.2f}" for name, (r, error) in agreement.items()))
print(f"perfect advantages would reach {perfect:.2f}")

# %% [markdown]
# With K = 1 a value is 0 or 1 (V(s_0) also counts the group), and an advantage is the difference of two values. It agrees with
# the truth about as well as an advantage from a group. Three rollouts give a better agreement, and nine a clearly better one.
#
# REINFORCE, RLOO, VinePPO and PPO with lambda = 1 have mean gradients of the same direction. VinePPO's have less noise. Is
# learning then faster? We compare VinePPO with GRPO on chains of twelve operations. After equally many responses, K = 9 is ahead
# by 22 points, and by 1 point where three operations decide. Rollouts are not counted. After equal seconds on a CPU, K = 1 with
# averages is behind by 6.5 and 5.5 points. All four 95 % intervals contain 0 (`results/claims.md`). A fair comparison has equal
# seconds, and each algorithm's own best setting.

# %%
figure, ((response_axis, weight_axis, agreement_axis),) = new_figure(3)
styles = {"RLOO": ("#CC79A7", "^-"), "GRPO": ("#009E73", "s-"), "VinePPO, K = 9": ("#0072B2", "o-")}
row, columns = next(iter(columns_of.items()))
steps = range(1, len(columns) + 1)
for name, (colour, style) in styles.items():
    response_axis.plot(steps, credits[name][row, columns], style, color=colour, label=name)
response_axis.plot(steps, truth[row, columns], "k--", label="truth")
response_axis.set(title="One wrong response", xlabel="step", ylabel="advantage of the step's tokens")
for name, sums in weight.items():
    weight_axis.plot(range(1, 8), sums / sums[3], styles[name][1], color=styles[name][0], label=name)
weight_axis.set(title="Weight of a problem", xlabel="right responses of 8", ylabel="sum of |A|, 4 of 8 = 1", ylim=(0, None))
means, errors = zip(*agreement.values(), strict=True)
agreement_axis.barh(list(agreement), means, xerr=errors, color=["#E69F00", "#CC79A7", "#009E73"] + ["#0072B2"] * 3, capsize=3)
agreement_axis.axvline(perfect, color="black", ls="--", label="perfect advantages, against this truth")
agreement_axis.set(title="Agreement with the truth", xlabel="correlation over tokens", xlim=(0, 1))
agreement_axis.invert_yaxis()
for axis in (response_axis, weight_axis, agreement_axis):
    axis.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
show(figure, "09_grpo_and_rloo")

# %% [markdown]
# ## Questions
#
# 1. GRPO's mean contains the response's own reward. Why does this only scale the advantage?
# 2. One of 8 responses in a group is right. What does the division by the standard deviation do to its advantage? With 7 right,
#    what does it do to the advantage of the wrong one?
# 3. In this package, VinePPO's V(s_0) counts the other responses of the group as rollouts of the prompt. What would go wrong if
#    it counted the response's own reward?
# 4. When would one advantage for a whole response be as good as one for each step?
#
# Exercises: `ex12` (group baselines), `ex21` (DPO-Positive: [reference.md](reference.md)). Read next: `vine_mini/algorithms.py`.
