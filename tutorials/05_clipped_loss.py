# %% [markdown]
# # 5. The clipped loss, drawn and felt
#
# Sampling is dear and an optimizer step is cheap, so we want several steps from the same responses. But after the first step
# the policy is no longer the one that wrote them. PPO's answer is one line of loss. We draw it, and then we overuse it.
#
# The *ratio* of a token says how far the policy has moved on it:
#
# $$\rho_t = \frac{\pi(y_t \mid s_t)}{\pi_{\mathrm{old}}(y_t \mid s_t)}$$
#
# and the loss (VinePPO, section 3; arXiv 1707.06347, equation 7) is the mean over tokens of
#
# $$\max\left(-A_t\, \rho_t,\; -A_t\, \mathrm{clip}(\rho_t,\, 1 - \epsilon,\, 1 + \epsilon)\right)$$
#
# The larger of two losses is the pessimist's: moving further than $\epsilon$ in the favoured direction earns nothing more, but
# having moved in the wrong direction is paid for in full.

# %%
import torch
from lesson import QUICK, show, start

from vine_mini.algorithms import ALGORITHMS
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import clipped_policy_loss
from vine_mini.app.plots import new_figure

CLIP = 0.2


def right(ratio, advantage):
    """The package's loss of single tokens, and its gradient with respect to their log-probs. [n] -> [n], [n]"""
    logprobs = ratio.log().requires_grad_()
    old, advantages, mask = torch.zeros_like(logprobs), torch.full_like(logprobs, advantage), torch.ones_like(logprobs)
    one = [clipped_policy_loss(*parts, clip=CLIP)[0] for parts in zip(logprobs, old, advantages, mask, strict=True)]
    return torch.stack(one).detach(), torch.autograd.grad(sum(one), logprobs)[0]


def swapped(ratio, advantage):
    """The same with min for max, as some public code has it for negative advantages."""
    logprobs = ratio.log().requires_grad_()
    ratio = logprobs.exp()
    losses = torch.minimum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
    return losses.detach(), torch.autograd.grad(losses.sum(), logprobs)[0]


# %% [markdown]
# ## Four corners
#
# | | ratio low (0.5) | ratio high (2) |
# |---|---|---|
# | A > 0, a good token | became rarer, by mistake: push it back up | likely enough: let go |
# | A < 0, a bad token | rare enough: let go | became likelier, by mistake: push it down, twice as hard |
#
# Swap max and min, and every corner turns over: the loss lets go where something has gone wrong, and pushes on where it should
# stop. At ratio 1 the two are alike, so the first step of every iteration looks healthy.

# %%
corners = torch.tensor([0.5, 1.0, 2.0])
for advantage in (1.0, -1.0):
    for name, loss in (("right", right), ("swapped", swapped)):
        push = -loss(corners, advantage)[1]  # where gradient descent wants to take the log-prob
        said = [f"ratio {r:g}: {f'push {g:+.1f}' if g else 'no gradient'}" for r, g in zip(corners.tolist(), push, strict=True)]
        print(f"A = {advantage:+.0f}, {name:7}   " + "   ".join(f"{x:22}" for x in said))

# %% [markdown]
# A bad token at ratio 2 is the costly case: an update has made it twice as likely, by accident, since all tokens share their
# weights. The right loss pushes it down with twice the force; the swapped one is silent.
#
# ## One denominator
#
# The mean over tokens needs a word. A minibatch rarely fits in one forward pass, so it is cut into micro-batches whose
# gradients add up. Divide each sum by the tokens of the *whole* minibatch, and the split changes nothing; take the mean of each
# part instead, and tokens in small parts count more: another gradient for every split.

# %%
size = dict(prompts=8, minibatch_size=32, eval_problems=20, eval_samples=1) if QUICK else dict(minibatch_size=128)
settings = dict(algorithm="rloo", kl_coef=0.0, epochs=1, max_ratio=1e9, **size)  # one optimizer step an update
trainer = start(clip=CLIP, **settings)
episodes = trainer.sample_episodes()
batch = episodes.batch
trainer.score(batch, episodes.trajectories)  # old log-probs: the sampler's own
batch.advantages, _ = ALGORITHMS["rloo"](episodes, trainer.config)


def gradient(tokens: int, fixed: bool):
    """The policy's gradient on the batch in micro-batches of so many tokens, as one vector. -> gradient, number of parts"""
    parts = batch.micro_batches(torch.arange(len(batch)), tokens)
    for rows in parts:
        b = batch.rows(rows)
        logprobs = response_logprobs(trainer.policy, b.input_ids, b.attention_mask, b.response_mask)
        denominator = batch.response_mask.sum() if fixed else b.response_mask.sum() * len(parts)
        clipped_policy_loss(logprobs, b.old_logprobs, b.advantages, b.response_mask, denominator=denominator)[0].backward()
    found = torch.cat([p.grad.flatten() for p in trainer.policy.parameters()])
    trainer.policy.zero_grad()
    return found, len(parts)


