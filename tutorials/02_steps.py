# %% [markdown]
# # 2. A response as states and steps
#
# To say which part of a response was good, we need words for its parts. Reinforcement learning has them: an *episode* is a
# chain of *states* and *actions*. In VinePPO (section 2) they are as plain as can be:
#
# $$s_0 = x, \qquad a_t = y_t, \qquad s_{t+1} = s_t \oplus y_t$$
#
# The first state is the prompt $x$. An action is the next token $y_t$. The next state is the old one with the token appended:
# nothing is random but the choice of the token. The reward is 0 until the end, and then 1 if the answer is right, else 0.
# A response that the length limit cuts has no end, so it earns 0.

# %%
import torch
from lesson import QUICK, show, start

from vine_mini.evaluate import grade
from vine_mini.logprobs import response_logprobs
from vine_mini.app.plots import new_figure
from vine_mini.sampling import sample
from vine_mini.steps import cut_steps
from vine_mini.types import Trajectory, collate

trainer = start()
policy, tokenizer, eos = trainer.policy, trainer.tokenizer, trainer.eos
settings = dict(max_new_tokens=64, eos_token_id=eos, seed=0)

problem, prompt = trainer.test_problems[3], trainer.test_prompts[3]
group = sample(policy, [prompt] * 8, **settings)  # a group: several responses to one prompt
rewards = [grade(problem, t, tokenizer) for t in group]
print(f"{problem.question}\n\nrewards of a group: {rewards}")

# %% [markdown]
# ## Steps
#
# A token is too small a part to be praised or blamed: most tokens of a sum leave no choice. A *step* is a line (section 4). Blank
# lines go to the step before, and the closing `#### answer` to the last step. `cut_steps` returns the token index at which
# each step starts. The states that will matter are those at the cuts: the prompt, and the end of every step but the last.

# %%
example = group[rewards.index(0.0)]
cuts = cut_steps(example.response_ids, tokenizer)
ends = [*cuts[1:], len(example.response_ids)]
print(f"{'step':>4}  {'tokens':7}  {'state before it':15}  text")
for i, (a, b) in enumerate(zip(cuts, ends, strict=True)):
    print(f"{i:4}  {a:2} - {b - 1:2}  {len(prompt) + a:8} tokens  {tokenizer.decode(example.response_ids[a:b])!r}")
print(f"reward 0: the right answer is {problem.answer}\n\nthe state before step 2, as text:")
print(tokenizer.decode(prompt + example.response_ids[: cuts[2]]))

# %% [markdown]
# The last action of a response that ends by itself is `<eos>`. To stop is a choice like any other, with a log-probability, and
# it belongs to the last step. If training left it out, nobody would teach the policy when to stop.
#
# ## Cut tokens, not text
#
# It is tempting to decode the response, split the text into lines, and tokenize them again. But one text can be written with
# different tokens. The tokenizer has its favourite ones; the policy samples what it samples. How often do the two differ?

# %%
n_problems, n_samples = (20, 8) if QUICK else (200, 20)
responses = sample(policy, [p for p in trainer.test_prompts[:n_problems] for _ in range(n_samples)], **settings)
problems = [p for p in trainer.test_problems[:n_problems] for _ in range(n_samples)]
graded = [grade(p, t, tokenizer) for p, t in zip(problems, responses, strict=True)]
encoded = [tokenizer.encode(tokenizer.decode(t.response_ids, skip_special_tokens=True)) + eos * t.finished for t in responses]
other = [n for n, t in enumerate(responses) if encoded[n] != t.response_ids]
share = len(other) / len(responses)
print(f"{len(other)} of {len(responses)} responses, {share:.2%}, get other ids when they are encoded again")
for name, rows in (("all", range(len(responses))), ("these", other)):
    mean = sum(sum(responses[n].logprobs) for n in rows) / max(1, len(rows))
    print(f"mean log-prob of {name}: {mean:.1f}; right: {sum(graded[n] for n in rows):.0f} of {len(rows)}")


for n in other[:3]:
    sampled, again = responses[n], Trajectory(responses[n].prompt_ids, encoded[n], [0.0] * len(encoded[n]), finished=True)
    first = next(i for i, (x, y) in enumerate(zip(sampled.response_ids, again.response_ids, strict=False)) if x != y)
    print(f"from token {first}, after {tokenizer.decode(sampled.response_ids[:first])[-12:]!r}:")
    for name, t in (("sampled", sampled), ("encoded again", again)):
        b = collate([t])
        with torch.no_grad():
            logprob = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask).sum().item()
        near = [tokenizer.decode([i]) for i in t.response_ids[first : first + 4]]
        print(f"  {name:14}{len(t.response_ids):3} tokens, log-prob {logprob:6.1f}: {near}")

# %% [markdown]
# The same text, but other states: a token index may point to another place, and the log-prob is that of a response that nobody
# sampled. It is rare here. But nothing warns you, and it happens where the policy did something unlikely, which is where there is
# something to learn. So this package decodes for the reward only, and `cut_steps` looks at the text of single tokens.
#
# ## The limit
#
# A response that is cut has no `<eos>` and no reward, even if it was about to be right.

