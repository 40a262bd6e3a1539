# %% [markdown]
# # 8. Why value networks fail
#
# PPO uses a second network, the *critic*, for the value of every state. After each iteration the critic moves its value at every
# token towards the reward of the response. VinePPO's authors measured how good such a critic is (section 7). The paper reports
# three results:
#
# - The critic's mean absolute error was 0.11. The error of Monte Carlo values was 0.03.
# - The critic's error grew along the chain of steps.
# - Of five possible next steps, the critic found the best one in about 25 % of the cases. Guessing finds it in 20 %, and Monte
#   Carlo found it in 70 to 90 %.
#
# We ask whether the same holds for a tiny policy and chains of six operations. Our setting is easy for the critic: the policy's
# learning rate is 0, so the true values stay the same.

# %%
import torch
from lesson import QUICK, mean_and_error, rewards_of_rollouts, show, start

from vine_mini.app.plots import new_figure
from vine_mini.logprobs import response_values
from vine_mini.sampling import sample
from vine_mini.steps import cut_steps
from vine_mini.types import Trajectory, collate
from vine_mini.values import monte_carlo_values

iterations = 2 if QUICK else 30
trainer = start(algorithm="ppo", lr=0.0, critic_lr=3e-3, kl_coef=0.0, prompts=128, group=1, epochs=1, iterations=iterations)
policy, tokenizer, sampling = trainer.policy, trainer.tokenizer, trainer.sampling


def cut(response_ids):
    """The token indices at which the steps of a response start."""
    return cut_steps(response_ids, tokenizer, answer_mark=trainer.task.ANSWER_MARK)


def monte_carlo(problems, trajectories, cuts, k, seed):
    """Monte Carlo values with k rollouts from each state. -> [states], in the order of the responses and their cuts"""
    rewards = rewards_of_rollouts(trainer, problems, trajectories, cuts, k=k, seed=seed)  # [response][state][k], as in tutorial 3
    return torch.tensor([value for of_states in rewards for value in monte_carlo_values(of_states)])


@torch.no_grad()
def by_critic(trajectories, cuts):
    """The critic's values of the same states."""
    b = collate(trajectories)
    values = response_values(trainer.critic, b.input_ids, b.attention_mask, b.response_mask)  # [B, T]
    return torch.cat([values[row, [len(t.prompt_ids) + c for c in cuts[row]]] for row, t in enumerate(trajectories)])


# %% [markdown]
# ## The truth
#
# We sample responses to test problems and cut them into steps. From each state in which a step starts, we sample 100 rollouts
# (the paper: 256). The mean reward of these rollouts is the *truth*. The error of the truth is known: a mean of $K$ rewards of 0
# or 1 has variance $V(1-V)/K$. For comparison we compute the Monte Carlo values that VinePPO would use, from other rollouts.

# %%
n, many = (4, 16) if QUICK else (40, 100)
problems, responses = trainer.test_problems[:n], sample(policy, trainer.test_prompts[:n], sampling, seed=1)
cuts = [cut(t.response_ids) for t in responses]
place = torch.tensor([i for row in cuts for i in range(len(row))])  # number of the step that starts in the state
truth = monte_carlo(problems, responses, cuts, many, seed=2)
noise = (truth * (1 - truth) / (many - 1)).mean()  # mean variance of the truth; - 1, because V is itself estimated
guesses = {f"Monte Carlo, K = {k}": monte_carlo(problems, responses, cuts, k, seed=2 + k) for k in (1, 3, 9)}
print(f"{len(truth)} states of {n} responses, mean value {truth.mean():.2f}; standard error of the truth {noise.sqrt():.3f}")

# %% [markdown]
# ## Which next step is best?
#
# From each state of half of the responses, the last state excepted, we sample 32 responses. If they have five different next
# steps, we keep the first five, and measure the value after each with 32 rollouts. Only sets with a clear winner count, in which
# the best value leads by more than 0.2. In states after a mistake, all five values are near 0, so there is no winner.

