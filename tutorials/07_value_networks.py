# %% [markdown]
# # 7. Why value networks fail
#
# PPO asks a second network, the *critic*, for the value of every state. After each iteration it moves its guess at every
# token towards the reward that the response got. VinePPO's authors looked at what such a critic knows (VinePPO, value
# prediction analysis): its mean absolute error was 0.11 where Monte Carlo's was 0.03, it grew along the chain of steps, and
# asked which of five next steps is best, the critic was right in about 25 %, near the 20 % of chance, and Monte Carlo in 70
# to 90 %.
#
# Is it so here, with a tiny policy and six sums? We make it easy: the policy rests (learning rate 0) while the critic is
# trained, so the critic has no moving target.

# %%
import torch
from lesson import QUICK, show, start

from vine_mini import tasks, sampling as vines
from vine_mini.logprobs import response_values
from vine_mini.app.plots import new_figure
from vine_mini.sampling import sample
from vine_mini.steps import cut_steps
from vine_mini.types import Trajectory, collate

iterations = 2 if QUICK else 30
trainer = start(algorithm="ppo", lr=0.0, critic_lr=3e-3, kl_coef=0.0, prompts=128, group=1, epochs=1, iterations=iterations)
policy, tokenizer = trainer.policy, trainer.tokenizer
settings = dict(max_new_tokens=trainer.config.max_new_tokens, eos_token_id=trainer.eos)


def monte_carlo(problems, trajectories, cuts, k, seed):
    """Mean reward of k completions of each state. -> [states], trajectory by trajectory"""
    grown, values = vines.rollouts(policy, trajectories, cuts, k=k, seed=seed, **settings), []
    for problem, t, row, groups in zip(problems, trajectories, cuts, grown, strict=True):
        for cut, group in zip(row, groups, strict=True):
            rewards = [tasks.reward(problem, t.response_ids[:cut] + c.response_ids, c.finished, tokenizer) for c in group]
            values.append(sum(rewards) / k)
    return torch.tensor(values)


@torch.no_grad()
def criticised(trajectories, cuts):
    """The critic's values of the same states."""
    b = collate(trajectories)
    values = response_values(trainer.critic, b.input_ids, b.attention_mask, b.response_mask)  # [B, T]
    return torch.cat([values[row, [len(t.prompt_ids) + c for c in cuts[row]]] for row, t in enumerate(trajectories)])


# %% [markdown]
# ## The truth
#
# Fresh responses to test problems, cut into steps. Each state (the prompt, and the end of every step but the last) is finished
# many times (in the paper: 256 times). That is the truth, up to a known error: a mean of $K$ zeros and ones has variance
# $V(1-V)/K$. Beside it Monte Carlo as VinePPO would use it, from rollouts of its own.

# %%
n, many = (4, 16) if QUICK else (40, 100)
problems, responses = trainer.test_problems[:n], sample(policy, trainer.test_prompts[:n], seed=1, **settings)
cuts = [cut_steps(t.response_ids, tokenizer) for t in responses]
place = torch.tensor([i for row in cuts for i in range(len(row))])  # of each state in its chain; 0 is the prompt
truth = monte_carlo(problems, responses, cuts, many, seed=2)
noise = (truth * (1 - truth) / (many - 1)).mean()  # mean variance of what we call the truth
guesses = {f"Monte Carlo, K = {k}": monte_carlo(problems, responses, cuts, k, seed=2 + k) for k in (1, 3, 9)}
print(f"{len(truth)} states of {n} responses, mean value {truth.mean():.2f}; standard error of the truth {noise.sqrt():.3f}")

# %% [markdown]
# ## Which next step is best?
#
# From a state, draw next steps until there are five different ones, and measure what each is worth. Only sets with a clear
# winner count (ahead by more than 0.2): where the chain has already gone wrong, all five are worth nothing.

