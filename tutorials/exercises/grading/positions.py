"""Exercises on position encodings: RoPE, ALiBi, the weights of Theorem 1, and forgetting attention."""

import torch

from grading.engine import Exercise
from grading.inputs import random
from vine_mini.decoder import later
from vine_mini.decoder import positions as encodings
from vine_mini.lengthgen import theory

# ex14: RoPE


def _rope(x, positions):
    return encodings.apply_rotary(x, encodings.freqs_cis(positions, x.shape[-1]))


def _turned(x, positions, *, pairs="neighbours", sign=1, first=0, exponent=2, one=False):
    """RoPE. Each keyword changes one of its rules."""
    d = x.shape[-1]
    j = torch.arange(d // 2, dtype=torch.float64)
    frequency = torch.ones_like(j) if one else 10000.0 ** (-exponent * j / d)
    angle = sign * (positions + first)[:, None, :, None] * frequency  # [B, 1, T, d / 2]
    a, b = x.chunk(2, dim=-1) if pairs == "halves" else (x[..., 0::2], x[..., 1::2])
    turned = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
    return torch.cat(turned, dim=-1) if pairs == "halves" else torch.stack(turned, dim=-1).flatten(-2)


def halves_paired(x, positions):
    """dimensions half a head apart form pairs, as in Llama. Here neighbours form pairs: (0, 1), (2, 3), ..."""
    return _turned(x, positions, pairs="halves")


def turned_backwards(x, positions):
    """the pairs rotate in the other direction. The angle has the wrong sign."""
    return _turned(x, positions, sign=-1)


def counted_from_one(x, positions):
    """position 0 is already rotated. The angle at position 0 must be 0."""
    return _turned(x, positions, first=1)


def frequency_without_the_two(x, positions):
    """the frequencies are 10000^(-j/d) instead of 10000^(-2j/d)."""
    return _turned(x, positions, exponent=1)


def one_frequency(x, positions):
    """all pairs rotate at the same speed. Distances that differ by 2 pi then look equal."""
    return _turned(x, positions, one=True)


def added_instead_of_turned(x, positions):
    """sines and cosines are added to the vector, as in the sinusoidal encoding. RoPE rotates the vector."""
    return x + _turned(torch.ones_like(x), positions)


def index_instead_of_position(x, positions):
    """tokens are counted 0, 1, 2, ... in the tensor. With a cache or left padding, only `positions` is right."""
    return _turned(x, torch.arange(x.shape[2]).expand(x.shape[0], -1))


def positions_of_the_first_row(x, positions):
    """the positions of the first row are used for all rows."""
    return _turned(x, positions[:1].expand_as(positions))


def positions_along_the_heads(x, positions):
    """the angles are laid along the heads instead of the tokens. `positions` is [B, T] and x is [B, H, T, d]."""
    heads = x.shape[1]
    return _turned(x.transpose(1, 2), positions).transpose(1, 2) if heads == x.shape[2] else _turned(x, positions)


def not_put_back_in_pairs(x, positions):
    """the rotated numbers do not return to their places: all first numbers of the pairs stand before all second ones."""
    found = _turned(x, positions)
    return torch.cat([found[..., 0::2], found[..., 1::2]], dim=-1)


def _rope_cases():
    return {
        "one pair at position 1": dict(x=torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64), positions=torch.tensor([[1]])),
        "two pairs at position 2": dict(x=random(1, 1, 1, 4, seed=12), positions=torch.tensor([[2]])),
        "position 0": dict(x=random(1, 1, 1, 4, seed=13), positions=torch.tensor([[0]])),
        "two rows, three heads": dict(x=random(2, 3, 4, 8, seed=14), positions=torch.tensor([[0, 1, 2, 3], [7, 9, 8, 30]])),
        "as many heads as tokens": dict(x=random(2, 3, 3, 4, seed=17), positions=torch.tensor([[0, 1, 2], [5, 6, 9]])),
        "sixteen dimensions, position 100,000": dict(x=random(1, 1, 2, 16, seed=19), positions=torch.tensor([[3, 100_000]])),
        "large positions": dict(x=random(1, 1, 2, 6, seed=18), positions=torch.tensor([[2500, 40000]])),
    }


