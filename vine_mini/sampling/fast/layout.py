"""Where the slots have their tokens at one position: in the cache, in the grid of attention, and in the response."""

from typing import NamedTuple

import torch

from vine_mini.sampling.fast.table import Table

NEVER = -1e30  # added to a logit; minus infinity could make a NaN


class Shape(NamedTuple):
    """The sizes of the tensors at one position."""

    own: int  # W, the own tokens of a slot that attention reads
    crowd: int  # R, the places that the grid has for the slots of a trunk
    seen: int  # L, the tokens of a trunk that attention reads
    first: int  # the first trunk in the grid
    last: int  # the trunk after the last one in the grid


class Layout:
    """Where n slots have their tokens at one position. lead [n]: one request of each slot"""

    def __init__(self, table: Table, lead, shape: Shape):
        self.shape = shape
        slot, branch, trunk = torch.arange(len(lead), device=lead.device), table.branch[lead], table.trunk[lead]  # [n]
        self.position = table.start[lead] + table.length[lead] - 1  # [n] of the newest token
        self.newest = slot, (self.position - branch).clamp(min=0)  # where the newest token's keys and values are stored

        ordered, order = trunk.sort()
        rank = torch.empty_like(order)
        rank[order] = slot - torch.searchsorted(ordered, ordered)  # [n] among the slots of the same trunk
        rank = torch.where(trunk < 0, shape.crowd - 1, rank)  # unused slots share the last rank
        self.grid = (trunk - shape.first).clamp(min=0), rank

        of_trunk = torch.arange(shape.seen, device=lead.device).expand(len(lead), -1)  # [n, L] positions of the columns
        of_slot = branch[:, None] + torch.arange(shape.own, device=lead.device)  # [n, W]
        no_token = torch.cat([of_trunk >= branch[:, None], of_slot > self.position[:, None]], dim=1)  # [n, L + W]
        mask = torch.zeros(no_token.shape, device=lead.device).masked_fill_(no_token, NEVER)
        self.mask = mask[:, None, None]  # [n, 1, 1, L + W]; the model passes a mask of four dimensions on as it is
        self.distance = (self.position[:, None] - torch.cat([of_trunk, of_slot], dim=1))[:, None]  # [n, 1, L + W]
