# %% [markdown]
# # 10. NoPE and RoPE
#
# The second paper of this course asks what a model does with sequences longer than any it was trained on (Kazemnejad et al.
# 2023, arXiv 2305.19466). That hangs on how it knows *where* a token stands. So we begin with what attention knows about order,
# which is nothing, and with the ways to tell it. The decoder here is untrained: this is a matter of form, not of weights.

# %%
import math

import torch
from lesson import QUICK, show

from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.decoder.positions import alibi_bias, alibi_slopes, rope_turns, rotate, t5_bucket
from vine_mini.app.plots import new_figure

T, V, D, H = 24, 32, 64, 4  # tokens, vocabulary, width, heads
d = D // H
generator = torch.Generator().manual_seed(0)
ids = torch.randint(V, (1, T), generator=generator)

# %% [markdown]
# ## Attention is blind to order
#
# A token's query $q_t$ weighs the keys, and the result is a weighted mean of the values:
#
# $$y_t = \sum_i w_{ti} v_i, \qquad w_{ti} = \mathrm{softmax}_i(q_t \cdot k_i / \sqrt d)$$
#
# A sum does not care in which order its terms come. If we shuffle all tokens but the last, the last one should not notice. Only
# the causal mask could tell: it lets token $t$ see tokens $i \le t$ alone. We shuffle, and look at the last token's logits.

# %%
shuffled = torch.cat([ids[:, torch.randperm(T - 1, generator=generator)], ids[:, -1:]], dim=1)


@torch.no_grad()
def change(positions: str, layers: int, mask) -> float:
    """The largest change of the last token's logits when the tokens before it are shuffled."""
    torch.manual_seed(0)
    shape = dict(vocab_size=V, hidden_size=D, num_hidden_layers=layers, num_attention_heads=H)
    model = Decoder(DecoderConfig(positions=positions, **shape)).eval()
    before, after = (model(x, attention_mask=mask, use_cache=False).logits[0, -1] for x in (ids, shuffled))  # [V]
    return (after - before).abs().max().item()


no_mask = torch.zeros(1, 1, T, T)  # added to the attention logits in place of the causal mask
print("positions  layers  without a mask  causal mask")
for name, layers in (("nope", 1), ("nope", 2), ("nope", 3), ("rope", 1), ("alibi", 1)):
    print(f"{name:9} {layers:7} {change(name, layers, no_mask):15.1e} {change(name, layers, None):12.1e}")

# %% [markdown]
# "NoPE" is no position encoding at all. Without a mask it sees a bag of tokens, however many layers it has; what is left is
# rounding. With one causal layer the *last* token still sees a bag: it may look at everything, and keys and values come from
# each token alone. From the second layer on order shows: in the first each token has mixed what stood before *it*. So a causal
# decoder without any encoding is not blind. Tutorial 12 shows that it can even count.
#
# ## Three places for an encoding
#
# All else must be put in by hand, and there are three places for it (section 2):
#
# | place | formula | encodings |
# |---|---|---|
# | token embeddings | $\mathrm{embed}(x_t) + p_t$ | sinusoidal, learned |
# | queries and keys | $(R_t q_t) \cdot (R_i k_i)$ | RoPE |
# | attention logits | $q_t \cdot k_i / \sqrt d + b(t - i)$ | ALiBi, T5's relative bias |
#
# ## RoPE by hand
#
# See each pair of a query's numbers as a point in a plane. At position $p$ RoPE turns pair $j$ by the angle $p\,\omega_j$, with
# $\omega_j = 10000^{-2j/d}$ and $j$ from 0: the first pair turns fast, the last hardly at all (Su et al. 2021, arXiv 2104.09864).
# In the complex plane, to turn is to multiply by $e^{i p \omega_j}$, which is how the package does it. We take sines and cosines.

# %%
q, k = torch.randn(2, d, generator=generator)


