r"""The fast way to sample. It gives the tokens of `plain.py`, up to rounding, with less work.

A request starts at a token of its trunk and is sampled from there. Here are five requests on two trunks:

    trunk 0   q q q q | a a a \n b b b \n c c <eos>
                      |         └ request 0: y y y
                      ├ request 1: x x
                      └ request 2: a a a \n z z
    trunk 1   q q q | a a <eos>
                    ├ request 3: w w w v
                    └ request 4: w w w u u

- The keys and values of a trunk are computed once (`trunks`). All requests on the trunk attend to them (`attention`).
- Request 2 first samples four tokens that are also the trunk's. These tokens need no forward pass of their own (`trunks`).
- A request that has left its trunk is decoded in a *slot*, which is a row of the decoding batch. The slot holds the keys and
  values of the tokens that are the request's own (`cache`).
- Requests 3 and 4 sample three equal tokens. They share a slot until their tokens differ (`scheduler`).
- When a request is done, a waiting request takes its place at the next position (`scheduler`).

On a GPU each shape of the forward pass becomes a CUDA graph. There the last two points give way to groups of slots whose tensors
never change their size (`graphs.py`, `groups.py`).

`probe` finds out which models the fast way supports.
"""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial

import torch

from vine_mini.logprobs import logits_of
from vine_mini.sampling.fast.attention import attend, use_attention
from vine_mini.sampling.fast.cache import Layout, SlotCache
from vine_mini.sampling.fast.graphs import replaying, uses_graphs
from vine_mini.sampling.fast.groups import Groups
from vine_mini.sampling.fast.scheduler import Slots, Table
from vine_mini.sampling.fast.trunks import read
from vine_mini.sampling.plain import Request
from vine_mini.types import Sampling, Trajectory

REQUESTS_PER_SLOT = 8  # in a chunk: enough that slots are seldom empty, few enough that few trunks are in memory


@torch.no_grad()
def complete(model, trunks: list[list[int]], requests: list[Request], uniforms, sampling: Sampling, progress) -> list[Trajectory]:
    """Samples every request. `plain.complete` has the same arguments and result.

    At most `sampling.batch_size` requests are decoded at once. At most as many trunks are in memory at once.
    """
    chunks = list(_chunks(requests, sampling.batch_size))
    place = {number: i for numbers, _ in chunks for i, number in enumerate(numbers)}
    table = Table([replace(r, trunk=place[r.trunk]) for r in requests], uniforms, sampling, model.device)

    def decode_all(decode):
        for numbers, rows in chunks:
            rows = torch.tensor(rows, device=model.device)
            keys, values = read(model, [trunks[number] for number in numbers], table, rows)
            waiting = rows[~table.done(rows)]
            progress(len(rows) - len(waiting))
            if len(waiting):
                decode(model, keys, values, waiting, progress)

    if uses_graphs(model.device):
        with replaying(model.device) as run:
            counts, longest = Counter(r.trunk for r in requests), max(map(len, trunks))
            decode_all(Groups(table, counts, sampling.batch_size, longest, run).decode)
    else:
        decode_all(partial(_decode, table))
    rows = zip(requests, table.results(), strict=True)
    return [Trajectory(trunks[r.trunk][: r.start], *result) for r, result in rows]


def _chunks(requests, size: int):
    """Divides the work. Each chunk is the numbers of some trunks and the numbers of all requests on these trunks."""
    of_trunk = defaultdict(list)
    for i, request in enumerate(requests):
        of_trunk[request.trunk].append(i)
    numbers, rows = [], []
    # Trunks with many requests come first. Then few trunks fill the slots, and the grid of attention has few empty places.
    for trunk in sorted(of_trunk, key=lambda trunk: (len(of_trunk[trunk]), trunk), reverse=True):
        if numbers and (len(numbers) == size or len(rows) + len(of_trunk[trunk]) > REQUESTS_PER_SLOT * size):
            yield numbers, rows
            numbers, rows = [], []
        numbers.append(trunk)
        rows += sorted(of_trunk[trunk], key=lambda i: requests[i].start)  # the longest responses first
    if numbers:
        yield numbers, rows


def _decode(table: Table, model, keys, values, waiting, progress) -> None:
    """Completes the requests that have left their trunk. keys, values: of the trunks, see `read`"""
    size = min(table.sampling.batch_size, len(waiting))
    cache = SlotCache(keys, values, size, width=int((table.start + table.budget - table.branch)[waiting].max()))
    slots = Slots(table, waiting, size)
    with use_attention(model, partial(attend, cache)):
        while len(slots.rows):
            cache.copy(*slots.fill())
            progress(slots.release(_next_position(model, table, cache, slots)))


def _next_position(model, table: Table, cache: SlotCache, slots: Slots):
    """Samples the next token of every member. -> [m] whether each member is done"""
    layout = Layout(table, slots.lead, cache.shape(table, slots.lead))
    hidden = cache.forward(model, table.newest(slots.lead), layout)  # [n, D]
    table.write(slots.member, logits_of(model, hidden)[slots.slot_of])
    return table.done(slots.member)
