# %% [markdown]
# # 5. The policy gradient
#
# We want a policy that earns more reward. Gradient ascent on the mean reward would do it, but the reward comes from a program
# that checks an answer. The program has no derivative, and neither has the random choice of tokens.
#
# The *policy gradient* solves this. The gradient needs only the rewards and the log-probs of what was drawn:
#
# $$\nabla \mathbb{E}[R] = \sum_a R(a) \nabla \pi(a) = \sum_a \pi(a) R(a)\, \nabla \log \pi(a) = \mathbb{E}[R \nabla \log \pi]$$
#
# Here $\mathbb{E}[R] = \sum_a \pi(a) R(a)$, and $R(a)$ does not depend on the weights. The second equation uses $\nabla \pi =
# \pi\, \nabla \log \pi$. A mean over samples estimates the last sum. This estimate is called REINFORCE (Williams 1992). We check
# it where every case can be counted. Then we make it less noisy in two ways.

# %%
from functools import cache
from itertools import product

import torch
from lesson import QUICK, show

from vine_mini.advantages import leave_one_out, step_advantages
from vine_mini.app.plots import new_figure
from vine_mini.losses import clipped_policy_loss

# %% [markdown]
# ## Three arms
#
# The smallest policy chooses one of three actions, once. This is called a *bandit* with three arms. The policy is a softmax over
# three logits. The worst arm starts likeliest. We enumerate the arms and compute the gradient in both ways.

# %%
R = torch.tensor([1.0, 0.8, 0.6])  # the reward of each arm
logits = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
p = logits.softmax(dim=0)  # the policy
[exact] = torch.autograd.grad((p * R).sum(), logits)  # the gradient of the mean reward
logprobs = logits.log_softmax(dim=0)
grad_log = torch.stack([torch.autograd.grad(logprobs[a], logits, retain_graph=True)[0] for a in range(3)])  # [arm, logit]
p = p.detach()
value = (p * R).sum()  # the mean reward of this policy
print("probabilities             ", p.numpy().round(3), f" mean reward {value:.3f}")
print("gradient of the mean      ", exact.numpy().round(4))
print("mean of R grad log pi     ", sum(p[a] * R[a] * grad_log[a] for a in range(3)).numpy().round(4))
print("grad log pi of each arm   ", *grad_log.numpy().round(3))

# %% [markdown]
# Both gradients are equal. The last line shows what one sample does. The gradient of $\log \pi(a)$ raises the logit of the
# arm that was drawn and lowers the others. The sample multiplies it by its reward. All rewards are positive here, so *every* arm
# is pushed up when it is drawn, even the worst. The better arms are only pushed harder. One sample is therefore mostly noise.
#
# ## A baseline
#
# We may subtract any number $b$ from the reward, as long as $b$ does not depend on the arm that was drawn:
#
# $$\mathbb{E}[b\, \nabla \log \pi] = b \sum_a \pi(a)\, \nabla \log \pi(a) = b\, \nabla \sum_a \pi(a) = b\, \nabla 1 = 0$$
#
# The mean of the gradient does not change. Its *noise* changes. The noise is the mean squared distance between the gradient of
# one sample and the mean gradient. We measure both with many samples.

# %%
n, generator = 2000 if QUICK else 100_000, torch.Generator().manual_seed(0)
drawn = torch.multinomial(p, n, replacement=True, generator=generator)  # [n]
baselines, measured = [0.0, 0.4, value.item(), 1.2, 1.6], []
for b in baselines:
    g = (R[drawn] - b)[:, None] * grad_log[drawn]  # [n, 3], one gradient for each sample
    off = ((g.mean(dim=0) - exact) / g.std(dim=0)).abs().max() * n**0.5
    measured.append((g - g.mean(dim=0)).square().sum(dim=1).mean())
    shown = f"{g.mean(dim=0).numpy().round(4)}, off by at most {off:.1f} standard errors"
    print(f"b = {b:.2f}: mean gradient {shown}; noise of one sample {measured[-1]:.4f}")

# %% [markdown]
# The mean reward of the policy, $b = V$, is a good baseline. A sample then says whether an arm was better or worse than expected.
# The difference $R - V$ is the *advantage* of tutorial 4.
#
# In practice $V$ is not known. But if we draw several samples, the mean of the *other* rewards is a baseline for each of them. It
# does not depend on what this sample drew. This is RLOO, "REINFORCE leave one out" (arXiv 2402.14740). We let 200 policies learn
# with it and without it. Each update uses eight samples.


