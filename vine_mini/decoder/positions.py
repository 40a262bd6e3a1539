"""The position encodings of Kazemnejad et al. (2023, section 2). Each is a few lines of mathematics.

An encoding acts in one of three places:

    token embeddings    h = embed(x) + vector(position)     sinusoidal, learned
    queries and keys    q_t, k_i = R_t q_t, R_i k_i         RoPE
    attention logits    q_t . k_i / sqrt(d) + b(t - i)      ALiBi, T5's relative bias

NoPE (no position encoding) has no such term, and so no function here. With NoPE, a model has information about order from the
causal mask only. `table.py` gives each encoding its name. `later.py` has the encodings that came after this paper.
"""

import math

import torch
import torch.nn.functional as F

BUCKETS, MAX_DISTANCE = 32, 128  # T5's relative bias

# --- token embeddings ------------------------------------------------------------------------------------------------------


def sinusoidal(positions, width: int):
    """Absolute sinusoids (Vaswani et al. 2017, section 3.5): sin(t w_i) and cos(t w_i) with w_i = 10000^(-2i / width).

    The sines come first, then the cosines, as in the paper's code. Other orders are permutations of the width.

    Args:
        positions: [B, T] integers.
        width: of the vectors; even.
    Returns:
        [B, T, width] float32.
    """
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=positions.device) / width)  # [width / 2]
    angles = positions[..., None] * frequencies  # [B, T, width / 2]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def learned(positions, table):
    """Learned absolute positions (Gehring et al. 2017, section 3.1): a row of a table for each position.

    positions [B, T], table [rows, width] -> [B, T, width]. Raises ValueError for a position past the table.
    """
    if not positions.is_meta and int(positions.max()) >= len(table):
        raise ValueError(f"the learned table ends at {len(table)} positions; the sequence is longer")
    return table[positions]


# --- queries and keys ------------------------------------------------------------------------------------------------------


def freqs_cis(positions, rotated: int, p: float = 1.0):
    """RoPE's rotations e^(i t w_j) with w_j = 10000^(-2j / rotated) (Su et al. 2021, section 3.2.2).

    Args:
        positions: [B, T] integers.
        rotated: the number of a head's dimensions that are rotated; even, at least 2.
        p: the share of the frequencies that are kept, the highest first. The other pairs do not rotate (p-RoPE, Barbero et al.
            2024, arXiv 2410.06205). 1: RoPE. 0: NoPE.
    Returns:
        [B, 1, T, rotated / 2] complex. The 1 stands for all heads.
    """
    if rotated < 2 or rotated % 2:
        raise ValueError(f"RoPE turns pairs: partial_rotary_factor x head size = {rotated}, must be even and at least 2")
    frequencies = 10000.0 ** (-torch.arange(0, rotated, 2, device=positions.device) / rotated)
    if p < 1:
        frequencies[round(p * rotated / 2) :] = 0
    angles = positions[:, None, :, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def apply_rotary(x, turns):
    """Rotates the pairs (x_2j, x_2j+1) as complex numbers. Dimensions beyond the pairs stay.

    With q rotated by t and k by i, their product depends on t - i only. Neighbours form pairs, as in RoPE's paper. Llama pairs
    dimensions half a head apart, which is the same after a permutation of the width.

    Args:
        x: [..., B, H, T, d] queries or keys.
        turns: [B, 1, T, rotated / 2] from `freqs_cis`.
    """
    turns = F.pad(turns, (0, x.shape[-1] // 2 - turns.shape[-1]), value=1.0)  # faster than to cut off and append what stays
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2).to(x.dtype)


def rope(qk, positions, *, partial_rotary_factor: float = 1.0, p: float = 1.0):
    """RoPE on the first dimensions of each head, the share `partial_rotary_factor` of them (the paper's code: 0.25).

    qk [2, B, H, T, d] queries and keys, positions [B, T] -> [2, B, H, T, d]. `p` as in `freqs_cis`.
    """
    width = qk.shape[-1]
    if width % 2:
        raise ValueError(f"RoPE turns pairs: the head size is {width}, must be even")
    return apply_rotary(qk, freqs_cis(positions, round(partial_rotary_factor * width), p))


# --- attention logits ------------------------------------------------------------------------------------------------------


def alibi_slopes(heads: int):
    """ALiBi's slopes (Press et al. 2022, section 3): 2^(-8k/H) for k = 1..H, if H is a power of two. -> [H]

    Otherwise the slopes of the next lower power of two n come first, and then every other slope of 2n.
    """
    n = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * k / n) for k in range(1, n + 1)]
    return torch.tensor(slopes + [2 ** (-4 * k / n) for k in range(1, 2 * (heads - n), 2)])


def alibi_bias(distance, heads: int):
    """ALiBi: -slope_h (t - i). distance [B, Q, K] -> [B, H, Q, K]"""
    return -alibi_slopes(heads).to(distance.device)[:, None, None] * distance[:, None]


def t5_bias(distance, table):
    """T5's relative bias: a learned number for each head and bucket. distance [B, Q, K], table [BUCKETS, H] -> [B, H, Q, K]"""
    return table[t5_bucket(distance)].permute(0, 3, 1, 2)


def t5_bucket(distance):
    """The bucket of a distance t - i >= 0 in T5's relative bias (Raffel et al. 2020, section 2.1), any shape.

    Each distance below 16 has its own bucket. Distances from 16 to 128 share 16 more buckets, evenly in their logarithm. The last
    bucket also takes all larger distances. Negative distances (the future, which is masked) count as 0.
    """
    distance = distance.clamp(min=0)
    exact = BUCKETS // 2
    scaled = (distance.clamp(min=1) / exact).log() / math.log(MAX_DISTANCE / exact)  # 0 at 16, 1 at 128
    far = exact + (scaled * (BUCKETS - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=BUCKETS - 1))
