# %% [markdown]
# # 7. One VinePPO iteration by hand, then the loop
#
# All parts are now known. We put them together in the order of the paper's Algorithm 1: sample, roll out, compute advantages,
# update. Then we check that the package's own loop gives the same result, let it run, and measure how far the policy moves.

# %%
import torch
from lesson import QUICK, mean_and_error, show, start
from torch.nn.utils import parameters_to_vector

from vine_mini import tasks
from vine_mini.advantages import spread_to_tokens, step_advantages, whiten
from vine_mini.app.plots import new_figure, smooth
from vine_mini.evaluate import table
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import clipped_policy_loss, kl_penalty, masked_mean
from vine_mini.steps import cut_steps
from vine_mini.types import Batch, derive_seed, on_response
from vine_mini.values import monte_carlo_values

setting = dict(prompts=4, minibatch_size=8, eval_problems=10, iterations=2) if QUICK else dict(iterations=20)
trainer = start(**setting)
config, policy, tokenizer, task = trainer.config, trainer.policy, trainer.tokenizer, trainer.task
optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)

# %% [markdown]
# ## 1. Sample
#
# An iteration samples $G$ responses to each of $N$ problems and grades them. `score` gives each sampled token two log-probs. The
# old one is the sampler's own. The other comes from the *reference*, a frozen copy of the start policy.

# %%
episodes = trainer.sample_episodes()
trajectories, tokens, mask = episodes.trajectories, episodes.tokens, episodes.tokens.response_mask
scores, _ = trainer.score(episodes)
print(f"rewards       {list(episodes.rewards.shape)} [N, G], mean {episodes.rewards.mean():.3f}")
print(f"old_logprobs  {list(mask.shape)} [B, T], mean {masked_mean(scores['old_logprobs'], mask):.3f} nats a response token")

# %% [markdown]
# ## 2. Cut into steps, and roll out
#
# Each distinct state in which a step starts gets $K$ rollouts (section 4) from the policy that sampled the responses. Here $K$ is
# 2, and $\lambda$ and $\mu$ of tutorial 4 are 0.5. The paper has $K = 9$ and both at 0.

# %%
cuts = [cut_steps(t.response_ids, tokenizer, answer_mark=task.ANSWER_MARK) for t in trajectories]
place = {}  # a state -> the row and the cut at which it occurs first
for row, (problem, t, starts) in enumerate(zip(episodes.problems, trajectories, cuts, strict=True)):
    for cut in starts:
        place.setdefault((problem, tuple(t.response_ids[:cut])), (row, cut))
distinct = [[cut for first, cut in place.values() if first == row] for row in range(len(trajectories))]
rollouts = [group for of_row in trainer.roll_out(trajectories, distinct, config.k) for group in of_row]  # [distinct state][K]
rollout_tokens = sum(len(r.response_ids) for group in rollouts for r in group)
print(f"states        {sum(map(len, cuts))}, of which {len(place)} are distinct")
print(f"rollouts      {config.k * len(place)}; {rollout_tokens / mask.sum():.1f} times as many tokens as the responses")

# %% [markdown]
# ## 3. Values and advantages
#
# The value of a state is the mean reward of its rollouts. The other responses to a problem also start at its prompt, so they
# count for the first value (not in the paper). The advantage of a step is the change of the value, averaged with $\lambda$ and
# $\mu$ as in tutorial 4. All tokens of the step share it. Whitening gives the advantages mean 0 and standard deviation 1.

# %%
rewards = []  # [distinct state][K]
for (problem, so_far), group in zip(place, rollouts, strict=True):
    rewards.append([tasks.grade(task, problem, r, tokenizer, so_far) for r in group])
value = dict(zip(place, monte_carlo_values(rewards), strict=True))  # state -> value
others = (episodes.rewards.sum(dim=1, keepdim=True) - episodes.rewards).flatten().tolist()  # [B] rewards of the rest of the group
of_tokens = []
rows = zip(episodes.problems, trajectories, cuts, episodes.rewards.flatten().tolist(), others, strict=True)
for problem, t, starts, R, rest in rows:
    values = [value[problem, tuple(t.response_ids[:cut])] for cut in starts]
    values[0] = (config.k * values[0] + rest) / (config.k + config.group - 1)
    of_steps = step_advantages(values, R, lam=config.mc_lam, mu=config.mc_mu)
    of_tokens.append(spread_to_tokens(of_steps, starts, len(t.response_ids)))
