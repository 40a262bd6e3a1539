"""Exercises on position encodings: RoPE, ALiBi, and the weights of Theorem 1."""

import torch

from grading.engine import Exercise
from grading.sampling import random
from vine_mini.lengthgen import positions as encodings
from vine_mini.lengthgen import theory

# ex14: RoPE


def _rope(x, positions):
    return encodings.rotate(x, encodings.rope_turns(positions, x.shape[-1]))


def _turned(x, positions, *, pairs="neighbours", sign=1, first=0, exponent=2, one=False):
    """RoPE with one of its rules changed; the keywords say which."""
    d = x.shape[-1]
    j = torch.arange(d // 2, dtype=torch.float64)
    frequency = torch.ones_like(j) if one else 10000.0 ** (-exponent * j / d)
    angle = sign * (positions + first)[:, None, :, None] * frequency  # [B, 1, T, d / 2]
    a, b = x.chunk(2, dim=-1) if pairs == "halves" else (x[..., 0::2], x[..., 1::2])
    turned = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
    return torch.cat(turned, dim=-1) if pairs == "halves" else torch.stack(turned, dim=-1).flatten(-2)


def halves_paired(x, positions):
    """dimensions half a head apart are paired, as in Llama; here neighbours (0, 1), (2, 3), ... are."""
    return _turned(x, positions, pairs="halves")


def turned_backwards(x, positions):
    """the pairs turn the other way: the angle has the wrong sign."""
    return _turned(x, positions, sign=-1)


def counted_from_one(x, positions):
    """position 0 is turned by one step already."""
    return _turned(x, positions, first=1)


def frequency_without_the_two(x, positions):
    """the frequencies are 10000^(-j/d); they are 10000^(-2j/d), which reach from 1 to nearly 1/10000."""
    return _turned(x, positions, exponent=1)


def one_frequency(x, positions):
    """all pairs turn at the same speed, so that distances 2 pi apart look alike."""
    return _turned(x, positions, one=True)


def added_instead_of_turned(x, positions):
    """sines and cosines are added to the vector, as in the absolute encoding; RoPE multiplies."""
    return x + _turned(torch.ones_like(x), positions)


def index_instead_of_position(x, positions):
    """tokens are counted 0, 1, 2, ... in the tensor instead of taking `positions`: wrong with a cache or padding on the left."""
    return _turned(x, torch.arange(x.shape[2]).expand(x.shape[0], -1))


def positions_of_the_first_row(x, positions):
    """the positions of the first row are used for all rows."""
    return _turned(x, positions[:1].expand_as(positions))


def not_put_back_in_pairs(x, positions):
    """the turned numbers are not put back where they were: all firsts of the pairs stand before all seconds."""
    found = _turned(x, positions)
    return torch.cat([found[..., 0::2], found[..., 1::2]], dim=-1)


def _rope_cases():
    return {
        "one pair at position 1": dict(x=torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64), positions=torch.tensor([[1]])),
        "two pairs at position 2": dict(x=random(1, 1, 1, 4, seed=12), positions=torch.tensor([[2]])),
        "position 0": dict(x=random(1, 1, 1, 4, seed=13), positions=torch.tensor([[0]])),
        "two rows, three heads": dict(x=random(2, 3, 4, 8, seed=14), positions=torch.tensor([[0, 1, 2, 3], [7, 8, 9, 30]])),
    }


# ex15: ALiBi


def _bias(distance, heads, slopes):
    return -slopes[:, None, None] * distance[:, None]


def nearer_is_punished(distance, heads):
    """the sign is turned: far tokens are preferred to near ones."""
    return -encodings.alibi_bias(distance, heads)


def slopes_from_one(distance, heads):
    """k runs from 0, so that the first slope is 1 and the last one is missing; k runs from 1 to H."""
    return _bias(distance, heads, 2.0 ** (-8 * torch.arange(heads) / heads))


def one_slope(distance, heads):
    """all heads share the first slope; each has its own, so that some look near and some look far."""
    return _bias(distance, heads, encodings.alibi_slopes(heads)[:1].expand(heads))


def without_the_eight(distance, heads):
    """the exponent is -k/H; it is -8k/H."""
    return _bias(distance, heads, 2.0 ** (-torch.arange(1, heads + 1) / heads))


