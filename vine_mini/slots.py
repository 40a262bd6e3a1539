"""Continuing many forks of shared trunks: no prefix is read twice or copied, and no row waits for the longest.

A trunk is a token sequence that is read once; its forks start at any of its tokens. Here four forks of two trunks:

    trunk 0   q q q q | a a a \\n b b b \\n c c <eos>      keys and values of all its tokens [heads, L, d], read-only
                      |           └ fork 2: y y y          and of each fork's own tokens, in a slot [heads, W, d]
                      ├ fork 0: x x
                      └ fork 1: a a a \\n z z              writes the trunk's tokens at first; until there it costs nothing
    trunk 1   q q q | a a <eos>
                    └ fork 3: w w w w

    slots     0: x x   1: z z   2: y y y   3: w w w w      one step gives each slot a token; when fork 0 ends, the next one
                                                           of the queue has its slot in the following step

- A slot's query meets the trunk up to the fork and the slot's own tokens, under one softmax. The slots of one trunk stand
  side by side in a grid [trunk, rank], so one matrix product reads the trunk for all of them (`_attend`).
- The random number of each token is drawn beforehand. So reading a trunk already tells how long a fork will write what
  the trunk says: while its numbers fall into those tokens' intervals of the cumulative distribution. A fork needs a slot
  only from where it leaves the trunk (`_follow`).
- Nothing here changes a token: `decoding.complete`, the plain way, writes the same ones, up to rounding.
- On a GPU a step has few different shapes, and each is captured as a CUDA graph: small models are not bound by launching
  kernels. The same code runs on a CPU, uncaptured and with exact shapes.
"""

import warnings
import weakref
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, DynamicCache

from vine_mini.decoding import Fork, choose, cumulative
from vine_mini.logprobs import CHUNK, logits_of

READ_TOKENS = 8192  # of trunks, in one forward pass
NEVER = -1e30  # added to a logit; unlike minus infinity it cannot make a NaN
_SUPPORTED = weakref.WeakKeyDictionary()  # model -> bool


@torch.no_grad()
def complete(model, trunks, forks, uniforms, *, temperature, top_p, eos, batch_size, progress):
    """As `decoding.complete`; at most `batch_size` slots and as many trunks are in memory at once."""
    done: list = [None] * len(forks)
    of_trunk: list[list[int]] = [[] for _ in trunks]
    for i, fork in enumerate(forks):
        of_trunk[fork.trunk].append(i)
    order = sorted((t for t in range(len(trunks)) if of_trunk[t]), key=lambda t: len(trunks[t]))  # less padding
    for chosen in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        rows = [i for t in chosen for i in sorted(of_trunk[t], key=lambda i: forks[i].start)]  # the longest first
        at = {t: n for n, t in enumerate(chosen)}
        here = [Fork(at[forks[i].trunk], forks[i].start, forks[i].budget) for i in rows]
        slots = Slots(model, [trunks[t] for t in chosen], here, uniforms[rows], temperature, top_p, eos)
        for i, result in zip(rows, slots.run(batch_size, progress), strict=True):
            done[i] = result
    return done