def rotate_by_hand(x, p: int):
    """x [d] at position p -> [d]"""
    turned = []
    for j in range(d // 2):
        angle = p * 10000 ** (-2 * j / d)
        a, b = x[2 * j].item(), x[2 * j + 1].item()
        turned += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
    return torch.tensor(turned)


by_hand = torch.stack([rotate_by_hand(q, p) for p in range(T)])  # [T, d]
package = rotate(q.expand(1, 1, T, d), rope_turns(torch.arange(T)[None], d))[0, 0]  # [T, d]; batch and heads are 1
assert torch.allclose(by_hand, package, atol=1e-5)
print(f"largest difference between ours and the package's: {(by_hand - package).abs().max():.1e}")

# %% [markdown]
# ## Only the distance is left
#
# If the query of token $t$ turns by $t\,\omega_j$ and the key of token $i$ by $i\,\omega_j$, the angle between them changes by
# $(t - i)\,\omega_j$, so their product depends on the distance alone. We put one and the same $q$ and $k$ at all pairs of
# positions, and measure how far the logits of one distance spread; then again further out in the text.

# %%
for first in (0, 1_000, 100_000, 10_000_000):
    turns = rope_turns(first + torch.arange(T)[None], d)
    turned_q, turned_k = (rotate(x.expand(1, 1, T, d), turns)[0, 0] for x in (q, k))
    logits = turned_q @ turned_k.T / d**0.5  # [T, T]
    spread = max((logits.diagonal(-n).max() - logits.diagonal(-n).min()).item() for n in range(T))
    everything = (logits.max() - logits.min()).item()
    print(f"positions from {first:>10,}: logits of one distance spread by {spread:.1e}, of all by {everything:.2f}")

periods = 2 * math.pi * 10000 ** (torch.arange(0, d, 2) / d)
print("tokens for a full turn:", ", ".join(f"{n:,.0f}" for n in periods.tolist()))
print(f"pairs that make one within {T} tokens: {(periods <= T).sum()} of {d // 2}")

# %% [markdown]
# Only rounding is left, but it grows: an angle is a position times $\omega_j$ in float32, whose seven digits go to full turns
# when the position is large. In bfloat16, with less than three digits, it would be hopeless.
#
# The last line hints at another trouble. A model trained on short sequences meets only some angles of the slow pairs. On longer
# ones it meets new angles, and nothing has told it what they mean. Tutorial 11 measures whether RoPE fails there.
#
# ## Logits against distance
#
# The others are simpler. NoPE's logit is $q \cdot k / \sqrt d$ at every distance: content alone. ALiBi subtracts a slope times
# the distance, one slope a head. T5 adds a number from a learned table; far distances share its rows. To draw them we ask how a
# query likes a key that is *equal* to it, as when a token looks for its like, and average over many random ones.

# %%
far, n_vectors = 64, 200 if QUICK else 5000
same = torch.randn(n_vectors, d, generator=generator)  # queries, and their keys
turned = rotate(same[:, None, None].expand(-1, 1, far, d), rope_turns(torch.arange(far)[None], d))[:, 0]  # [n, far, d]
rope = (turned @ same[:, :, None])[..., 0] / d**0.5  # [n, far]: q at position t, k at position 0
nope = same.square().sum(dim=1).mean() / d**0.5
bias = alibi_bias(torch.arange(far)[None, :, None], H)[0, :, :, 0]  # [H, far]
for n in (0, 1, 4, 16, 63):
    error = (rope[:, n].std() / n_vectors**0.5).item()
    bucket = t5_bucket(torch.tensor(n)).item()
    row = f"RoPE {rope[:, n].mean():.2f} ± {error:.2f}, ALiBi {nope + bias[0, n]:6.2f} (steepest head)"
    print(f"distance {n:2}: NoPE {nope:.2f}, {row}; T5's bucket {bucket}")

# %%
figure, ((plane, logits_axis, bucket_axis),) = new_figure(3)
start = torch.tensor([1.0, 0.0] * (d // 2)).expand(1, 1, 6, d)  # every pair at angle 0
shown = rotate(start, rope_turns(torch.arange(6)[None], d))[0, 0]  # [6, d]
for j, radius, colour, marker in ((0, 1.0, "#D55E00", "v"), (1, 0.7, "#E69F00", "^"), (3, 0.4, "#0072B2", "o")):
    pair = radius * shown[:, 2 * j : 2 * j + 2]
    plane.plot(*pair.T, color=colour, marker=marker, linewidth=1, label=f"j = {j}: {periods[j]:.0f} tokens a turn")
    for p in ((0, 1, 2, 3, 4, 5), (0, 5), (), ())[j]:
        plane.annotate(str(p), 1.17 * pair[p], ha="center", va="center", fontsize=8, color=colour)
plane.set(title="RoPE: pairs at positions 0 to 5", xlim=(-1.4, 2.9), ylim=(-1.3, 1.3), aspect="equal")
plane.legend(frameon=False, loc="upper right", fontsize=8)
logits_axis.plot(nope.expand(far), color="#0072B2", label="NoPE")
logits_axis.plot(rope.mean(dim=0), color="#D55E00", label="RoPE")
for head, style in ((0, "-"), (2, "--")):
    logits_axis.plot(nope + bias[head], style, color="#E69F00", label=f"ALiBi, slope {alibi_slopes(H)[head]:.3f}")
logits_axis.set(title=f"k = q, mean of {n_vectors}", xlabel="distance t − i (tokens)", ylabel="attention logit", ylim=(-6, 6.5))
logits_axis.legend(frameon=False, ncols=2, fontsize=8)
bucket_axis.step(range(160), t5_bucket(torch.arange(160)), color="#009E73", where="post")
bucket_axis.set(title="T5: rows of the learned table", xlabel="distance t − i (tokens)", ylabel="row", ylim=(-1, 34))
show(figure, "10_nope_and_rope")

# %% [markdown]
# ## Questions
#
# 1. One causal NoPE layer hides the order from the last token. Does it hide it from the token in the middle?
# 2. RoPE turns queries and keys. What would $y_t$ be if it turned the values as well?
# 3. In tutorial 11 training ends at sequences of 24 tokens, the test at 44. What does each encoding do at a distance of 40
#    that it never did at 20? Order the four by how new that is.
# 4. `rope_share=0.25` turns a quarter of each head, as the paper's code does. What do the other dimensions see?
#
# Exercises: `ex14` (RoPE), `ex15` (ALiBi). Read next: `vine_mini/lengthgen/positions.py`, then `model.py`.
