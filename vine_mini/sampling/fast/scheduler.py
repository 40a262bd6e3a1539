"""The scheduler: which requests are decoded at a position, and which of them share a slot."""

import torch

from vine_mini.sampling.fast.cache import SlotCache
from vine_mini.sampling.fast.table import Table


class Slots:
    """The requests that are not done, and the slots of those that are decoded now (the members).

    Attributes:
        member: [m] rows of the table, at most `size`.
        slot_of: [m] the slot of each member. Members with equal tokens so far share a slot. Slots 0 to n - 1 are in use.
        lead: [n] one member of each slot. Any member will do, because the members of a slot are equal.

    With `fixed` the three tensors keep their size and their place in memory, because CUDA graphs read them there. Places
    that are not in use then hold the table's spare row.
    """

    def __init__(self, table: Table, waiting, size: int, fixed: bool):
        self.table, self.size, self.fixed = table, size, fixed
        self.member, self.slot_of, self.lead = (waiting.new_zeros(size) for _ in range(3))
        # Requests that left the same trunk at the same position with the same token will start in one slot. Until then
        # their common place is a number from `size` on.
        columns = table.trunk[waiting], table.branch[waiting], table.newest(waiting)
        groups: dict[tuple, int] = {}
        place = [groups.setdefault(key, size + len(groups)) for key in zip(*(c.tolist() for c in columns), strict=True)]
        self.place, order = waiting.new_tensor(place).sort(stable=True)
        self.rows = waiting[order]  # all requests that are not done; the first `size` of them are the next members

    def fill(self, cache: SlotCache) -> None:
        """Chooses the members of the next position, and gives a slot to each group of equal members."""
        member, place = self.rows[: self.size], self.place[: self.size]
        # Members that shared a slot and have now sampled different tokens become several groups.
        groups, group = torch.unique(place << 32 | self.table.newest(member), return_inverse=True)
        source = groups >> 32
        target = _assign(source)
        moves = ((source < self.size) & (source != target)).nonzero()[:, 0]
        cache.copy(source[moves], target[moves])
        if self.fixed:
            self.member.fill_(self.table.spare)[: len(member)] = member
            self.slot_of.zero_()[: len(member)] = target[group]
            self.lead.fill_(self.table.spare)
        else:
            self.member, self.slot_of, self.lead = member, target[group], torch.zeros_like(source)
        self.lead[target[group]] = member

    def release(self, done) -> int:
        """Takes out the members that are done. done [m] -> their number"""
        working, going = min(self.size, len(self.rows)), (~done).nonzero()[:, 0]
        self.rows = torch.cat([self.member[going], self.rows[working:]])
        self.place = torch.cat([self.slot_of[going], self.place[working:]])
        return working - len(going)

    def halve(self) -> bool:
        """Halves the tensors of fixed size if the requests that are left fit into one half. -> whether it did"""
        half = len(self.member) // 2
        if not self.fixed or len(self.rows) > half:
            return False
        self.member, self.slot_of, self.lead = (x.new_zeros(half) for x in (self.member, self.slot_of, self.lead))
        return True


def _assign(source):
    """A slot for each of n groups, so that the slots 0 to n - 1 are in use and few groups move.

    The first group of a slot keeps the slot if its number is below n. The other groups take the free slots.

    Args:
        source: [n] the slot that each group comes from, in ascending order.
    """
    keeps = source < len(source)
    keeps[1:] &= source[1:] != source[:-1]
    free = torch.ones_like(keeps)
    free[source[keeps]] = False
    return source.masked_scatter(~keeps, free.nonzero()[:, 0])
