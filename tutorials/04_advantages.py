# %% [markdown]
# # 4. Advantages from rollouts, and from a critic
#
# An *advantage* says how much better an action was than what the policy does on average: $A(s, a) = r + V(s') - V(s)$. Here $r$
# is the reward that the action itself earns, and $s'$ is the state after the action. Here an action is a step, and $s_i$ is the
# state before step $i$. Only the last step earns a reward, so $A_{n-1} = R - V(s_{n-1})$, and else $A_i = V(s_{i+1}) - V(s_i)$.
#
# To compute advantages we need values. PPO (proximal policy optimization, the usual algorithm) estimates them with a second
# network, the *critic*. VinePPO is PPO with rollouts (tutorial 3) in place of the critic. The clipped loss (tutorial 6) stays the
# same. This tutorial computes both kinds of advantage for the same responses and compares them with the true ones.

# %%
import torch
from lesson import QUICK, correlation_and_error, rewards_of_rollouts, show, start

from vine_mini.advantages import gae, spread_to_tokens, step_advantages, whiten
from vine_mini.app.plots import new_figure
from vine_mini.evaluate import mean_of_steps, standard_errors
from vine_mini.logprobs import response_values
from vine_mini.sampling import sample
from vine_mini.steps import cut_steps
from vine_mini.tasks import grade
from vine_mini.types import collate, on_response
from vine_mini.values import monte_carlo_values

trainer = start()
policy, tokenizer, task, sampling = trainer.policy, trainer.tokenizer, trainer.task, trainer.sampling

# %% [markdown]
# ## One wrong response
#
# We take 21 responses. The first one is wrong but starts with three right steps. The other 20 answer other problems. Many
# rollouts from the start of every step give the *truth*. For the first response we also roll out from *every token*. For VinePPO
# we take $K = 9$ rollouts from every step and give each token the advantage of its step (section 4; tutorial 5 shows why).

# %%
n_others, k_tokens, k_steps = (3, 20, 20) if QUICK else (20, 400, 256)
problem, prompt = trainer.test_problems[5], trainer.test_prompts[5]
solution = tokenizer.encode(problem.solution)
three = cut_steps(solution, tokenizer, answer_mark=task.ANSWER_MARK)[3]  # where the fourth step starts
group = sample(policy, [prompt] * 16, sampling, seed=0)
wrong = next(t for t in group if t.response_ids[:three] == solution[:three] and not grade(task, problem, t, tokenizer))
problems = [problem, *trainer.test_problems[20 : 20 + n_others]]
trajectories = [wrong, *sample(policy, trainer.test_prompts[20 : 20 + n_others], sampling, seed=1)]
R = [grade(task, p, t, tokenizer) for p, t in zip(problems, trajectories, strict=True)]

cuts = [cut_steps(t.response_ids, tokenizer, answer_mark=task.ANSWER_MARK) for t in trajectories]
every_token = list(range(len(wrong.response_ids)))
[from_tokens] = rewards_of_rollouts(trainer, [problem], [wrong], [every_token], k=k_tokens, seed=2)  # [state][K]
nine = rewards_of_rollouts(trainer, problems, trajectories, cuts, k=9, seed=3)  # [response][state][K]
many = rewards_of_rollouts(trainer, problems, trajectories, cuts, k=k_steps, seed=4)
few = [[rewards[:3] for rewards in states] for states in nine]  # the first three rollouts
values = {name: list(map(monte_carlo_values, x)) for name, x in (("truth", many), ("K = 9", nine), ("K = 3", few))}
of_steps = {name: list(map(step_advantages, v, R)) for name, v in values.items()}  # name -> [response][step]
of_steps["averaged"] = [step_advantages(*x, lam=0.5, mu=0.5) for x in zip(values["K = 3"], R, strict=True)]  # explained below

print(f"{problem.question}\n{'':22}" + "".join(f"{name:>10}" for name in of_steps))
for i, (a, z) in enumerate(zip(cuts[0], [*cuts[0][1:], len(every_token)], strict=True)):
    text = tokenizer.decode(wrong.response_ids[a:z]).replace("\n", " ")
    print(f"{text:22}" + "".join(f"{rows[0][i]:+10.2f}" for rows in of_steps.values()))
gap = max(abs(sum(row) - (reward - v[0])) for row, reward, v in zip(of_steps["K = 9"], R, values["K = 9"], strict=True))
print(f"\nsum of step advantages (K = 9) against R - V(s_0): largest gap in {len(trajectories)} responses {gap:.1e}")

