# %% [markdown]
# # 1. Sampling, and what a KV cache saves
#
# A language model gives a probability to every token that could come next. To *sample* a response is to draw a token,
# append it, and ask again, until the model draws the token that ends a response. Everything later in this course is made of
# such samples, so first we draw some, by hand.
#
# In reinforcement learning the model that draws is called the *policy*. Ours is a small Llama that does chains of sums. It
# knows the rules, but it is careless. (Sections are those of VinePPO, arXiv 2410.01679, the paper that tutorials 1 to 9 lead
# through.)

# %%
import time

import torch
from lesson import QUICK, show, start
from transformers import DynamicCache

from vine_mini.sampling.plain import choose
from vine_mini.evaluate import grade
from vine_mini.logprobs import response_logprobs
from vine_mini.app.plots import new_figure
from vine_mini.sampling import sample
from vine_mini.types import collate

trainer = start()
policy, tokenizer, eos = trainer.policy, trainer.tokenizer, trainer.eos
problem, prompt = trainer.test_problems[0], trainer.test_prompts[0]
print(problem.question, "\n")
print(problem.solution, "\n")
print("the prompt in tokens:", [tokenizer.decode([i]) for i in prompt])
first_sum = tokenizer.encode(problem.solution.split("=")[0] + "=")  # "1-1=": where the next token takes some thought

# %% [markdown]
# ## One token
#
# The model reads the prompt and the first sum as far as its equals sign, and returns a row of logits for each token. Only the
# last row speaks of what comes next:
#
# $$\pi(y_t \mid s_t) = \mathrm{softmax}(\mathrm{logits} / \tau)$$
#
# where the state $s_t$ is the prompt and all tokens so far (VinePPO, section 2), and $\tau$ is the temperature: below 1 the
# likely tokens become likelier, above 1 all become alike.

# %%
with torch.no_grad():
    logits = policy(torch.tensor([prompt + first_sum])).logits[0, -1]  # [V]
for temperature in (0.5, 1.0, 2.0):
    probs = (logits / temperature).softmax(dim=0)
    likeliest = probs.argsort(descending=True)[:4].tolist()
    print(f"temperature {temperature}:", ", ".join(f"{tokenizer.decode([i])!r} {probs[i]:.3f}" for i in likeliest))

# %% [markdown]
# ## A response, without and with a cache
#
# To choose token $t$, attention needs the keys and values of all tokens before it. They do not change when a token is appended.
# Without a cache we compute all of them again for every new token: $T$ tokens cost $1 + 2 + \dots + T$ readings. With a cache we
# read every token once.
#
# `choose` is the package's: it looks a uniform number up in the cumulative distribution, so the same numbers give the same
# tokens, and we can see that the cache changes nothing but the time.


# %%
@torch.no_grad()
def without_cache(prompts, uniforms):
    """prompts [B, L], uniforms [B, T] -> sampled tokens [B, T]"""
    ids = prompts
    for u in uniforms.T.contiguous():
        logits = policy(ids, use_cache=False).logits[:, -1]  # [B, V]; every token is read again
        token, _ = choose(logits, u, temperature=1.0, top_p=1.0)
        ids = torch.cat([ids, token[:, None]], dim=1)
    return ids[:, prompts.shape[1] :]


@torch.no_grad()
def with_cache(prompts, uniforms):
    """The same with a KV cache."""
    cache, new, tokens = DynamicCache(config=policy.config), prompts, []
    for u in uniforms.T.contiguous():
        logits = policy(new, past_key_values=cache).logits[:, -1]  # reads only what is new
        token, _ = choose(logits, u, temperature=1.0, top_p=1.0)
        tokens.append(token)
        new = token[:, None]
    return torch.stack(tokens, dim=1)


def seconds(function, *inputs):
    """-> result, the better of two times"""
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        result = function(*inputs)
        times.append(time.perf_counter() - begin)
    return result, min(times)


