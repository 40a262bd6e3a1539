# %% [markdown]
# # 1. Sampling, and what a KV cache saves
#
# A language model gives a probability to every token that could come next. To *sample* a response, we draw a token from these
# probabilities and append it to the text. We repeat this until the model draws the token that ends a response. We draw by hand.
#
# In reinforcement learning the model that draws is called the *policy*. Ours is a small Llama that solves chains of arithmetic.
# It comes from *supervised fine-tuning* (SFT): it imitated written solutions, in which each result was a random number with
# probability 0.2. Its most likely tokens are right, but many samples contain a mistake. We start from such a policy because one
# that is never right gets no reward and learns nothing.
#
# Tutorials 1 to 10 and 14 teach the paper VinePPO. Section numbers refer to its version 2 (arXiv 2410.01679v2).

# %%
import time
from dataclasses import replace

import torch
from lesson import QUICK, mean_and_error, show, start
from transformers import DynamicCache

from vine_mini.app.plots import new_figure
from vine_mini.logprobs import response_logprobs
from vine_mini.sampling import sample
from vine_mini.sampling.plain import choose
from vine_mini.tasks import grade
from vine_mini.types import collate

trainer = start()  # loads the policy, its tokenizer and the problems (`lesson.py`), and returns them as one object
policy, tokenizer = trainer.policy, trainer.tokenizer
problem, prompt = trainer.test_problems[0], trainer.test_prompts[0]
print(problem.question, "\n")
print(problem.solution, "\n")
print("the prompt in tokens:", [tokenizer.decode([i]) for i in prompt])
first_operation = tokenizer.encode(problem.solution.split("=")[0] + "=")  # "1-1=": the next token is the result

# %% [markdown]
# ## One token
#
# The model reads the prompt and the first operation up to its equals sign. For each token that it reads, the model returns a row
# of logits. The last row gives the distribution $\pi$ of the next token:
#
# $$\pi(y_t \mid s_t) = \mathrm{softmax}(\mathrm{logits} / \tau)$$
#
# The state $s_t$ is the prompt with all response tokens so far (VinePPO, section 3). The temperature $\tau$ changes the
# distribution. Below 1, likely tokens become more likely. Above 1, all tokens become more alike.

# %%
with torch.no_grad():
    logits = policy(torch.tensor([prompt + first_operation])).logits[0, -1]  # [V], V tokens in the vocabulary
for temperature in (0.5, 1.0, 2.0):
    probs = (logits / temperature).softmax(dim=0)
    likeliest = probs.argsort(descending=True)[:4].tolist()
    print(f"temperature {temperature}:", ", ".join(f"{tokenizer.decode([i])!r} {probs[i]:.3f}" for i in likeliest))

# %% [markdown]
# ## A response, without and with a cache
#
# To choose token $t$, attention needs the keys and values of all tokens before it. These keys and values do not change when a
# token is appended. Without a cache, the model computes all keys and values again for every new token. For a prompt of $L$ and a
# response of $T$ tokens it reads $L + (L + 1) + \dots + (L + T - 1)$ tokens. With a cache, the model reads every token once.
#
# The package's function `choose` gets a random number from 0 to 1 and picks the token whose interval of the cumulative
# distribution holds it. Equal numbers give equal tokens, so we can test the cache. `top_p=1.0` keeps all tokens (see `ex01`).


# %%
@torch.no_grad()
def without_cache(prompts, uniforms):
    """prompts [B, L], uniforms [T, B] -> sampled tokens [B, T]: B prompts of L tokens, T new tokens for each"""
    ids = prompts
    for u in uniforms:  # u [B]: a number for each prompt
        logits = policy(ids, use_cache=False).logits[:, -1]  # [B, V]; every token is read again
        token, _ = choose(logits, u, temperature=1.0, top_p=1.0)
        ids = torch.cat([ids, token[:, None]], dim=1)
    return ids[:, prompts.shape[1] :]


@torch.no_grad()
def with_cache(prompts, uniforms):
    """The same with a KV cache."""
    cache, new, tokens = DynamicCache(config=policy.config), prompts, []
    for u in uniforms:
        logits = policy(new, past_key_values=cache).logits[:, -1]  # only the new tokens are read
        token, _ = choose(logits, u, temperature=1.0, top_p=1.0)
        tokens.append(token)
        new = token[:, None]
    return torch.stack(tokens, dim=1)


def seconds(function, *inputs):
    """-> the result, and the shorter of two measured times"""
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        result = function(*inputs)
        times.append(time.perf_counter() - begin)
    return result, min(times)


rows = 16
lengths = (16, 32) if QUICK else (32, 64, 128, 256)
prompts = torch.tensor([prompt] * rows)
uniforms = torch.rand(max(lengths), rows, generator=torch.Generator().manual_seed(0))
slow, fast = [], []
for T in lengths:  # sampling goes on after the end of the answer, because only the time matters here
    a, slow_seconds = seconds(without_cache, prompts, uniforms[:T])
    b, fast_seconds = seconds(with_cache, prompts, uniforms[:T])
    slow.append(slow_seconds)
    fast.append(fast_seconds)
    print(f"{T:4} tokens: {slow_seconds:5.2f} s without a cache, {fast_seconds:5.2f} s with one: ", end="")
    print(f"{slow_seconds / fast_seconds:.1f} times faster; {(a == b).float().mean():.0%} of the tokens are the same")

