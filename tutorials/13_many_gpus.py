# %% [markdown]
# # 13. From here to many GPUs
#
# Everything so far ran in one process. The paper trains 1.1 and 7 billion parameters, which takes several GPUs. Each is driven by
# a process of its own, a *rank*, and they talk by *all-reduce*: every rank gives a tensor, every rank gets the sum. We go
# through one iteration and ask what may be divided freely, and where the ranks must talk. For most of it no GPU is needed.

# %%
import subprocess
import sys
import tempfile

import torch
from lesson import QUICK, ROOT, show, start
from transformers import LlamaConfig, LlamaForCausalLM

from vine_mini.advantages import whiten
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import clipped_policy_loss
from vine_mini.app.memory import memory_estimate
from vine_mini.app.plots import new_figure
from vine_mini.steps import cut_steps
from vine_mini.sampling import rollouts

ranks = 4
trainer = start(prompts=4 if QUICK else 32, minibatch_size=16, epochs=1, lr=0.0)  # the policy stays as it is
metrics, episodes, advantages = next(trainer.train())  # one iteration of VinePPO; advantages [B, T] before they are whitened
policy, batch, mask = trainer.policy, episodes.batch, episodes.batch.response_mask

# %% [markdown]
# ## Rollouts divide freely, if their seeds do
#
# A rollout needs the policy and a state, nothing else. But ranks that share a seed draw the same random numbers, and rollouts
# that should be independent come as twins. A seed for each rank mends it (two may still agree by chance). A seed for each
# *state* does more: its value then does not even depend on how many ranks there are. We play the ranks in a loop.

# %%
t = episodes.trajectories[0]
cuts = cut_steps(t.response_ids, trainer.tokenizer)


def roll_out(cut: int, k: int, seed: int):
    """-> tokens of k completions of the state before token `cut`"""
    ((group,),) = rollouts(policy, [t], [[cut]], k=k, max_new_tokens=64, eos_token_id=trainer.eos, seed=seed)
    return [tuple(c.response_ids) for c in group]


for seeds in ((0, 0, 0, 0), (0, 1, 2, 3)):
    print(f"ranks with seeds {seeds}: {len({c for seed in seeds for c in roll_out(0, 4, seed)})} different rollouts of 16")
dealt = {cut: roll_out(cut, 9, seed=cut) for rank in range(ranks) for cut in cuts[rank::ranks]}
print("a seed for each state, four ranks and one: the same rollouts:", dealt == {cut: roll_out(cut, 9, seed=cut) for cut in cuts})

# %% [markdown]
# ## Whitening needs everybody
#
# Advantages are whitened over all response tokens of the iteration. The share of a rank has another mean and another deviation.
# Tokens with advantage 0, of which there are many, even get a sign that depends on the rank. The cure is three sums.

# %%
whole = batch.advantages  # as the trainer whitened them
shares = torch.arange(len(batch)).chunk(ranks)  # the rows of each rank
alone = torch.cat([whiten(advantages[r], mask[r]) for r in shares])
print("mean of each rank:", [f"{advantages[r][mask[r].bool()].mean():+.3f}" for r in shares])
print(f"whitened alone: off by up to {(alone - whole).abs().max():.2f}; other sign: {(alone * whole < 0).sum() / mask.sum():.0%}")
n, s, squares = sum(torch.stack([mask[r].sum(), advantages[r].sum(), advantages[r].square().sum()]).double() for r in shares)
together = (advantages - s / n) / ((squares - s**2 / n) / (n - 1)).sqrt() * mask
print(f"with the sums of all: off by up to {(together - whole).abs().max():.0e}")

# %% [markdown]
# ## One denominator
#
# A minibatch's loss divides by its response tokens. If each rank divides its share by the tokens of *all*, the gradients add up
# to that of one process, as over micro-batches. The usual wrapper, DistributedDataParallel, *averages* instead: with a mean over
# its own tokens on each rank, a token among short responses counts for more.