whole, _ = gradient(10**6, True)
for tokens in (1000, 4000):
    for name, fixed in (("fixed denominator", True), ("mean of each part", False)):
        g, n = gradient(tokens, fixed)
        print(f"{n:2} micro-batches, {name}: {(g - whole).norm() / whole.norm():.1e} away from the gradient in one piece")

# %% [markdown]
# ## Too many steps on one batch
#
# That batch again: 128 responses with RLOO's credit (the reward minus the mean of the others in its group: tutorial 8). Many
# optimizer steps on it, with the clip and without (an $\epsilon$ that nothing reaches). We watch the accuracy on test
# problems, newly sampled; the KL divergence from the old policy (how far the two distributions are apart, in nats; 0 if
# nothing has changed), estimated on the batch; the mean ratio; and the share of tokens that the clip has silenced.

# %%
steps, every = (2, 2) if QUICK else (40, 5)
curves = {}
trainers = {"clip 0.2": trainer, "no clip": start(clip=1e9, **settings)}  # the same policy twice, and the same batch
for name, trainer in trainers.items():
    curves[name] = []
    for step in range(steps + 1):
        accuracy = trainer.evaluate()["pass@1"] if step % every == 0 else None
        stats = trainer.update(batch)  # its statistics are those from before the step
        curves[name].append((step, stats["ratio"], stats["clip_frac"], stats["approx_kl"], accuracy))
        if accuracy:
            print(f"{name}, step {step:2}: accuracy {100 * accuracy[0]:4.1f} ± {100 * accuracy[1]:.1f} %, ", end="")
            print(f"KL {stats['approx_kl']:.3f}, mean ratio {stats['ratio']:.3f}, silenced {100 * stats['clip_frac']:4.1f} %")

# %% [markdown]
# Both policies first become better, and then lose it again: soon all that is left to learn from the same responses is what is
# accidental in them. With the clip the policy stays nearer to the old one and falls later and less far. But the clip is no
# wall. A silenced token no longer pushes; other tokens move the same weights, and AdamW's momentum carries on. What protects a
# run is to take few steps on each batch (two passes, in this preset), with the clip as a brake on the tokens that run ahead.
#
# The mean ratio tells the same. In any state, the *expected* ratio of a token drawn from the old policy is 1, whatever the
# new one: $\sum_y \pi_{\mathrm{old}}(y)\, \rho(y) = \sum_y \pi(y) = 1$. Here the mean leaves 1: the policy was fitted to
# these very tokens.

# %%
figure, axes = new_figure(2, 4)
ratio = torch.linspace(0.05, 2.5, 200)
for column, advantage in enumerate((1.0, -1.0)):
    for name, loss, colour, style in (("right: max", right, "#0072B2", "-"), ("swapped: min", swapped, "#D55E00", "--")):
        losses, grads = loss(ratio, advantage)
        axes[0, column].plot(ratio, losses, style, color=colour, label=name)
        axes[1, column].plot(ratio, -grads, style, color=colour, label=name)
    whose = "a good token, A = +1" if advantage > 0 else "a bad token, A = -1"
    axes[0, column].set(title=f"Loss of {whose}", xlabel="ratio", ylabel="loss")
    axes[1, column].set(title=f"Push on the log-prob of {whose}", xlabel="ratio", ylabel="minus the gradient")
    for axis in axes[:2, column]:
        axis.axvspan(1 - CLIP, 1 + CLIP, color="0.9", zorder=0)
        axis.legend(frameon=False)
titles = "Accuracy on test problems", "KL from the old policy", "Mean ratio on the batch", "Tokens silenced by the clip"
for (name, rows), colour, marker in zip(curves.items(), ("#0072B2", "#D55E00"), "os", strict=True):
    x, ratios, silenced, kl, accuracies = zip(*rows, strict=True)
    measured, errors = zip(*[a for a in accuracies if a], strict=True)
    axes[2, 0].errorbar(x[::every], measured, yerr=errors, fmt=f"{marker}-", color=colour, capsize=3, label=name)
    for axis, y in zip(axes.flat[5:], (kl, ratios, silenced), strict=True):
        axis.plot(x, y, f"{marker}-", ms=3, color=colour, label=name)
for axis, title, unit in zip(axes.flat[4:], titles, ("share of right answers", "nats a token", "ratio", "share"), strict=True):
    axis.set(title=title, ylabel=unit, xlabel="optimizer steps on one batch")
    axis.legend(frameon=False)
show(figure, "05_clipped_loss")

# %% [markdown]
# ## Questions
#
# 1. The first step of an iteration has ratio 1 everywhere. What does the clip do in it? And in the second?
# 2. A token with old probability 0.9: which of the two limits, 0.8 and 1.2, can its ratio pass at all? Which tokens does the
#    clip silence for a good response, then?
# 3. Sample a second batch from the old policy and follow the mean ratio, the KL and the share of silenced tokens on it. Which
#    of the three will differ from the first batch, and why?
# 4. What would a clip of 0 do?
#
# Exercises: `ex10` (the clipped loss), `ex13` (micro-batches), `ex17` (a loss that is silently wrong).
# Read next: `vine_mini/losses.py`, and `Trainer.update` in `vine_mini/trainer.py`.
