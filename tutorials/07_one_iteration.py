# %% [markdown]
# # 7. One VinePPO iteration by hand, then the loop
#
# All parts are now known. We put them together in the order of the paper's Algorithm 1: sample, roll out, compute advantages,
# update. Then we check that the package's own loop gives the same result, and let the loop run.

# %%
import torch
from lesson import QUICK, show, start

from vine_mini import tasks
from vine_mini.advantages import spread_to_tokens, step_advantages, whiten
from vine_mini.app.plots import COLOURS, PHASES, new_figure, smooth
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
# An iteration samples $G$ responses to each of $N$ problems and grades them. `tokens` holds one response in each row: its prompt,
# the response itself, and padding.
#
# `score` gives two kinds of log-probs of the sampled tokens. The old log-probs are the sampler's own. The reference log-probs
# come from the *reference*, a frozen copy of the policy that training started from.

# %%
episodes = trainer.sample_episodes()
trajectories, tokens, mask = episodes.trajectories, episodes.tokens, episodes.tokens.response_mask
scores, _ = trainer.score(episodes)
print(f"rewards       {list(episodes.rewards.shape)} [N, G], mean {episodes.rewards.mean():.3f}")
old_mean = masked_mean(scores["old_logprobs"], mask)
print(f"old_logprobs  {list(mask.shape)} [B, T], mean {old_mean:.3f} nats, {mask.sum():.0f} response tokens")

# %% [markdown]
# ## 2. Cut into steps, and roll out
#
# Each distinct state in which a step starts gets $K$ rollouts (section 4). `roll_out` samples them with the policy that sampled
# the responses.

# %%
cuts = [cut_steps(t.response_ids, tokenizer, answer_mark=task.ANSWER_MARK) for t in trajectories]
rows = zip(episodes.problems, trajectories, cuts, strict=True)
states = [[(problem, tuple(t.response_ids[:cut])) for cut in starts] for problem, t, starts in rows]
place = {}  # a state -> the row and the cut at which it occurs first
for row, of_row in enumerate(states):
    for state, cut in zip(of_row, cuts[row], strict=True):
        place.setdefault(state, (row, cut))
distinct = [[cut for first, cut in place.values() if first == row] for row in range(len(trajectories))]
rollouts = [group for of_row in trainer.roll_out(trajectories, distinct, config.k) for group in of_row]  # [distinct state][K]
rollout_tokens = sum(len(r.response_ids) for group in rollouts for r in group)
print(f"states        {sum(map(len, cuts))}, of which {len(place)} are distinct")
print(
    f"rollouts      {config.k * len(place)} with {rollout_tokens} tokens, {rollout_tokens / mask.sum():.1f} times the responses'"
)

# %% [markdown]
# ## 3. Values and advantages
#
# The value of a state is the mean reward of its rollouts. The other responses to a problem are rollouts of its prompt as well, so
# they count for the value of the first state. The advantage of a step is the change of the value that the step causes, averaged
# with $\lambda$ and $\mu$ as in tutorial 4. All tokens of the step share this advantage. Whitening gives the advantages of all
# response tokens of the iteration mean 0 and standard deviation 1.

# %%
rewards = []  # [distinct state][K]
for (problem, so_far), group in zip(place, rollouts, strict=True):
    rewards.append([tasks.grade(task, problem, r, tokenizer, so_far) for r in group])
value = dict(zip(place, monte_carlo_values(rewards), strict=True))  # state -> value
others = (episodes.rewards.sum(dim=1, keepdim=True) - episodes.rewards).flatten().tolist()  # [B] rewards of the rest of the group
of_tokens = []
for t, row, of_row, R, rest in zip(trajectories, cuts, states, episodes.rewards.flatten().tolist(), others, strict=True):
    values = [value[state] for state in of_row]
    values[0] = (config.k * values[0] + rest) / (config.k + config.group - 1)
    of_steps = step_advantages(values, R, lam=config.mc_lam, mu=config.mc_mu)
    of_tokens.append(spread_to_tokens(of_steps, row, len(t.response_ids)))
