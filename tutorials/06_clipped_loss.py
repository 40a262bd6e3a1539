# %% [markdown]
# # 6. The clipped loss, drawn and measured
#
# The policy gradient of tutorial 5 holds for responses of the current policy. Sampling takes time, so we take several *updates*
# (steps of the optimizer) on the same responses. But after the first update the policy is no longer
# the one that sampled them. PPO handles this in its loss. We draw the loss, and then take far too many updates with it.
#
# The *ratio* of a token says how much its probability has changed since it was sampled:
#
# $$\rho_t = \frac{\pi(y_t \mid s_t)}{\pi_{\mathrm{old}}(y_t \mid s_t)}$$
#
# The *old* policy is the one that sampled the responses. The ratio lets us use the old policy's tokens for the current policy. In
# every state, the mean of $\rho A$ over tokens of the old policy is the mean of $A$ over tokens of the current policy.
#
# $$\sum_y \pi_{\mathrm{old}}(y \mid s)\, \rho(y)\, A(y) = \sum_y \pi(y \mid s)\, A(y)$$
#
# This is *importance sampling*, and papers also call $\rho_t$ the importance ratio. It does not correct for the states, which
# the old policy chose.
#
# The loss (VinePPO, section 3; arXiv 1707.06347, equation 7) is the mean over tokens of
#
# $$\max\left(-A_t\, \rho_t,\; -A_t\, \mathrm{clip}(\rho_t,\, 1 - \epsilon,\, 1 + \epsilon)\right)$$
#
# The gradient of $\rho_t$ is $\rho_t \nabla \log \pi$. At ratio 1 the loss therefore has the gradient of tutorial 5. The loss
# takes the larger, that is the more pessimistic, of its two parts. (The PPO paper maximises, so it has a min there.) $\epsilon$
# is 0.2 here. A token has no gradient where its ratio is already above $1 + \epsilon$ ($A > 0$) or below $1 - \epsilon$
# ($A < 0$). This does not bound the ratio: updates for other tokens can move it further. A token that has moved in the wrong
# direction counts in full.

# %%
import torch
from lesson import QUICK, show, start

from vine_mini.advantages import leave_one_out
from vine_mini.app.plots import new_figure
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import clipped_policy_loss
from vine_mini.types import Batch

CLIP = 0.2


# Some public code takes min in place of max where the advantage is negative. Here `min (wrong)` does so for both signs.
LOSSES = {"max (right)": torch.maximum, "min (wrong)": torch.minimum}


