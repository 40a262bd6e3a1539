# %% [markdown]
# # 11. NoPE and RoPE
#
# The second paper of this course asks how a model handles sequences that are longer than all of its training sequences
# (Kazemnejad et al. 2023, arXiv 2305.19466v2). The answer depends on how the model knows *where* a token stands.
#
# We start with what attention knows about order by itself, which is nothing. Then we look at the ways to add order. The decoder
# in this tutorial is untrained, because the results depend on the form of the model and not on its weights.

# %%
import math

import torch
from lesson import QUICK, show

from vine_mini.app.plots import new_figure
from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.decoder.positions import alibi_bias, alibi_slopes, apply_rotary, freqs_cis, t5_bucket

T, V, D, H = 24, 32, 64, 4  # tokens, vocabulary, width, heads
d = D // H
generator = torch.Generator().manual_seed(0)
ids = torch.randint(V, (1, T), generator=generator)

# %% [markdown]
# ## Attention ignores order
#
# A token's query $q_t$ gives a weight to each key. The result is the weighted mean of the values:
#
# $$o_t = \sum_i w_{ti} v_i, \qquad w_{ti} = \mathrm{softmax}_i(q_t \cdot k_i / \sqrt d)$$
#
# A sum does not depend on the order of its terms. If we shuffle all tokens but the last one, the output at the last token should
# not change. Only the causal mask depends on order: with this mask, token $t$ sees only the tokens $i \le t$. We shuffle the
# tokens and compare the logits of the last one.

# %%
shuffled = torch.cat([ids[:, torch.randperm(T - 1, generator=generator)], ids[:, -1:]], dim=1)


@torch.no_grad()
def change(encoding: str, layers: int, mask) -> float:
    """The largest change of the last token's logits when the tokens before it are shuffled."""
    torch.manual_seed(0)
    shape = dict(vocab_size=V, hidden_size=D, num_hidden_layers=layers, num_attention_heads=H)
    model = Decoder(DecoderConfig(encoding=encoding, **shape)).eval()
    before, after = (model(x, attention_mask=mask, use_cache=False).logits[0, -1] for x in (ids, shuffled))  # [V]
    return (after - before).abs().max().item()


no_mask = torch.zeros(1, 1, T, T)  # is added to the attention logits in place of the causal mask
print("largest change of a logit")
print("encoding   layers  without a mask  causal mask")
for name, layers in (("nope", 1), ("nope", 2), ("nope", 3), ("rope", 1), ("alibi", 1)):
    print(f"{name:9} {layers:7} {change(name, layers, no_mask):15.1e} {change(name, layers, None):12.1e}")

# %% [markdown]
# "NoPE" means no position encoding. Without a mask, NoPE does not see the order of the tokens, whatever the number of layers. The
# small numbers in its rows are rounding errors.
#
# With the causal mask and one layer, the *last* token still does not see the order. The last token may look at all tokens, and
# their keys and values do not depend on other tokens. From the second layer on, the order matters: in the first layer, each token
# has averaged the tokens up to *itself*. A causal decoder without any position encoding therefore knows about order. Tutorial 13
# shows that it can even count.
#
# ## Three places for an encoding
#
# An encoding can be added in three places (section 2), as a vector $p_t$, as rotations $R_t$, or as a number $b$:
#
# | place | formula | encodings |
# |---|---|---|
# | token embeddings | $\mathrm{embed}(x_t) + p_t$ | sinusoidal, learned |
# | queries and keys | $(R_t q_t) \cdot (R_i k_i)$ | RoPE |
# | attention logits | $q_t \cdot k_i / \sqrt d + b(t - i)$ | ALiBi, T5's relative bias |
#
# ## RoPE by hand
#
# RoPE (Su et al. 2021, arXiv 2104.09864) treats each pair of numbers in a query as a point in a plane. At position $t$ it rotates
# pair $j$ by the angle $t\,\omega_j$, where $\omega_j = 10000^{-2j/d}$ and $j$ starts at 0. The first pair rotates fast. The last
# pair hardly rotates at all.
#
# The package treats a pair as a complex number and multiplies it by the cosine of the angle plus $\sqrt{-1}$ times its sine.
# Here we do without complex numbers.

# %%
q, k = torch.randn(2, d, generator=generator)