rows = 16
lengths = (16, 32) if QUICK else (32, 64, 128, 256)
prompts = torch.tensor([prompt] * rows)
uniforms = torch.rand(rows, max(lengths), generator=torch.Generator().manual_seed(0))
slow, fast = [], []
for T in lengths:  # we do not stop at the end of the answer: only the time matters here
    a, slow_seconds = seconds(without_cache, prompts, uniforms[:, :T])
    b, fast_seconds = seconds(with_cache, prompts, uniforms[:, :T])
    slow.append(slow_seconds)
    fast.append(fast_seconds)
    same = (a == b).float().mean().item()
    times = f"{slow_seconds:5.2f} s without, {fast_seconds:5.2f} s with: {slow_seconds / fast_seconds:.1f} times"
    print(f"{T:4} tokens: {times}; {same:.0%} of the tokens are the same")

# %% [markdown]
# Should a line say less than 100 %: a drawn number lay so close to the border between two tokens that rounding decided.
#
# ## The package's sampler
#
# `sample` does this for many prompts at once, lets a row that has ended leave the batch, and keeps the log-probability of each
# token that it drew. Training will need them, and they must be those of the distribution that drew: the training code, which
# reads a whole response at once, has to find the same numbers.

# %%
settings = dict(max_new_tokens=64, eos_token_id=eos, seed=0)
trajectories = sample(policy, [prompt] * 4, **settings)
for t in trajectories:
    verdict = "right" if grade(problem, t, tokenizer) else "wrong"
    print(f"{verdict}, log-prob {sum(t.logprobs):6.2f}: {' / '.join(tokenizer.decode(t.response_ids).split(chr(10)))}")

b = collate(trajectories)
with torch.no_grad():
    scored = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask)  # [B, T]
sampled = torch.tensor([x for t in trajectories for x in t.logprobs])
print(f"largest difference between sampled and scored: {(scored[b.response_mask.bool()] - sampled).abs().max():.1e} nats")

# %% [markdown]
# ## Temperature costs accuracy
#
# The most likely tokens are right: at temperature 0 nothing is wrong. But a response is about forty draws, and one miss is
# enough. (Tutorial 2 finds out where they happen.) That is the policy's whole weakness, and what reinforcement learning will
# mend: not new knowledge, but less carelessness.

# %%
temperatures = (0.0, 1.0) if QUICK else (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
n_problems, n_samples = (20, 2) if QUICK else (100, 8)
accuracy, errors = [], []
for temperature in temperatures:
    repeated = [p for p in trainer.test_prompts[:n_problems] for _ in range(n_samples)]
    responses = sample(policy, repeated, temperature=temperature, **settings)
    graded = [grade(trainer.test_problems[i // n_samples], t, tokenizer) for i, t in enumerate(responses)]
    by_problem = torch.tensor(graded).view(n_problems, n_samples).mean(dim=1)  # samples of one problem are not independent
    accuracy.append(by_problem.mean().item())
    errors.append(by_problem.std().item() / n_problems**0.5)
    print(f"temperature {temperature:4.2f}: {100 * accuracy[-1]:5.1f} ± {100 * errors[-1]:.1f} % right")

# %%
figure, ((time_axis, temperature_axis),) = new_figure(2)
time_axis.plot(lengths, slow, "o-", color="#D55E00", label="without a cache")
time_axis.plot(lengths, fast, "s-", color="#0072B2", label="with a cache")
time_axis.set(xlabel="tokens sampled", ylabel=f"seconds for {rows} responses", title="What a KV cache saves", ylim=(0, None))
time_axis.legend(frameon=False)
temperature_axis.errorbar(temperatures, accuracy, yerr=errors, fmt="o-", color="#0072B2", capsize=3)
temperature_axis.set(xlabel="temperature", ylabel="share of right answers", title="What carelessness costs", ylim=(-0.02, 1.02))
show(figure, "01_sampling")

# %% [markdown]
# ## Questions
#
# 1. Without a cache, why does the time grow faster than the number of tokens? By what factor does each doubling of the tokens
#    multiply it in the printed times? Why is it less than 4 at first? (The prompt is read again, too, and each call has a
#    fixed cost.)
# 2. At temperature 0 all responses to a prompt are equal. Could a policy learn from its own responses then?
# 3. When a response is scored, why must the logits be divided by the temperature at which it was *sampled*?
# 4. The cache holds keys and values. Why not the queries?
#
# Exercises: `ex01` (choose a token), `ex02` (writing with a KV cache), `ex04` (log-probs of a response).
# Read next: `vine_mini/decoding.py`, the plain sampler, 110 lines.
