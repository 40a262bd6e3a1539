"""Continuing many forks of shared trunks: a prefix is read once, equal forks share a row, and no row waits for the longest.

A trunk is a token sequence that is read once; its forks start at any of its tokens. Here five forks of two trunks:

    trunk 0   q q q q | a a a \n b b b \n c c <eos>      keys and values of all its tokens [H, L, d], read-only
                      |           └ fork 2: y y y
                      ├ fork 0: x x                       and of each fork's own tokens, in a slot [H, W, d]
                      └ fork 1: a a a \n z z              writes the trunk's tokens at first; until there it costs nothing
    trunk 1   q q q | a a <eos>
                    ├ fork 3: w w w v                     these two write the same at first: one slot, until they
                    └ fork 4: w w w u u                   differ; then the slot's few tokens are copied to a second one

- A slot's query meets the trunk up to the fork and the slot's own tokens, under one softmax. The slots of one trunk stand
  side by side in a grid [trunk, rank], so one matrix product reads the trunk for all of them (`_attend`).
- When a fork ends, the next of the queue takes its place in the following step (`_arrange`).
- Nothing here changes a token: `decoding.complete`, the plain way, writes the same ones, up to rounding.
- On a GPU a step has few different shapes, and each is captured as a CUDA graph: a small model is not bound by launching
  kernels. The same code runs on a CPU, uncaptured and with exact shapes.
"""

from contextlib import contextmanager, nullcontext

import torch
from transformers import AttentionInterface, DynamicCache

from vine_mini.decoding import Fork
from vine_mini.logprobs import logits_of
from vine_mini.trunks import Forks, read

CHUNK_FORKS = 8  # forks in a chunk of trunks, for each slot: enough that slots seldom idle, few enough for one grid
NEVER = -1e30  # added to a logit; unlike minus infinity it cannot make a NaN


@torch.no_grad()
def complete(model, trunks, forks, uniforms, *, temperature, top_p, eos, batch_size, progress):
    """As `decoding.complete`; at most `batch_size` forks have a slot, and as many trunks are in memory at once."""
    done: list = [None] * len(forks)
    of_trunk: list[list[int]] = [[] for _ in trunks]
    for i, fork in enumerate(forks):
        of_trunk[fork.trunk].append(i)
    # Trunks with many forks first: then the slots stand on few trunks, side by side, and the grid has few empty places.
    order = sorted((t for t in range(len(trunks)) if of_trunk[t]), key=lambda t: len(of_trunk[t]))
    while order:
        chosen = [order.pop()]
        room = CHUNK_FORKS * batch_size - len(of_trunk[chosen[0]])
        while order and len(chosen) < batch_size and len(of_trunk[order[-1]]) <= room:
            chosen.append(order.pop())
            room -= len(of_trunk[chosen[-1]])
        rows = [i for t in chosen for i in sorted(of_trunk[t], key=lambda i: forks[i].start)]  # most left to write first
        at = {t: n for n, t in enumerate(chosen)}
        here = [Fork(at[forks[i].trunk], forks[i].start, forks[i].budget) for i in rows]
        table = Forks(here, uniforms[rows], temperature, top_p, eos, model.device)
        Slots(model, table).run([trunks[t] for t in chosen], batch_size, progress)
        for i, result in zip(rows, table.results(), strict=True):
            done[i] = result
    return done


