# %% [markdown]
# # 14. From here to many GPUs
#
# So far everything ran in one process. The paper trains models with 1.1 and 7 billion parameters. The larger one needs several
# GPUs. Each has its own process, called a *rank*. Ranks communicate by *all-reduce*: every rank gives a tensor and gets the sum.
# For each part of an iteration, we ask if it can be divided among ranks, and where they communicate. No GPU is needed.

# %%
import subprocess
import sys
import tempfile

import torch
from lesson import QUICK, ROOT, show, start
from transformers import LlamaConfig, LlamaForCausalLM

from vine_mini.advantages import whiten
from vine_mini.app.config import SHIPPED, TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.memory import estimate
from vine_mini.app.plots import new_figure
from vine_mini.integrations.trl import plan
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import clipped_policy_loss
from vine_mini.sampling import rollouts
from vine_mini.types import Batch, derive_seed

ranks = 4
trainer = start(prompts=4 if QUICK else 32, minibatch_size=16, epochs=1, lr=0.0, seed=1)  # the policy does not change
_, episodes, advantages = next(trainer.train())  # one iteration of VinePPO; advantages [B, T] before whitening
policy, mask = trainer.policy, episodes.tokens.response_mask
batch = Batch(**vars(episodes.tokens), **trainer.score(episodes)[0], advantages=whiten(advantages, mask))

# %% [markdown]
# ## Rollouts can be divided freely, with the right seeds
#
# A rollout needs only the policy and a state. But ranks with equal seeds draw equal random numbers, and their rollouts are then
# copies instead of independent samples. A different seed for each rank prevents this (two rollouts can still be equal by chance).
# A seed for each *state* is better: the state's value then does not depend on the number of ranks. We simulate ranks with a loop.

# %%
t, cuts = episodes.trajectories[0], episodes.cuts[0]


def roll_out(cuts: list[int], k: int, seed: int):
    """-> for each cut the tokens of k rollouts from the state before it"""
    [groups] = rollouts(policy, [t], [cuts], trainer.sampling, k=k, seed=seed)
    return {cut: [tuple(r.response_ids) for r in group] for cut, group in zip(cuts, groups, strict=True)}


for seeds in ((0, 0, 0, 0), (0, 1, 2, 3)):
    print(f"ranks with seeds {seeds}: {len({r for seed in seeds for r in roll_out([0], 4, seed)[0]})} different rollouts of 16")
ways = {
    "one seed": lambda cuts: roll_out(cuts, 9, seed=0),
    "a seed for each state": lambda cuts: {c: roll_out([c], 9, derive_seed(t.prompt_ids, t.response_ids[:c]))[c] for c in cuts},
}
for name, way in ways.items():
    divided = [way(cuts[rank::ranks]) for rank in range(ranks)]
    print(f"{name}: four ranks sample the same as one: {way(cuts) == {c: r for found in divided for c, r in found.items()}}")

# %% [markdown]
# ## Whitening needs sums over all ranks
#
# Advantages are whitened over all response tokens of the iteration. The tokens of a single rank have another mean and another
# standard deviation. An advantage can then even change its sign. Three sums over all ranks solve it: of tokens, A and A².

# %%
whole = batch.advantages  # whitened over all tokens
shares = torch.arange(len(batch)).chunk(ranks)  # the rows of each rank
alone = torch.cat([whiten(advantages[r], mask[r]) for r in shares])
print("mean of each rank:", [f"{advantages[r][mask[r].bool()].mean():+.3f}" for r in shares])
print(f"each rank alone: error up to {(alone - whole).abs().max():.2f}, wrong sign {(alone * whole < 0).sum() / mask.sum():.0%}")
n, s, squares = sum(torch.stack([mask[r].sum(), advantages[r].sum(), advantages[r].square().sum()]).double() for r in shares)
together = (advantages - s / n) / ((squares - s**2 / n) / (n - 1)).sqrt() * mask
print(f"with the three sums over all ranks: error up to {(together - whole).abs().max():.0e}")