# %%
def gradient(rows, denominator=None):
    """The policy's gradient on some rows; left out, the denominator is their own number of tokens. -> [all parameters]"""
    b = batch.rows(rows)
    logprobs = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask)
    loss, _ = clipped_policy_loss(logprobs, b.old_logprobs, b.advantages, b.response_mask, denominator=denominator)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


rows = torch.arange(len(batch))[:32]
one, tokens = gradient(rows), mask[rows].sum()
shares = mask[rows].sum(dim=1).argsort().chunk(ranks)  # like lengths together, as efficient loaders have them
print("response tokens of each rank:", [int(mask[r].sum()) for r in shares])
print(f"one denominator, summed: off by {(sum(gradient(r, tokens) for r in shares) - one).norm() / one.norm():.1e}")
print(f"own ones, averaged: off by {(sum(gradient(r) for r in shares) / ranks - one).norm() / one.norm():.1e} of the gradient")

# %%
# Now for real: two processes, which meet through a file and talk by gloo, the CPU's counterpart of the GPUs' NCCL.
PROGRAM = """
import datetime, sys, torch, torch.distributed as dist, transformers
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import clipped_policy_loss
from vine_mini.types import Batch
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meet", datetime.timedelta(seconds=60), world_size=2, rank=rank)
policy = transformers.AutoModelForCausalLM.from_pretrained("vine_mini/policies/arithmetic").eval()
batch = Batch(**torch.load(f"{folder}/batch.pt"))
b = batch.rows(torch.arange(len(batch)).chunk(2)[rank])
tokens = b.response_mask.sum()
dist.all_reduce(tokens)  # now those of both
logprobs = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask)
clipped_policy_loss(logprobs, b.old_logprobs, b.advantages, b.response_mask, denominator=tokens)[0].backward()
for p in policy.parameters():
    dist.all_reduce(p.grad)
torch.save(torch.cat([p.grad.flatten() for p in policy.parameters()]), f"{folder}/gradient-{rank}.pt")
dist.destroy_process_group()
"""
with tempfile.TemporaryDirectory() as folder:
    torch.save(vars(batch.rows(rows)), f"{folder}/batch.pt")
    commands = [[sys.executable, "-c", PROGRAM, folder, str(rank)] for rank in range(2)]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for command in commands]
    failed = any([p.wait() for p in processes])  # a rank that waits in vain gives up after a minute
    real = one if failed else torch.load(f"{folder}/gradient-0.pt")
print("two processes:", "skipped, gloo does not work here" if failed else f"off by {(real - one).norm() / one.norm():.1e}")

# %% [markdown]
# ## Memory
#
# A whole copy on every rank is a waste. ZeRO (arXiv 1910.02054) divides what training holds: stage 1 AdamW's moments, stage 3
# also gradients and weights, which ranks then fetch layer by layer (FSDP is the same idea). What a rank works on is not
# divided: activations, the KV cache, and the copy that samples. The models here have shapes, but no weights ("meta").

# %%
shapes = {  # from the published configurations (TinyLlama's and DeepSeek's); and how many responses a rank samples at once
    "1.1B": (256, dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_key_value_heads=4)),
    "7B": (16, dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=30, vocab_size=102400)),
}
kinds, bars, gpus = ("weights", "AdamW", "reference", "bf16 copies", "KV cache, or gradients and activations"), {}, 8
for name, (at_once, shape) in shapes.items():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_attention_heads=32, **shape))
    n = sum(p.numel() for p in model.parameters())
    config = TrainConfig(**read_preset("gsm8k-rho1b") | {"sample_batch_size": at_once})
    parts = memory_estimate(model, config, 300, critic=False, reference=True)  # prompts of 300 tokens
    sampling, update = parts["sampling: KV cache"] + parts["sampling: logits"], parts["update: activations"]
    for label, moments, rest in (("1 GPU, DDP", 1, 1), ("ZeRO 1", gpus, 1), ("ZeRO 3", gpus, gpus)):
        copies = 2 * n + 2 * n / rest  # the sampler's is whole, that of the forward pass is not
        work = max(sampling, 4 * n / rest + update)  # one after the other, so the larger counts
        sizes = bars[f"{name}\n{label}"] = [4 * n / rest, 8 * n / moments, 4 * n / rest, copies, work]
        row = ", ".join(f"{kind} {size / 2**30:.1f}" for kind, size in zip(kinds, sizes, strict=True))
        print(f"{n / 1e9:.2f}B parameters, {label:10}: {row}; in all {sum(sizes) / 2**30:.0f} GiB")
    assert sum(bars[f"{name}\n1 GPU, DDP"]) == parts["peak"]