# %%
options, option_problems, option_cuts, draws = [], [], [], 32
asked = [(row, cut) for row in range(n // 2) for cut in cuts[row][:-1]]
states = [responses[row].prompt_ids + responses[row].response_ids[:cut] for row, cut in asked]
drawn = sample(policy, [s for s in states for _ in range(draws)], seed=20, **settings)
for number, (row, cut) in enumerate(asked):
    different = {}  # the next step -> the response that goes on with it
    for t in drawn[number * draws : (number + 1) * draws]:
        ids, steps = responses[row].response_ids[:cut] + t.response_ids, cut_steps(t.response_ids, tokenizer)
        if len(steps) > 1:  # it is not the last step, whose reward is known
            response = Trajectory(responses[row].prompt_ids, ids, [0.0] * len(ids), t.finished)
            different.setdefault(tuple(t.response_ids[: steps[1]]), (response, cut + steps[1]))
    if len(different) >= 5:
        for response, end in list(different.values())[:5]:
            options.append(response)
            option_cuts.append([end])
            option_problems.append(problems[row])
worth = monte_carlo(option_problems, options, option_cuts, 16 if QUICK else 32, seed=21).view(-1, 5)
ordered = worth.sort(dim=1, descending=True).values
clear = ordered[:, 0] - ordered[:, 1] > 0.2
print(f"{len(worth)} sets of five next steps, {clear.sum()} with a clear winner")
print("their mean values, from the best to the worst:", [round(v, 2) for v in ordered[clear].mean(dim=0).tolist()])


def hits(values):
    """How often the highest of five values is the winner's; ties are drawn by lot. -> mean, standard error"""
    values = values.view(-1, 5)[clear]
    top = (values == values.max(dim=1, keepdim=True).values).float()
    hit = (top / top.sum(dim=1, keepdim=True))[torch.arange(len(top)), worth[clear].argmax(dim=1)]
    return hit.mean().item(), hit.std().item() / len(hit) ** 0.5


picks = {f"Monte Carlo, K = {k}": hits(monte_carlo(option_problems, options, option_cuts, k, seed=30 + k)) for k in (1, 3, 9)}

# %% [markdown]
# ## The critic learns
#
# `trainer.train` is PPO's loop. The critic starts as a copy of the policy with a new head. Now and then we ask it about all the
# states above.

# %%
for metrics, _, _ in trainer.train():
    if trainer.iteration % max(1, iterations // 6) == 0:
        guesses["critic"], picks["critic"] = criticised(responses, cuts), hits(criticised(options, option_cuts))
        print(f"{metrics['episodes']:5} responses: error {(guesses['critic'] - truth).abs().mean():.3f}, best of five ", end="")
        print(f"{picks['critic'][0]:.0%} ± {picks['critic'][1]:.0%} (chance: 20%)   {metrics['seconds']:.0f} s")

# %% [markdown]
# ## Side by side
#
# The mean absolute error as in the paper; the root mean square, from which the noise of the truth can be taken off; and the error
# by place. The last row is not a method but a yardstick: a table with one number for each place, the mean of the truth.

# %%
guesses["one number a place"] = torch.tensor([truth[place == i].mean() for i in place.tolist()])
places = range(int(place.max()) + 1)
for name, guess in guesses.items():
    error = (guess - truth).abs()
    rms = (error.square().mean() - noise).clamp(min=0).sqrt()
    chain = "  ".join(f"{error[place == i].mean():.2f}" for i in places)
    picked = f"best of five {picks[name][0]:.0%} ± {picks[name][1]:.0%}" if name in picks else ""
    print(f"{name:19} error {error.mean():.3f}, root mean square {rms:.3f}, by place {chain}   {picked}")

# %% [markdown]
# The paper's findings show here, too. The critic's error is smallest at the prompt and largest at the end of the chain, Monte
# Carlo's shrinks on the way; nine rollouts nearly always find the best step, the critic far less often.
#
# Why? At the prompt nothing has happened yet: all problems are about equally hard, one number will do, and there the critic
# even *beats* nine rollouts. Later all depends on whether a slip has been made. To know, the critic must check the sums, and
# it is taught by one reward for a whole response. It does learn (on average it beats the table; question 2 asks what more
# training does), but slowly, and in PPO the policy moves meanwhile. Monte Carlo needs no insight: a late state has few tokens
# left to write, and a value near 0 or 1 has little variance.

# %%
figure, ((scatter, chain, ranking),) = new_figure(3)
colours = {"Monte Carlo, K = 1": "#E69F00", "Monte Carlo, K = 3": "#56B4E9", "Monte Carlo, K = 9": "#0072B2", "critic": "#D55E00"}
for name, marker in (("Monte Carlo, K = 9", "o"), ("critic", "x")):
    scatter.scatter(truth, guesses[name], s=16, marker=marker, alpha=0.6, color=colours[name], label=name)
scatter.plot([0, 1], [0, 1], "k--", lw=1)
scatter.set(title="Values of states", xlabel=f"truth ({many} rollouts)", ylabel="estimate")
for (name, colour), marker in zip(colours.items(), "v^ox", strict=True):
    rows = [(guesses[name] - truth).abs()[place == i] for i in places]
    errors = [x.std() / len(x) ** 0.5 for x in rows]
    chain.errorbar(places, [x.mean() for x in rows], yerr=errors, fmt=f"{marker}-", color=colour, capsize=3, label=name)
chain.set(title="Error along the chain", xlabel="steps before the state", ylabel="mean absolute error", ylim=(0, None))
means, errors = zip(*(picks[name] for name in colours), strict=True)
ranking.barh(list(colours), means, xerr=errors, color=list(colours.values()), capsize=3)
ranking.axvline(0.2, color="black", ls="--", label="chance")
ranking.set(title="Finds the best of five next steps", xlabel="share of sets", xlim=(0, 1))
ranking.invert_yaxis()
for axis in (scatter, chain, ranking):
    axis.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
show(figure, "07_value_networks")

# %% [markdown]
# ## Questions
#
# 1. The critic costs a network and its optimizer, Monte Carlo costs rollouts. Which of the two costs can you buy accuracy with?
# 2. Ten times as many iterations: does the critic's error fall, and does it still grow along the chain?
# 3. With `min_steps=3` in `start`, problems have 3 to 6 steps. What becomes of the critic's advantage at the prompt?
# 4. The critic's error is systematic, Monte Carlo's is noise. Which of them does a larger batch average away?
#
# No exercise: look at those of tutorials 3 and 4 again and ask which of their inputs you would trust.
# Read next: `models.Critic` and `losses.value_loss`, then `algorithms.ppo` beside `algorithms.vineppo`.