# %% [markdown]
# The true advantage of the step with the mistake is clearly negative. The right steps before it have small positive advantages
# (tutorial 3), but noise can hide one of them. With nine rollouts the mistake is visible, and the other steps get some noise. For
# any values, these advantages sum to $R - V(s_0)$, because all values in between cancel. This sum is a good test for code.
#
# ## Fewer rollouts, averaged (this section can wait until after tutorial 5)
#
# The advantage $V(s_{i+1}) - V(s_i)$ uses the rollouts of two states only. From $s_{i+1}$ on, $R$ and each later value have the
# mean $V(s_{i+1})$. Any average of them with fixed weights is therefore unbiased. The average uses more rollouts, which lowers
# the noise. It also contains the random outcomes of later steps, which raises the noise. It is better where later steps hardly
# change the value. With $n$ steps and $0 \le \lambda, \mu \le 1$ the average is
#
# $$Q_i = (1 - \lambda) V(s_{i+1}) + \lambda Q_{i+1}, \qquad Q_{n-1} = R$$
#
# The second term of the advantage is a baseline (tutorial 5 explains baselines). Any number that is known before step $i$ may be
# subtracted without bias, so we may average over the earlier values:
#
# $$B_i = (1 - \mu) V(s_i) + \mu B_{i-1}, \qquad B_0 = V(s_0), \qquad A_i = Q_i - B_i$$
#
# $\lambda = \mu = 0$ is the paper's VinePPO. Only there do the advantages sum to $R - V(s_0)$. With $\lambda = \mu = 1$ every
# step has $R - V(s_0)$. The column *averaged* has $K = 3$ and 0.5 for both.
#
# ## Whitening
#
# An *iteration* samples responses and makes updates. PPO and VinePPO shift and scale the advantages of all its tokens to mean 0
# and standard deviation 1. The size of an update then does not depend on the rewards' scale. An advantage of 0 does not stay 0.

# %%
b = collate(trajectories)  # one table, with a row for each response and padding at its end; all [B, T]
spread = [spread_to_tokens(row, c, len(t.response_ids)) for row, c, t in zip(of_steps["K = 9"], cuts, trajectories, strict=True)]
vine = on_response(spread, b.response_mask)  # [B, T]
raw, white = (x[b.response_mask.bool()] for x in (vine, whiten(vine, b.response_mask)))
print(f"before: mean {raw.mean():+.3f}, std {raw.std():.3f}; after: mean {white.mean():+.3f}, std {white.std():.3f}")
print(f"an advantage of 0 becomes {-raw.mean() / raw.std():+.3f}; {(raw == 0).float().mean():.0%} of the tokens have one")

# %% [markdown]
# ## PPO's way: a critic
#
# The critic is a copy of the policy with another head, which gives one number for each state. It learns by regression. Its target
# at every token is the *return*, the sum of all rewards that follow. Here this is always $R$. The loss is the squared error
# $(V(s_t) - R)^2$. Once a value has moved 0.2 towards $R$ in an iteration, its gradient is 0 (`losses.value_loss`).
#
# `train` samples, grades and updates again and again. After each iteration it yields metrics, episodes and advantages. Here the
# policy's learning rate is 0, so only the critic learns. Rewards are 0 or 1, so even the true values have a squared error. We
# compare the critic with the best constant, the mean reward. The *explained share* is 0 for this constant and 1 for no error.

# %%
trainer = start(algorithm="ppo", lr=0.0, critic_lr=1e-3, kl_coef=0.0, iterations=1 if QUICK else 20)
errors, targets = [], []  # of the tokens of four iterations
for metrics, episodes, advantages in trainer.train():  # advantages are R - V(s_t) [B, T], with the critic before its update
    mask = episodes.tokens.response_mask
    errors.append(advantages[mask.bool()])
    targets.append((episodes.rewards.reshape(-1, 1) * mask)[mask.bool()])
    if len(errors) == 4 or QUICK:
        squares, variance = torch.cat(errors).square().mean(), torch.cat(targets).var()
        print(f"{metrics['episodes']:5} episodes: squared error {squares:.3f}, of the best constant {variance:.3f}, ", end="")
        print(f"explained share {1 - squares / variance:+.2f}", flush=True)
        errors, targets = [], []
V = torch.tensor([v for row in values["truth"] for v in row])  # the states of the 21 responses above
print(f"true values of the 21 responses have an explained share of {V.var() / (V.mean() * (1 - V.mean())):.2f}")

# %% [markdown]
# The critic starts worse than the best constant. After 2,560 episodes it explains 7 % of the variance of the rewards, measured
# over all tokens. True values explain about 30 %, measured at the starts of steps. PPO reduces the effect of the critic's errors
# with generalized advantage estimation (GAE, arXiv 1506.02438):
#
# $$\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad A_t = \sum_{l \ge 0} (\gamma \lambda)^l \delta_{t+l}$$
#
# $\gamma$ discounts later rewards. Here it is 1, because below 1 a right answer would count less after more tokens. $\lambda$ is
# from 0 to 1 and sets how far ahead the sum looks. First we compute GAE by hand for three tokens.

# %%
r, V, lambdas = [0.0, 0.0, 1.0], [0.5, 0.6, 0.2], (1.0, 0.95, 0.0)
delta = [r[0] + V[1] - V[0], r[1] + V[2] - V[1], r[2] + 0 - V[2]]  # gamma = 1; the value after the last token is 0
for lam in lambdas:
    by_hand = torch.tensor([[delta[0] + lam * delta[1] + lam**2 * delta[2], delta[1] + lam * delta[2], delta[2]]])
    packaged, _ = gae(torch.tensor([r]), torch.tensor([V]), torch.ones(1, 3), lam=lam)
    print(f"lambda {lam:4}: {[round(x, 3) for x in packaged[0].tolist()]}; as by hand: {torch.allclose(by_hand, packaged)}")

