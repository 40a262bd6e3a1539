"""Decoding as CUDA graphs. All tensors keep their place, and the CPU looks at the requests once in sixteen positions.

A *group* is a few slots that attend to one trunk. It has a copy of the trunk's keys and values. A slot holds one request. A
request that ends between two looks leaves its slot empty until the next look.
"""

from collections import Counter, defaultdict
from functools import partial

import torch

from vine_mini.logprobs import logits_of
from vine_mini.sampling.fast.attention import attend, use_attention
from vine_mini.sampling.fast.cache import Layout, Shape, SlotCache
from vine_mini.sampling.fast.scheduler import Table

LOOK = 16  # positions between two looks at the requests
GROUPS = (8, 4, 2, 1)  # a graph has one in so many of the groups, ...
WIDTHS = (4, 2, 1)  # ... and one in so many of a slot's places for own tokens. So there are at most twelve graphs.


class Groups:
    """The groups, for all chunks of requests.

    counts: requests on each trunk; size: most slots; longest: tokens of the longest trunk; run: see `replaying`
    """

    def __init__(self, table: Table, counts: Counter, size: int, longest: int, run):
        size = min(size, table.spare)
        self.crowd = slots_in_a_group(counts.values(), size)
        # In bfloat16 a product is slow whose rows are no multiple of eight numbers. A quarter of a width is a multiple as well.
        longest, width = -(-longest // 8) * 8, -(-table.tokens.shape[1] // 32) * 32
        self.table, self.longest, self.width, self.run, self.count = table, longest, width, run, size // self.crowd
        self.member = torch.full((self.count * self.crowd,), table.spare, device=table.start.device)  # the request in each slot
        self.cache: SlotCache | None = None

    def decode(self, model, keys, values, waiting, progress) -> None:
        """Completes the requests `waiting` [w], which have left their trunk. keys, values: of a chunk's trunks, see `read`"""
        if self.cache is None:
            room = [k.new_zeros(self.count, *k.shape[1:3], self.longest) for k in keys]
            self.cache = SlotCache(room, [k.mT.contiguous() for k in room], len(self.member), self.width)
        trunks, own_tokens = self.cache.trunk_keys + self.cache.trunk_values, self.cache.keys + self.cache.values
        plan = Plan(self.count, self.crowd, self.table.spare, torch.stack([waiting, self.table.trunk[waiting]], dim=1).tolist())
        with use_attention(model, partial(attend, self.cache)):
            while True:
                progress(plan.release(self.table.done(self.member).tolist()))  # waits for the GPU
                self._copy([*keys, *values], trunks, plan.fill())
                moves = plan.shrink()
                self._copy(trunks, trunks, moves)
                self._copy(own_tokens, own_tokens, [(plan.slots(a), plan.slots(b)) for a, b in moves])
                if plan.age < 0:
                    return
                self.member.copy_(torch.tensor(plan.rows), non_blocking=True)
                own = next(w for w in (-(-self.width // part) for part in WIDTHS) if w >= min(self.width, plan.age + LOOK))
                shape = Shape(own, self.crowd, self.longest, 0, plan.live)
                for _ in range(LOOK):
                    self.run(shape, partial(self._next_position, model, shape))
                plan.now += LOOK

    def _copy(self, sources, targets, pairs) -> None:
        """Copies rows of tensors. pairs: (source, target), which are numbers of rows or lists of them"""
        if pairs:
            source, target = torch.tensor(pairs).to(self.member.device, non_blocking=True).transpose(0, 1).flatten(1)
            for x, y in zip(sources, targets, strict=True):
                y[target, :, : x.shape[2], : x.shape[3]] = x[source]

    def _next_position(self, model, shape: Shape) -> None:
        """Samples the next token of the request in each slot. Slots whose request is done work for the spare row."""
        member = self.member[: shape.last * shape.crowd]  # [n]
        lead = member.masked_fill(self.table.done(member), self.table.spare)
        slot = torch.arange(len(lead), device=lead.device)
        layout = Layout(self.table, lead, shape, (slot // shape.crowd, slot % shape.crowd))
        self.table.write(lead, logits_of(model, self.cache.forward(model, self.table.newest(lead), layout)))


class Plan:
    """Which request each slot holds, as lists on the CPU. An empty slot holds the `spare` row.

    waiting: the number and the trunk of each request
    """

    def __init__(self, groups: int, crowd: int, spare: int, waiting: list[list[int]]):
        self.crowd, self.spare, self.live, self.now = crowd, spare, groups, 0
        self.sizes = [-(-groups // part) for part in GROUPS]
        self.rows, self.since = [spare] * (groups * crowd), [0] * (groups * crowd)  # since: the position at which a request came
        self.trunk: list[int | None] = [None] * groups
        self.left = defaultdict(list)  # trunk -> requests that wait; the last one is taken first
        for row, trunk in reversed(waiting):
            self.left[trunk].append(row)

    def slots(self, group: int) -> list[int]:
        """The slots of a group."""
        return list(range(group * self.crowd, (group + 1) * self.crowd))

    def release(self, ended: list[bool]) -> int:
        """Empties the slots whose request has ended. -> number of requests"""
        before = self.rows.count(self.spare)
        self.rows = [self.spare if over else row for row, over in zip(self.rows, ended, strict=True)]
        return self.rows.count(self.spare) - before

    def fill(self) -> list[tuple[int, int]]:
        """Puts waiting requests into empty slots. An empty group may change its trunk. -> (trunk, group) of the changes"""
        changes = []
        for group in range(self.live):
            empty = [slot for slot in self.slots(group) if self.rows[slot] == self.spare]
            if len(empty) == self.crowd and self.left and self.trunk[group] not in self.left:
                self.trunk[group] = max(self.left, key=lambda trunk: len(self.left[trunk]))  # the trunk with the most work
                changes.append((self.trunk[group], group))
            for slot in empty:
                if row := self.left.get(self.trunk[group]):
                    self.rows[slot], self.since[slot] = row.pop(), self.now
            if not self.left.get(self.trunk[group], True):
                del self.left[self.trunk[group]]
        return changes

    def shrink(self) -> list[tuple[int, int]]:
        """Lowers `live`, the number of groups in the graph, where fewer are enough. -> (source, target) of groups to move"""
        busy = [g for g in range(self.live) if any(self.rows[slot] != self.spare for slot in self.slots(g))]
        self.live = min(size for size in self.sizes if size >= len(busy))
        free = sorted(set(range(self.live)) - set(busy))
        moves = list(zip([g for g in busy if g >= self.live], free, strict=False))
        for source, target in moves:
            self.trunk[target] = self.trunk[source]
            for a, b in zip(self.slots(source), self.slots(target), strict=True):
                self.rows[a], self.rows[b], self.since[b] = self.spare, self.rows[a], self.since[a]
        return moves

    @property
    def age(self) -> int:
        """Positions since the oldest request came; -1 where all slots are empty."""
        return max((self.now - since for row, since in zip(self.rows, self.since, strict=True) if row != self.spare), default=-1)


def slots_in_a_group(counts, most: int) -> int:
    """The largest of 8, 4, 2 and 1 with which trunks of so many requests would leave at most a third of the slots empty.

    counts: requests on each trunk; most: slots
    """
    return next(n for n in (8, 4, 2, 1) if n == 1 or (n <= most and sum(-(-c // n) * n for c in counts) <= 1.5 * sum(counts)))