# %%
def learn(with_baseline: bool, updates: int, lr: float = 2.0, policies: int = 200, samples: int = 8):
    """-> mean reward of each policy before each update and at the end, [updates + 1, policies]"""
    generator = torch.Generator().manual_seed(1)
    theta, curve = torch.tensor([0.0, 0.5, 1.0]).repeat(policies, 1), []
    for _ in range(updates):
        p = theta.softmax(dim=1)  # [policies, 3]
        curve.append(p @ R)
        arms = torch.multinomial(p, samples, replacement=True, generator=generator)  # [policies, samples]
        credit = leave_one_out(R[arms]) if with_baseline else R[arms]
        grad_log = torch.eye(3)[arms] - p[:, None]  # [policies, samples, 3]: 1 at the arm that was drawn, minus p
        theta = theta + lr * (credit[..., None] * grad_log).mean(dim=1)
    return torch.stack([*curve, theta.softmax(dim=1) @ R])


updates = 10 if QUICK else 100
curves = {"reward": learn(False, updates), "less the mean of the others": learn(True, updates)}
for name, curve in curves.items():
    print(f"{name:27}: mean reward {curve[-1].mean():.3f} at the end, {(curve[-1] < 0.85).sum()} of 200 policies below 0.85")

# %% [markdown]
# Without a baseline, some policies stay with a worse arm for many updates. An arm that is drawn early becomes likelier.
#
# ## Token by token
#
# A response has many actions. Its log-prob is a sum over tokens, so the policy gradient is a sum as well:
#
# $$\nabla \mathbb{E}[R] = \mathbb{E} \sum_t R \nabla \log \pi(y_t | s_t) = \mathbb{E} \sum_t A_t \nabla \log \pi(y_t | s_t)$$
#
# The second equation uses two facts. First, each token may have its own baseline. The value $V(s_t)$ is one, because the state is
# known before the token is drawn. Second, once the token is known, $R$ has the mean $V(s_{t+1})$, so $V(s_{t+1})$ may replace
# $R$. This leaves the advantage of tutorial 4: $A_t = V(s_{t+1}) - V(s_t)$, and $R - V(s_t)$ at the last token. A step of several
# tokens may count as one action, whose log-prob is the sum of its tokens' log-probs. All its tokens then get its advantage.
#
# We enumerate again, for responses of 1 to 10 tokens. A token is right with probability 0.8, which a logit sets. There are three
# tasks: the middle token decides the reward; all tokens must be right; all must be right, and they share one logit.