# %%
limits = (32, 64) if QUICK else (36, 38, 39, 40, 44, 64)
few = range(0, len(responses), 4)
for limit in limits:
    short = sample(policy, [responses[n].prompt_ids for n in few], **settings | {"max_new_tokens": limit})
    cut = sum(not t.finished for t in short) / len(short)
    right = sum(grade(problems[n], t, tokenizer) for n, t in zip(few, short, strict=True)) / len(short)
    print(f"limit {limit:2}: {cut:6.1%} are cut, {right:5.1%} ± {(right * (1 - right) / len(short)) ** 0.5:.1%} are right")

# %% [markdown]
# ## Where does the policy doubt?
#
# $-\log \pi(y_t \mid s_t)$ is the *surprise* of a token: 0 where there was no choice. We sort the tokens by their place in a
# line. And since the solution of each problem is known, we can see at which step a response leaves it for the first time.

# %%
surprise = {name: [] for name in ("sum", "=", "result", "line end", "answer", "<eos>")}
signs = {"#": "answer", "<eos>": "<eos>", "\n": "line end", "=": "="}
for t in responses:
    place = "line end"
    for i, logprob in zip(t.response_ids, t.logprobs, strict=True):
        after = {"=": "result", "line end": "sum"}.get(place, place)
        place = next((name for sign, name in signs.items() if sign in tokenizer.decode([i])), after)
        surprise[place].append(-logprob)
means = {name: sum(x) / max(1, len(x)) for name, x in surprise.items()}
for name, mean in means.items():
    print(f"{name:9}{mean:7.4f} nats a token ({len(surprise[name])} tokens)")

left_at = []  # the first step that differs from the solution; len(truth) if none does
for p, t in zip(problems, responses, strict=True):
    lines, truth = tokenizer.decode(t.response_ids, skip_special_tokens=True).split("\n"), p.solution.split("\n")[:-1]
    left_at.append(next((i for i, line in enumerate(truth) if lines[i : i + 1] != [line]), len(truth)))
wrong_at, errors = [], []
for i in range(trainer.config.steps):
    so_far = [x for x in left_at if x >= i]
    wrong_at.append(so_far.count(i) / len(so_far))
    errors.append((wrong_at[i] * (1 - wrong_at[i]) / len(so_far)) ** 0.5)
    print(f"step {i}: {len(so_far):4} responses have no mistake so far, {wrong_at[i]:.1%} ± {errors[i]:.1%} of them make one now")
lucky = sum(g for g, x in zip(graded, left_at, strict=True) if x < trainer.config.steps)
print(f"{sum(graded):.0f} responses are right, {lucky:.0f} of them by mistakes that cancel")

# %% [markdown]
# The doubt sits in one place, the result of a sum, and a mistake is about as likely in every step. A response fails because at
# least one such token went wrong. If we knew which, we would not have to blame all the others.

# %%
figure, _ = new_figure(2, 2)
figure.clear()
top, places, steps = figure.subplot_mosaic("tt;ps").values()
for i, (a, b) in enumerate(zip(cuts, ends, strict=True)):
    colour = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")[i % 6]
    top.bar(range(a, b), [-x for x in example.logprobs[a:b]], color=colour, label=f"step {i}")
    top.axvspan(a - 0.5, b - 0.5, color=colour, alpha=0.12, linewidth=0)
labels = [tokenizer.decode([i]).replace("\n", "\\n").strip(" ") for i in example.response_ids]
top.set_xticks(range(len(labels)), labels, fontsize=8, rotation=90)
top.set(ylabel="surprise (nats)", xlim=(-0.6, len(labels) - 0.4), ylim=(0, 1.2 * -min(example.logprobs)))
top.set_title(f"One response, reward 0: {problem.question}", fontsize=9)
top.legend(frameon=False, ncols=6, fontsize=8, loc="upper center")
top.grid(axis="x", visible=False)
places.barh(list(means), list(means.values()), color="#0072B2")
places.invert_yaxis()
places.set(xlabel="mean surprise (nats a token)", title="Where the policy doubts")
steps.errorbar(range(len(wrong_at)), wrong_at, yerr=errors, fmt="o-", color="#D55E00", capsize=3)
steps.set(xlabel="step", ylabel="share that errs at this step", title="Responses without a mistake so far", ylim=(0, 0.4))
show(figure, "02_steps")

# %% [markdown]
# ## Questions
#
# 1. Two responses reach the same intermediate number in different ways. Are they in the same state? What would be gained, and
#    what lost, by treating them as one?
# 2. From limit 38 to limit 39 the share of right answers jumps. Count the tokens: why can no right answer be shorter, and why
#    does it hardly matter that many responses are still cut at 39?
# 3. Multiply the shares that do *not* err at each step. How far is that from the share of right answers, and why?
# 4. Nothing is random here but the choice of tokens. Name a task for a language model in which that is not so.
#
# Exercises: `ex03` (cut steps in token ids), `ex18` (a mask that is silently wrong).
# Read next: `vine_mini/steps.py`, 45 lines, and `vine_mini/types.py`, what passes between the stages.