def loss_of_tokens(ratio, advantage, pick):
    """The loss of single tokens with one of the LOSSES, and its gradient with respect to their log-probs. [n] -> [n], [n]"""
    logprobs = ratio.log().requires_grad_()
    ratio = logprobs.exp()
    losses = pick(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
    return losses.detach(), torch.autograd.grad(losses.sum(), logprobs)[0]


# %% [markdown]
# ## Four cases
#
# | | ratio low (0.5) | ratio high (2) |
# |---|---|---|
# | A > 0, a good token | wrong direction: its probability is pushed up, with half the force | far enough: no gradient |
# | A < 0, a bad token | far enough: no gradient | wrong direction: its probability is pushed down, with twice the force |
#
# With min in place of max, all four cases are reversed. The loss then has no gradient where a token has moved in the wrong
# direction, and it pushes on where it should stop. At ratio 1 both losses are equal, so the mistake does not show in the first
# update of an iteration.

# %%
cases = torch.tensor([0.5, 1.0, 2.0])
for advantage in (1.0, -1.0):
    for name, pick in LOSSES.items():
        push = -loss_of_tokens(cases, advantage, pick)[1]  # the direction in which gradient descent moves the log-prob
        shown = [f"ratio {r:g}: {f'push {g:+.1f}' if g else 'no gradient'}" for r, g in zip(cases.tolist(), push, strict=True)]
        print(f"A = {advantage:+.0f}, {name}   " + "   ".join(f"{x:22}" for x in shown))
    ours, one = loss_of_tokens(cases, advantage, torch.maximum)[0].mean(), torch.ones(3)
    packaged, _ = clipped_policy_loss(cases.log(), 0 * one, advantage * one, one, clip=CLIP)
    print(f"A = {advantage:+.0f}: the mean of the right losses is the package's loss: {torch.allclose(ours, packaged)}")

# %% [markdown]
# The costly case is a bad token with ratio 2. Tokens share the network's weights, so updates for other tokens can double its
# probability. The right loss pushes it down with twice the force. The wrong loss does nothing.
#
# ## One denominator
#
# The loss is a mean over the tokens of a *minibatch*, the responses of one update. A minibatch rarely fits in one forward pass,
# so it is split into micro-batches whose gradients add up. There are two ways to divide:
#
# - Divide each sum by the number of tokens of the *whole* minibatch. Then the split changes nothing.
# - Average the means of the micro-batches. Then tokens in small micro-batches count more, and each split gives another gradient.

# %%
size = dict(prompts=8, minibatch_size=32, eval_problems=20, eval_samples=1) if QUICK else dict(minibatch_size=128)
# One pass over the episodes (epochs), with one update. `max_ratio` would skip an update whose mean ratio is larger.
settings = dict(algorithm="rloo", kl_coef=0.0, epochs=1, max_ratio=1e9, **size)
trainer = start(clip=CLIP, **settings)
episodes = trainer.sample_episodes()
scores, _ = trainer.score(episodes)  # a dictionary with the old log-probs, which are the sampler's own (tutorial 7)
advantages = leave_one_out(episodes.rewards).reshape(-1, 1) * episodes.tokens.response_mask  # [B, T]
batch = Batch(**vars(episodes.tokens), **scores, advantages=advantages)


def gradient(tokens: int, fixed: bool):
    """The policy's gradient on the batch, in micro-batches of at most so many tokens. -> the gradient, the number of parts"""
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
    for name, fixed in (("one denominator", True), ("mean of each part", False)):
        g, n = gradient(tokens, fixed)
        difference = (g - whole).norm() / whole.norm()
        print(f"{n:2} micro-batches, {name}: relative difference to the gradient in one piece {difference:.1e}")

# %% [markdown]
# Micro-batches hold responses of similar length. The last of the ten holds the two longest, and the others hold 14 responses. The
# average of the means counts each token of these two about six times as much as any other token. Both responses have reward 0.
# The gradient is off by nearly its own length.
#
# ## Too many updates on one batch
#
# We use the same batch: 128 responses with RLOO's advantages (tutorial 5). Each call of `trainer.update` makes one update with
# it. We make many, once with the clip and once with an $\epsilon$ that no ratio reaches. We measure
#
# - the accuracy on test problems, with newly sampled responses;
# - the KL divergence $\sum_y \pi_{\mathrm{old}}(y) \log (\pi_{\mathrm{old}}(y) / \pi(y))$. It is 0 where the policies agree. The
#   estimate from the sampled tokens is the mean of $\rho - 1 - \log \rho$. This number is never below 0. Tutorial 7 compares it
#   with other estimates;
# - the mean ratio;
# - the share of tokens whose gradient the clip has stopped.

# %%
updates, every = (2, 2) if QUICK else (40, 5)
curves = {}
trainers = {"clip 0.2": trainer, "no clip": start(clip=1e9, **settings)}  # both start from the same policy and use the same batch
for name, each in trainers.items():
    curves[name] = []
    for n in range(updates + 1):
        accuracy = each.evaluate()["pass@1"] if n % every == 0 else None  # the share of right samples
        stats = each.update(batch)  # statistics of the policy before this update
        curves[name].append((n, stats["ratio"], stats["clip_frac"], stats["approx_kl"], accuracy))
        if accuracy:
            print(f"{name}, after {n:2} updates: accuracy {100 * accuracy[0]:4.1f} ± {100 * accuracy[1]:.1f} %, ", end="")
            print(f"KL {stats['approx_kl']:.3f}, mean ratio {stats['ratio']:.3f}, clipped {100 * stats['clip_frac']:4.1f} %")

# %% [markdown]
# Both policies first improve and then become worse. After 10 to 15 updates, the policy fits accidents of the batch.
#
# With the clip, the policy stays closer to the old policy. The accuracy rises higher and falls less. But the clip does not stop
# the policy. A clipped token has no gradient, but other tokens still change the same weights, and AdamW's momentum goes on. The
# main protection is to take few updates on each batch. The training loop of tutorial 7 makes two passes.
#
# The mean ratio also shows that the policy was fitted to the batch. For new tokens of the old policy, its expectation is 1,
# whatever the current policy is: $\sum_y \pi_{\mathrm{old}}(y)\, \rho(y) = \sum_y \pi(y) = 1$. On this batch it leaves 1, in
# either direction.

# %%
figure, axes = new_figure(2, 4)
ratio = torch.linspace(0.05, 2.5, 200)
for column, advantage in enumerate((1.0, -1.0)):
    for (name, pick), colour, style in zip(LOSSES.items(), ("#0072B2", "#D55E00"), ("-", "--"), strict=True):
        losses, grads = loss_of_tokens(ratio, advantage, pick)
        axes[0, column].plot(ratio, losses, style, color=colour, label=name)
        axes[1, column].plot(ratio, -grads, style, color=colour, label=name)
    token = "a good token, A = +1" if advantage > 0 else "a bad token, A = -1"
    axes[0, column].set(title=f"Loss of {token}", xlabel="ratio", ylabel="loss")
    axes[1, column].set(title=f"Push on the log-prob of {token}", xlabel="ratio", ylabel="minus the gradient")
    for axis in axes[:2, column]:
        axis.axvspan(1 - CLIP, 1 + CLIP, color="0.9", zorder=0)
        axis.legend(frameon=False)
titles = "Accuracy on test problems", "KL from the old policy", "Mean ratio on the batch", "Clipped tokens"
for (name, rows), colour, marker in zip(curves.items(), ("#0072B2", "#D55E00"), "os", strict=True):
    x, ratios, clipped, kl, accuracies = zip(*rows, strict=True)
    measured, errors = zip(*[a for a in accuracies if a], strict=True)
    axes[2, 0].errorbar(x[::every], measured, yerr=errors, fmt=f"{marker}-", color=colour, capsize=3, label=name)
    for axis, y in zip(axes.flat[5:], (kl, ratios, clipped), strict=True):
        axis.plot(x, y, f"{marker}-", ms=3, color=colour, label=name)
for axis, title, unit in zip(axes.flat[4:], titles, ("share of right answers", "nats a token", "ratio", "share"), strict=True):
    axis.set(title=title, ylabel=unit, xlabel="updates on one batch")
    axis.legend(frameon=False)
show(figure, "06_clipped_loss")

# %% [markdown]
# ## Questions
#
# 1. In the first update of an iteration every ratio is 1. What does the clip do there? What does it do in the second update?
# 2. A token had the old probability 0.9. Which of the limits 0.8 and 1.2 can its ratio cross? For a good response, which tokens
#    can the clip stop?
# 3. Sample a second batch from the old policy (`start(seed=1, **settings).sample_episodes()`). Follow the mean ratio, the KL and
#    the share of clipped tokens on it. Which of the three differs from the first batch, and why?
# 4. What would a clip of 0 do?
#
# Exercises: `ex10` (the clipped loss), `ex13` (micro-batches), `ex17` (a loss with a silent mistake).
# Read next: `vine_mini/losses.py`, and `Trainer.update` in `vine_mini/trainer.py`.