class Slots(DynamicCache):
    """The slots of one chunk of trunks; to the model they are its cache. G trunks, H heads of keys and values, n slots in use.

    `member` [m] are the forks in work, `slot_of` [m] their slots, `lead` [n] one member of each slot. On a GPU the three
    have a fixed size, and what is too many is nobody's.
    """

    def __init__(self, model, forks: Forks):
        super().__init__()
        self.model, self.forks, self.device = model, forks, model.device
        self.static = self.device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.static else None
        self.graphs: dict = {}  # shape -> function, or None when it was seen once

    def run(self, trunks: list[list[int]], size: int, progress) -> None:
        """Completes every fork, at most `size` at a time."""
        forks = self.forks
        self.trunk_keys, self.trunk_values = read(self.model, trunks, forks)
        waiting = (~forks.over(slice(None))).nonzero()[:, 0]
        progress(forks.nobody - len(waiting))
        if len(waiting) == 0:
            return
        W = int((forks.budget - forks.origin + forks.start)[waiting].max())
        size = min(size, len(waiting))
        self.keys = [k.new_zeros(size, *k.shape[1:3], W) for k in self.trunk_keys]  # for each layer [size, H, d, W]
        self.values = [v.new_zeros(size, v.shape[1], W, v.shape[3]) for v in self.trunk_values]  # [size, H, W, d]
        self.member, self.slot_of, self.lead = (torch.zeros(size, dtype=torch.long, device=self.device) for _ in range(3))
        queue, member, slot = self._twins(waiting), waiting[:0], waiting[:0]
        device = torch.cuda.device(self.device) if self.static else nullcontext()
        with device, _attention(self.model, self._attend):
            while True:
                if self.static and not queue and 0 < len(member) <= len(self.member) // 2:
                    self._halve()
                self._arrange(member, slot, queue, size)
                working = int((self.member != forks.nobody).sum())
                if working == 0:
                    return
                self._plan()
                going = (~self._run_step()).nonzero()[:, 0]
                progress(working - len(going))
                member, slot = self.member[going], self.slot_of[going]

    def _twins(self, waiting) -> list[list[int]]:
        """The waiting forks, together those that left a trunk at the same place with the same token; the next one is the last."""
        forks, groups = self.forks, {}
        first = forks.tokens[waiting, forks.length[waiting] - 1]
        left = zip(forks.trunk[waiting].tolist(), forks.origin[waiting].tolist(), first.tolist(), strict=True)
        for fork, where in zip(waiting.tolist(), left, strict=True):
            groups.setdefault(where, []).append(fork)
        return list(groups.values())[::-1]

    def _arrange(self, member, slot, queue, size: int) -> None:
        """Gives each set of equal forks a slot: those that go on keep theirs, others take what is free, without gaps."""
        token = self.forks.tokens[member, self.forks.length[member] - 1]
        kinds, kind = torch.unique(slot << 32 | token, return_inverse=True)  # forks of one slot that wrote the same
        source = kinds >> 32  # the slot that a kind comes from
        room, new = size - len(member), []
        while queue and room > 0:
            group = queue.pop()
            if len(group) > room:
                queue.append(group[room:])
            new.append(group[:room])
            room -= len(new[-1])
        n = len(kinds) + len(new)
        stays = torch.ones_like(kinds, dtype=torch.bool)
        stays[1:] = source[1:] != source[:-1]  # the first kind of a slot keeps it
        stays &= source < n  # unless there would be gaps before it
        free = torch.ones(n, dtype=torch.bool, device=self.device)
        free[source[stays]] = False
        free = free.nonzero()[:, 0]
        target = source.clone()
        moves = (~stays).nonzero()[:, 0]
        target[moves] = free[: len(moves)]
        if len(moves):
            for own in [*self.keys, *self.values]:
                own[target[moves]] = own[source[moves]]
        fresh = free[len(moves) :].tolist()
        added = torch.tensor([f for group in new for f in group], dtype=torch.long, device=self.device)
        slots = torch.tensor(
            [s for s, group in zip(fresh, new, strict=True) for _ in group], dtype=torch.long, device=self.device
        )
        member, slot = torch.cat([member, added]), torch.cat([target[kind], slots])
        if self.static:
            self.member.fill_(self.forks.nobody)
            self.slot_of.zero_()
            self.member[: len(member)], self.slot_of[: len(member)] = member, slot
        else:
            self.member, self.slot_of = member, slot
            self.lead = self.lead.new_zeros(n)
        self.lead[n:] = self.forks.nobody  # of fixed size: slots that are not in use
        self.lead[slot] = member  # any of them: they are equal

    def _halve(self) -> None:
        """The queue is empty and half of the fixed places are, too."""
        half = len(self.member) // 2
        self.member, self.slot_of, self.lead = self.member[:half].clone(), self.slot_of[:half].clone(), self.lead[:half].clone()
        self.graphs.clear()

    def _plan(self):
        """The shape of the next step: columns of own tokens, slots of a trunk, trunks and trunk tokens that are looked at."""
        forks, lead = self.forks, self.lead[self.lead != self.forks.nobody]
        trunk, origin = forks.trunk[lead], forks.origin[lead]
        longest, crowd = int((forks.start[lead] + forks.length[lead] - origin).max()), int(torch.bincount(trunk).max())
        if self.static:  # few shapes: few graphs
            longest, crowd = -(-longest // 64) * 64, -(-crowd // 8) * 8
            self.window, seen = (0, len(self.trunk_keys[0])), self.trunk_keys[0].shape[3]
        else:
            self.window, seen = (int(trunk.min()), int(trunk.max()) + 1), int(origin.max())
        self.shape = min(longest, self.keys[0].shape[3]), crowd, seen

    def _run_step(self):
        """One step, as a CUDA graph where its shape was seen before. -> [m] whether each member is complete"""
        if not self.static:
            return self._step()
        if self.shape not in self.graphs:  # the first time is also the warm-up that a capture needs
            self.graphs[self.shape] = None
            return self._step()
        if self.graphs[self.shape] is None:
            self.graphs[self.shape] = _capture(self._step, self.pool)
        return self.graphs[self.shape]()

    def _step(self):
        forks, lead = self.forks, self.lead
        width, crowd, seen = self.shape
        origin, trunk = forks.origin[lead], forks.trunk[lead]  # [n] trunk tokens that a slot sees, and of which trunk
        position = forks.start[lead] + forks.length[lead] - 1  # of its newest token
        self.age = (position - origin).clamp(min=0)  # own tokens in the cache
        self.slot = torch.arange(len(lead), device=self.device)
        ordered, order = trunk.sort()
        rank = torch.empty_like(order)
        rank[order] = self.slot - torch.searchsorted(ordered, ordered)  # among the slots of the same trunk
        rank = torch.where(trunk < 0, crowd, rank)  # slots that are not in use have a column of the grid for themselves
        self.grid = (trunk - self.window[0]).clamp(min=0), rank
        column = torch.arange(max(seen, width), device=self.device)
        place = torch.cat([column[:seen].expand(len(lead), -1), origin[:, None] + column[:width]], dim=1)  # [n, L + W]
        outside = torch.cat([place[:, :seen] >= origin[:, None], place[:, seen:] > position[:, None]], dim=1)
        mask = torch.zeros(outside.shape, device=self.device).masked_fill_(outside, NEVER)
        self.distance = (position[:, None] - place)[:, None]  # [n, 1, L + W]
        hidden = self.model.base_model(
            input_ids=forks.tokens[lead, forks.length[lead] - 1][:, None],
            attention_mask=mask[:, None, None],  # in four dimensions, so that the model takes it as it is
            position_ids=position[:, None],
            past_key_values=self,
            use_cache=True,
        ).last_hidden_state[:, 0]  # [n, D]
        forks.write(self.member, logits_of(self.model, hidden)[self.slot_of])
        return forks.over(self.member)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Called by each layer with the keys and values of the newest tokens, [n, H, 1, d]: stores them."""
        self.layer = layer_idx
        self.keys[layer_idx][self.slot, :, :, self.age] = key_states[:, :, 0]
        self.values[layer_idx][self.slot, :, self.age] = value_states[:, :, 0]
        return key_states, value_states

    def get_seq_length(self, *args, **kwargs):
        """Positions are given; nothing is to be counted."""
        return 0

    def _attend(self, module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **kwargs):
        """Attention to trunk and own tokens with one softmax. query [n, heads, 1, d] -> [n, 1, heads, d]

        g: query heads that share a head of keys and values. R: slots of the trunk that has most.
        """
        (width, R, seen), (first, last) = self.shape, self.window
        n, heads, _, d = query.shape
        trunk_keys = self.trunk_keys[self.layer][first:last, ..., :seen].flatten(0, 1)  # [G H, d, L]
        trunk_values = self.trunk_values[self.layer][first:last, :, :seen].flatten(0, 1)  # [G H, L, d]
        own_keys = self.keys[self.layer][:n, ..., :width].flatten(0, 1)  # [n H, d, W]
        own_values = self.values[self.layer][:n, :, :width].flatten(0, 1)  # [n H, W, d]
        H, (trunk, rank) = own_keys.shape[0] // n, self.grid
        q = (query * (scaling or d**-0.5)).view(n, H, -1, d)  # [n, H, g, d]

        def on_trunks(x, y):
            """Rows x [n, H, g, i] times their trunks' matrices y [G H, i, j]. -> [n, H, g, j]"""
            grid = x.new_empty(last - first, H, R + self.static, *x.shape[2:])  # empty places are never read
            grid[trunk, :, rank] = x
            return (grid.view(len(y), -1, y.shape[1]) @ y).view(*grid.shape[:4], -1)[trunk, :, rank]

        own = (q.flatten(0, 1) @ own_keys).view(n, H, -1, width)
        logits = torch.cat([on_trunks(q, trunk_keys), own], dim=-1).view(n, heads, -1)  # [n, heads, L + W]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits += attention_mask[:, 0]
        if sliding_window is not None:
            logits.masked_fill_(self.distance >= sliding_window, NEVER)
        weights = logits.softmax(dim=-1, dtype=torch.float32).to(q.dtype).view(n, H, -1, seen + width)
        out = on_trunks(weights[..., :seen], trunk_values)
        out += (weights[..., seen:].flatten(0, 1) @ own_values).view(n, H, -1, d)
        return out.view(n, 1, heads, d), None


@contextmanager
def _attention(model, function):
    """Within it, the model's layers call `function` for their attention."""
    AttentionInterface.register("vine_mini", function)
    before = model.config._attn_implementation
    model.config._attn_implementation = "vine_mini"
    try:
        yield
    finally:
        model.config._attn_implementation = before
        AttentionInterface.register("vine_mini", None)  # the cache must not outlive its use


def _capture(step, pool):
    """A CUDA graph of the step, in the pool's memory. -> a function that replays it and returns its result"""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = step()

    def replay():
        graph.replay()
        return result

    return replay