advantages = on_response(of_tokens, mask)  # [B, T]
batch = Batch(**vars(tokens), **scores, advantages=whiten(advantages, mask))
some = masked_mean((advantages != 0).float(), mask)
print(f"advantages    {list(advantages.shape)} [B, T], not 0 on {some:.1%} of the response tokens")

# %% [markdown]
# ## 4. Update
#
# The iteration makes two passes over its episodes, in minibatches with one update each. The loss is the clipped loss (section 3)
# plus a small penalty for the KL to the reference. A minibatch goes through the network in micro-batches. All of them are divided
# by one denominator, so their gradients add up to the gradient of the minibatch.

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
            penalty = kl_penalty(logprobs, b.ref_logprobs).clamp(max=10)  # the limit for one token, as in the official code
            kl = masked_mean(penalty, b.response_mask, denominator)
            (loss + config.kl_coef * kl).backward()
            ratio, clipped = ratio + stats["ratio"], clipped + stats["clip_frac"]
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        print(f"epoch {epoch}: {len(chosen)} episodes, mean ratio {ratio:.6f}, clipped {clipped:.2%}, gradient norm {norm:.3f}")

# %% [markdown]
# The first ratio is 1 up to rounding, because the policy is still the one that sampled. If it is not 1, the sampler and the
# training code disagree. Everything that follows is then wrong, and no error message says so.
#
# ## The package's iteration
#
# A second trainer with the same seed samples the same responses and rollouts. The first iteration of this trainer must give the
# same weights.

# %%
loop = start(**setting)
before = loop.evaluate()
training = loop.train()
metrics, theirs, their_advantages = next(training)
pairs = list(zip(policy.parameters(), loop.policy.parameters(), trainer.reference.parameters(), strict=True))
gap, moved = (max((p - others[n]).abs().max().item() for p, *others in pairs) for n in (0, 1))
print(f"same responses: {[t.response_ids for t in trajectories] == [t.response_ids for t in theirs.trajectories]}")
print(f"same advantages: {torch.equal(advantages, their_advantages)}")
print(f"largest difference of a weight: {gap:.0e}; the iteration changed weights by up to {moved:.0e}")

# %% [markdown]
# ## The loop
#
# Every later iteration does the same with new responses, which the current policy samples. The last table shows
#
# - `pass@1`: the share of right samples at temperature 1;
# - `greedy`: the share of right responses at temperature 0;
# - `maj@4`: the share of problems whose most frequent answer in four samples is right;
# - `any@4`: the share of problems with at least one right answer in four samples.

# %%
print("iteration  reward  distinct states  with advantage  seconds so far")
rows = [metrics]
for m, _, _ in training:
    rows.append(m)
    if m["iteration"] % 2 == 0:
        share, n = m["nonzero_advantages"], m["unique_states"]
        print(f"{m['iteration']:9}{m['reward']:8.3f}{n:17}{share:16.0%}{m['seconds']:16.1f}", flush=True)
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
time_axis.set(xlabel="iteration", ylabel="seconds", title="Time of an iteration")
time_axis.margins(y=0.3)
for axis in (reward_axis, time_axis):
    axis.set_xticks(range(0, len(rows) + 1, max(1, len(rows) // 4)))
time_axis.legend(frameon=False, ncols=2, loc="upper right")
show(figure, "07_one_iteration")

# %% [markdown]
# ## Questions
#
# 1. Many tokens have the advantage 0 before whitening. Is it still 0 after whitening? Does an update change these tokens?
# 2. Cut with `every=64`, so that a response is one step. What does the advantage become? Which algorithm is similar?
# 3. Add `k=9` to `setting`. Which part of the time grows, and does it grow by 9 / 2? Rollouts of one state share its prefix.
# 4. The number of distinct states falls while the policy learns. Later, the share of tokens with an advantage falls as well. Why?
#    What does this do to learning?
#
# Exercise: `ex11` (KL).
# Read next: `vine_mini/trainer.py`, from `train` downwards, and `vine_mini/algorithms.py`.