class Slots(DynamicCache):
    """The forks of some trunks; to the model it is its cache. F forks, G trunks, A slots, H heads of keys and values."""

    def __init__(self, model, trunks, forks, uniforms, temperature, top_p, eos):
        super().__init__()
        self.model, self.trunks, self.temperature, self.top_p = model, trunks, temperature, top_p
        device = self.device = model.device
        self.static = device.type == "cuda"
        self.eos = torch.tensor(eos, device=device)
        # Row F of all that follows is the fork of an idle slot: it computes and writes, and nobody looks.
        columns = zip(*[(f.trunk, f.start, f.budget) for f in [*forks, Fork(0, 1, 1 << 30)]], strict=True)
        self.trunk_of, self.start, self.budget = (torch.tensor(c, device=device) for c in columns)  # [F + 1] each
        self.uniforms = torch.cat([uniforms, uniforms[:1]]).to(device)  # [F + 1, W]
        self.tokens = torch.zeros(self.uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(self.uniforms.shape, device=device)
        self.length = torch.zeros_like(self.start)  # tokens written
        self.followed = torch.zeros_like(self.start)  # of them, the trunk's
        self.finished = torch.zeros_like(self.start, dtype=torch.bool)
        self.trunk_keys, self.trunk_values = [], []  # for each layer [G, H, d, L] and [G, H, L, d]
        self.graphs: dict = {}

    def run(self, n_slots: int, progress):
        """Completes every fork. -> for each (token ids, their log-probs, whether it ended itself)"""
        longest = max(map(len, self.trunks))
        for rows in torch.arange(len(self.trunks)).split(max(1, READ_TOKENS // longest)):
            self._read(int(rows[0]), int(rows[-1]) + 1, longest)
        waiting = (~self.finished & (self.length < self.budget))[:-1].nonzero()[:, 0]
        progress(len(self.start) - 1 - len(waiting))
        if len(waiting):
            with _attention(self.model, self._attend):
                self._decode(waiting, n_slots, progress)
        columns = self.tokens.tolist(), self.logprobs.tolist(), self.length.tolist(), self.finished.tolist()
        return [(ids[:n], lp[:n], end) for ids, lp, n, end in zip(*columns, strict=True)][:-1]

    # Reading trunks ---------------------------------------------------------------------------------------------------

    def _read(self, first: int, last: int, longest: int):
        """Reads trunks first..last and lets their forks follow them."""
        rows = self.trunks[first:last]
        width = max(map(len, rows))
        ids = torch.tensor([t + [0] * (width - len(t)) for t in rows], device=self.device)  # [b, w], padded on the right
        cache = DynamicCache()  # without the model's config, so that sliding layers keep everything
        hidden = self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state  # [b, w, D]
        for n, layer in enumerate(cache.layers):
            if first == 0:
                _, H, _, d = layer.keys.shape
                self.trunk_keys.append(layer.keys.new_zeros(len(self.trunks), H, d, longest))
                self.trunk_values.append(layer.values.new_zeros(len(self.trunks), H, longest, layer.values.shape[3]))
            self.trunk_keys[n][first:last, :, :, :width] = layer.keys.mT
            self.trunk_values[n][first:last, :, :width] = layer.values
        forks = ((self.trunk_of >= first) & (self.trunk_of < last))[:-1].nonzero()[:, 0]  # [f]
        row = self.trunk_of[forks] - first
        lengths = torch.tensor([len(t) for t in rows], device=self.device)  # [b]
        self._follow(forks, row, ids, lengths, hidden)
        going = ~self.finished[forks] & (self.length[forks] < self.budget[forks])
        for f, r in zip(forks[going].split(CHUNK), row[going].split(CHUNK), strict=True):
            before = hidden[r, self.start[f] + self.followed[f] - 1]  # [c, D], of the last token that both share
            self._write(f, self.followed[f], logits_of(self.model, before))

    def _follow(self, forks, row, ids, lengths, hidden):
        """Writes the trunk's own tokens for as long as each fork would sample them. forks, row [f]; ids [b, w]"""
        begin = lengths.scatter_reduce(0, row, self.start[forks], "amin")  # the first token of each trunk to be sampled
        place = torch.arange(ids.shape[1], device=self.device)
        sampled = (place >= begin[:, None]) & (place < lengths[:, None])  # [b, w]
        pieces = zip(hidden[:, :-1][sampled[:, 1:]].split(CHUNK), ids[sampled].split(CHUNK), strict=True)
        low, high, logprob = (torch.zeros(ids.shape, device=self.device) for _ in range(3))  # an empty interval elsewhere
        for table, parts in zip((low, high, logprob), zip(*[self._interval(*p) for p in pieces], strict=True), strict=False):
            table[sampled] = torch.cat(parts)

        start = self.start[forks][:, None]
        J = min(self.uniforms.shape[1], int((lengths[row] - start[:, 0]).max()))  # nobody can follow further
        own = torch.arange(J, device=self.device)  # token of the response
        at = row[:, None], (start + own).clamp(max=ids.shape[1] - 1)  # its place in the trunk, [f, J]
        inside = (start + own < lengths[row][:, None]) & (own < self.budget[forks][:, None])
        u, eos = self.uniforms[forks, :J], torch.isin(ids, self.eos)[at]
        agrees = inside & (low[at] <= u) & (u < high[at])
        ended = (agrees & eos).long()
        agrees &= ended.cumsum(dim=1) - ended == 0  # nothing comes after an end
        follows = agrees.long().cumprod(dim=1)  # [f, J]: 1 up to the first disagreement
        self.tokens[forks, :J], self.logprobs[forks, :J] = ids[at] * follows, logprob[at] * follows
        self.length[forks] = self.followed[forks] = follows.sum(dim=1)
        self.finished[forks] = (follows.bool() & eos).any(dim=1)

    def _interval(self, hidden, tokens):
        """The numbers in [0, 1) with which `choose` takes these tokens. -> low, high, log-prob, [n] each"""
        logprobs = (logits_of(self.model, hidden) / (self.temperature or 1.0)).log_softmax(dim=-1)  # [n, V]
        at = tokens[:, None]
        if self.temperature == 0:
            high = (logprobs.argmax(dim=-1) == tokens).float()
            low = torch.zeros_like(high)
        else:
            cdf = cumulative(logprobs, self.top_p)
            high = cdf.gather(1, at)[:, 0]
            low = torch.where(tokens > 0, cdf.gather(1, (at - 1).clamp(min=0))[:, 0], 0.0)
        return low, high, logprobs.gather(1, at)[:, 0]

    # Decoding ---------------------------------------------------------------------------------------------------------

    def _decode(self, waiting, n_slots: int, progress):
        A = min(n_slots, len(waiting))
        self.fork, queue = waiting[:A].clone(), waiting[A:]
        self.age = torch.zeros_like(self.fork)  # own tokens that a slot has in its cache
        W = int((self.budget - self.followed)[waiting].max())
        self.keys = [k.new_zeros(A, *k.shape[1:3], W) for k in self.trunk_keys]  # for each layer [A, H, d, W]
        self.values = [v.new_zeros(A, v.shape[1], W, v.shape[3]) for v in self.trunk_values]  # [A, H, W, d]
        idle = len(self.start) - 1
        alive = A
        self._plan()
        while alive:
            ended = (self._run_step() & (self.fork != idle)).nonzero()[:, 0]
            if len(ended):
                progress(len(ended))
                new, queue = queue[: len(ended)], queue[len(ended) :]
                self.fork[ended] = idle
                self.fork[ended[: len(new)]] = new
                self.age[ended] = 0
                alive -= len(ended) - len(new)
                if 0 < alive <= len(self.fork) // 2:
                    self._shrink((self.fork != idle).nonzero()[:, 0])
            self.age.masked_fill_(self.fork == idle, 0)
            self._plan()

    def _shrink(self, keep):
        """The queue is empty and half of the slots are idle: go on with the others alone."""
        self.fork, self.age = self.fork[keep], self.age[keep]
        self.keys, self.values = [k[keep] for k in self.keys], [v[keep] for v in self.values]
        self.graphs.clear()

    def _plan(self):
        """The shape of the next step: columns of own tokens, slots of a trunk, trunks and trunk tokens that are looked at."""
        trunk = self.trunk_of[self.fork]
        longest, crowd = int(self.age.max()) + 1, int(torch.bincount(trunk).max())
        if self.static:  # few shapes: few graphs
            longest, crowd = -(-longest // 64) * 64, -(-crowd // 8) * 8
            self.window, seen = (0, len(self.trunks)), self.trunk_keys[0].shape[3]
        else:
            self.window, seen = (int(trunk.min()), int(trunk.max()) + 1), int((self.start + self.followed)[self.fork].max())
        self.shape = min(longest, self.keys[0].shape[3]), crowd, seen

    def _run_step(self):
        """One step, as a CUDA graph where its shape was seen before. -> [A] whether each fork has ended"""
        if not self.static:
            return self._step()
        if self.shape not in self.graphs:  # the first time is also the warm-up that a capture needs
            self.graphs[self.shape] = None
            return self._step()
        if self.graphs[self.shape] is None:
            self.graphs[self.shape] = _capture(self._step)
        return self.graphs[self.shape]()

    def _step(self):
        fork, age = self.fork, self.age
        width, crowd, seen = self.shape
        origin = self.start[fork] + self.followed[fork]  # [A] trunk tokens that a slot sees
        place = self.followed[fork] + age  # of its newest token in the response
        trunk = self.trunk_of[fork]
        same = trunk[:, None] == trunk  # [A, A]
        self.grid = trunk - self.window[0], same.tril(-1).sum(dim=1)  # trunk, rank among its slots
        self.slot = torch.arange(len(fork), device=self.device)
        column = torch.arange(max(seen, width), device=self.device)
        outside = torch.cat([column[:seen] >= origin[:, None], column[:width] > age[:, None]], dim=1)
        self.mask = torch.zeros(outside.shape, device=self.device).masked_fill_(outside, NEVER)[:, None]  # [A, 1, L + W]
        self.distance = torch.cat([(origin + age)[:, None] - column[:seen], age[:, None] - column[:width]], dim=1)[:, None]
        hidden = self.model.base_model(
            input_ids=self.tokens[fork, place][:, None],
            attention_mask=self.mask[:, None],  # in four dimensions, so that the model takes it as it is
            position_ids=(origin + age)[:, None],
            past_key_values=self,
            use_cache=True,
        ).last_hidden_state[:, 0]  # [A, D]
        self._write(fork, place + 1, logits_of(self.model, hidden))
        age += 1
        return self.finished[fork] | (self.length[fork] >= self.budget[fork])

    def _write(self, fork, place, logits):
        """Samples token number `place` of each fork."""
        place = place.clamp(max=self.tokens.shape[1] - 1)  # idle slots only
        token, logprob = choose(logits, self.uniforms[fork, place], self.temperature, self.top_p)
        self.tokens[fork, place], self.logprobs[fork, place] = token, logprob
        self.length[fork] = place + 1
        self.finished[fork] = (token[:, None] == self.eos).any(dim=1)

    # What the model calls ---------------------------------------------------------------------------------------------

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Stores the keys and values of the newest tokens, [A, H, 1, d]."""
        self.layer = layer_idx
        self.keys[layer_idx][self.slot, :, :, self.age] = key_states[:, :, 0]
        self.values[layer_idx][self.slot, :, self.age] = value_states[:, :, 0]
        return key_states, value_states

    def get_seq_length(self, *args, **kwargs):
        """Positions are given; nothing is to be counted."""
        return 0

    def _attend(self, module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **kwargs):
        """Attention to trunk and own tokens with one softmax. query [A, heads, 1, d] -> [A, 1, heads, d]

        n: query heads that share a head of keys and values. R: slots of the trunk that has most.
        """
        (width, R, seen), (first, last) = self.shape, self.window
        trunk_keys = self.trunk_keys[self.layer][first:last, ..., :seen].flatten(0, 1)  # [G H, d, L]
        trunk_values = self.trunk_values[self.layer][first:last, :, :seen].flatten(0, 1)  # [G H, L, d]
        own_keys = self.keys[self.layer][..., :width].flatten(0, 1)  # [A H, d, W]
        own_values = self.values[self.layer][:, :, :width].flatten(0, 1)  # [A H, W, d]
        A, heads, _, d = query.shape
        H, (trunk, rank) = own_keys.shape[0] // A, self.grid
        q = (query * (scaling or d**-0.5)).view(A, H, -1, d)  # [A, H, n, d]

        def on_trunks(x, y):
            """Rows x [A, H, n, i] times their trunks' matrices y [G H, i, j]. -> [A, H, n, j]"""
            grid = x.new_zeros(last - first, H, R, *x.shape[2:])
            grid[trunk, :, rank] = x
            return (grid.view(len(y), -1, y.shape[1]) @ y).view(*grid.shape[:4], -1)[trunk, :, rank]

        own = (q.flatten(0, 1) @ own_keys).view(A, H, -1, width)
        logits = torch.cat([on_trunks(q, trunk_keys), own], dim=-1).view(A, heads, -1)  # [A, heads, L + W]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits + attention_mask[:, 0]
        if sliding_window is not None:
            logits = logits.masked_fill(self.distance >= sliding_window, NEVER)
        weights = logits.softmax(dim=-1, dtype=torch.float32).to(q.dtype).view(A, H, -1, seen + width)
        out = on_trunks(weights[..., :seen], trunk_values)
        out = out + (weights[..., seen:].flatten(0, 1) @ own_values).view(A, H, -1, d)
        return out.view(A, 1, heads, d), None


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


def _capture(step):
    """A CUDA graph of the step. -> a function that replays it and returns the step's result"""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay():
        graph.replay()
        return result

    return replay


def supports(model) -> bool:
    """Whether this model's forks can share trunks: asked of the model itself, once, with a short fork of a short trunk."""
    if model not in _SUPPORTED:
        try:
            _SUPPORTED[model] = _is_exact(model)
        except Exception:  # whatever an architecture with another kind of cache or attention makes of it
            _SUPPORTED[model] = False
        if not _SUPPORTED[model]:
            warnings.warn(f"{type(model).__name__}: its attention cannot share prefixes, so it samples the plain way", stacklevel=2)
    return _SUPPORTED[model]


@torch.no_grad()
def _is_exact(model) -> bool:
    """Log-probs of a fork against those of one forward pass; and each layer must tell its sliding window, if it has one."""
    trunk = [1, 2, 3, 4, 5, 6]
    slots = Slots(model, [trunk], [Fork(0, 4, 4)], torch.full((1, 4), 0.4), 1.0, 1.0, [-1])
    windows, attend = {}, slots._attend

    def spy(*args, sliding_window=None, **kwargs):
        windows[slots.layer] = sliding_window
        return attend(*args, sliding_window=sliding_window, **kwargs)

    slots._attend = spy
    [(tokens, logprobs, _)] = slots.run(1, lambda n: None)
    ids = torch.tensor([trunk[:4] + tokens], device=model.device)
    scored = model(input_ids=ids, use_cache=False).logits[0, 3:-1].float().log_softmax(dim=-1)  # [4, V]
    gap = (scored.gather(1, ids[0, 4:, None])[:, 0] - torch.tensor(logprobs, device=model.device)).abs().max()
    layers = DynamicCache(config=model.config).layers
    configured = {n: getattr(layer, "sliding_window", None) for n, layer in enumerate(layers)}
    return gap < (1e-3 if model.dtype == torch.float32 else 0.1) and windows == configured