advantages = on_response(of_tokens, mask)  # [B, T]
batch = Batch(**vars(tokens), **scores, advantages=whiten(advantages, mask))
print(f"advantages    {list(advantages.shape)} [B, T], not 0 on {masked_mean((advantages != 0).float(), mask):.1%} of the tokens")

# %% [markdown]
# ## 4. Update
#
# The iteration makes two passes over its episodes, in minibatches with one update each. The loss is the clipped loss plus
# `kl_coef` times the KL to the reference. Here `kl_coef` is 1e-4, too small to hold the policy (the command's default is 0.1).
# A minibatch is split into micro-batches. With one denominator their gradients add up to the gradient of the minibatch.

# %%
shuffle = torch.Generator().manual_seed(derive_seed(config.seed, 0, "minibatches"))  # the seed that the package's loop uses
for epoch in range(config.epochs):
    for chosen in torch.randperm(len(batch), generator=shuffle).split(config.minibatch_size):
        denominator, ratio, clipped = mask[chosen].sum(), 0.0, 0.0
        for part in batch.micro_batches(chosen, config.micro_batch_tokens):
            b = batch.rows(part)
            logprobs = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask)  # [b, t], with gradients
            common = dict(clip=config.clip, denominator=denominator)
            loss, stats = clipped_policy_loss(logprobs, b.old_logprobs, b.advantages, b.response_mask, **common)
            penalty = kl_penalty(logprobs, b.ref_logprobs).clamp(max=10)  # the limit, as in the official code
            kl = masked_mean(penalty, b.response_mask, denominator)
            (loss + config.kl_coef * kl).backward()
            ratio, clipped = ratio + stats["ratio"], clipped + stats["clip_frac"]
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        print(f"epoch {epoch}: {len(chosen)} episodes, mean ratio {ratio:.6f}, clipped {clipped:.2%}, gradient norm {norm:.3f}")

# %% [markdown]
# The first ratio is 1 up to rounding, because no update has been made yet. If it is not 1, sampler and training code disagree.
#
# ## The package's iteration
#
# A second trainer with the same seed samples the same responses. Its first iteration must give the same weights.

# %%
loop = start(**setting)
before, training = loop.evaluate(), loop.train()
metrics, theirs, their_advantages = next(training)
mine, theirs_too, first = (parameters_to_vector(m.parameters()) for m in (policy, loop.policy, trainer.reference))
print(f"same responses: {[t.response_ids for t in trajectories] == [t.response_ids for t in theirs.trajectories]}")
print(f"same advantages: {torch.equal(advantages, their_advantages)}")
print(f"largest difference of a weight: {(mine - theirs_too).abs().max():.0e}; ", end="")
print(f"the iteration changed weights by up to {(mine - first).abs().max():.0e}")

# %% [markdown]
# ## The loop
#
# Every later iteration does the same with new responses of the current policy. In the last table, `pass@1` is the share of right
# samples, and `greedy` the same at temperature 0. `maj@4` is the share of problems whose most frequent answer of four is right.
# `pass@4` is the share of problems with at least one right answer in four.

# %%
print("iteration  reward  distinct states  with advantage  seconds so far")
rows = [metrics]
for m, _, _ in training:
    rows.append(m)
    if m["iteration"] % 2 == 0:
        print(f"{m['iteration']:9}{m['reward']:8.3f}{m['unique_states']:17}{m['nonzero_advantages']:16.0%}{m['seconds']:16.1f}")
print("\ntest problems, mean ± standard error\n" + table({"before": before, "after": loop.evaluate()}))
print("\ntime: " + ", ".join(f"{phase} {s / sum(loop.seconds.values()):.0%}" for phase, s in loop.seconds.items()))