# %% [markdown]
# A line can show less than 100 %. Then a random number lay so close to the border of two tokens that rounding decided.
#
# ## The package's sampler
#
# `sample` does the same for many prompts. It also keeps the log-probability (log-prob) of each sampled token for training. A
# log-prob is a natural logarithm, in *nats*. `trainer.sampling` has temperature 1. `grade` gives a response its
# *reward*: 1.0 for a right answer and 0.0 for a wrong one.

# %%
trajectories = sample(policy, [prompt] * 4, trainer.sampling, seed=0)
for t in trajectories:
    verdict = "right" if grade(trainer.task, problem, t, tokenizer) else "wrong"
    text = tokenizer.decode(t.response_ids).replace("\n", " / ")
    print(f"{verdict}, log-prob {sum(t.logprobs):6.2f}: {text}")

# %% [markdown]
# ## A response is scored in one pass, shifted by one
#
# Training reads a whole response at once and must find the same log-probs. The output at a column is the distribution of the
# *next* token. The log-prob of a token is therefore in the output of the column before it:
#
#     column             0    1    2    3    4    5    6
#     token              p    p    p    y    y    y  <eos>      p: prompt, y: response
#     response_mask      0    0    0    1    1    1    1
#     scored by output   -    -    -    2    3    4    5
#
# `collate` puts the responses into one table, with a row for each. Shorter rows have padding at their end, which the mask leaves
# out. (To sample, prompts have the padding at their start, so that all of them end in the same column.) Column t of every table
# belongs to the token at t. In training, only `vine_mini/logprobs.py` shifts.
#
# The loss of SFT is the mean of -log-prob over the tokens of a solution. Libraries give all other tokens the *label* -100, which
# means that nothing is learned there. The models of Hugging Face shift the labels themselves.

# %%
b = collate(trajectories)
mask, sampled = b.response_mask.bool(), torch.tensor([x for t in trajectories for x in t.logprobs])
with torch.no_grad():
    scored = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask)  # [B, T]
    found = policy(b.input_ids, attention_mask=b.attention_mask, labels=b.input_ids.where(mask, -100))
by_hand = found.logits[:, :-1].log_softmax(dim=-1).gather(2, b.input_ids[:, 1:, None])[..., 0]  # [B, T - 1]
print(f"largest difference between sampled and scored: {(scored[mask] - sampled).abs().max():.1e} nats")
print(f"between scored and shifted by hand: {(scored[:, 1:] - by_hand)[mask[:, 1:]].abs().max():.1e} nats")
print(f"SFT's loss with labels: {found.loss:.4f}; mean of -log-prob: {-scored[mask].mean():.4f} nats a token")

# %% [markdown]
# ## Temperature costs accuracy
#
# At temperature 0 the sampler takes the most likely token each time, and all 100 answers are right. At temperature 1 a response
# is about 40 random draws. One unlucky draw can make the answer wrong, and about 30 % of the answers are right. Tutorial 2 shows
# at which tokens. (At temperature 0 this policy needs no training. The task is a toy on which learning is quick.) The right
# tokens must become likelier. Tutorial 5 shows how a gradient does this, although graders and random draws have no derivative.

# %%
temperatures = (0.0, 1.0) if QUICK else (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
n_problems, n_samples = (20, 2) if QUICK else (100, 8)
accuracy, errors = [], []
for temperature in temperatures:
    repeated = [p for p in trainer.test_prompts[:n_problems] for _ in range(n_samples)]
    responses = sample(policy, repeated, replace(trainer.sampling, temperature=temperature), seed=0)
    graded = [grade(trainer.task, trainer.test_problems[i // n_samples], t, tokenizer) for i, t in enumerate(responses)]
    share, error = mean_and_error(torch.tensor(graded).view(n_problems, n_samples))  # respects that samples share a problem
    accuracy.append(share)
    errors.append(error)
    print(f"temperature {temperature:4.2f}: {100 * share:5.1f} ± {100 * error:.1f} % right")

# %%
figure, ((time_axis, temperature_axis),) = new_figure(2)
time_axis.plot(lengths, slow, "o-", color="#D55E00", label="without a cache")
time_axis.plot(lengths, fast, "s-", color="#0072B2", label="with a cache")
time_axis.set(xlabel="tokens sampled", ylabel=f"seconds for {rows} responses", title="What a KV cache saves", ylim=(0, None))
time_axis.legend(frameon=False)
temperature_axis.errorbar(temperatures, accuracy, yerr=errors, fmt="o-", color="#0072B2", capsize=3)
temperature_axis.set(xlabel="temperature", ylabel="share of right answers", title="What random draws cost", ylim=(-0.02, 1.02))
show(figure, "01_sampling")

# %% [markdown]
# ## Questions
#
# 1. Without a cache, the time grows faster than the number of tokens. In the printed times, by what factor does it grow when the
#    number of tokens doubles? Why is the factor below 4 at first?
# 2. At temperature 0 all responses to a prompt are equal. Could a policy learn from its own responses at temperature 0?
# 3. When a response is scored, the logits must be divided by the temperature at which the response was *sampled*. Why?
# 4. The cache holds keys and values. Why does it not hold queries?
#
# Exercises: `ex01` (choose a token), `ex02` (decode with a KV cache), `ex04` (log-probs of a response).
# Read next: `vine_mini/sampling/plain.py`, the plain sampler.
