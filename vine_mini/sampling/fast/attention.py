"""Attention of the newest token of each slot to its trunk and to its own tokens, with one softmax over both.

Slots on the same trunk stand side by side in a grid [trunk, rank]. One matrix product then multiplies the queries of all
these slots with the trunk's keys, which are read from memory once.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from transformers import AttentionInterface

from vine_mini.sampling.fast.cache import SlotCache
from vine_mini.sampling.fast.table import Table

NEVER = -1e30  # added to a logit; minus infinity could make a NaN


class Shape(NamedTuple):
    """The sizes of the tensors at one position.

    Attributes:
        own: W, the own tokens of a slot that attention reads.
        crowd: R, the slots that the grid has for a trunk.
        seen: L, the tokens of a trunk that attention reads.
        first, last: the grid has the trunks from `first` up to `last`, which is excluded.
    """

    own: int
    crowd: int
    seen: int
    first: int
    last: int


class Layout:
    """Where the n slots, of which `lead` [n] gives one request each, have their tokens at one position.

    Attributes:
        position: [n] of the newest token.
        newest: slot and index of the newest own token, [n] each: where its keys and values are stored.
        grid: trunk and rank of each slot in the grid, [n] each.
        mask: [n, 1, 1, L + W] to be added to the logits, NEVER where a column holds no token of the slot.
        distance: [n, 1, L + W] from the newest token back to each column's token.
    """

    def __init__(self, table: Table, lead, shape: Shape):
        self.shape = shape
        device, slot = lead.device, torch.arange(len(lead), device=lead.device)
        branch, trunk = table.branch[lead], table.trunk[lead]  # [n]
        self.position = table.start[lead] + table.length[lead] - 1
        self.newest = slot, (self.position - branch).clamp(min=0)

        ordered, order = trunk.sort()
        rank = torch.empty_like(order)
        rank[order] = slot - torch.searchsorted(ordered, ordered)  # among the slots of the same trunk
        rank = torch.where(trunk < 0, shape.crowd - 1, rank)  # unused slots share the last rank
        self.grid = (trunk - shape.first).clamp(min=0), rank

        of_trunk = torch.arange(shape.seen, device=device).expand(len(lead), -1)  # [n, L] positions of the trunk's columns
        of_slot = branch[:, None] + torch.arange(shape.own, device=device)  # [n, W]
        no_token = torch.cat([of_trunk >= branch[:, None], of_slot > self.position[:, None]], dim=1)  # [n, L + W]
        mask = torch.zeros(no_token.shape, device=device).masked_fill_(no_token, NEVER)
        self.mask = mask[:, None, None]  # with four dimensions the model passes it on as it is
        self.distance = (self.position[:, None] - torch.cat([of_trunk, of_slot], dim=1))[:, None]


def attend(
    cache: SlotCache, module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **kwargs
):
    """Called by the model's layers, with the interface of transformers. query [n, heads, 1, d] -> [n, 1, heads, d]

    H heads of keys and values serve g query heads each.
    """
    (W, R, L, first, last), (trunk, rank) = cache.layout.shape, cache.layout.grid
    n, heads, _, d = query.shape
    trunk_keys = cache.trunk_keys[cache.layer][first:last, ..., :L].flatten(0, 1)  # [G H, d, L]
    trunk_values = cache.trunk_values[cache.layer][first:last, :, :L].flatten(0, 1)  # [G H, L, d]
    own_keys = cache.keys[cache.layer][:n, ..., :W].flatten(0, 1)  # [n H, d, W]
    own_values = cache.values[cache.layer][:n, :, :W].flatten(0, 1)  # [n H, W, d]
    H = len(own_keys) // n
    q = (query * (scaling or d**-0.5)).view(n, H, -1, d)  # [n, H, g, d]

    def on_trunks(x, y):
        """x [n, H, g, i] of each slot times the matrix of its trunk, y [G H, i, j]. -> [n, H, g, j]"""
        grid = x.new_empty(last - first, H, R, *x.shape[2:])  # [G, H, R, g, i]; the result of empty places is not read
        grid[trunk, :, rank] = x
        return (grid.view(len(y), -1, y.shape[1]) @ y).view(*grid.shape[:4], -1)[trunk, :, rank]

    own = (q.flatten(0, 1) @ own_keys).view(n, H, -1, W)
    logits = torch.cat([on_trunks(q, trunk_keys), own], dim=-1).view(n, heads, -1)  # [n, heads, L + W]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits += attention_mask[:, 0]
    if sliding_window is not None:
        logits.masked_fill_(cache.layout.distance >= sliding_window, NEVER)
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(q.dtype).view(n, H, -1, L + W)
    out = on_trunks(weights[..., :L], trunk_values)
    out += (weights[..., L:].flatten(0, 1) @ own_values).view(n, H, -1, d)
    return out.view(n, 1, heads, d), None


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
        AttentionInterface.register("vine_mini", None)  # otherwise transformers would keep the function and its cache
