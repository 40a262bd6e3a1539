"""The plain way to sample: continue token sequences with a KV cache. The fast way must give the same tokens.

A *request* asks for one continuation of the first tokens of a *trunk*, which is any token sequence. For a rollout the trunk is a
trajectory, `start` ends the state, and `budget` is what is left of the length limit (`sampling/__init__.py`).
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from vine_mini.logprobs import logits_of, position_ids
from vine_mini.types import Sampling, Trajectory


@dataclass(frozen=True)
class Request:
    """One continuation of the first `start` tokens of trunk number `trunk`, with at most `budget` tokens."""

    trunk: int
    start: int
    budget: int


@torch.no_grad()
def complete(model, trunks: list[list[int]], requests: list[Request], uniforms, sampling: Sampling, progress) -> list[Trajectory]:
    """Samples every request. Number t of row r of `uniforms` [R, longest budget], in [0, 1), decides token t of request r.

    `progress` is called after each batch with its number of requests.
    """
    prefixes = [trunks[r.trunk][: r.start] for r in requests]
    # Sorting puts prefixes of similar length into one batch, which saves padding, and equal prefixes side by side.
    order = sorted(range(len(requests)), key=lambda i: (len(prefixes[i]), prefixes[i], i))
    done: dict[int, Trajectory] = {}
    for rows in (order[i : i + sampling.batch_size] for i in range(0, len(order), sampling.batch_size)):
        budgets = torch.tensor([requests[i].budget for i in rows])
        done |= zip(rows, _decode(model, [prefixes[i] for i in rows], budgets, uniforms[rows], sampling), strict=True)
        progress(len(rows))
    return [done[i] for i in range(len(requests))]


def _decode(model, prefixes, budgets, uniforms, sampling):
    """One batch of B requests. A request that has ended leaves the batch; A requests are left."""
    budgets, uniforms = budgets.to(model.device), uniforms.to(model.device)  # [B], [B, longest budget]
    eos = torch.tensor(sampling.eos_token_id, device=model.device)
    response_ids, logprobs = [[] for _ in prefixes], [[] for _ in prefixes]
    logits, mask, cache = _prefill(model, prefixes)  # [B, V], [B, L]
    alive = torch.arange(len(prefixes), device=model.device)  # [A] the requests that are left
    for t in range(int(budgets.max())):
        token, logprob = choose(logits, uniforms[alive, t], sampling.temperature, sampling.top_p)  # [A], [A]
        for i, new, score in zip(alive.tolist(), token.tolist(), logprob.tolist(), strict=True):
            response_ids[i].append(new)
            logprobs[i].append(score)
        keep = (~torch.isin(token, eos) & (budgets[alive] > t + 1)).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(alive):
            alive, token, mask = alive[keep], token[keep], mask[keep]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)  # [A, L + t + 1]
        logits = _forward(model, token[:, None], mask, cache)  # [A, V]
    rows = zip(prefixes, response_ids, logprobs, strict=True)
    return [Trajectory(prefix, ids, scores, ids[-1] in sampling.eos_token_id) for prefix, ids, scores in rows]


def _prefill(model, prefixes):
    """Reads each distinct prefix once. -> logits of the next token [B, V], mask [B, L], a cache with B rows"""
    row_of = {prefix: row for row, prefix in enumerate(dict.fromkeys(map(tuple, prefixes)))}  # U distinct prefixes
    L = max(map(len, row_of))
    ids = torch.tensor([[0] * (L - len(p)) + list(p) for p in row_of], device=model.device)  # [U, L], padded on the left
    mask = torch.tensor([[0] * (L - len(p)) + [1] * len(p) for p in row_of], device=model.device)
    cache = DynamicCache(config=model.config)
    logits = _forward(model, ids, mask, cache)  # [U, V]
    copies = torch.tensor([row_of[tuple(p)] for p in prefixes], device=model.device)  # [B]
    cache.batch_select_indices(copies)
    return logits[copies], mask[copies], cache


def _forward(model, ids, mask, cache):
    """Reads the tokens ids [A, n]. The mask [A, L] covers them and the cache's tokens. -> logits of the next token [A, V]"""
    positions = position_ids(mask)[:, -ids.shape[1] :]
    out = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return logits_of(model, out.last_hidden_state[:, -1]).float()


def choose(logits, uniform, temperature: float, top_p: float):
    """Picks one token in each row. logits [A, V], uniform [A] in [0, 1) -> token [A], its log-prob [A]

    A token is picked when the uniform number falls into the token's interval of the cumulative distribution. The log-prob is
    the token's under softmax(logits / temperature), whatever top_p is. Temperature 0 picks the most likely token and scores
    it at temperature 1.
    """
    logprobs = (logits / (temperature or 1.0)).log_softmax(dim=-1)  # [A, V]
    if temperature == 0:
        token = logprobs.argmax(dim=-1)
    else:
        token = torch.searchsorted(cumulative(logprobs, top_p), uniform[:, None], right=True)[:, 0]
        token = token.clamp(max=logits.shape[-1] - 1)  # NaN has no interval; `sample` reports it
    return token, logprobs.gather(1, token[:, None])[:, 0]


def cumulative(logprobs, top_p: float):
    """The cumulative distribution [A, V] over the smallest set of tokens whose probability reaches top_p."""
    probs = logprobs.exp()
    if top_p < 1.0:
        ranked, index = probs.sort(dim=-1, descending=True)
        outside = ranked.cumsum(dim=-1) - ranked >= top_p  # the more likely tokens alone reach top_p
        probs = torch.zeros_like(probs).scatter_(1, index, ranked.masked_fill(outside, 0.0))
    cdf = probs.cumsum(dim=-1)
    return cdf.div_(cdf[:, -1:].clone())  # ends with exactly 1, so every uniform number falls into an interval