# %%
options, option_problems, option_cuts, set_rows, draws = [], [], [], [], 32
asked = [(row, c) for row in range(n // 2) for c in cuts[row][:-1]]
states = [responses[row].prompt_ids + responses[row].response_ids[:c] for row, c in asked]
drawn = sample(policy, [s for s in states for _ in range(draws)], sampling, seed=20)
for number, (row, c) in enumerate(asked):
    different = {}  # the next step -> a response that continues with it, and where the step ends
    for t in drawn[number * draws : (number + 1) * draws]:
        ids, steps = responses[row].response_ids[:c] + t.response_ids, cut(t.response_ids)
        if len(steps) > 1:  # the value after the last step is its reward, so we leave last steps out
            response = Trajectory(responses[row].prompt_ids, ids, [0.0] * len(ids), t.finished)
            different.setdefault(tuple(t.response_ids[: steps[1]]), (response, c + steps[1]))
    if len(different) >= 5:
        set_rows.append(row)
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
    """How often the highest of five values belongs to the winner. Equal values share the hit. -> mean, standard error"""
    values = values.view(-1, 5)
    top = values == values.max(dim=1, keepdim=True).values
    hit = top[range(len(top)), worth.argmax(dim=1)] / top.sum(dim=1)
    return mean_and_error([[hit[i] for i in clear.nonzero()[:, 0] if set_rows[i] == row] for row in range(n // 2)])


picks = {f"Monte Carlo, K = {k}": hits(monte_carlo(option_problems, options, option_cuts, k, seed=30 + k)) for k in (1, 3, 9)}

# %% [markdown]
# ## The critic learns
#
# `trainer.train` is PPO's loop. The critic starts as a copy of the policy with a new head. Every few iterations we measure its
# values of all states above.


# %%
def error_of(guess):
    """The mean absolute error of values. -> mean, standard error from the differences between responses"""
    return mean_and_error((guess - truth).abs().split([len(row) for row in cuts]))


for metrics, _, _ in trainer.train():
    if trainer.iteration % max(1, iterations // 6) == 0:
        guesses["critic"], picks["critic"] = by_critic(responses, cuts), hits(by_critic(options, option_cuts))
        (error, spread), (best, uncertain) = error_of(guesses["critic"]), picks["critic"]
        print(f"{metrics['episodes']:5} responses: error {error:.3f} ± {spread:.3f}, ", end="")
        print(f"best of five {best:.0%} ± {uncertain:.0%} (chance: 20%)   {metrics['seconds']:.0f} s")

# %% [markdown]
# ## Side by side
#
# The table shows the mean absolute error, as in the paper. It also shows the root mean square error without the noise of the
# truth. Then it shows the mean absolute error for each place in the chain. The last row is for comparison: one number for each
# place, the mean of the truth there. Below the table stand the mean estimates of the states that are lost and of the good ones.

# %%
guesses["one number a place"] = torch.tensor([truth[place == i].mean() for i in place.tolist()])
places = range(int(place.max()) + 1)
for name, guess in guesses.items():
    error, (mean, spread) = (guess - truth).abs(), error_of(guess)
    rms = (error.square().mean() - noise).clamp(min=0).sqrt()
    chain = "  ".join(f"{error[place == i].mean():.2f}" for i in places)
    picked = f"best of five {picks[name][0]:.0%} ± {picks[name][1]:.0%}" if name in picks else ""
    print(f"{name:19} error {mean:.3f} ± {spread:.3f}, root mean square {rms:.3f}, by place {chain}   {picked}")
for name, states in (("lost states, truth below 0.05", truth < 0.05), ("good states, truth above 0.5", truth > 0.5)):
    print(f"{name}: " + ", ".join(f"{who} {guesses[who][states].mean():.2f}" for who in ("critic", "Monte Carlo, K = 9")))

# %% [markdown]
# Two of the paper's findings hold here as well. The critic's error is larger than the error of nine rollouts (but not larger than
# the error of one). The critic's error is smallest at the prompt and largest at the end of the chain. The error of Monte Carlo
# values becomes smaller along the chain. The third finding holds in part. Nine rollouts nearly always find the best step. The
# critic finds it far less often, but more often than by chance.
#
# The critic knows more than the place: one number a place errs more. But it separates lost states from good ones
# only weakly (left in the picture). In the mean it says 0.19 where the truth is below 0.05, and 0.37 where the truth is above
# 0.5.
#
# At the prompt, all problems are about equally hard, so one number is a good value. There the critic is even *better* than nine
# rollouts. Later the value depends on whether a mistake has been made. To know this, the critic must check the calculations. The
# critic's only training signal is one reward for each response. The critic does learn, but slowly, and in PPO the policy also
# changes during this time.
#
# Monte Carlo values need no such skill. Late states have values near 0 or 1, where a mean of rollouts has a small variance. But
# they cost more: the critic learned from 3,840 responses, and K = 9 takes up to 6,912 rollouts for 128 responses of six steps.

# %%
figure, ((scatter, chain, ranking),) = new_figure(3)
colours = {"Monte Carlo, K = 1": "#E69F00", "Monte Carlo, K = 3": "#56B4E9", "Monte Carlo, K = 9": "#0072B2", "critic": "#D55E00"}
for name, marker in (("Monte Carlo, K = 9", "o"), ("critic", "x")):
    scatter.scatter(truth, guesses[name], s=16, marker=marker, alpha=0.6, color=colours[name], label=name)
scatter.plot([0, 1], [0, 1], "k--", lw=1)
scatter.set(title="Values of states", xlabel=f"truth ({many} rollouts)", ylabel="estimate")
for (name, colour), marker in zip(colours.items(), "v^ox", strict=True):
    rows = [(guesses[name] - truth).abs()[place == i] for i in places]  # one state of each response
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
show(figure, "08_value_networks")

# %% [markdown]
# ## Questions
#
# 1. The critic costs a network and its optimizer, Monte Carlo costs rollouts. Which of these two costs can you raise to get a
#    smaller error?
# 2. Train for ten times as many iterations. Does the critic's error fall? Does it still grow along the chain?
# 3. With `min_steps=3` in `start`, problems have 3 to 6 steps. Is the critic still better than nine rollouts at the prompt?
# 4. The critic's error is systematic, Monte Carlo's error is noise. Which of the two does a larger batch average out?
#
# No exercise. Read next: `models.Critic` and `losses.value_loss`, then `algorithms.ppo` and `algorithms.vineppo`.
