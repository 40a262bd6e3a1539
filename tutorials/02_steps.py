# %% [markdown]
# # 2. A response as states and steps
#
# We want to say which part of a response was good, so we need names for its parts. In reinforcement learning an *episode* is a
# sequence of *states* and *actions*. VinePPO (section 3) defines them for a language model:
#
# $$s_0 = x, \qquad a_t = y_t, \qquad s_{t+1} = s_t \oplus y_t$$
#
# The first state is the prompt $x$. An action is the next token $y_t$. The next state is the old state with this token appended.
# Only the choice of the token is random.
#
# The reward is 0 at every token but the last. At the last token the reward is 1 if the answer is right and 0 if it is wrong. A
# response that the length limit *truncates* has reward 0.

# %%
import torch
from lesson import QUICK, mean_and_error, show, start

from vine_mini.app.plots import new_figure
from vine_mini.logprobs import response_logprobs
from vine_mini.sampling import sample
from vine_mini.steps import cut_steps
from vine_mini.tasks import grade
from vine_mini.types import Trajectory, collate

trainer = start()
policy, tokenizer, task = trainer.policy, trainer.tokenizer, trainer.task

problem, prompt = trainer.test_problems[3], trainer.test_prompts[3]
group = sample(policy, [prompt] * 8, trainer.sampling, seed=0)  # a group is several responses to one problem
rewards = [grade(task, problem, t, tokenizer) for t in group]  # `grade` reads the answer of a response: 1.0 or 0.0
print(f"{problem.question}\n\nrewards of a group: {rewards}")

# %% [markdown]
# ## Steps
#
# *Credit* says how good each part of a response was (tutorial 4 computes it). A single token is too small a part, because most
# tokens of a calculation leave the policy no choice. A *step* is one line of the response (section 4). A blank line belongs to
# the step before it. The closing line `#### answer` belongs to the last step.
#
# `cut_steps` returns the token index at which each step starts. The important states are the ones in which a step starts: the
# prompt, and the end of every step but the last.

# %%
example = group[rewards.index(0.0)]
cuts = cut_steps(example.response_ids, tokenizer, answer_mark=task.ANSWER_MARK)
ends = [*cuts[1:], len(example.response_ids)]
print(f"{'step':>4}  {'tokens':7}  {'state before it':15}  text")
for i, (a, b) in enumerate(zip(cuts, ends, strict=True)):
    print(f"{i:4}  {a:2} - {b - 1:2}  {len(prompt) + a:8} tokens  {tokenizer.decode(example.response_ids[a:b])!r}")
print(f"reward 0: the right answer is {problem.answer}\n\nthe state before step 2, as text:")
print(tokenizer.decode(prompt + example.response_ids[: cuts[2]]))

# %% [markdown]
# The last action of a response that ends by itself is the end-of-sequence token `<eos>`. Stopping is an action with a log-prob
# like any other action, and it belongs to the last step. Without training on it, the policy would not learn when to stop.
#
# ## Cut the tokens, not the text
#
# There is a simpler way that is wrong: decode the response, find the steps in the text, and tokenize the text again to get token
# indices. Several token sequences can have the same text. The tokenizer always picks the same one. The policy can sample any of
# them. We count how often the sampled sequence differs from the tokenizer's.

# %%
P, n = (20, 8) if QUICK else (200, 20)  # problems, and responses to each of them
responses = sample(policy, [p for p in trainer.test_prompts[:P] for _ in range(n)], trainer.sampling, seed=0)
problems = [p for p in trainer.test_problems[:P] for _ in range(n)]
graded = [grade(task, p, t, tokenizer) for p, t in zip(problems, responses, strict=True)]
texts = [tokenizer.decode(t.response_ids, skip_special_tokens=True) for t in responses]
# <eos> is added to a response that ended by itself
encoded = [tokenizer.encode(text) + [tokenizer.eos_token_id] * t.finished for text, t in zip(texts, responses, strict=True)]
differs = [ids != t.response_ids for ids, t in zip(encoded, responses, strict=True)]
other = [i for i, different in enumerate(differs) if different]
share, error = mean_and_error(torch.tensor(differs).view(P, n))  # samples of one problem are not independent
print(f"{len(other)} of {len(responses)} responses, {share:.2%} ± {error:.2%}, get other ids when they are encoded again")
for name, rows in (("all", range(len(responses))), ("these", other)):
    mean = sum(sum(responses[i].logprobs) for i in rows) / max(1, len(rows))
    print(f"mean log-prob of {name}: {mean:.1f} nats; right: {sum(graded[i] for i in rows):.0f} of {len(rows)}")

for i in other[:3]:
    sampled, again = responses[i], Trajectory(responses[i].prompt_ids, encoded[i], [0.0] * len(encoded[i]), finished=True)
    first = next(j for j, (x, y) in enumerate(zip(sampled.response_ids, again.response_ids, strict=False)) if x != y)
    print(f"from token {first}, after {tokenizer.decode(sampled.response_ids[:first])[-12:]!r}:")
    for name, t in (("sampled", sampled), ("encoded again", again)):
        b = collate([t])
        with torch.no_grad():
            logprob = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask).sum().item()
        near = [tokenizer.decode([j]) for j in t.response_ids[first : first + 4]]
        print(f"  {name:14}{len(t.response_ids):3} tokens, log-prob {logprob:6.1f} nats: {near}")

