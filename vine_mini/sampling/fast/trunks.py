"""Reads trunks: computes their keys and values, and samples each request up to its first token that is not the trunk's.

All random numbers are drawn before sampling. A request samples the trunk's next token exactly when the request's number falls
into that token's interval of the cumulative distribution. One forward pass gives the intervals of all tokens of the trunk.
"""

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from vine_mini.logprobs import logits_of, rows_of_logits
from vine_mini.sampling.fast.scheduler import Table
from vine_mini.sampling.plain import cumulative

READ_TOKENS = 8192  # in one forward pass


def read(model, trunks: list[list[int]], table: Table, requests):
    """Reads G trunks of at most L tokens. Afterwards each request on them is done or has one own token.

    requests [R]: rows of the table -> keys, values: for each layer [G, H, d, L] and [G, H, L, d]
    """
    keys, values, L = [], [], max(map(len, trunks))
    at_once = max(1, READ_TOKENS // L)
    for first in range(0, len(trunks), at_once):
        part = trunks[first : first + at_once]  # b trunks
        lengths = torch.tensor([len(t) for t in part], device=model.device)  # [b]
        last, width = first + len(part), max(map(len, part))
        ids = torch.tensor([t + [0] * (width - len(t)) for t in part], device=model.device)  # [b, w]
        cache = DynamicCache()  # without the model's config, so that layers with a sliding window keep all tokens
        inputs = dict(input_ids=ids)
        if ids.is_cuda and model.dtype == torch.float32:  # as in `logprobs.hidden_before`
            real = torch.arange(width + 1, device=model.device) < lengths[:, None]
            inputs = dict(input_ids=F.pad(ids, (0, 1)), attention_mask=real.long())
        hidden = model.base_model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, :width]  # [b, w, D]
        for n, (k, v, *_) in enumerate(cache):  # [b, H, w or w + 1, d] for each layer
            if first == 0:
                keys.append(k.new_zeros(len(trunks), k.shape[1], k.shape[3], L))
                values.append(v.new_zeros(len(trunks), v.shape[1], L, v.shape[3]))
            keys[n][first:last, :, :, :width] = k[:, :, :width].mT
            values[n][first:last, :, :width] = v[:, :, :width]
        rows = requests[(table.trunk[requests] >= first) & (table.trunk[requests] < last)]  # [r] the requests on these trunks
        _follow(model, table, rows, table.trunk[rows] - first, ids, lengths, hidden)
        for own in rows[~table.done(rows)].split(rows_of_logits(model)):
            shared = hidden[table.trunk[own] - first, table.branch[own] - 1]  # at the last token shared with the trunk
            table.write(own, logits_of(model, shared))
    return keys, values


def _follow(model, table: Table, rows, trunk, ids, lengths, hidden) -> None:
    """Writes the trunk's tokens into the table for as long as each request samples them.

    rows [r]: requests; trunk [r]: the row of each request's trunk in ids [b, w], lengths [b] and hidden [b, w, D]
    """
    start, budget = table.start[rows, None], table.budget[rows, None]  # [r, 1]
    begin = lengths.scatter_reduce(0, trunk, start[:, 0], "amin")  # [b] the first token that some request samples
    column = torch.arange(ids.shape[1], device=ids.device)
    asked = (column >= begin[:, None]) & (column < lengths[:, None])  # [b, w] the tokens whose intervals are needed
    intervals, size = torch.zeros(3, *ids.shape, device=ids.device), rows_of_logits(model)
    pieces = zip(hidden[:, :-1][asked[:, 1:]].split(size), ids[asked].split(size), strict=True)
    intervals[:, asked] = torch.cat([_intervals(model, table, *piece) for piece in pieces], dim=1)

    J = min(table.tokens.shape[1], int((lengths[trunk] - start[:, 0]).max()))  # no request follows further
    own = torch.arange(J, device=ids.device)  # index of a token in the response
    at = trunk[:, None], (start + own).clamp(max=ids.shape[1] - 1)  # [r, J] the same token in the trunk
    low, high, logprob = intervals[:, *at]
    number, is_eos = table.uniforms[rows, :J], torch.isin(ids, table.eos)[at]
    agrees = (own < budget) & (start + own < lengths[trunk, None]) & (low <= number) & (number < high)
    agrees[:, 1:] &= ~is_eos[:, :-1]  # nothing comes after an end token
    follows = agrees.cumprod(dim=1)  # [r, J] 1 up to the first token that differs
    table.tokens[rows, :J], table.logprobs[rows, :J] = ids[at] * follows, logprob * follows
    table.length[rows] = follows.sum(dim=1)
    table.branch[rows] = start[:, 0] + table.length[rows]
    table.finished[rows] = (follows.bool() & is_eos).any(dim=1)


def _intervals(model, table: Table, hidden, tokens):
    """`choose` picks a token for numbers from low up to high. hidden [n, D], tokens [n] -> low, high, log-prob [3, n]"""
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
