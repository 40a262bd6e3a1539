"""Continuing token sequences with a KV cache, the plain way: what every sampler here must agree with.

A `Fork` asks for one continuation of the first tokens of a trunk. This module reads each different prefix once, copies
its cache to every row that needs it, and lets a row that ends leave the batch. `slots` does the same work with less.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from vine_mini.logprobs import position_ids


@dataclass(frozen=True)
class Fork:
    """One continuation to sample: of the first `start` tokens of trunk number `trunk`, at most `budget` tokens long."""

    trunk: int
    start: int
    budget: int


def choose(logits, uniform, temperature: float, top_p: float):
    """Pick one token a row. logits [A, V], uniform [A] in [0, 1) -> token [A], its log-prob [A].

    The uniform number is looked up in the cumulative distribution, so the same number gives the same token. Greedy
    tokens (temperature 0) get the log-prob they have at temperature 1.
    """
    logprobs = (logits / (temperature or 1.0)).log_softmax(dim=-1)
    if temperature == 0:
        token = logprobs.argmax(dim=-1)
    else:
        token = torch.searchsorted(cumulative(logprobs, top_p), uniform[:, None], right=True)[:, 0]
        token = token.clamp(max=logits.shape[-1] - 1)  # logits that are not numbers have none; the caller reports them
    return token, logprobs.gather(1, token[:, None])[:, 0]


def cumulative(logprobs, top_p: float):
    """The cumulative distribution [A, V] of the smallest set of tokens whose probability reaches top_p."""
    probs = logprobs.exp()
    if top_p < 1.0:
        ranked, index = probs.sort(dim=-1, descending=True)
        outside = ranked.cumsum(dim=-1) - ranked >= top_p  # what came before already reaches top_p
        probs = probs.masked_fill(outside.gather(1, index.argsort(dim=-1)), 0.0)
    cdf = probs.cumsum(dim=-1)
    return cdf.div_(cdf[:, -1:].clone())  # its end is exactly 1, so some token lies above every uniform number


@torch.no_grad()
def complete(model, trunks, forks, uniforms, *, temperature, top_p, eos, batch_size, progress):
    """Samples every fork. uniforms: [F, longest budget], number t of row f decides token t of fork f.

    -> for each fork (token ids, their log-probs, whether it ended with one of `eos`)
    """
    prefixes = [trunks[f.trunk][: f.start] for f in forks]
    # Rows of like length share a batch: less padding, and equal prefixes meet.
    order = sorted(range(len(forks)), key=lambda i: (len(prefixes[i]), prefixes[i], i))
    done: list = [None] * len(forks)
    for rows in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        batch = [prefixes[i] for i in rows], [forks[i].budget for i in rows], uniforms[rows]
        for i, result in zip(rows, _decode(model, *batch, temperature, top_p, eos), strict=True):
            done[i] = result
        progress(len(rows))
    return done


def _decode(model, prefixes, budgets, uniforms, temperature, top_p, eos):
    device, B, steps = model.device, len(prefixes), max(budgets)
    uniforms, eos = uniforms.to(device), torch.tensor(eos, device=device)
    logits, mask, cache = _prefill(model, prefixes)  # [B, V], [B, L]
    ends_at = torch.tensor(budgets, device=device)  # [B]
    next_position = mask.sum(dim=1, keepdim=True)  # [B, 1]
    tokens = torch.zeros(B, steps, dtype=torch.long, device=device)
    logprobs = torch.zeros(B, steps, dtype=logits.dtype, device=device)
    finished = torch.zeros(B, dtype=torch.bool, device=device)
    length = torch.zeros(B, dtype=torch.long, device=device)
    alive = torch.arange(B, device=device)  # the row that each line of the shrinking batch writes to
    for t in range(steps):
        token, logprob = choose(logits, uniforms[alive, t], temperature, top_p)  # [A], [A]
        tokens[alive, t], logprobs[alive, t], length[alive] = token, logprob, t + 1
        is_eos = torch.isin(token, eos)
        finished[alive] = is_eos
        keep = (~is_eos & (ends_at[alive] > t + 1)).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(alive):
            alive, token, mask, next_position = alive[keep], token[keep], mask[keep], next_position[keep]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        logits = _forward(model, token[:, None], mask, next_position + t, cache)
    columns = tokens.tolist(), logprobs.tolist(), length.tolist(), finished.tolist()
    return [(ids[:n], lp[:n], end) for ids, lp, n, end in zip(*columns, strict=True)]


def _prefill(model, prefixes):
    """Reads each different prefix once. -> next-token logits [B, V], mask [B, L], cache of B rows"""
    unique = {tuple(p): i for i, p in enumerate(dict.fromkeys(map(tuple, prefixes)))}
    L = max(map(len, unique))
    ids = torch.tensor([[0] * (L - len(p)) + list(p) for p in unique], device=model.device)  # [U, L], padded on the left
    mask = torch.tensor([[0] * (L - len(p)) + [1] * len(p) for p in unique], device=model.device)
    cache = DynamicCache(config=model.config)
    logits = _forward(model, ids, mask, position_ids(mask), cache)
    copies = torch.tensor([unique[tuple(p)] for p in prefixes], device=model.device)
    cache.batch_select_indices(copies)
    return logits[copies], mask[copies], cache


def _forward(model, ids, mask, positions, cache):
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    return out.logits[:, -1].float()