# ex15: ALiBi


def _bias(distance, heads, slopes):
    return -slopes[:, None, None] * distance[:, None]


def nearer_is_punished(distance, heads):
    """the sign is wrong. Distant tokens are then preferred to near ones."""
    return -encodings.alibi_bias(distance, heads)


def slopes_from_one(distance, heads):
    """k starts at 0. The first slope is then 1, and the last one is missing. k must run from 1 to H."""
    return _bias(distance, heads, 2.0 ** (-8 * torch.arange(heads) / heads))


def one_slope(distance, heads):
    """all heads share the first slope. Each head must have its own slope."""
    return _bias(distance, heads, encodings.alibi_slopes(heads)[:1].expand(heads))


def without_the_eight(distance, heads):
    """the exponent is -k/H instead of -8k/H."""
    return _bias(distance, heads, 2.0 ** (-torch.arange(1, heads + 1) / heads))


def rounded_exponent(distance, heads):
    """8 // H is rounded down to an integer, which is 0 for more than eight heads."""
    return _bias(distance, heads, 2.0 ** (-(8 // heads) * torch.arange(1, heads + 1)))


def powers_of_e(distance, heads):
    """the slopes are powers of e instead of powers of 2."""
    return _bias(distance, heads, torch.exp(-8 * torch.arange(1, heads + 1) / heads))


def heads_last(distance, heads):
    """the heads are the last dimension. The result must be [B, H, Q, K]."""
    return encodings.alibi_bias(distance, heads).permute(0, 2, 3, 1)


def distance_limited(distance, heads):
    """a large distance is limited. ALiBi's bias grows with the distance without a limit."""
    return encodings.alibi_bias(distance.clamp(max=16), heads)


def _alibi_cases():
    steps = torch.arange(5)
    causal = (steps[:, None] - steps)[None]
    return {
        "two heads, a row of distances": dict(distance=torch.tensor([[[3, 2, 1, 0]]]), heads=2),
        "one head, large distances": dict(distance=torch.tensor([[[1000, 40, 0]]]), heads=1),
        "four heads": dict(distance=causal[:, -2:], heads=4),
        "sixteen heads": dict(distance=causal[:, -1:], heads=16),
        "eight heads, two rows": dict(distance=torch.cat([causal, causal + 7]), heads=8),
    }


# ex16: the weights of Theorem 1


def _count(function, length):
    """Sets the weights of a real layer. -> the positions that it writes for <bos> and random tokens, and what else it changes"""
    model = theory.build(length)
    layer = model.model.layers[0]
    for weight in layer.parameters():
        weight.copy_(random(*weight.shape, seed=15))
    function(layer, length)
    ids = torch.randint(1, theory.VOCAB, (2, length + 1), generator=torch.Generator().manual_seed(16))
    ids[:, 0] = theory.BOS
    before = model.model.embed(ids)  # [2, length + 1, D]
    after = []
    hook = layer.register_forward_hook(lambda module, inputs, output: after.append(output[0]))
    model.model(ids, use_cache=False)
    hook.remove()
    positions, change = after[0][..., theory.POSITION].clone(), after[0] - before
    change[..., theory.POSITION] = 0
    return {"positions": positions, "change of the other coordinates": change}


def _not_zeroed(layer, length, *names):
    """The weights of Theorem 1, but where they are 0, the named ones keep their random numbers."""
    query, key, value = layer.attention.qkv.weight.chunk(3)
    parts = dict(query=query, key=key, value=value, out=layer.attention.out.weight, up=layer.up.weight, down=layer.down.weight)
    before = {name: parts[name].clone() for name in names}
    theory.write_position(layer, length)
    for name in names:
        parts[name].copy_(before[name] if name == "query" else before[name].where(parts[name] == 0, parts[name]))


def keys_not_zeroed(layer, length):
    """queries and keys keep their random numbers. Attention is then not uniform, and the weight of <bos> is not 1/t."""
    _not_zeroed(layer, length, "query", "key")


def value_not_zeroed(layer, length):
    """the row of the value keeps its other random numbers. The value then reads more than IS_BOS."""
    _not_zeroed(layer, length, "value")


def out_not_zeroed(layer, length):
    """the output projection keeps its other random numbers. The value is then added to other coordinates, ONE among them."""
    _not_zeroed(layer, length, "out")


def value_and_out_not_zeroed(layer, length):
    """values and output projection keep their other random numbers. Random content then reaches POSITION."""
    _not_zeroed(layer, length, "value", "out")


def up_not_zeroed(layer, length):
    """the up projection keeps its other random numbers. The hidden units then read more than ONE and POSITION."""
    _not_zeroed(layer, length, "up")


def down_not_zeroed(layer, length):
    """the down projection keeps its other random numbers. The MLP then changes other coordinates, ONE among them."""
    _not_zeroed(layer, length, "down")


def nothing_zeroed(layer, length):
    """all weights that are not needed keep their random numbers. Set a whole matrix to 0 before you write into it."""
    _not_zeroed(layer, length, "query", "key", "value", "out", "up", "down")


def value_reads_the_constant(layer, length):
    """the value reads the coordinate that is 1 for every token. The mean is then 1 and does not depend on t."""
    theory.write_position(layer, length)
    value = layer.attention.qkv.weight.chunk(3)[2]
    value.zero_()[0, theory.ONE] = 1


def only_the_share(layer, length):
    """the MLP adds nothing. The result is then 1/t."""
    theory.write_position(layer, length)
    layer.down.weight.zero_()


def counted_from_zero(layer, length):
    """the MLP gives t - 1. <bos> has position 1."""
    theory.write_position(layer, length)
    unit = layer.up.weight.shape[0] - 1  # a unit that is always on: relu(ONE) = 1
    layer.up.weight[unit].zero_()[theory.ONE] = 1
    layer.down.weight[theory.POSITION, unit] = -1


def slopes_not_doubled(layer, length):
    """the terms have weights c_j = j. Between 1/(j + 1) and 1/j the slope must be -j (j + 1), so they must be 2j."""
    theory.write_position(layer, length)
    j = torch.arange(1, length + 1, dtype=torch.float64)
    layer.down.weight[theory.POSITION, :length] = torch.where(j == 1, 3.0, j)


def share_not_taken_away(layer, length):
    """the MLP gives t, but the 1/t that attention wrote is still there. c_1 must be 3, not 2."""
    theory.write_position(layer, length)
    layer.down.weight[theory.POSITION, 0] = 2


def _theorem_cases():
    lengths = {"two tokens after <bos>": 2, "seven tokens": 7, "thirty": 30, "128 tokens, all hidden units": 128}
    return {name: dict(length=length) for name, length in lengths.items()}


# ex22: forgetting attention


def _forget(log_f):
    return _causal(later.forget_bias(log_f, log_f.shape[-1]))


def _causal(bias):
    return bias.masked_fill(torch.ones_like(bias).triu(1).bool(), float("-inf"))


def _distance(log_f):
    steps = torch.arange(log_f.shape[-1])
    return steps[:, None] - steps  # [T, T]: t - i


def gate_of_the_key_too(log_f):
    """the gate of the key itself is counted. The sum starts after it, at i + 1, and is empty for i = t."""
    return _causal(later.forget_bias(log_f, log_f.shape[-1]) + log_f[..., None, :])


def without_the_query(log_f):
    """the gate of the query is missing. The sum goes up to and including t."""
    return _causal((later.forget_bias(log_f, log_f.shape[-1]) - log_f[..., None]).where(_distance(log_f) > 0, 0.0))


def gate_of_the_query_for_all(log_f):
    """the gate of the query is multiplied by the distance. Each token between key and query has its own gate."""
    return _causal(_distance(log_f) * log_f[..., None])


def gate_of_the_key_for_all(log_f):
    """the gate of the key is multiplied by the distance. Each token between key and query has its own gate."""
    return _causal(_distance(log_f) * log_f[..., None, :])


def from_the_start(log_f):
    """the bias sums all gates up to the query, wherever the key is. It is then equal for all keys, and softmax ignores it."""
    return _causal(log_f.cumsum(dim=-1)[..., None].expand(*log_f.shape, log_f.shape[-1]))


def product_of_gates(log_f):
    """the bias is the product of the gates instead of the sum of their logs. It must be 0 where all gates are 1."""
    return _causal(later.forget_bias(log_f, log_f.shape[-1]).exp())


def remembered_more(log_f):
    """the sign is wrong. Keys behind small gates are then preferred."""
    return _causal(-later.forget_bias(log_f, log_f.shape[-1]))


def keys_before_queries(log_f):
    """the result has keys before queries."""
    return _forget(log_f).transpose(-1, -2)


def future_visible(log_f):
    """keys after the query do not have minus infinity. The query would see them."""
    return later.forget_bias(log_f, log_f.shape[-1])


def zero_for_the_future(log_f):
    """keys after the query have 0 instead of minus infinity. The query would see them best of all."""
    return later.forget_bias(log_f, log_f.shape[-1]).tril()


def not_summed_over_tokens(log_f):
    """the gates are not summed over the tokens from the key to the query."""
    return _causal(log_f[..., None] - log_f[..., None, :])


def one_gate_for_all_heads(log_f):
    """all heads have the gates of the first head."""
    return _forget(log_f[:, :1].expand_as(log_f))


def one_row_for_all(log_f):
    """all rows of the batch have the gates of the first row."""
    return _forget(log_f[:1].expand_as(log_f))


def gates_limited(log_f):
    """a small gate is limited from below. `log_f` has no limit."""
    return _forget(log_f.clamp(min=-5))


def log_taken_twice(log_f):
    """a log-sigmoid is taken again. `log_f` already holds logs."""
    return _forget(torch.nn.functional.logsigmoid(log_f))


def _forget_cases():
    def gates(*shape, seed):
        return -random(*shape, seed=seed).abs()

    return {
        "three tokens": dict(log_f=torch.tensor([[[-1.0, -2.0, -3.0]]], dtype=torch.float64)),
        "one token": dict(log_f=torch.tensor([[[-1.5]]], dtype=torch.float64)),
        "a constant gate": dict(log_f=torch.full((1, 1, 4), -0.25, dtype=torch.float64)),
        "gates of 1": dict(log_f=torch.zeros(1, 2, 3, dtype=torch.float64)),
        "a gate near 0": dict(log_f=torch.tensor([[[-0.5, -30.0, -2.0]]], dtype=torch.float64)),
        "two gates near 0": dict(log_f=torch.tensor([[[-0.5, -400.0, -400.0, -2.0]]], dtype=torch.float64)),
        "two rows, three heads": dict(log_f=gates(2, 3, 5, seed=21)),
        "as many heads as tokens": dict(log_f=gates(2, 4, 4, seed=22)),
    }


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
            positions_along_the_heads,
            not_put_back_in_pairs,
        ],
    ),
    Exercise(
        "ex15_alibi",
        "alibi_bias",
        encodings.alibi_bias,
        _alibi_cases,
        [
            nearer_is_punished,
            slopes_from_one,
            one_slope,
            without_the_eight,
            rounded_exponent,
            powers_of_e,
            heads_last,
            distance_limited,
        ],
    ),
    Exercise(
        "ex16_write_position",
        "write_position",
        theory.write_position,
        _theorem_cases,
        [
            keys_not_zeroed,
            value_not_zeroed,
            out_not_zeroed,
            value_and_out_not_zeroed,
            up_not_zeroed,
            down_not_zeroed,
            nothing_zeroed,
            value_reads_the_constant,
            only_the_share,
            counted_from_zero,
            slopes_not_doubled,
            share_not_taken_away,
        ],
        call=_count,
    ),
    Exercise(
        "ex22_forget",
        "forget_bias",
        _forget,
        _forget_cases,
        [
            gate_of_the_key_too,
            without_the_query,
            gate_of_the_query_for_all,
            gate_of_the_key_for_all,
            from_the_start,
            product_of_gates,
            remembered_more,
            keys_before_queries,
            future_visible,
            zero_for_the_future,
            not_summed_over_tokens,
            one_gate_for_all_heads,
            one_row_for_all,
            gates_limited,
            log_taken_twice,
        ],
    ),
]
