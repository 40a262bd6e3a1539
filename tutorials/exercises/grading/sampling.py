"""Exercises of the first tutorials: drawing tokens, the KV cache, steps, log-probs, Monte Carlo values."""

from functools import cache
from types import SimpleNamespace

import torch
from transformers import DynamicCache

from grading.engine import Exercise
from vine_mini.sampling import plain as decoding
from vine_mini import logprobs, sampling, steps, values
from vine_mini.decoder.model import Decoder, DecoderConfig


def random(*shape, seed=0):
    """Normal numbers in float64, the same at every call."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@cache
def decoder():
    """A small decoder with RoPE and random weights whose logits lie far apart."""
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=17, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, positions="rope")
    model = Decoder(config).double().eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(2.0)
    return model


# ex01: choose a token


def _choose(logits, uniform, temperature, top_p, *, tempered=True, keep="reach", rescale=True, score="whole"):
    """The rules with one of them changed; the keywords say which."""
    logprobs = (logits / ((temperature or 1.0) if tempered else 1 / (temperature or 1.0))).log_softmax(-1)
    ranked, index = logprobs.exp().sort(dim=-1, descending=True)
    before = ranked.cumsum(-1) - (0 if keep == "below" else ranked)
    outside = (before >= top_p) if top_p < 1 else torch.zeros_like(ranked, dtype=torch.bool)
    outside[:, 0] = False
    probs = logprobs.exp().masked_fill(outside.gather(1, index.argsort(-1)), 0.0)
    kept = probs / probs.sum(-1, keepdim=True)
    table = (kept if rescale else probs).cumsum(-1)
    token = torch.searchsorted(table, uniform[:, None], right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    if temperature == 0:
        token = logits.argmax(-1)
    scores = {"whole": logprobs, "kept": kept.log(), "untempered": logits.log_softmax(-1)}[score]
    return token, scores.gather(1, token[:, None])[:, 0]


def temperature_multiplied(logits, uniform, temperature, top_p):
    """the logits are multiplied by the temperature: high temperatures then make the likely tokens likelier."""
    return _choose(logits, uniform, temperature, top_p, tempered=False)


def crossing_token_left_out(logits, uniform, temperature, top_p):
    """the token that makes the sum reach top_p is left out; the kept set must reach it."""
    return _choose(logits, uniform, temperature, top_p, keep="below")


def not_rescaled(logits, uniform, temperature, top_p):
    """the kept probabilities are not scaled to sum to 1 again: large uniform numbers find no token."""
    return _choose(logits, uniform, temperature, top_p, rescale=False)


def scored_after_top_p(logits, uniform, temperature, top_p):
    """the log-prob is that of the tokens that top-p kept; the ratio of PPO needs the whole distribution's."""
    return _choose(logits, uniform, temperature, top_p, score="kept")


def scored_at_temperature_one(logits, uniform, temperature, top_p):
    """the token is drawn at the temperature but scored without it: sampler and scored policy differ."""
    return _choose(logits, uniform, temperature, top_p, score="untempered")


def top_p_before_temperature(logits, uniform, temperature, top_p):
    """top-p is applied to the probabilities at temperature 1, and the temperature to what is left."""
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
    """the sums run from the likeliest token downwards; they run in the order of the token ids."""
    logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
    ranked, index = logprobs.exp().sort(dim=-1, descending=True)
    kept = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0) if top_p < 1 else ranked
    table = kept.cumsum(-1) / kept.sum(-1, keepdim=True)
    place = torch.searchsorted(table, uniform[:, None], right=True).clamp(max=logits.shape[1] - 1)
    token = logits.argmax(-1) if temperature == 0 else index.gather(1, place)[:, 0]
    return token, logprobs.gather(1, token[:, None])[:, 0]


def sum_reaches_the_number(logits, uniform, temperature, top_p):
    """a token is taken whose sum only equals the uniform number: 0 then chooses a first token that top-p has left out."""
    token, logprob = decoding.choose(logits, uniform, temperature, top_p)
    if temperature == 0:
        return token, logprob
    logprobs = (logits / temperature).log_softmax(-1)
    token = torch.searchsorted(decoding.cumulative(logprobs, top_p), uniform[:, None])[:, 0]
    return token, logprobs.gather(1, token[:, None])[:, 0]


