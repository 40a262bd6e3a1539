"""Reads trunks: computes their keys and values, and samples each request up to its first token that is not the trunk's.

The random number of every token is drawn before sampling. A request therefore samples the trunk's next token exactly when
its number falls into that token's interval of the cumulative distribution. One forward pass over the trunk gives the
intervals at all positions, and so tells how many of the trunk's tokens each request samples.
"""

import torch
from transformers import DynamicCache

from vine_mini.logprobs import logits_of, rows_of_logits
from vine_mini.sampling.fast.table import Table
from vine_mini.sampling.plain import cumulative

READ_TOKENS = 8192  # in one forward pass


def read(model, trunks: list[list[int]], table: Table):
    """Reads G trunks of at most L tokens. Afterwards each request is done or has one own token.

    -> keys, values: for each layer [G, H, d, L] and [G, H, L, d]
    """
    keys: list = []
    values: list = []
    longest = max(map(len, trunks))
    rows_at_once = max(1, READ_TOKENS // longest)
    for first in range(0, len(trunks), rows_at_once):
        part = trunks[first : first + rows_at_once]  # b trunks
        lengths = torch.tensor([len(t) for t in part], device=model.device)  # [b]
        width, last = max(map(len, part)), first + len(part)
        ids = torch.tensor([t + [0] * (width - len(t)) for t in part], device=model.device)  # [b, w]
        cache = DynamicCache()  # without the model's config, so that layers with a sliding window keep all tokens
        hidden = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state  # [b, w, D]
        for n, layer in enumerate(cache.layers):
            if first == 0:
                keys.append(layer.keys.new_zeros(len(trunks), layer.keys.shape[1], layer.keys.shape[3], longest))
                values.append(layer.values.new_zeros(len(trunks), layer.values.shape[1], longest, layer.values.shape[3]))
            keys[n][first:last, :, :, :width] = layer.keys.mT
            values[n][first:last, :, :width] = layer.values
        rows = ((table.trunk >= first) & (table.trunk < last)).nonzero()[:, 0]  # [r] the requests on these trunks
        _follow(model, table, rows, table.trunk[rows] - first, ids, lengths, hidden)
        for own in rows[~table.done(rows)].split(rows_of_logits(model)):
            before = hidden[table.trunk[own] - first, table.branch[own] - 1]  # at the last token that request and trunk share
            table.write(own, logits_of(model, before))
    return keys, values


def _follow(model, table: Table, rows, trunk, ids, lengths, hidden) -> None:
    """Writes the trunk's tokens for as long as each request samples them.

    rows [r]: requests, and trunk [r]: the row of each request's trunk in ids [b, w], lengths [b] and hidden [b, w, D].
    """
    begin = lengths.scatter_reduce(0, trunk, table.start[rows], "amin")  # [b] the first token that a request may sample
    column = torch.arange(ids.shape[1], device=ids.device)
    asked = (column >= begin[:, None]) & (column < lengths[:, None])  # [b, w]
    intervals = torch.zeros(3, *ids.shape, device=ids.device)  # empty where nothing is asked
    size = rows_of_logits(model)
    pieces = zip(hidden[:, :-1][asked[:, 1:]].split(size), ids[asked].split(size), strict=True)
    intervals[:, asked] = torch.cat([_interval(model, table, *piece) for piece in pieces], dim=1)

    start = table.start[rows]  # [r]
    J = min(table.tokens.shape[1], int((lengths[trunk] - start).max()))  # no request can follow its trunk further
    own = torch.arange(J, device=ids.device)  # index in the response
    at = trunk[:, None], (start[:, None] + own).clamp(max=ids.shape[1] - 1)  # the same token in the trunk, [r, J]
    low, high, logprob = intervals[:, *at]
    u, is_eos = table.uniforms[rows, :J], torch.isin(ids, table.eos)[at]
    possible = (own < table.budget[rows, None]) & (start[:, None] + own < lengths[trunk, None])
    possible[:, 1:] &= ~is_eos[:, :-1]  # nothing comes after an end token
    follows = (possible & (low <= u) & (u < high)).cumprod(dim=1)  # [r, J] 1 up to the first token that differs
    table.tokens[rows, :J], table.logprobs[rows, :J] = ids[at] * follows, logprob * follows
    table.length[rows] = follows.sum(dim=1)
    table.branch[rows] = start + table.length[rows]
    table.finished[rows] = (follows.bool() & is_eos).any(dim=1)


def _interval(model, table: Table, hidden, tokens):
    """The numbers from low to high with which `choose` takes these tokens. hidden [n, D] -> low, high, log-prob [3, n]"""
    temperature, at = table.sampling.temperature, tokens[:, None]
    logprobs = (logits_of(model, hidden) / (temperature or 1.0)).log_softmax(dim=-1)  # [n, V]
    if temperature == 0:
        high = (logprobs.argmax(dim=-1) == tokens).float()
        low = torch.zeros_like(high)
    else:
        cdf = cumulative(logprobs, table.sampling.top_p)
        high = cdf.gather(1, at)[:, 0]
        low = torch.where(tokens > 0, cdf.gather(1, (at - 1).clamp(min=0))[:, 0], 0.0)
    return torch.stack([low, high, logprobs.gather(1, at)[:, 0]])