# %% [markdown]
# The text is the same, but the states differ. A token index can then point to another place in the text, and the log-prob belongs
# to a response that was never sampled. This case is rare here, and no error message reports it. The case occurs where the policy
# did something unlikely.
#
# This package therefore never encodes decoded text again. `cut_steps` looks at the text of single tokens.
#
# ## The length limit
#
# A truncated response has no `<eos>`. The reward is then 0, even if the answer is already written and only `<eos>` is missing. We
# apply lower limits to the responses above. A limit does not change the tokens before it.

# %%
lengths = torch.tensor([len(t.response_ids) for t in responses]).view(P, n)
right = torch.tensor(graded).view(P, n)
for limit in (36, 38, 39, 40, 44, 64):
    kept = (lengths <= limit).float()
    (truncated, its_error), (share, error) = mean_and_error(1 - kept), mean_and_error(right * kept)
    print(f"limit {limit:2}: {truncated:6.1%} ± {its_error:.1%} are truncated, {share:5.1%} ± {error:.1%} are right")

# %% [markdown]
# ## Where is the policy uncertain?
#
# $-\log \pi(y_t \mid s_t)$ is the *surprise* of a token. The surprise is 0 where the policy had no choice. Its mean over
# samples is the *entropy* of the policy, which training metrics show. Near 0, all samples are alike, and none can be better than
# another. We group the tokens by their place in a line.
#
# The solution of each problem is known. For each response we therefore also find the first step that differs from it.

# %%
surprise = {name: [[] for _ in range(P)] for name in ("operation", "=", "result", "line end", "answer", "<eos>")}


def place_of(text, before):
    """The place of a token in its line, from its text and the place of the token before it."""
    for sign, name in (("#", "answer"), ("<eos>", "<eos>"), ("\n", "line end"), ("=", "=")):
        if sign in text:
            return name
    return {"=": "result", "line end": "operation"}.get(before, before)


for i, t in enumerate(responses):
    place = "line end"
    for token, logprob in zip(t.response_ids, t.logprobs, strict=True):
        place = place_of(tokenizer.decode([token]), place)
        surprise[place][i // n].append(-logprob)
means = {name: mean_and_error(rows) for name, rows in surprise.items()}
for name, (mean, error) in means.items():
    print(f"{name:9}{mean:7.4f} ± {error:.4f} nats a token ({sum(map(len, surprise[name]))} tokens)")

left_at = []  # the first step that differs from the solution; the number of steps if none differs
for p, text in zip(problems, texts, strict=True):
    lines, truth = text.split("\n"), p.solution.split("\n")[:-1]
    left_at.append(next((i for i, line in enumerate(truth) if lines[i : i + 1] != [line]), len(truth)))
wrong_at, errors, first_wrong = [], [], torch.tensor(left_at).view(P, n)
for i in range(trainer.config.steps):
    so_far = [(row[row >= i] == i).tolist() for row in first_wrong]  # of responses without a mistake so far
    mean, error = mean_and_error(so_far)
    wrong_at.append(mean)
    errors.append(error)
    print(f"step {i}: {sum(map(len, so_far)):4} responses are right so far, {mean:.1%} ± {error:.1%} of them make a mistake now")
lucky = sum(g for g, x in zip(graded, left_at, strict=True) if x < trainer.config.steps)
print(f"{sum(graded):.0f} responses are right; in {lucky:.0f} of them, mistakes cancel each other")

# %% [markdown]
# The policy is uncertain almost only in one place, the result of a calculation. The place `=` has a small surprise, because its
# token can be `=-`, which begins a negative result. Every step has about the same chance of a mistake. A response is wrong
# because at least one result token went wrong. If we knew which one, we could leave all other tokens alone.

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
top.set_title(f"One response with reward 0: {problem.question}", fontsize=9)
top.legend(frameon=False, ncols=6, fontsize=8, loc="upper center")
top.grid(axis="x", visible=False)
middle, spread = zip(*means.values(), strict=True)
places.barh(list(means), middle, xerr=spread, color="#0072B2", capsize=3)
places.invert_yaxis()
places.set(xlabel="mean surprise (nats a token)", title="Where the policy is uncertain")
steps.errorbar(range(len(wrong_at)), wrong_at, yerr=errors, fmt="o-", color="#D55E00", capsize=3)
steps.set(xlabel="step", ylabel="share with a mistake at this step", title="Responses without a mistake so far", ylim=(0, 0.4))
show(figure, "02_steps")

# %% [markdown]
# ## Questions
#
# 1. Two responses reach the same intermediate number in different ways. Are they in the same state? What would we gain and lose
#    if we treated them as one state?
# 2. The share of right answers jumps between the limits 38 and 39. Count the tokens: why can no right answer be shorter? Many
#    responses are still truncated at 39. Why does this hardly change the share of right answers?
# 3. Multiply the shares of responses that make *no* mistake at each step. How far is the product from the share of right answers,
#    and why?
# 4. In this task only the choice of tokens is random. Name a task for a language model in which something else is random.
#
# Exercises: `ex03` (cut steps in token ids), `ex18` (a program with a silent mistake in its mask).
# Read next: `vine_mini/steps.py`, and `vine_mini/types.py`, the data that passes between the stages.
