"""Exercises on sampling: choosing a token, the KV cache."""

import copy

import torch
from transformers import DynamicCache

from grading.engine import Exercise
from grading.inputs import decoder, random, tensor
from vine_mini.sampling import plain, sample
from vine_mini.types import Sampling

# ex01: choose a token


def _choose(logits, uniform, temperature, top_p, *, tempered=True, keep="reach", rescale=True, score="whole"):
    """The rules of `choose`. Each keyword changes one of them."""
    logprobs = (logits / ((temperature or 1.0) if tempered else 1 / (temperature or 1.0))).log_softmax(-1)
    ranked, index = logprobs.exp().sort(dim=-1, descending=True)
    before = ranked.cumsum(-1) - (0 if keep == "below" else ranked)
    outside = (before >= top_p) if top_p < 1 else torch.zeros_like(ranked, dtype=torch.bool)
    outside[:, 0] = False
    if keep == "ties":
        outside = ranked < ranked.masked_fill(outside, 1.0).amin(-1, keepdim=True)
    probs = logprobs.exp().masked_fill(outside.gather(1, index.argsort(-1)), 0.0)
    kept = probs / probs.sum(-1, keepdim=True)
    table = (kept if rescale else probs).cumsum(-1)
    token = torch.searchsorted(table, uniform[:, None], right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    if temperature == 0:
        token = logits.argmax(-1)
    scores = {"whole": logprobs, "kept": kept.log(), "untempered": logits.log_softmax(-1)}[score]
    return token, scores.gather(1, token[:, None])[:, 0]


def temperature_multiplied(logits, uniform, temperature, top_p):
    """the logits are multiplied by the temperature. A high temperature then makes likely tokens more likely."""
    return _choose(logits, uniform, temperature, top_p, tempered=False)


def crossing_token_left_out(logits, uniform, temperature, top_p):
    """the token with which the sum reaches top_p is left out. The kept set must reach top_p."""
    return _choose(logits, uniform, temperature, top_p, keep="below")


def not_rescaled(logits, uniform, temperature, top_p):
    """the kept probabilities are not scaled to sum to 1. Large uniform numbers then find no token."""
    return _choose(logits, uniform, temperature, top_p, rescale=False)


def scored_after_top_p(logits, uniform, temperature, top_p):
    """the log-prob is taken over the kept tokens only. PPO's ratio needs the whole distribution."""
    return _choose(logits, uniform, temperature, top_p, score="kept")


def scored_at_temperature_one(logits, uniform, temperature, top_p):
    """the token is drawn at the temperature, but its log-prob is taken at temperature 1."""
    return _choose(logits, uniform, temperature, top_p, score="untempered")


def top_p_before_temperature(logits, uniform, temperature, top_p):
    """top-p is applied at temperature 1, and the temperature afterwards. The temperature comes first."""
    probs = logits.softmax(-1)
    ranked, index = probs.sort(dim=-1, descending=True)
    outside = (ranked.cumsum(-1) - ranked >= top_p) if top_p < 1 else torch.zeros_like(ranked, dtype=torch.bool)
    whole = (logits / (temperature or 1.0)).log_softmax(-1)
    kept = whole.exp().masked_fill(outside.gather(1, index.argsort(-1)), 0.0)
    table = kept.cumsum(-1) / kept.sum(-1, keepdim=True)
    token = torch.searchsorted(table, uniform[:, None], right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    token = logits.argmax(-1) if temperature == 0 else token
    return token, whole.gather(1, token[:, None])[:, 0]


def in_sorted_order(logits, uniform, temperature, top_p):
    """the sums run from the most likely token downwards instead of in the order of the token ids."""
    logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
    ranked, index = logprobs.exp().sort(dim=-1, descending=True)
    kept = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0) if top_p < 1 else ranked
    table = kept.cumsum(-1) / kept.sum(-1, keepdim=True)
    place = torch.searchsorted(table, uniform[:, None], right=True).clamp(max=logits.shape[1] - 1)
    token = logits.argmax(-1) if temperature == 0 else index.gather(1, place)[:, 0]
    return token, logprobs.gather(1, token[:, None])[:, 0]


def sum_reaches_the_number(logits, uniform, temperature, top_p):
    """a token is chosen although its sum only equals the uniform number. Then 0 can choose a token that top-p removed."""
    token, logprob = plain.choose(logits, uniform, temperature, top_p)
    if temperature == 0:
        return token, logprob
    logprobs = (logits / temperature).log_softmax(-1)
    token = torch.searchsorted(plain.cumulative(logprobs, top_p), uniform[:, None])[:, 0]
    return token, logprobs.gather(1, token[:, None])[:, 0]


def ties_kept(logits, uniform, temperature, top_p):
    """every token as likely as the last kept one is kept. The smallest set has only as many of them as the sum needs."""
    return _choose(logits, uniform, temperature, top_p, keep="ties")


def exp_overflows(logits, uniform, temperature, top_p):
    """the probabilities are exp(x) / sum of exp(x). exp overflows for large logits, and `log_softmax` does not."""
    token, _ = plain.choose(logits, uniform, temperature, top_p)
    probs = (logits / (temperature or 1.0)).exp()
    logprobs = (probs / probs.sum(-1, keepdim=True)).log()
    if temperature:
        token = token.masked_fill(logprobs.isnan().any(-1), 0)  # a comparison with a sum that is nan is false
    return token, logprobs.gather(1, token[:, None])[:, 0]


def sampled_at_temperature_zero(logits, uniform, temperature, top_p):
    """temperature 0 draws a token at temperature 1. It must choose the most likely token."""
    return plain.choose(logits, uniform, temperature or 1.0, top_p)


def _choose_cases():
    three = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()[None]
    u = torch.tensor([0.6], dtype=torch.float64)
    many = torch.linspace(0, 0.999, 64, dtype=torch.float64)
    wide = 2 * random(64, 9)
    return {
        "temperature 1": dict(logits=three, uniform=u, temperature=1.0, top_p=1.0),
        "temperature 2": dict(logits=three, uniform=u, temperature=2.0, top_p=1.0),
        "greedy": dict(logits=three.flip(1), uniform=u - 0.5, temperature=0, top_p=1.0),
        "top_p = 0.7": dict(logits=three, uniform=u, temperature=1.0, top_p=0.7),
        "the sum reaches top_p exactly": dict(logits=tensor([2, 1, 1]).log(), uniform=u + 0.3, temperature=1.0, top_p=0.5),
        "top_p = 0.4: one token": dict(logits=three, uniform=u, temperature=1.0, top_p=0.4),
        "equal probabilities, top_p = 0.55": dict(
            logits=tensor([0.4, 0.2, 0.2, 0.2]).log(), uniform=u - 0.1, temperature=1.0, top_p=0.55
        ),
        "large logits": dict(logits=tensor([1000, 1001]), uniform=u, temperature=1.0, top_p=1.0),
        "ids that are not sorted": dict(logits=three.flip(1), uniform=u, temperature=1.0, top_p=1.0),
        "uniform 0, token 0 removed": dict(logits=three.flip(1), uniform=0 * u, temperature=1.0, top_p=0.7),
        "64 rows, top_p 0.8": dict(logits=wide, uniform=many, temperature=1.0, top_p=0.8),
        "64 rows, temperature 0.6, top_p 0.9": dict(logits=wide, uniform=many, temperature=0.6, top_p=0.9),
        "8 rows, temperature 0.25": dict(logits=wide[:8], uniform=many[::8], temperature=0.25, top_p=1.0),
        "64 rows, temperature 1.5": dict(logits=wide, uniform=many, temperature=1.5, top_p=1.0),
    }


# ex02: the KV cache


def _greedy(model, prompt, n):
    """The package's plain sampler at temperature 0, with an end-of-sequence token that the model does not have."""
    [t] = sample(model, [prompt], Sampling(n, (10**6,), temperature=0.0), seed=0, plain=True)
    return t.response_ids


def _count_tokens_read(function, model, prompt, n):
    """-> the tokens, and how many tokens the model read"""
    read = []
    hook = model.model.embed.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    model.generate = _refuse
    try:
        tokens = function(model, prompt, n)
    finally:
        hook.remove()
        del model.generate
    return {"tokens": tokens, "number of tokens that the model read": sum(read)}


def _refuse(*_, **__):
    raise ValueError("model.generate solves the whole exercise: write the loop yourself")


def no_cache(model, prompt, n):
    """the model reads the whole sequence for every new token. The tokens are right, but the cache saves nothing."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def cache_and_whole_sequence(model, prompt, n):
    """the whole sequence is passed although the cache already holds it. The model then sees every token twice."""
    kv, ids = DynamicCache(config=model.config), list(prompt)
    for _ in range(n):
        ids.append(int(model(input_ids=torch.tensor([ids]), past_key_values=kv).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def _decode(model, prompt, n, *, first=None, positions=lambda t: None, row=-1):
    kv, new, tokens = DynamicCache(config=model.config), list(prompt), []
    for t in range(n):
        where = positions(t)
        position_ids = None if where is None else torch.tensor([[where]])
        logits = model(input_ids=torch.tensor([new]), past_key_values=kv, position_ids=position_ids).logits
        tokens.append(int(logits[0, row].argmax()))
        new = first if t == 0 and first else [tokens[-1]]
    return tokens


def position_restarts(model, prompt, n):
    """each new token gets position 0. With RoPE it then attends as if it were the first token."""
    return _decode(model, prompt, n, positions=lambda t: 0 if t else None)


def stopped_at_the_end(model, prompt, n):
    """the loop stops at the model's end-of-sequence token. Here n tokens are decoded in any case."""
    tokens = _decode(model, prompt, n)
    end = model.config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def first_row_of_logits(model, prompt, n):
    """the next token is taken from the first row of logits. This row predicts the second token of the prompt."""
    return _decode(model, prompt, n, row=0)


def last_prompt_token_twice(model, prompt, n):
    """after the prompt, the model reads the last prompt token again instead of the new token."""
    return _decode(model, prompt, n, first=[prompt[-1]])


def one_reading_too_many(model, prompt, n):
    """the model also reads the last new token, whose logits are not needed."""
    return [*_decode(model, prompt, n + 1)][:n]


def _cache_cases():
    ends = copy.deepcopy(decoder())
    ends.config.eos_token_id = 8  # it is among the tokens
    return {
        "three tokens": dict(model=decoder(), prompt=[3, 1, 4], n=3),
        "one token": dict(model=decoder(), prompt=[5, 9], n=1),
        "a prompt of one token": dict(model=decoder(), prompt=[2], n=8),
        "a prompt of twenty tokens": dict(
            model=decoder(), prompt=[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], n=3
        ),
        "twelve tokens": dict(model=decoder(), prompt=[2, 7, 1, 8, 2, 8], n=12),
        "24 tokens, with the end-of-sequence token 8 on the way": dict(
            model=ends, prompt=[2, 7, 1, 8, 2, 8, 3, 3, 1, 0, 5, 6], n=24
        ),
    }


EXERCISES = [
    Exercise(
        "ex01_choose",
        "choose",
        plain.choose,
        _choose_cases,
        [
            temperature_multiplied,
            crossing_token_left_out,
            not_rescaled,
            scored_after_top_p,
            scored_at_temperature_one,
            top_p_before_temperature,
            in_sorted_order,
            sum_reaches_the_number,
            ties_kept,
            exp_overflows,
            sampled_at_temperature_zero,
        ],
    ),
    Exercise(
        "ex02_kv_cache",
        "decode_greedily",
        _greedy,
        _cache_cases,
        [
            no_cache,
            cache_and_whole_sequence,
            position_restarts,
            stopped_at_the_end,
            first_row_of_logits,
            last_prompt_token_twice,
            one_reading_too_many,
        ],
        call=_count_tokens_read,
    ),
]