# %% [markdown]
# ## One denominator
#
# The loss of a minibatch is divided by the number of its response tokens. If each rank divides by the tokens of *all* ranks, the
# gradients add up to the gradient of one process, as with micro-batches. The usual wrapper, DistributedDataParallel (DDP),
# *averages* gradients. If each rank then divides by its own tokens, a token on a rank with short responses counts more.


# %%
def gradient(rows, denominator=None):
    """The policy's gradient on some rows, [all parameters]. The default denominator is the number of their response tokens."""
    b = batch.rows(rows)
    logprobs = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask)
    loss, _ = clipped_policy_loss(logprobs, b.old_logprobs, b.advantages, b.response_mask, denominator=denominator)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


rows = torch.arange(len(batch))[:32]
one, tokens = gradient(rows), mask[rows].sum()
shares = mask[rows].sum(dim=1).argsort().chunk(ranks)  # responses of similar length share a rank, as in efficient loaders
print("response tokens of each rank:", [int(mask[r].sum()) for r in shares])
print(f"one denominator, summed: relative error {(sum(gradient(r, tokens) for r in shares) - one).norm() / one.norm():.1e}")
print(f"own denominators, averaged: relative error {(sum(gradient(r) for r in shares) / ranks - one).norm() / one.norm():.1e}")

# The same with two real processes. They meet through a file and communicate by gloo, which does on CPUs what NCCL does on GPUs.
PROGRAM = """
import datetime, sys, torch, torch.distributed as dist, transformers
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import clipped_policy_loss
from vine_mini.types import Batch
folder, rank, policy = sys.argv[1], int(sys.argv[2]), transformers.AutoModelForCausalLM.from_pretrained(sys.argv[3]).eval()
dist.init_process_group("gloo", f"file://{folder}/meet", datetime.timedelta(seconds=60), world_size=2, rank=rank)
batch = Batch(**torch.load(f"{folder}/batch.pt"))
b = batch.rows(torch.arange(len(batch)).chunk(2)[rank])
tokens = b.response_mask.sum()
dist.all_reduce(tokens)  # now the tokens of both ranks
logprobs = response_logprobs(policy, b.input_ids, b.attention_mask, b.response_mask)
clipped_policy_loss(logprobs, b.old_logprobs, b.advantages, b.response_mask, denominator=tokens)[0].backward()
for p in policy.parameters():
    dist.all_reduce(p.grad)
torch.save(torch.cat([p.grad.flatten() for p in policy.parameters()]), f"{folder}/gradient-{rank}.pt")
dist.destroy_process_group()
"""
with tempfile.TemporaryDirectory() as folder:
    torch.save(vars(batch.rows(rows)), f"{folder}/batch.pt")
    commands = [[sys.executable, "-c", PROGRAM, folder, str(rank), str(SHIPPED / "arithmetic")] for rank in range(2)]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for command in commands]
    failed = any([p.wait() for p in processes])  # a rank that waits in vain stops after a minute
    real = None if failed else torch.load(f"{folder}/gradient-0.pt")
print("two processes:", "failed" if failed else f"relative error {(real - one).norm() / one.norm():.1e}")

# %% [markdown]
# ## Memory
#
# DDP divides nothing. ZeRO (arXiv 1910.02054) divides AdamW's moments in stage 1. Stage 3 also divides gradients and weights, as
# FSDP does; ranks then fetch weights layer by layer. No stage divides activations, the KV cache or the copy that samples.