def rounded_exponent(distance, heads):
    """8 // H is rounded down to an integer, which is 0 for more than eight heads."""
    return _bias(distance, heads, 2.0 ** (-(8 // heads) * torch.arange(1, heads + 1)))


def powers_of_e(distance, heads):
    """the slopes are powers of e; they are powers of 2."""
    return _bias(distance, heads, torch.exp(-8 * torch.arange(1, heads + 1) / heads))


def heads_last(distance, heads):
    """the heads stand in the last dimension; the result is [B, H, Q, K]."""
    return encodings.alibi_bias(distance, heads).permute(0, 2, 3, 1)


def _alibi_cases():
    steps = torch.arange(5)
    causal = (steps[:, None] - steps)[None]
    return {
        "two heads, a row of distances": dict(distance=torch.tensor([[[3, 2, 1, 0]]]), heads=2),
        "four heads": dict(distance=causal[:, -2:], heads=4),
        "sixteen heads": dict(distance=causal[:, -1:], heads=16),
        "eight heads, two rows": dict(distance=torch.cat([causal, causal + 7]), heads=8),
    }


# ex16: the weights of Theorem 1


def _count(function, length):
    """Puts the weights into a real layer. -> the positions that it writes for random tokens after <bos>, [2, length + 1]"""
    model = theory.build(length)
    layer = model.model.layers[0]
    for weight in layer.parameters():
        weight.copy_(random(*weight.shape, seed=15))
    function(layer, length)
    ids = torch.randint(1, theory.VOCAB, (2, length + 1), generator=torch.Generator().manual_seed(16))
    ids[:, 0] = theory.BOS
    return theory.read_positions(model, ids)


def keys_not_equal(layer, length):
    """the keys differ from token to token, so that attention is not uniform and <bos> does not get just 1/t."""
    theory.write_position(layer, length)
    key = layer.attention.qkv.weight.chunk(3)[1]
    key.normal_(generator=torch.Generator().manual_seed(0))


def value_reads_the_constant(layer, length):
    """the value reads the coordinate that is 1 at every token: its mean is 1 everywhere, and says nothing of t."""
    theory.write_position(layer, length)
    value = layer.attention.qkv.weight.chunk(3)[2]
    value.zero_()[0, theory.ONE] = 1


def rest_left_random(layer, length):
    """random weights are left where zeros belong: the output carries the other numbers of the values, too."""
    theory.write_position(layer, length)
    generator = torch.Generator().manual_seed(0)
    layer.attention.qkv.weight.chunk(3)[2][1:].normal_(generator=generator)
    layer.attention.out.weight[:, 1:].normal_(generator=generator)


def only_the_share(layer, length):
    """the MLP adds nothing, and what is written is 1/t."""
    theory.write_position(layer, length)
    layer.down.weight.zero_()


def counted_from_zero(layer, length):
    """the MLP leads to t - 1: <bos> stands at position 1."""
    theory.write_position(layer, length)
    unit = layer.up.weight.shape[0] - 1  # a unit that is always on: relu(ONE) = 1
    layer.up.weight[unit].zero_()[theory.ONE] = 1
    layer.down.weight[theory.POSITION, unit] = -1


def slopes_not_doubled(layer, length):
    """the kinks have weights c_j = j; a piece between 1/(j + 1) and 1/j has slope -j (j + 1), so that they are 2j."""
    theory.write_position(layer, length)
    j = torch.arange(1, length + 1, dtype=torch.float64)
    layer.down.weight[theory.POSITION, :length] = torch.where(j == 1, 3.0, j)


def share_not_taken_away(layer, length):
    """the MLP leads to t, but the 1/t that attention wrote is still there: c_1 is 3, not 2."""
    theory.write_position(layer, length)
    layer.down.weight[theory.POSITION, 0] = 2


def _theorem_cases():
    return {"two tokens after <bos>": dict(length=2), "seven tokens": dict(length=7), "thirty": dict(length=30)}


EXERCISES = [
    Exercise(
        "ex14_rope",
        "rope",
        _rope,
        _rope_cases,
        [
            halves_paired,
            turned_backwards,
            counted_from_one,
            frequency_without_the_two,
            one_frequency,
            added_instead_of_turned,
            index_instead_of_position,
            positions_of_the_first_row,
            not_put_back_in_pairs,
        ],
    ),
    Exercise(
        "ex15_alibi",
        "alibi_bias",
        encodings.alibi_bias,
        _alibi_cases,
        [nearer_is_punished, slopes_from_one, one_slope, without_the_eight, rounded_exponent, powers_of_e, heads_last],
    ),
    Exercise(
        "ex16_write_position",
        "write_position",
        theory.write_position,
        _theorem_cases,
        [
            keys_not_equal,
            value_reads_the_constant,
            rest_left_random,
            only_the_share,
            counted_from_zero,
            slopes_not_doubled,
            share_not_taken_away,
        ],
        call=_count,
    ),
]