# %%
q, longest = 0.8, 4 if QUICK else 10  # the probability of a right token; the length of the longest response
tasks = {"one decides": lambda y: y[len(y) // 2], "all right, own logits": all, "all right, one logit": all}


@cache
def true_value(reward, so_far, length):  # the mean reward of the responses that begin with these tokens; 1 is a right token
    if len(so_far) == length:
        return float(reward(so_far))
    return q * true_value(reward, (*so_far, 1), length) + (1 - q) * true_value(reward, (*so_far, 0), length)


noise = {}  # (task, credit) -> noise / signal of one response, for each length; signal: squared length of the mean gradient
for (task, reward), length in product(tasks.items(), range(1, longest + 1)):
    cases = {"R": [], "R - V(s_0)": [], "A of each token": []}
    for y in product((1, 0), repeat=length):  # all 2^length responses; 1 is a right token
        r = float(reward(y))
        V = [true_value(reward, y[:t], length) for t in range(length)]  # V(s_t) before each token
        prob = q ** sum(y) * (1 - q) ** (length - sum(y))
        for name, credit in zip(cases, ([r] * length, [r - V[0]] * length, step_advantages(V, r)), strict=True):
            g = torch.tensor(credit) * (torch.tensor(y) - q)  # [length]; grad log pi = y - q
            cases[name].append((prob, g.sum() if task == "all right, one logit" else g))
    means = {name: sum(prob * g for prob, g in rows) for name, rows in cases.items()}
    for name, rows in cases.items():
        assert torch.allclose(means[name], means["R"], atol=1e-6)  # all three have the same mean
        squares = sum(prob * (g - means[name]).square().sum() for prob, g in rows)
        noise.setdefault((task, name), []).append((squares / means[name].square().sum()).item())
for (task, name), row in noise.items():
    shown = ", ".join(f"{row[i - 1]:5.1f} with {i}" for i in ((1, 2, 4) if QUICK else (1, 2, 5, 10)))
    print(f"{task:21}, credit {name:15}: noise / signal {shown} tokens")

# %% [markdown]
# All three credits have the same mean, the exact gradient. The signal is its squared length. *One token decides:* with $R$, each
# other token adds noise. With advantages, these tokens have $A = 0$ and add none. Subtracting $V(s_0)$ lowers the noise from two
# tokens on. It does not with one: a wrong token's log-prob has the larger gradient (-0.8 against 0.2), and $R = 0$ removes it.
#
# *All right, own logits:* the advantages gain nothing, because they too give wrong tokens a credit other than 0. So $V$ is not
# always the best baseline. *All right, one logit:* the gradients of the tokens are added. At ten tokens the signal becomes ten
# times as large. So does the noise of $R$, because the same $R$ multiplies all tokens. The noise of the advantages does not grow.
# It is then a fifteenth of $R$'s. The tokens of a language model share weights, too.
#
# This is the idea of VinePPO, and its limit: advantages of steps often lower the noise. They never change the mean gradient.
#
# ## The loss
#
# An optimizer minimises a loss, so the code uses $-\mathrm{mean}(A_t \log \pi(y_t \mid s_t))$. This is the loss of SFT with a
# weight $A_t$ for each token, a constant. Its gradient is minus the policy gradient, divided by the mean number of tokens of a
# response. The size of this loss does not measure progress. The reward does. Tutorial 6 adds a ratio and a clip.

# %%
now = torch.randn(2, 5, generator=generator).requires_grad_()  # log-probs of two responses of five tokens
advantages, mask = torch.randn(2, 5, generator=generator), torch.ones(2, 5)
[plain] = torch.autograd.grad(-(advantages * now * mask).sum() / mask.sum(), now)
clipped, _ = clipped_policy_loss(now, now.detach(), advantages, mask)  # the package's loss, for tokens that were just sampled
print("the package's loss has the same gradient:", torch.allclose(plain, torch.autograd.grad(clipped, now)[0]))

# %%
figure, ((baseline_axis, learn_axis, token_axis),) = new_figure(3)
b = torch.linspace(0, 1.7, 100)
theory = (p * (R - b[:, None]) ** 2 * grad_log.square().sum(dim=1)).sum(dim=1) - exact.square().sum()
baseline_axis.plot(b, theory, color="0.5", label="enumerated")
baseline_axis.plot(baselines, measured, "o", color="#0072B2", label=f"{n:,} samples")
baseline_axis.axvline(value, color="#D55E00", linestyle="--", label="V, the mean reward")
baseline_axis.set(title="Noise of one sample", xlabel="baseline b", ylabel="squared error of the gradient", ylim=(0, None))
for (name, curve), colour, style in zip(curves.items(), ("#D55E00", "#0072B2"), ("--", "-"), strict=True):
    learn_axis.plot(curve.mean(dim=1), style, color=colour, label=name)
    learn_axis.fill_between(range(updates + 1), *curve.quantile(torch.tensor([0.1, 0.9]), dim=1), color=colour, alpha=0.15, lw=0)
learn_axis.set(title="200 policies; bands: 10 to 90 %", xlabel="updates", ylabel="mean reward", ylim=(0.6, 1.02))
for name, colour, line in zip(cases, ("#D55E00", "#E69F00", "#0072B2"), ("s--", "^:", "o-"), strict=True):
    token_axis.plot(range(1, longest + 1), noise["one decides", name], line, color=colour, markersize=4, label=name)
token_axis.set(title="One token decides", xlabel="tokens in a response", ylabel="noise / signal", yscale="log")
for axis in (baseline_axis, learn_axis, token_axis):
    axis.legend(frameon=False, fontsize=8)
show(figure, "05_policy_gradient")

# %% [markdown]
# ## Questions
#
# 1. Which baseline makes the gradient of a bandit with two arms free of noise? Why is this impossible with three arms?
# 2. The mean of *all* eight rewards depends on what this sample drew. What does this do to the mean of the gradient?
# 3. All rewards of an update are 0. What is the gradient without a baseline, and with one? What if all rewards are 1?
# 4. Set `q = 0.5`. Do the advantages now help where all must be right, each with its own logit? Why?
#
# Exercise: `ex19` (the loss of the policy gradient). Read next: `clipped_policy_loss` in `vine_mini/losses.py`.