# %% [markdown]
# ## Tokens
#
# The paper's iteration has 512 episodes, with K = 9 rollouts from each state. If a response has $T$ tokens in $n$ equal
# steps, those from state $i$ write $(n - i)/n$ of it, and an iteration writes at most $512\, T\, (1 + K (n + 1) / 2)$ tokens
# (equal states, rolled out once, make it fewer). $T$ and $n$ are guesses here. The rate is what this machine did above, with
# one thread.

# %%
T, n, small = 200, 5, sum(p.numel() for p in policy.parameters())
tokens, rate = 512 * T * (1 + 9 * (n + 1) / 2), metrics["rollout_tokens"] / metrics["seconds_rollouts"]
print(f"if T = {T} and n = {n}: {tokens / 1e6:.1f} million tokens an iteration, {650 * tokens / 1e9:.1f} billion in all 650")
print(f"this machine, {small:,} parameters: {rate:,.0f} tokens a second, {tokens / rate / 60:.1f} minutes an iteration")
print(f"if a token's cost grew with the parameters, 1.1 billion: {tokens / rate * 1.1e9 / small / 86400:.1f} days an iteration")

# %%
figure, ((axis,),) = new_figure(1)
figure.set_size_inches(8, 4)
bottom, colours = torch.zeros(len(bars)), ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")
for kind, colour, heights in zip(kinds, colours, torch.tensor(list(bars.values())).T / 2**30, strict=True):
    axis.bar(list(bars), heights, 0.6, bottom, color=colour, edgecolor="white", label=kind, zorder=2)
    bottom = bottom + heights
axis.axhline(80e9 / 2**30, color="0.3", zorder=3, linestyle="--", label="a GPU of 80 GB")
axis.set(title=f"Memory of each of {gpus} GPUs, an estimate", ylabel="GiB a GPU")
axis.legend(frameon=False, fontsize=8)
show(figure, "13_many_gpus")

# %% [markdown]
# ## What takes over
#
# | here | on many GPUs | look up |
# |---|---|---|
# | `slots.py` reads a common beginning once | an engine that shares prefixes and gets new weights | vLLM: prefix caching |
# | `whiten`, one denominator | sums over ranks | `torchrun`, `all_reduce`, accelerate's `gather` |
# | `trainer`, all weights in one place | sharded weights; a trainer that takes advantages [B, T] | FSDP2; TRL's `GRPOTrainer` |
#
# What then deviates from this package: the engine's log-probs are not the trainer's, so old ones are scored again (here only in
# bfloat16); ranks have unequal numbers of states, so some wait; runs do not repeat bit by bit. This repository has no code for
# several GPUs, and no measurement on one behind these figures.

# %% [markdown]
# ## Questions
#
# 1. DistributedDataParallel averages. By what must each rank multiply its loss, so that one denominator can stay?
# 2. A token's cache takes 2 (keys and values) times layers times key-value heads times their size. The 1.1B model has 4 such
#    heads of size 64, the 7B model 32 of 128. How many times larger is its cache?
# 3. GRPO compares the responses to one prompt. What must not happen when an iteration is divided over ranks?
#
# Read next: `vine_mini/memory.py`, and "Limits" in the README.
