"""Attention of the newest token of each slot to its trunk and to its own tokens, with one softmax over both.

Slots on the same trunk stand side by side in a grid [trunk, rank]. One matrix product then multiplies the queries of all
these slots with the trunk's keys, which are read from memory once.
"""

from contextlib import contextmanager

import torch
from transformers import AttentionInterface

from vine_mini.sampling.fast.cache import NEVER, SlotCache


def attend(cache: SlotCache, module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **_):
    """Called by the model's layers. query [n, heads, 1, d] -> [n, 1, heads, d]. Each of H heads of keys serves g query heads."""
    (W, R, L, first, last), (trunk, rank) = cache.layout.shape, cache.layout.grid
    n, heads, _, d = query.shape
    trunk_keys = cache.trunk_keys[cache.layer][first:last, ..., :L].flatten(0, 1)  # [G H, d, L]
    trunk_values = cache.trunk_values[cache.layer][first:last, :, :L].flatten(0, 1)  # [G H, L, d]
    own_keys = cache.keys[cache.layer][:n, ..., :W].flatten(0, 1)  # [n H, d, W]
    own_values = cache.values[cache.layer][:n, :, :W].flatten(0, 1)  # [n H, W, d]
    H = len(own_keys) // n
    q = (query * (scaling or d**-0.5)).view(n, H, -1, d)  # [n, H, g, d]

    def on_trunks(x, y, product=torch.bmm):
        """Each slot's x [n, H, g, i] times the matrix of its trunk in y [G H, i, j]. -> [n, H, g, j]"""
        new = x.new_empty if x.dtype == torch.float32 else x.new_zeros  # a bfloat16 product may read past its row: no NaN there
        grid = new(last - first, H, R, *x.shape[2:])  # [G, H, R, g, i]; products of empty places are not read
        grid[trunk, :, rank] = x
        return product(grid.view(len(y), -1, y.shape[1]), y).view(*grid.shape[:4], -1)[trunk, :, rank]

    own = _logits(q.flatten(0, 1), own_keys).view(n, H, -1, W)
    logits = torch.cat([on_trunks(q, trunk_keys, _logits), own], dim=-1).view(n, heads, -1)  # [n, heads, L + W]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits += attention_mask[:, 0]
    if sliding_window is not None:
        logits.masked_fill_(cache.layout.distance >= sliding_window, NEVER)
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(q.dtype).view(n, H, -1, L + W)
    out = on_trunks(weights[..., :L], trunk_values)
    out += (weights[..., L:].flatten(0, 1) @ own_values).view(n, H, -1, d)
    return out.view(n, 1, heads, d), None


def _logits(x, y):
    """x @ y; of bfloat16 on a GPU in float32, because a logit of -100 is rounded by up to 0.25 otherwise."""
    return torch.bmm(x, y, out_dtype=torch.float32) if x.is_cuda and x.dtype == torch.bfloat16 else torch.bmm(x, y)


@contextmanager
def use_attention(model, function):
    """Inside this context the model's layers call `function` for their attention."""
    AttentionInterface.register("vine_mini", function)
    before = model.config._attn_implementation
    model.config._attn_implementation = "vine_mini"
    try:
        yield
    finally:
        model.config._attn_implementation = before
        AttentionInterface.register("vine_mini", None)  # otherwise the function and its cache would stay in memory