# %% [markdown]
# With $\lambda = 1$ all values but one cancel: $A_t = R - V(s_t)$. This advantage contains the outcome $R$, but it does not show
# which token caused the outcome. With $\lambda = 0$ the advantage is $\delta_t$. This advantage shows the token, if the critic is
# right. The paper's PPO uses $\lambda = 1$. The averages above apply the idea of GAE to Monte Carlo values. Now we compare all
# advantages of the 21 responses with the true ones, by correlation, because whitening shifts and scales them.

# %%
with torch.no_grad():
    critic = response_values(trainer.critic, b.input_ids, b.attention_mask, b.response_mask)  # [B, T]
token_rewards = torch.zeros_like(critic)
token_rewards[torch.arange(len(b)), b.attention_mask.sum(dim=1) - 1] = torch.tensor(R)  # paid at the last token
tokens = {lam: gae(token_rewards, critic, b.response_mask, lam=lam)[0] for lam in lambdas}  # [B, T] each
for lam, of_gae in tokens.items():  # the mean over a step's tokens; at lambda 0 their sum, the change of V, is about 6 times it
    of_steps[f"GAE {lam}"] = [mean_of_steps(of_gae[n][b.response_mask[n].bool()], cuts[n]) for n in range(len(b))]
for name, rows in list(of_steps.items())[1:]:
    correlation, error = correlation_and_error(rows, of_steps["truth"])
    print(f"{name:9} {correlation:.2f} ± {error:.2f}; first response " + " ".join(f"{a:+.2f}" for a in rows[0]))

# %% [markdown]
# Nine rollouts agree with the truth better than this critic does. GAE with $\lambda = 1$ gives every step of the wrong response a
# negative advantage, the right steps as well. The rollouts cost additional tokens, and the critic cost its training. With 21
# responses the averages are not distinguishable from plain $K = 3$. With more responses they are: see `results/credit/README.md`.

# %%
figure, ((value_axis,), (axis,)) = new_figure(1, 2)
figure.set_size_inches(10.4, 7.2)
here = b.response_mask[0].bool()
true_values = monte_carlo_values(from_tokens)
value_axis.plot(every_token, true_values, ".-", color="black", label=f"truth ({k_tokens} rollouts)")
value_axis.errorbar(cuts[0], values["K = 9"][0], standard_errors(nine[0]), fmt="o", color="#0072B2", capsize=3, label="K = 9")
value_axis.plot(every_token, critic[0][here], "s--", markersize=4, color="#D55E00", label="critic")
axis.bar(every_token, step_advantages(true_values, R[0]), color="0.6", label="truth")
axis.step(every_token, spread[0], where="mid", color="#0072B2", label="K = 9")
averaged = spread_to_tokens(of_steps["averaged"][0], cuts[0], len(every_token))
axis.step(every_token, averaged, "--", where="mid", color="#56B4E9", label="K = 3, averaged")
for lam, colour, style in ((1.0, "#D55E00", "s--"), (0.95, "#009E73", "^:"), (0.0, "#CC79A7", "v-.")):
    axis.plot(every_token, tokens[lam][0][here], style, markersize=4, color=colour, label=f"GAE, λ = {lam}")
axis.axhline(0, color="black", linewidth=0.8)
labels = [tokenizer.decode([i]).strip(" ").replace("\n", "\\n") for i in wrong.response_ids]
for panel, name in ((value_axis, "value before the token"), (axis, "advantage of the token")):
    panel.axvspan(three - 0.5, cuts[0][4] - 0.5, color="#E69F00", alpha=0.2, linewidth=0, label="the step with the mistake")
    panel.set_xticks(every_token, labels, fontsize=8, rotation=90)
    panel.set(ylabel=name, xlim=(-0.6, len(labels) - 0.4))
    panel.legend(frameon=False, fontsize=8, ncols=2)
value_axis.set_title(problem.question, fontsize=9)
show(figure, "04_advantages")

# %% [markdown]
# ## Questions
#
# 1. In truth a single token caused the failure, but VinePPO gives the negative advantage to its whole line. Why does this hardly
#    matter? See the picture of tutorial 2.
# 2. With $\lambda = 1$, right steps of a wrong response get a negative advantage. Why can PPO still learn from enough episodes?
# 3. Train the critic for three times as many iterations. Which of the three GAEs improves most, and why?
# 4. What would GAE with $\lambda = 1$ be if the critic were 0 everywhere? (Tutorial 5 gives it a name.)
#
# Exercises: `ex06` (step advantages), `ex07` (spread to tokens), `ex08` (GAE), `ex09` (whitening), `ex20` (lam and mu).
# Read next: `vine_mini/advantages.py`, and how `vine_mini/algorithms.py` calls it.
