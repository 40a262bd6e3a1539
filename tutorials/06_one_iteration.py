# %% [markdown]
# # 6. One VinePPO iteration by hand, then the loop
#
# All parts are there now. We put them together in the order of the paper's Algorithm 1: sample, roll out, give credit, update.
# Then we check that the package's own loop does the same, and let it run.

# %%
import torch
from lesson import QUICK, show, start

from vine_mini import tasks
from vine_mini.advantages import spread_to_tokens, step_advantages, whiten
from vine_mini.evaluate import table
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import clipped_policy_loss, kl_penalty, masked_mean
from vine_mini.app.plots import COLOURS, PHASES, new_figure, smooth
from vine_mini.steps import cut_steps
from vine_mini.types import on_response

setting = dict(prompts=4, minibatch_size=8, eval_problems=10, iterations=2) if QUICK else dict(iterations=20)
trainer = start(**setting)
config, policy, tokenizer = trainer.config, trainer.policy, trainer.tokenizer
optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)

# %% [markdown]
# ## 1. Sample
#
# $N$ problems, $G$ responses to each, and their rewards. `batch` holds prompt, response and padding of each response in a row.

# %%
episodes = trainer.sample_episodes()
batch, trajectories, mask = episodes.batch, episodes.trajectories, episodes.batch.response_mask
trainer.score(batch, trajectories)  # fills in old_logprobs (the sampler's) and ref_logprobs (of the policy that we start from)
print(f"rewards       {list(episodes.rewards.shape)} [N, G], mean {episodes.rewards.mean():.3f}")
print(f"old_logprobs  {list(mask.shape)} [B, T], mean {masked_mean(batch.old_logprobs, mask):.3f} nats, {mask.sum():.0f} tokens")

# %% [markdown]
# ## 2. Cut, and roll out
#
# Each different state at a cut gets $K$ completions (section 4). `fork` is `vines.rollouts` with the policy that sampled.

# %%
cuts = [cut_steps(t.response_ids, tokenizer) for t in trajectories]
states = [[tuple(t.prompt_ids + t.response_ids[:cut]) for cut in row] for t, row in zip(trajectories, cuts, strict=True)]
seen, new_cuts = set(), []
for row, of_row in zip(cuts, states, strict=True):
    new_cuts.append([cut for cut, state in zip(row, of_row, strict=True) if state not in seen])
    seen.update(of_row)
completions = episodes.fork(trajectories, new_cuts, config.k)  # [trajectory][cut][K]
rollout_tokens = sum(len(x.response_ids) for row in completions for group in row for x in group)
print(f"states        {sum(map(len, cuts))}, of which {len(seen)} are different")
print(f"rollouts      {config.k * len(seen)} of {rollout_tokens} tokens, {rollout_tokens / mask.sum():.1f} times the responses'")

# %% [markdown]
# ## 3. Values and advantages
#
# $V_{MC}(s)$ is the mean reward of the completions. The advantage of a step is the change it made to the value, and all its
# tokens share it. Whitening makes mean 0 and standard deviation 1 over the response tokens of the iteration.

# %%
values = {}
for t, problem, row, groups in zip(trajectories, episodes.problems, new_cuts, completions, strict=True):
    for cut, group in zip(row, groups, strict=True):
        Rs = [tasks.reward(problem, t.response_ids[:cut] + x.response_ids, x.finished, tokenizer) for x in group]
        values[tuple(t.prompt_ids + t.response_ids[:cut])] = sum(Rs) / config.k
credit = []
for t, row, of_row, R in zip(trajectories, cuts, states, episodes.rewards.flatten().tolist(), strict=True):
    of_steps = step_advantages([values[state] for state in of_row], R)
    credit.append(spread_to_tokens(of_steps, row, len(t.response_ids)))
advantages = on_response(credit, mask)
batch.advantages = whiten(advantages, mask)
some = masked_mean((advantages != 0).float(), mask)
print(f"advantages    {list(advantages.shape)} [B, T], not 0 on {some:.1%} of the response tokens")

# %% [markdown]
# ## 4. Update
#
# Two epochs of minibatches of the clipped loss (section 3) and a small penalty for the KL to the *reference*, the frozen
# policy that training started from. A minibatch goes through the network in parts. As all parts are divided by one
# denominator, their gradients add up to that of the whole.