def _choose_cases():
    three = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()[None]
    u = torch.tensor([0.6], dtype=torch.float64)
    many = torch.linspace(0, 0.999, 64, dtype=torch.float64)
    wide = 2 * random(64, 9)
    return {
        "temperature 1": dict(logits=three, uniform=u, temperature=1.0, top_p=1.0),
        "temperature 2": dict(logits=three, uniform=u, temperature=2.0, top_p=1.0),
        "greedy": dict(logits=three.flip(1), uniform=u, temperature=0, top_p=1.0),
        "top_p = 0.7": dict(logits=three, uniform=u, temperature=1.0, top_p=0.7),
        "top_p = 0.4: one token": dict(logits=three, uniform=u, temperature=1.0, top_p=0.4),
        "ids that are not sorted": dict(logits=three.flip(1), uniform=u, temperature=1.0, top_p=1.0),
        "uniform 0, token 0 left out": dict(logits=three.flip(1), uniform=0 * u, temperature=1.0, top_p=0.7),
        "64 rows, top_p 0.8": dict(logits=wide, uniform=many, temperature=1.0, top_p=0.8),
        "64 rows, temperature 0.6, top_p 0.9": dict(logits=wide, uniform=many, temperature=0.6, top_p=0.9),
        "64 rows, temperature 1.5": dict(logits=wide, uniform=many, temperature=1.5, top_p=1.0),
    }


# ex02: the KV cache


def _greedy(model, prompt, n):
    """The package's plain sampler at temperature 0, with an end token that never comes."""
    never = [10**6]
    [t] = sampling.sample(model, [prompt], max_new_tokens=n, temperature=0, eos_token_id=never, seed=0, plain=True)
    return t.response_ids


def _count_tokens_read(function, model, prompt, n):
    """-> the tokens, and how many tokens went through the model on the way"""
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
    raise ValueError("model.generate does it all; write the loop yourself")


def no_cache(model, prompt, n):
    """every step reads the whole sequence again: the tokens are right, but the cache saves nothing."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def cache_and_whole_sequence(model, prompt, n):
    """the whole sequence is passed beside the cache that already holds it: the model sees every token twice."""
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
    """each new token is told that it stands at position 0; with RoPE it then attends as if it were the first."""
    return _decode(model, prompt, n, positions=lambda t: 0 if t else None)


def first_row_of_logits(model, prompt, n):
    """the next token is taken from the first row of logits, which speaks of the prompt's second token."""
    return _decode(model, prompt, n, row=0)


def last_prompt_token_twice(model, prompt, n):
    """after the prompt its last token is read once more instead of the token that was chosen."""
    return _decode(model, prompt, n, first=[prompt[-1]])


def one_reading_too_many(model, prompt, n):
    """the model also reads the last token that it writes, whose logits nobody needs."""
    return [*_decode(model, prompt, n + 1)][:n]


def _cache_cases():
    return {
        "three tokens": dict(model=decoder(), prompt=[3, 1, 4], n=3),
        "one token": dict(model=decoder(), prompt=[5, 9], n=1),
        "a prompt of one token": dict(model=decoder(), prompt=[2], n=8),
        "twelve tokens": dict(model=decoder(), prompt=[2, 7, 1, 8, 2, 8], n=12),
    }


# ex03: step cuts


class Pieces:
    """A tokenizer that is its own table of texts."""

    def __init__(self, *pieces):
        self.pieces = [*pieces, "<eos>"]

    def decode(self, ids, skip_special_tokens=False):
        """Token ids -> text."""
        shown = [self.pieces[i] for i in ids]
        return "".join(piece for piece in shown if not (skip_special_tokens and piece == "<eos>"))

    def __repr__(self):
        return " ".join(f"{i}:{piece!r}" for i, piece in enumerate(self.pieces))


def newline_opens_the_step(token_ids, tokenizer):
    """a step starts at the newline token; the newline ends the step before it."""
    return [max(0, c - 1) for c in steps.cut_steps(token_ids, tokenizer)]


