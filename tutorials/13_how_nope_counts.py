# %% [markdown]
# # 13. How NoPE counts
#
# In the longer runs of tutorial 12, the decoder without any position encoding counts best. The paper proves that such a decoder
# can count, by giving weights that do it (section 5). We build these weights and break them in four ways. Then we ask whether
# training finds them.

# %%
import torch
from lesson import QUICK, show
from tqdm import tqdm

from vine_mini.app.plots import new_figure
from vine_mini.decoder.model import Decoder
from vine_mini.lengthgen.config import LengthgenConfig
from vine_mini.lengthgen.tasks import COUNTED
from vine_mini.lengthgen.theory import BOS, VOCAB, attention_of_alibi, attention_of_second_layer, build, read_positions
from vine_mini.lengthgen.train import collate, decoder_config, evaluate, train

T = 32  # positions that the weights are built for; <bos> stands at position 1

# %% [markdown]
# ## Theorem 1: a weight of 1/t
#
# Each token's hidden state starts with three coordinates. The first is 1. The second is 1 for `<bos>` and 0 for other tokens. The
# third is 0, and the layer will write the position into it.
#
# Let all keys be equal. Then all logits are equal, whatever the query is. Softmax gives each of the $t$ visible tokens the weight
# $1/t$. Let the value be the second coordinate, which is 1 for exactly one visible token. Attention then returns $1/t$. The
# causal mask does the counting.

