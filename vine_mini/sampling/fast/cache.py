"""The keys and values of trunks and slots, and where they lie: in the cache, in the grid of attention, and in the response."""

from typing import NamedTuple

import torch
from transformers import DynamicCache

from vine_mini.sampling.fast.scheduler import Table

NEVER = -1e30  # added to a logit; minus infinity could make a NaN


class Shape(NamedTuple):
    """The sizes of the tensors at one position."""

    own: int  # W, the own tokens of a slot that attention reads
    crowd: int  # R, the places that the grid has for the slots of a trunk
    seen: int  # L, the tokens of a trunk that attention reads
    first: int  # the first trunk in the grid
    last: int  # the trunk after the last one in the grid


class Layout:
    """Where n slots have their tokens at one position.

    lead [n]: one request of each slot; grid: row and rank [n] of each slot in the grid of attention, if it is known
    """

    def __init__(self, table: Table, lead, shape: Shape, grid=None):
        self.shape = shape
        slot, branch = torch.arange(len(lead), device=lead.device), table.branch[lead]  # [n]
        self.position = table.start[lead] + table.length[lead] - 1  # [n] of the newest token
        self.newest = slot, (self.position - branch).clamp(min=0)  # where the newest token's keys and values are stored
        self.grid = grid or _grid(table.trunk[lead] - shape.first)

        of_trunk = torch.arange(shape.seen, device=lead.device).expand(len(lead), -1)  # [n, L] positions of the columns
        of_slot = branch[:, None] + torch.arange(shape.own, device=lead.device)  # [n, W]
        no_token = torch.cat([of_trunk >= branch[:, None], of_slot > self.position[:, None]], dim=1)  # [n, L + W]
        mask = torch.zeros(no_token.shape, device=lead.device).masked_fill_(no_token, NEVER)
        self.mask = mask[:, None, None]  # [n, 1, 1, L + W]; the model passes a mask of four dimensions on as it is
        self.distance = (self.position[:, None] - torch.cat([of_trunk, of_slot], dim=1))[:, None]  # [n, 1, L + W]


def _grid(trunk):
    """Slots on the same trunk have ranks from 0 up. trunk [n] -> trunk [n], rank [n]"""
    ordered, order = trunk.sort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return trunk, rank


class SlotCache(DynamicCache):
    """Keys and values of G trunks with L tokens, and of slots with at most `width` own tokens. H: heads of keys and values.

    To the model's layers this is an ordinary cache. Keys lie as [d, tokens] and values as [tokens, d], ready for attention.
    """

    layout: Layout  # set before each forward pass
    layer: int  # the layer that stored keys and values last

    def __init__(self, trunk_keys, trunk_values, size: int, width: int):
        super().__init__()
        self.trunk_keys, self.trunk_values = trunk_keys, trunk_values  # for each layer [G, H, d, L] and [G, H, L, d]
        self.keys = [k.new_zeros(size, *k.shape[1:3], width) for k in trunk_keys]  # for each layer [size, H, d, width]
        self.values = [v.new_zeros(size, v.shape[1], width, v.shape[3]) for v in trunk_values]  # [size, H, width, d]

    def shape(self, table: Table, lead) -> Shape:
        """The shape of the next position. lead [n]: one request of each slot"""
        trunk, branch = table.trunk[lead], table.branch[lead]
        own, crowd = int((table.start[lead] + table.length[lead] - branch).max()), int(torch.bincount(trunk).max())
        return Shape(own, crowd, int(branch.max()), int(trunk.min()), int(trunk.max()) + 1)

    def forward(self, model, ids, layout: Layout):
        """Reads the newest token of each slot. ids [n] -> hidden states [n, D]"""
        self.layout = layout
        settings = dict(attention_mask=layout.mask, position_ids=layout.position[:, None])
        return model.base_model(input_ids=ids[:, None], past_key_values=self, use_cache=True, **settings).last_hidden_state[:, 0]

    def copy(self, source, target) -> None:
        """Copies the own tokens of some slots to others. source, target [n]: slots, without a common one"""
        if len(source):
            for own in [*self.keys, *self.values]:
                own[target] = own[source]

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Called by each layer. Stores the keys and values of every slot's newest token, [n, H, 1, d]."""
        slot, index = self.layout.newest
        self.layer = layer_idx  # which calls `attend` next
        self.keys[layer_idx][slot, :, :, index] = key_states[:, :, 0]
        self.values[layer_idx][slot, :, index] = value_states[:, :, 0]
        return key_states, value_states

    def get_seq_length(self, *args, **kwargs):
        """The model would count positions with this number, but the sampler passes positions."""
        return 0