# %%
shapes = {  # from the published configurations of TinyLlama and DeepSeek; and how many responses a rank samples at once
    "1.1B": (256, dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_key_value_heads=4)),
    "7B": (16, dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=30, vocab_size=102400)),
}
kinds, bars, gpus = ("weights", "AdamW", "reference", "bf16 copy that samples", "sampling, or the update"), {}, 8
for name, (at_once, shape) in shapes.items():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_attention_heads=32, **shape))
    n = sum(p.numel() for p in model.parameters())
    config = TrainConfig(**read_preset("gsm8k-rho1b") | {"sample_batch_size": at_once})
    parts = estimate(model, config, 300)  # prompts of 300 tokens
    sampling = parts["sampling: KV cache"] + parts["sampling: activations"]
    divided, update = parts["update: gradients"] + parts["update: bf16 weights"], parts["update: activations"]
    for label, moments, rest in (("undivided", 1, 1), ("ZeRO 1", gpus, 1), ("ZeRO 3", gpus, gpus)):
        work = max(sampling, divided / rest + update)  # sampling and updates take turns, so the larger one counts
        sizes = [4 * n / rest, 8 * n / moments, parts["reference"] / rest, parts["bf16 copy that samples"], work]
        bars[f"{name}\n{label}"] = sizes
        row = ", ".join(f"{kind} {size / 2**30:.1f}" for kind, size in zip(kinds, sizes, strict=True))
        print(f"{n / 1e9:.2f}B parameters, {label:9}: {row}; in all {sum(sizes) / 2**30:.0f} GiB")
    assert sum(bars[f"{name}\nundivided"]) == parts["peak"]  # the parts are those of the package's estimate

# %% [markdown]
# ## Tokens
#
# The paper's iteration has 512 episodes and K = 9 rollouts from each state. Let a response have $T$ tokens in $n$ equal steps. A
# rollout from state $i$ then writes $(n - i)/n$ of the response. An iteration writes at most $512\, T\, (1 + K (n + 1) / 2)$
# tokens, and fewer where states are equal. Our $T$ and $n$ are guesses. The plan turns tokens into seconds with the data
# sheet of a GPU. An *engine* is the GPUs that hold one copy of the policy for sampling.
#
# In the right picture, a line starts at the fewest GPUs into which the model fits. More GPUs also free memory for larger batches,
# so 8 can be more than twice as fast as 4. Communication is not counted. Stay on one GPU while policy, AdamW and reference
# fit and an iteration takes minutes. `python -m vine_mini.integrations.trl --plan` prints the table below for your own settings.

# %%
T, n = 200, 5
tokens = 512 * T * (1 + 9 * (n + 1) / 2)
print(f"with T = {T} and n = {n}: {tokens / 1e6:.1f} million tokens an iteration, {650 * tokens / 1e9:.1f} billion in all 650")
paper_run = TrainConfig(**read_preset("gsm8k-rho1b"))
print(plan.plan(paper_run))

# %%
figure, ((axis, clock),) = new_figure(2)
bottom, colours = torch.zeros(len(bars)), ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")
for kind, colour, heights in zip(kinds, colours, torch.tensor(list(bars.values())).T / 2**30, strict=True):
    axis.bar(list(bars), heights, 0.6, bottom, color=colour, edgecolor="white", label=kind, zorder=2)
    bottom = bottom + heights
axis.axhline(80e9 / 2**30, color="0.3", zorder=3, linestyle="--", label="memory of a GPU with 80 GB")
axis.set(title=f"Memory of each of {gpus} GPUs, an estimate", ylabel="GiB a GPU")
axis.tick_params(axis="x", labelsize=7)
for name, colour, marker in zip(("1B", "7B", "70B"), colours, "os^", strict=False):
    line = [(str(row.gpus), sum(row.times)) for row in plan.rows(paper_run) if row.model == name and row.times]
    clock.semilogy(*zip(*line, strict=True), marker=marker, color=colour, label=f"{name} parameters")
clock.set(title="Seconds of an iteration, as planned", xlabel="GPUs", ylabel="seconds")
for each in (axis, clock):
    each.legend(frameon=False, fontsize=8)
show(figure, "14_many_gpus")

# %% [markdown]
# ## Questions
#
# 1. DistributedDataParallel averages gradients. By what must each rank multiply its loss to keep one denominator?
# 2. The cache of a token takes 2 (keys and values) times layers times key-value heads times their size. The 1.1B model has 4 such
#    heads of size 64, the 7B model has 32 of size 128. How many times larger is the cache of the 7B model?
# 3. GRPO compares the responses to one prompt. What must not happen when an iteration is divided among ranks?
#
# Read next: [beyond_one_gpu.md](beyond_one_gpu.md), VinePPO on TRL and what of it has run, and `vine_mini/app/memory.py`.