# %%
h = torch.tensor([[1, 1, 0]] + [[1, 0, 0]] * (T - 1), dtype=torch.float64)  # [T, 3]
q = torch.randn(T, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # the queries do not matter
k = h[:, :1].expand(T, 5)  # five equal numbers, read from the first coordinate
mask = torch.full((T, T), float("-inf"), dtype=torch.float64).triu(1)
h[:, 2] += (q @ k.T + mask).softmax(dim=-1) @ h[:, 1]
print("attention returns", [round(x, 4) for x in h[:6, 2].tolist()])

# %% [markdown]
# ## From 1/t to t
#
# The MLP must turn $x = 1/t$ into $t$. A sum of ReLUs is a piecewise linear function of $x$. This function must be right only at
# 1, 1/2, 1/3 and so on. An exact solution therefore exists, with one unit for each position after `<bos>`. (The paper only cites
# that MLPs can approximate any function.)
#
# $$x + \sum_{j=1}^{T-1} c_j\, \mathrm{relu}(1/j - x) = t \quad \text{at } x = 1/t, \qquad c_1 = 3,\; c_j = 2j$$
#
# Unit $j$ is 0 until $1/t$ falls below $1/j$. Between $1/j$ and $1/(j+1)$ the slope must be $-j(j+1)$, so unit $j$ changes it
# by $-2j$. Unit 1 also takes away the slope 1 of $x$.

# %%
t = torch.arange(1, T + 1, dtype=torch.float64)
j = t[:-1]
h[:, 2] += (torch.where(j == 1, 3, 2 * j) * (1 / j - h[:, 2:]).relu()).sum(dim=1)  # [T, T - 1], summed over units
print("the MLP turns it into", [round(x, 4) for x in h[:6, 2].tolist()], f"; largest error {(h[:, 2] - t).abs().max():.1e}")

model = build(T - 1)  # the same weights in the package's decoder, with random content in the other coordinates
ids = torch.tensor([[BOS, *torch.randint(1, VOCAB, (2 * T - 1,), generator=torch.Generator().manual_seed(0)).tolist()]])
print(f"the package's decoder on random tokens: largest error {(read_positions(model, ids[:, :T])[0] - t).abs().max():.1e}")

# %% [markdown]
# ## Theorem 2: from position to distance
#
# With $t$ in the hidden state, the next layer can build $q_t = [m, -m t, \dots]$ and $k_i = [i, 1, \dots]$. The product of the
# shown parts is $-m (t - i)$: the distance times minus the slope $m$. The dots stand for content. We compare this layer with a
# layer that has the same content and ALiBi's bias.

# %%
ours, alibi = attention_of_second_layer(model, ids[:, :T]), attention_of_alibi(model, ids[:, :T])  # [1, H, T, T]
print(f"NoPE's second layer and ALiBi: largest difference of an attention weight {(ours - alibi).abs().max():.1e}")

# %% [markdown]
# ## Broken in four ways
#
# These weights do not extrapolate: beyond the length that they were built for, no unit is left to bend the line. Without `<bos>`,
# attention returns 0, which the MLP turns into 63, the sum of all $c_j / j$. With two `<bos>` attention returns twice as much.
# Without the causal mask, all tokens see the same number of tokens.

# %%
no_bos, two = ids.clone(), ids.clone()
no_bos[:, 0], two[:, 1] = 1, BOS
curves = {f"built for {T}": read_positions(model, ids), "no <bos>": read_positions(model, no_bos)}
curves |= {"two <bos>": read_positions(model, two)}
curves |= {"no causal mask": read_positions(model, ids[:, :T], torch.zeros(1, 1, T, T))}
for name, read in curves.items():
    print(f"{name:15}", ", ".join(f"{p} -> {read[0, p - 1]:.1f}" for p in (1, 2, 3, 8, 16, 32, 48, 64) if p <= read.shape[1]))

# %% [markdown]
# ## Does training find it?
#
# We train NoPE to count, as in tutorial 12. We look inside with a *probe*. A probe is a linear map
# from the hidden states after a layer to a number, fitted by least squares. If the probe is right on sequences that it was not
# fitted on, the hidden states contain the number. We measure this with R², which is 1 for a perfect probe, 0 for one that is no
# better than the mean, and negative for a worse one.
#
# A sequence with $n$ items is `Copy`, `:`, the items, `[SEP]`, the items again, and `<eos>`. `[SEP]` stands at position $n + 3$.
# While the model writes, we probe for the position $t$ and for the items still to come, $2n + 3 - t$. We fit on even lengths up
# to 10, and test on odd lengths and on longer ones. As a control we probe the same decoder without training.


# %%
@torch.no_grad()
def look_inside(model, lengths):
    """-> hidden states, with a constant 1, after the embedding and each layer [layers + 1, n, D + 1]; {what: numbers [n]}"""
    states, numbers = [], []
    for n in lengths:
        ids, _ = collate([(f"Copy: {' '.join([x] * n)} [SEP]", " ".join([x] * n)) for x in COUNTED], "cpu")  # [16, 2n + 4]
        after = [model.model.embed(ids)]

        def keep(layer, inputs, out, to=after):
            to.append(out[0])

        hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
        model.model(ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        t = torch.arange(n + 3, 2 * n + 4)  # from [SEP], where n items are to come, to the last item
        states.append(torch.stack(after)[:, :, t - 1].flatten(1, 2))  # [layers + 1, 16 (n + 1), D]
        numbers.append(torch.stack([t, 2 * n + 3 - t]).repeat(1, len(ids)))  # [2, 16 (n + 1)]
    x, (position, to_come) = torch.cat(states, dim=1).double(), torch.cat(numbers, dim=1).double()
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1), {"position": position, "to come": to_come}


def probe(model, what: str):
    """-> R² after each layer on lengths up to 10, the same on longer ones; there, what layer 2's probe reads, and the truth"""
    linear, scores = None, []
    for lengths in ((2, 4, 6, 8, 10), (3, 5, 7, 9), range(11, 21)):
        x, numbers = look_inside(model, lengths)
        y = numbers[what]
        if linear is None:
            linear = torch.linalg.lstsq(x, y.expand(len(x), -1)[..., None], driver="gelsd").solution  # [layers + 1, D + 1, 1]
        read = (x @ linear)[..., 0]  # [layers + 1, n]
        scores.append((1 - (read - y).square().mean(dim=1) / y.var()).tolist())
    return scores[1], scores[2], read[2], y


updates, seeds = (20, (0,)) if QUICK else (500, (0, 1))
config = LengthgenConfig(task="copy", train_lengths=[2, 10], updates=updates, head_dim=16)
found = {}  # (what, trained or not) -> for each seed, what `probe` returns
for seed in seeds:
    torch.manual_seed(seed)  # so that `train` starts from the same weights
    decoders = {"untrained": Decoder(decoder_config(config, "nope")).eval()}
    with tqdm(total=updates, desc=f"NoPE learns to count, seed {seed}", leave=False) as bar:
        decoders["trained"] = train(config, "nope", seed, progress=bar.update)
    exact = evaluate(decoders["trained"], config)
    print(f"seed {seed}: exact match", ", ".join(f"{exact[n]:.2f} at length {n}" for n in (10, 11, 13, 16, 20)))
    for what, name in [(what, name) for what in ("position", "to come") for name in decoders]:
        found.setdefault((what, name), []).append(probe(decoders[name], what))
        seen, longer = (" ".join(f"{x:5.2f}" for x in row) for row in found[what, name][-1][:2])
        print(f"seed {seed}, {what:8}, {name:9}: R² after embedding and layers {seen}; on longer sequences {longer}")

# %% [markdown]
# The lines `position, untrained` are a surprise: an *untrained* NoPE decoder knows the position. After layer 1 its probe is
# nearly as accurate as the trained decoder's probe, and after layer 3 it is more accurate. Even random weights average the
# prefix, and in a longer prefix each token weighs less. On longer sequences, training improves the position after layer 1, and in
# one of the two seeds also after layer 2.
#
# The task needs another number: the items to come, which are $2n + 3 - t$ for $n$ items. To compute it, the model must compare
# positions. Training makes this number more exact: in layer 2 its R² is 0.95 in both seeds, and 0.6 and 0.7 without training. In
# layer 3 the position becomes less exact.
#
# On longer sequences every probe is worse, and flattens like the built weights (picture, right). The model itself still stops at
# the right place at lengths 11 and 13, and fails at most prompts of length 20. R² mixes all these lengths. So it does not show
# whether the model stops by the number that this probe reads.

# %%
figure, ((theory_axis, layer_axis, longer_axis),) = new_figure(3)
for (name, read), style in zip(curves.items(), ("#0072B2 -", "#D55E00 --", "#009E73 -.", "#CC79A7 :"), strict=True):
    colour, line = style.split()
    theory_axis.plot(range(1, read.shape[1] + 1), read[0], line, color=colour, linewidth=2, label=name)
for (what, name), runs in found.items():
    line = "-" if name == "trained" else "--"
    colour, marker = {"position": ("#E69F00", "^"), "to come": ("#0072B2", "o")}[what]
    for i, (seen, _, read, y) in enumerate(runs):
        layer_axis.plot(range(4), seen, line, color=colour, marker=marker, label=f"{what}, {name}" if i == 0 else None)
        if what == "to come":
            means = [read[y == n].mean() for n in range(21)]
            longer_axis.plot(range(21), means, line, color=colour, marker=marker, markersize=4, label=name if i == 0 else None)
theory_axis.set(title="Theorem 1, built and broken", xlabel="true position", ylabel="position in the hidden state")
layer_axis.set(title="Probes on lengths 3 to 9", xticks=range(4), xlabel="layer (0: embedding)", ylabel="R²", ylim=(0, 1.02))
longer_axis.set(title="Layer 2 on lengths 11 to 20", xticks=range(0, 21, 5), xlabel="items to come", ylabel="probe reads, mean")
for axis, end in ((theory_axis, 2 * T), (layer_axis, 0), (longer_axis, 20)):
    axis.plot([0, end], [0, end], color="0.7", linewidth=1, zorder=0)  # where a reading would be right
    axis.legend(frameon=False, fontsize=8)
show(figure, "13_how_nope_counts")

# %% [markdown]
# ## Questions
#
# 1. With two `<bos>`, the hidden state holds half of the true position at even positions, and a little more at odd ones. Why?
#    Look at the points that the piecewise linear function joins.
# 2. Build a second model, `build(T - 1, large=1e4)`. It keeps RMSNorm, which the theorem leaves out. How does a large constant
#    make RMSNorm harmless?
# 3. How does an untrained layer know the position? Multiply its attention to the first token (`output_attentions=True`) by $t$.
#
# Exercise: `ex16` (the weights of Theorem 1). Read next: `vine_mini/lengthgen/theory.py`.