# %%
shuffle = torch.Generator().manual_seed(config.seed)
for epoch in range(config.epochs):
    for chosen in torch.randperm(len(batch), generator=shuffle).split(config.minibatch_size):
        denominator, ratio, clipped = mask[chosen].sum(), 0.0, 0.0
        for part in batch.micro_batches(chosen, config.micro_batch_tokens):
            b = batch.rows(part)
            logprobs = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask)  # [b, t], with gradients
            common = dict(clip=config.clip, denominator=denominator)
            loss, stats = clipped_policy_loss(logprobs, b.old_logprobs, b.advantages, b.response_mask, **common)
            penalty = kl_penalty(logprobs, b.ref_logprobs).clamp(max=10)  # no token counts for more, as in the official code
            kl = masked_mean(penalty, b.response_mask, denominator)
            (loss + config.kl_coef * kl).backward()
            ratio, clipped = ratio + stats["ratio"], clipped + stats["clip_frac"]
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        print(f"epoch {epoch}: {len(chosen)} episodes, mean ratio {ratio:.6f}, clipped {clipped:.2%}, gradient norm {norm:.3f}")

# %% [markdown]
# The first ratio is 1 up to rounding, because the policy is still the one that sampled. If it is not, sampler and trainer
# disagree, and all that follows is wrong without a message.
#
# ## The package's iteration
#
# A second trainer with the same seed draws the same problems, responses and rollouts. It must come to the same weights.

# %%
loop = start(**setting)
before = loop.evaluate()
training = loop.train()
metrics, theirs, their_advantages = next(training)
pairs = list(zip(policy.parameters(), loop.policy.parameters(), trainer.reference.parameters(), strict=True))
gap, moved = (max((p - others[n]).abs().max().item() for p, *others in pairs) for n in (0, 1))
print(f"same responses: {[t.response_ids for t in trajectories] == [t.response_ids for t in theirs.trajectories]}")
print(f"same advantages: {torch.equal(advantages, their_advantages)}")
print(f"largest difference of a weight: {gap:.0e}; the iteration moved them by up to {moved:.0e}")

# %% [markdown]
# ## The loop
#
# From here on it is the same again and again, each time with fresh responses of the policy as it is by then. In the last
# table, `pass@1` is the share of right samples at temperature 1, `greedy` that of the most likely responses, `maj@4` the
# share of problems whose most frequent answer in four samples is right, `any@4` that with at least one right sample.

# %%
print("iteration  reward  different states  with advantage  seconds so far")
rows = [metrics]
for m, _, _ in training:
    rows.append(m)
    if m["iteration"] % 2 == 0:
        share, states = m["nonzero_advantages"], m["unique_states"]
        print(f"{m['iteration']:9}{m['reward']:8.3f}{states:18}{share:16.0%}{m['seconds']:16.1f}", flush=True)
after = loop.evaluate()
total = sum(loop.seconds.values())
print("\ntest problems, mean ± standard error\n" + table({"before": before, "after": after}))
print("\ntime: " + ", ".join(f"{phase} {loop.seconds[phase] / total:.0%}" for phase in PHASES) + f" of {total:.1f} s")

# %%
figure, ((reward_axis, time_axis),) = new_figure(2)
x, rewards = [row["iteration"] for row in rows], [row["reward"] for row in rows]
reward_axis.plot(x, rewards, color="0.75", label="training problems of an iteration")
reward_axis.plot(x, smooth(rewards), color="#0072B2", label="smoothed")
(start_mean, start_error), (end_mean, end_error) = before["pass@1"], after["pass@1"]
ends = [0, x[-1]], [start_mean, end_mean], [start_error, end_error]
reward_axis.errorbar(*ends, fmt="o", color="black", capsize=4, label="test problems")
reward_axis.set(xlabel="iteration", ylabel="share of right answers", title="Sampled at temperature 1", ylim=(0, 1))
reward_axis.legend(frameon=False, loc="lower right")
seconds = [[row[f"seconds_{phase}"] for row in rows] for phase in PHASES]
time_axis.stackplot(x, seconds, labels=PHASES, colors=list(COLOURS.values()), alpha=0.8)
time_axis.set(xlabel="iteration", ylabel="seconds", title="Where an iteration's time goes")
time_axis.margins(y=0.3)
for axis in (reward_axis, time_axis):
    axis.set_xticks(range(0, len(rows) + 1, max(1, len(rows) // 4)))
time_axis.legend(frameon=False, ncols=2, loc="upper right")
show(figure, "06_one_iteration")

# %% [markdown]
# ## Questions
#
# 1. Many tokens have an advantage of exactly 0 before whitening. Have they one afterwards? Does an update push them?
# 2. Cut with `every=64`, so that a response is one step. What does the advantage become, and which algorithm is close to it?
# 3. Add `k=9` to `setting`. Which part of the time grows, and is it by 9 / 4? Remember that equal rollouts share their work.
# 4. The number of different states falls as the policy learns, and in the end the share of tokens with an advantage falls, too.
#    Why? What does that do to learning?
#
# Exercise: `ex11` (KL).
# Read next: `vine_mini/trainer.py`, from `train` downwards, and `vine_mini/algorithms.py`.