# %% [markdown]
# ## How far has the policy moved?
#
# The KL divergence to the reference compares two distributions of the next token, over the whole vocabulary:
#
# $$\mathrm{KL}(\pi \Vert \pi_{\mathrm{ref}}) = \sum_y \pi(y) \log \frac{\pi(y)}{\pi_{\mathrm{ref}}(y)}$$
#
# Training keeps only log-probs of sampled tokens. Three estimates use $d = \log \pi_{\mathrm{ref}}(y) - \log \pi(y)$:
#
# | | estimate | mean over samples of $\pi$ | one sample | mean gradient over samples of $\pi$ |
# |---|---|---|---|---|
# | k1 | $-d$ | the KL | often negative | 0: as a penalty it only adds noise |
# | k2 | $d^2 / 2$ | close to the KL if $d$ is small | never negative | the gradient of the KL |
# | k3 | $e^d - d - 1$ | the KL | never negative | the gradient of $\mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi)$ |
#
# On new responses of the trained policy, k1's mean is near the exact one. k2 and k3 have larger errors, because $d^2$ and $e^d$
# are large on a few tokens. VinePPO uses k3, at most 10 a token. Near the reference, both directions of the KL are almost equal.

# %%
fresh = loop.sample_episodes().tokens
with torch.no_grad():
    new, ref = (m(fresh.input_ids).logits[:, :-1].log_softmax(dim=-1) for m in (loop.policy, loop.reference))  # [B, T - 1, V]
there, chosen = fresh.response_mask[:, 1:].bool(), fresh.input_ids[:, 1:, None]  # shifted by one, as in tutorial 1
exact = (new.exp() * (new - ref)).sum(dim=-1)[there]  # [n], the KL of every response token
kinds = {kind: kl_penalty(*(x.gather(2, chosen)[..., 0][there] for x in (new, ref)), kind=kind) for kind in ("k1", "k2", "k3")}
sizes = fresh.response_mask.sum(dim=1).view(-1, config.group).sum(dim=1).int().tolist()  # response tokens of each problem
for kind, x in {"exact": exact, **kinds}.items():
    (mean, error), negative = mean_and_error(x.split(sizes)), (x < -1e-6).float().mean()
    print(f"{kind:5} mean {mean:.3f} ± {error:.3f} nats a token, deviation {x.std():.2f}, below 0: {negative:.0%}")

# %%
figure, ((reward_axis, kl_axis),) = new_figure(2)
x, rewards = [row["iteration"] for row in rows], [row["reward"] for row in rows]
reward_axis.plot(x, rewards, color="0.75", label="training problems of an iteration")
reward_axis.plot(x, smooth(rewards), color="#0072B2", label="smoothed")
reward_axis.set(xlabel="iteration", ylabel="share of right answers", title="Sampled at temperature 1", ylim=(0, 1))
reward_axis.set_xticks(range(0, len(rows) + 1, max(1, len(rows) // 4)))
reward_axis.legend(frameon=False)
for kind, style in {"k1": "#D55E00 --", "k2": "#E69F00 :", "k3": "#0072B2 -"}.items():
    colour, line = style.split()
    d, label = torch.linspace(-2, 2, 100), f"{kind}, mean {kinds[kind].mean():.3f}"
    kl_axis.plot(d, kl_penalty(torch.zeros(100), d, kind=kind), line, color=colour, label=label)
kl_axis.axhline(exact.mean(), color="0.5", linewidth=1, label=f"exact mean {exact.mean():.3f}")
kl_axis.set(xlabel="d = log ref − log policy, of one token", ylabel="estimate (nats)", title="Three estimates of the KL")
kl_axis.legend(frameon=False)
show(figure, "07_one_iteration")

# %% [markdown]
# ## Questions
#
# 1. Some tokens have the advantage 0 before whitening. Is it still 0 after whitening? Does an update change these tokens?
# 2. Cut with `every=64`, and add `step_tokens=64` to `setting` for the loop. A response is then one step. What does the
#    advantage become? Which algorithm is similar?
# 3. In the first iteration the rollouts have 3.8 times the tokens of the responses. Why do rollouts not take 3.8 times as long as
#    sampling over the run? Which part of the time grows with `k=9` in `setting`?
# 4. The number of distinct states falls while the policy learns. Why? What does this do to the cost of the rollouts?
# 5. At the first update of a run, what are k1, k2 and k3? Which of them moves the policy there?
#
# Exercise: `ex11` (KL). Read next: `vine_mini/trainer.py`, from `train` downwards, and `vine_mini/algorithms.py`.