def _lines(token_ids, tokenizer, *, blank=False, answer=False):
    """Cuts after newlines with one of the rules left out."""
    starts, fresh = [0], False
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    seen = False
    for i, text in enumerate(texts):
        rest = "".join(texts[i:])
        opens = seen and (answer or not rest.lstrip().startswith("####")) if text.strip() else blank
        if fresh and opens:
            starts.append(i)
        if text.strip():
            seen, fresh = True, False
        fresh = fresh or "\n" in text
    return starts


def answer_is_a_step(token_ids, tokenizer):
    """the line `#### answer` becomes a step of its own; it belongs to the last step."""
    return _lines(token_ids, tokenizer, answer=True)


def blank_lines_are_steps(token_ids, tokenizer):
    """blank lines become steps; they belong to the step before them."""
    return _lines(token_ids, tokenizer, blank=True)


def starts_at_the_first_text(token_ids, tokenizer):
    """the first step starts at the first visible text, so that leading blank tokens belong to no step."""
    cuts = steps.cut_steps(token_ids, tokenizer)
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    return [next((i for i, text in enumerate(texts) if text.strip()), 0), *cuts[1:]]


def cut_in_text(token_ids, tokenizer):
    """the response is decoded, cut at newlines in the text, and the characters are counted as if each were a token."""
    text, cuts = tokenizer.decode(token_ids, skip_special_tokens=True), [0]
    for i, character in enumerate(text):
        rest = text[i + 1 :]
        if character == "\n" and rest.strip() and not rest.startswith(("\n", "####")):
            cuts.append(i + 1)
    return cuts


def newline_in_front_missed(token_ids, tokenizer):
    """only a newline at the end of a token before counts; one in front of the text, as in "\\n7", opens a step, too."""
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    cuts = steps.cut_steps(token_ids, tokenizer)
    return [c for c in cuts if not texts[c].startswith("\n")]


def any_number_sign(token_ids, tokenizer):
    """every line that begins with # is taken for the answer; the answer's line begins with ####."""
    cuts = steps.cut_steps(token_ids, tokenizer)
    return [c for c in cuts if not c or not tokenizer.decode([token_ids[c]]).lstrip().startswith("#")]


def nothing_after_the_answer(token_ids, tokenizer):
    """no step is cut any more once an answer line has come."""
    cuts, texts = steps.cut_steps(token_ids, tokenizer), [tokenizer.decode([i]) for i in token_ids]
    return [c for c in cuts if "####" not in "".join(texts[:c])]


def end_is_a_cut(token_ids, tokenizer):
    """the end of the response is added as a cut; cuts are where steps start."""
    return [*steps.cut_steps(token_ids, tokenizer), len(token_ids)]


def _cut_cases():
    sums = Pieces("1+2", "=3", "\n", "3*4", "=12", "##", "\n\n", " 12", "5\n7", "12\n", "\n7", "## So", " ####")
    eos = 13
    return {
        "two lines": dict(token_ids=[0, 1, 2, 3, 4], tokenizer=sums),
        "an answer line": dict(token_ids=[0, 1, 2, 3, 4, 2, 5, 5, 7, eos], tokenizer=sums),
        "a blank line between": dict(token_ids=[0, 1, 2, 2, 3, 4, 6, 0, eos], tokenizer=sums),
        "blank lines first": dict(token_ids=[2, 6, 0, 1, 2, 3, 4, eos], tokenizer=sums),
        "a token that ends its line": dict(token_ids=[0, 9, 3, 4, eos], tokenizer=sums),
        "a token with text on two lines": dict(token_ids=[3, 8, 1, 2, 0, eos], tokenizer=sums),
        "a newline in front of a token": dict(token_ids=[0, 10, 1, eos], tokenizer=sums),
        "a line that begins with ##": dict(token_ids=[0, 2, 11, 2, 3, eos], tokenizer=sums),
        "a line after the answer": dict(token_ids=[0, 2, 5, 5, 7, 2, 3, eos], tokenizer=sums),
        "a space before ####": dict(token_ids=[0, 2, 12, 7, eos], tokenizer=sums),
        "nothing but the end": dict(token_ids=[eos], tokenizer=sums),
    }