def rotate_by_hand(x, t: int):
    """x [d] at position t -> [d]"""
    turned = []
    for j in range(d // 2):
        angle = t * 10000 ** (-2 * j / d)
        a, b = x[2 * j].item(), x[2 * j + 1].item()
        turned += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
    return torch.tensor(turned)


by_hand = torch.stack([rotate_by_hand(q, t) for t in range(T)])  # [T, d]
package = apply_rotary(q.expand(1, 1, T, d), freqs_cis(torch.arange(T)[None], d))[0, 0]  # [T, d]; one batch row, one head
assert torch.allclose(by_hand, package, atol=1e-5)
print(f"largest difference between our rotation and the package's: {(by_hand - package).abs().max():.1e}")

# %% [markdown]
# ## Only the distance matters
#
# The query of token $t$ rotates by $t\,\omega_j$ and the key of token $i$ rotates by $i\,\omega_j$. The angle between the two
# changes by $(t - i)\,\omega_j$. The product of query and key therefore depends on the distance alone.
#
# To check this, we put the same $q$ and $k$ at all pairs of positions. We measure how much the attention logits differ among
# pairs with equal distance. Then we repeat this at larger positions.

# %%
for first in (0, 1_000, 100_000, 10_000_000):
    turns = freqs_cis(first + torch.arange(T)[None], d)
    turned_q, turned_k = (apply_rotary(x.expand(1, 1, T, d), turns)[0, 0] for x in (q, k))
    logits = turned_q @ turned_k.T / d**0.5  # [T, T]
    spread = max((logits.diagonal(-n).max() - logits.diagonal(-n).min()).item() for n in range(T))
    everything = (logits.max() - logits.min()).item()
    print(f"positions from {first:>10,}: range of the logits at equal distance {spread:.1e}, at all distances {everything:.2f}")

periods = 2 * math.pi * 10000 ** (torch.arange(0, d, 2) / d)
print("tokens in a full turn of each pair:", ", ".join(f"{n:,.0f}" for n in periods.tolist()))
print(f"pairs that make a full turn within {T} tokens: {(periods <= T).sum()} of {d // 2}")

# %% [markdown]
# Only rounding errors remain, but they grow with the position. An angle is a position times $\omega_j$ in float32, which has
# about seven digits. At large positions most of these digits describe full turns. In bfloat16, with less than three digits, the
# angles would be useless.
#
# The last line shows another problem. In short training sequences, the slow pairs turn through a small part of the circle. Longer
# sequences have angles that the model has never seen. Tutorial 12 measures whether RoPE fails there.
#
# ## Logits against distance
#
# The other encodings are simpler:
#
# - NoPE's logit is $q \cdot k / \sqrt d$ at every distance.
# - ALiBi subtracts the distance times a slope. Each head has its own slope.
# - T5 adds a number from a learned table. Several large distances share a row of the table.
#
# We draw the mean logit of many random queries. Each key *equals* its query, as if a token looked for tokens like itself. RoPE's
# logit falls within ten tokens and then swings. It has no steady decline as ALiBi's has.

# %%
far, n_vectors = 64, 200 if QUICK else 5000
same = torch.randn(n_vectors, d, generator=generator)  # the queries, which are also their keys
turned = apply_rotary(same[:, None, None].expand(-1, 1, far, d), freqs_cis(torch.arange(far)[None], d))[:, 0]  # [n, far, d]
rope = (turned @ same[:, :, None])[..., 0] / d**0.5  # [n, far]: q at position t, k at position 0
nope = same.square().sum(dim=1).mean() / d**0.5
bias = alibi_bias(torch.arange(far)[None, :, None], H)[0, :, :, 0]  # [H, far]
for n in (0, 1, 4, 16, 63):
    error = (rope[:, n].std() / n_vectors**0.5).item()
    bucket = t5_bucket(torch.tensor(n)).item()
    row = f"RoPE {rope[:, n].mean():.2f} ± {error:.2f}, ALiBi {nope + bias[0, n]:6.2f} (steepest head)"
    print(f"distance {n:2}: NoPE {nope:.2f}, {row}; T5's row {bucket}")

# %%
figure, ((plane, logits_axis, bucket_axis),) = new_figure(3)
start = torch.tensor([1.0, 0.0] * (d // 2)).expand(1, 1, 6, d)  # every pair at angle 0
shown = apply_rotary(start, freqs_cis(torch.arange(6)[None], d))[0, 0]  # [6, d]
pairs = ((0, 1.0, "#D55E00", "v", range(6)), (1, 0.7, "#E69F00", "^", (0, 5)), (3, 0.4, "#0072B2", "o", ()))
for j, radius, colour, marker, labelled in pairs:
    pair = radius * shown[:, 2 * j : 2 * j + 2]
    plane.plot(*pair.T, color=colour, marker=marker, linewidth=1, label=f"j = {j}: {periods[j]:.0f} tokens a turn")
    for t in labelled:
        plane.annotate(str(t), 1.17 * pair[t], ha="center", va="center", fontsize=8, color=colour)
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
show(figure, "11_nope_and_rope")

# %% [markdown]
# ## Questions
#
# 1. One causal NoPE layer hides the order from the last token. Does it also hide the order from the token in the middle?
# 2. RoPE rotates queries and keys. What would $o_t$ be if RoPE rotated the values as well?
# 3. In tutorial 12, training sequences have up to 24 tokens and test sequences up to 44. What does each encoding do at a distance
#    of 40 that it never did at a distance of 20? Order the four encodings by how new this is, and check your order in tutorial
#    12.
# 4. The encoding `rope25` rotates a quarter of each head, as in the paper's code. What can the other dimensions express? How many
#    frequencies does a head of 16 dimensions keep, and one of 64?
#
# Exercises: `ex14` (RoPE), `ex15` (ALiBi), `ex22` (forgetting attention). Read next: `positions.py`, `table.py` and `model.py` in
# `vine_mini/decoder/`. The file `later.py` beside them has the encodings that came after the paper.
