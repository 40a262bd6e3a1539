"""The scheduler: which requests are decoded at a position, and which of them share a slot."""

import torch

from vine_mini.sampling.fast.cache import SlotCache
from vine_mini.sampling.fast.table import Table


class Slots:
    """The requests that are not done. The first `size` of them are the *members*, which are decoded now.

    `member` [m] are the members' rows in the table. `slot_of` [m] is the slot of each member. Members with equal tokens share
    a slot. Slots 0 to n - 1 are in use, and `lead` [n] is one member of each slot.

    With `fixed` these three tensors keep their size and their place in memory, because CUDA graphs read them. Places that
    are not in use then hold the table's spare row.
    """

    def __init__(self, table: Table, waiting, size: int, fixed: bool):
        self.table, self.size, self.fixed = table, size, fixed
        self.member, self.slot_of, self.lead = (waiting.new_zeros(size) for _ in range(3))
        # The place of a member is its slot. The place of a waiting request is a number from `size` on. Requests that left the
        # same trunk at the same position with the same token have the same place and will start in one slot.
        left = zip(*(x.tolist() for x in (table.trunk[waiting], table.branch[waiting], table.newest(waiting))), strict=True)
        places: dict[tuple, int] = {}
        place = waiting.new_tensor([places.setdefault(key, size + len(places)) for key in left])
        self.place, order = place.sort(stable=True)
        self.rows = waiting[order]

    def fill(self, cache: SlotCache) -> None:
        """Chooses the members of the next position and gives a slot to each group of equal members."""
        member, place = self.rows[: self.size], self.place[: self.size]
        # Members that shared a slot and have now sampled different tokens become several groups.
        groups, group = torch.unique(place << 32 | self.table.newest(member), return_inverse=True)
        source = groups >> 32
        target = _assign(source)
        moves = ((source < self.size) & (source != target)).nonzero()[:, 0]
        cache.copy(source[moves], target[moves])
        if self.fixed:
            self.member[: len(member)], self.member[len(member) :] = member, self.table.spare
            self.slot_of[: len(member)], self.slot_of[len(member) :] = target[group], 0
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
        """Halves the tensors of fixed size if all requests that are left fit into one half. -> whether it did"""
        half = len(self.member) // 2
        if not self.fixed or len(self.rows) > half:
            return False
        self.member, self.slot_of, self.lead = (self.member.new_zeros(half) for _ in range(3))
        return True


def _assign(source):
    """A slot for each of n groups, so that the slots 0 to n - 1 are in use. source [n], ascending: where the groups come from

    The first group of a slot keeps the slot if its number is below n. The other groups take the free slots.
    """
    keeps = source < len(source)
    keeps[1:] &= source[1:] != source[:-1]
    free = torch.ones_like(keeps)
    free[source[keeps]] = False
    return source.masked_scatter(~keeps, free.nonzero()[:, 0])