# ex04: log-probs of a response


def _train(function, model, **arguments):
    """-> the log-probs, the forward passes that they took, and the gradient of their sum by the model's last weights"""
    passes, last = [], model.lm_head.weight.requires_grad_()
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        found = function(model, **arguments)
        flows = isinstance(found, torch.Tensor) and found.requires_grad
        gradient = torch.autograd.grad(found.sum(), last)[0] if flows else torch.zeros_like(last)
    finally:
        hook.remove()
        last.requires_grad_(False)
    found = found.detach() if isinstance(found, torch.Tensor) else found
    return {"log-probs": found, "forward passes": len(passes), "gradient of their sum by the model's last weights": gradient}


def _scored(model, input_ids, attention_mask, response_mask, temperature, shift=-1):
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits / temperature
    scores = logits.log_softmax(-1)
    if shift:
        scores = scores.roll(-shift, dims=1)
    return scores.gather(2, input_ids[..., None])[..., 0] * response_mask


def not_shifted(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """column t scores token t with the logits at t, which have already seen it; those at t - 1 predict it."""
    return _scored(model, input_ids, attention_mask, response_mask, temperature, shift=0)


def shifted_backwards(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the shift goes the wrong way: column t is scored by the logits at t + 1."""
    return _scored(model, input_ids, attention_mask, response_mask, temperature, shift=1)


def temperature_forgotten(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the logits are not divided by the temperature that sampled the tokens."""
    return _scored(model, input_ids, attention_mask, response_mask, 1.0)


def one_column_early(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the scores stand in the column of the logits, one before the column of the token that they speak of."""
    return _scored(model, input_ids, attention_mask, response_mask, temperature).roll(-1, dims=1)


def end_left_out(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the last response token, the end of the sequence, gets no score: stopping would never be trained."""
    later = torch.cat([response_mask[:, 1:], torch.zeros_like(response_mask[:, :1])], dim=1)
    return _scored(model, input_ids, attention_mask, response_mask, temperature) * later


def nothing_masked(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """prompt and padding keep their scores; outside the response there must be zeros."""
    scores = _scored(model, input_ids, attention_mask, torch.ones_like(response_mask), temperature)
    return torch.cat([torch.zeros_like(scores[:, :1]), scores[:, 1:]], dim=1)


def attention_mask_left_out(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the attention mask is not passed on: rows padded on the left attend to their padding."""
    return _scored(model, input_ids, torch.ones_like(attention_mask), response_mask, temperature)


def without_gradients(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """no gradient flows from the log-probs (no_grad, .detach()): they could be looked at, but not trained."""
    return _scored(model, input_ids, attention_mask, response_mask, temperature).detach()


def _score_cases():
    one = dict(
        model=decoder(),
        input_ids=torch.tensor([[3, 1, 4, 1]]),
        attention_mask=torch.ones(1, 4, dtype=torch.long),
        response_mask=torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64),
    )
    right = dict(
        model=decoder(),
        input_ids=torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0]]),
        attention_mask=torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
        response_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]], dtype=torch.float64),
    )
    left = {name: x.flip(1) if name.endswith("mask") else x for name, x in right.items()}
    left["input_ids"] = torch.tensor([[3, 1, 4, 1, 5, 9], [0, 0, 0, 2, 6, 5]])
    left["response_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]], dtype=torch.float64)
    return {
        "one row": one,
        "padded on the right": right,
        "temperature 0.5": right | {"temperature": 0.5},
        "padded on the left": left,
    }


# ex05: Monte Carlo values


def _play(function, states, completions, k):
    """Runs the estimate on made-up completions: r right, w wrong, t truncated; each different state has a row of them."""
    rows = dict(zip(dict.fromkeys(map(tuple, states)), completions, strict=True))
    asked = dict.fromkeys(rows, 0)

    def rollout(some, k):
        groups = []
        for state in map(tuple, some):
            marks = [rows[state][n % len(rows[state])] for n in range(asked[state], asked[state] + k)]
            groups.append([SimpleNamespace(right=mark == "r", finished=mark != "t", state=state) for mark in marks])
            asked[state] += k
        return groups

    def reward(state, completion):
        return float(completion.right and completion.state == tuple(state))

    result = function(states, rollout, reward, k=k)
    return {"values": result, "completions asked for": sum(asked.values())}


def equal_states_apart(states, rollout, reward, *, k):
    """equal states are rolled out once each time they come up: that costs more, and equal states get different values."""
    groups = [rollout([state], k)[0] for state in states]
    return [sum(reward(s, c) for c in group) / k for s, group in zip(states, groups, strict=True)]


def _estimate(states, rollout, reward, k, mean):
    unique = list(dict.fromkeys(map(tuple, states)))
    groups = dict(zip(unique, rollout(unique, k), strict=True))
    return [float(mean([(reward(s, c), c) for c in groups[tuple(s)]])) for s in states]


def truncated_left_out(states, rollout, reward, *, k):
    """completions that the limit cut are left out of the mean; they are failures and count as 0."""

    def mean(group):
        ended = [r for r, c in group if c.finished]
        return sum(ended) / max(1, len(ended))

    return _estimate(states, rollout, reward, k, mean)


def majority(states, rollout, reward, *, k):
    """the value is whether most completions are right; a value is a chance, their share."""
    return _estimate(states, rollout, reward, k, lambda group: sum(r for r, _ in group) > k / 2)


def first_of_k(states, rollout, reward, *, k):
    """only the first completion of each state is looked at; the value is the mean of all k."""
    return _estimate(states, rollout, reward, k, lambda group: group[0][0])


def best_of_k(states, rollout, reward, *, k):
    """the value is the best of the k returns; it is their mean."""
    return _estimate(states, rollout, reward, k, lambda group: max(r for r, _ in group))


def one_for_each_unique(states, rollout, reward, *, k):
    """there is one value for each different state instead of one for each entry of `states`."""
    return _estimate(list(dict.fromkeys(map(tuple, states))), rollout, reward, k, lambda group: sum(r for r, _ in group) / k)


def sorted_states(states, rollout, reward, *, k):
    """the values come back in another order than the states (a set or a sort has lost it)."""
    return _estimate(sorted(states), rollout, reward, k, lambda group: sum(r for r, _ in group) / k)


def _value_cases():
    return {
        "one state, two of four right": dict(states=[(1, 2)], completions=["rwrw"], k=4),
        "a completion that the limit cut": dict(states=[(1, 2)], completions=["wrtr"], k=4),
        "three states": dict(states=[(5,), (1, 2), (5, 4)], completions=["rrr", "rww", "www"], k=3),
        "equal states": dict(states=[(1,), (7, 8), (1,), (7, 8)], completions=["rwwrrr", "wwwrrr"], k=3),
        "k = 1": dict(states=[(4,), (3,), (4,)], completions=["rw", "wr"], k=1),
    }


EXERCISES = [
    Exercise(
        "ex01_choose",
        "choose",
        decoding.choose,
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
            first_row_of_logits,
            last_prompt_token_twice,
            one_reading_too_many,
        ],
        call=_count_tokens_read,
    ),
    Exercise(
        "ex03_cut_steps",
        "cut_steps",
        steps.cut_steps,
        _cut_cases,
        [
            newline_opens_the_step,
            answer_is_a_step,
            blank_lines_are_steps,
            starts_at_the_first_text,
            cut_in_text,
            newline_in_front_missed,
            any_number_sign,
            nothing_after_the_answer,
            end_is_a_cut,
        ],
    ),
    Exercise(
        "ex04_response_logprobs",
        "response_logprobs",
        logprobs.response_logprobs,
        _score_cases,
        [
            not_shifted,
            shifted_backwards,
            temperature_forgotten,
            one_column_early,
            end_left_out,
            nothing_masked,
            attention_mask_left_out,
            without_gradients,
        ],
        call=_train,
    ),
    Exercise(
        "ex05_monte_carlo_values",
        "monte_carlo_values",
        values.monte_carlo_values,
        _value_cases,
        [equal_states_apart, truncated_left_out, majority, first_of_k, best_of_k, one_for_each_unique, sorted_states],
        call=_play,
    ),
]
