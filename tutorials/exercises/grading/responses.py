"""Exercises on responses: cutting them into steps, and their log-probs."""

import copy
import re

import torch

from grading.engine import Exercise
from grading.inputs import decoder
from vine_mini import logprobs, steps

# ex03: cut into steps


class Pieces:
    """A tokenizer that is a list of texts, one for each token id. The last id is <eos>."""

    def __init__(self, *pieces):
        self.pieces = [*pieces, "<eos>"]

    def decode(self, ids, skip_special_tokens=False):
        """Token ids -> text."""
        shown = [self.pieces[i] for i in ids]
        return "".join(piece for piece in shown if not (skip_special_tokens and piece == "<eos>"))

    def __repr__(self):
        return " ".join(f"{i}:{piece!r}" for i, piece in enumerate(self.pieces))


def newline_opens_the_step(token_ids, tokenizer, *, answer_mark):
    """a step starts at the newline token. A newline ends the step before it."""
    return [max(0, c - 1) for c in steps.cut_steps(token_ids, tokenizer, answer_mark=answer_mark)]


def _lines(token_ids, tokenizer, is_answer, *, blank=False, white=None, whole=True, ends=lambda text: "\n" in text):
    """Cuts after newlines. Each keyword changes a rule: cut at blank lines, white space, the line's beginning, what ends a line.

    `is_answer` gets a list of texts for each line. The first text reaches to the end of the line's first visible token.
    Each token after it gives one text more.
    """
    starts, line_ended, seen = [0], False, False
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    for i, text in enumerate(texts):
        body = text.lstrip(white)
        before = text[: len(text) - len(body)]
        if not body:
            if blank and line_ended:
                starts.append(i)
            line_ended = line_ended or ends(text)
            continue
        line = ("".join([*texts[:i], before]).rpartition("\n")[2] if whole else "") + body
        if (line_ended or ends(before)) and seen and not is_answer([line, *texts[i + 1 :]]):
            starts.append(i)
        seen, line_ended = True, ends(body)
    return starts


def _begins_with(mark):
    return lambda texts: bool(mark) and "".join(texts).lstrip().startswith(mark)


def answer_is_a_step(token_ids, tokenizer, *, answer_mark):
    """the answer line becomes a step of its own. An answer line belongs to the step before it."""
    return _lines(token_ids, tokenizer, lambda texts: False)


def always_four_number_signs(token_ids, tokenizer, *, answer_mark):
    """the mark is always "####" instead of the argument `answer_mark`."""
    return _lines(token_ids, tokenizer, _begins_with("####"))


def first_character_of_the_mark(token_ids, tokenizer, *, answer_mark):
    """only the first character of the mark is compared. The line must begin with the whole mark."""
    return _lines(token_ids, tokenizer, _begins_with(answer_mark and answer_mark[0]))


def mark_in_one_token(token_ids, tokenizer, *, answer_mark):
    """only one token is compared with the mark. The mark may be spread over several tokens."""
    return _lines(token_ids, tokenizer, lambda texts: _begins_with(answer_mark)(texts[:1]))


def mark_anywhere_in_the_line(token_ids, tokenizer, *, answer_mark):
    """a line with the mark anywhere in it is an answer line. An answer line begins with the mark."""
    return _lines(token_ids, tokenizer, lambda texts: bool(answer_mark) and answer_mark in "".join(texts).lstrip().split("\n")[0])


def everything_begins_with_nothing(token_ids, tokenizer, *, answer_mark):
    """without a mark, every line is an answer line, because every text begins with "". There are no answer lines then."""
    return _lines(token_ids, tokenizer, lambda texts: "".join(texts).lstrip().startswith(answer_mark or ""))


def nothing_after_the_answer(token_ids, tokenizer, *, answer_mark):
    """no step starts after an answer line. Later lines can be steps."""
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    cuts = steps.cut_steps(token_ids, tokenizer, answer_mark=answer_mark)
    return [c for c in cuts if not answer_mark or answer_mark not in "".join(texts[:c])]


def blank_lines_are_steps(token_ids, tokenizer, *, answer_mark):
    """blank lines become steps. A blank line belongs to the step before it."""
    return _lines(token_ids, tokenizer, _begins_with(answer_mark), blank=True)


def starts_at_the_first_text(token_ids, tokenizer, *, answer_mark):
    """the first step starts at the first visible text. Blank tokens at the beginning then belong to no step."""
    cuts = steps.cut_steps(token_ids, tokenizer, answer_mark=answer_mark)
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    return [next((i for i, text in enumerate(texts) if text.strip()), 0), *cuts[1:]]


def cut_in_text(token_ids, tokenizer, *, answer_mark):
    """the response is decoded and cut in the text, and characters are counted as tokens."""
    text, cuts = tokenizer.decode(token_ids, skip_special_tokens=True), [0]
    for i, character in enumerate(text):
        rest = text[i + 1 :]
        if character == "\n" and rest.strip() and not rest.startswith("\n") and not _begins_with(answer_mark)([rest]):
            cuts.append(i + 1)
    return cuts


def newline_in_front_missed(token_ids, tokenizer, *, answer_mark):
    """only a newline at the end of a token counts. A newline in front of the text, as in "\\n7", also starts a step."""
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    return [c for c in steps.cut_steps(token_ids, tokenizer, answer_mark=answer_mark) if not texts[c].startswith("\n")]


def end_is_text(token_ids, tokenizer, *, answer_mark):
    """the end-of-sequence token counts as text. It belongs to the last step: decode with skip_special_tokens=True."""
    texts = [tokenizer.decode([i]) for i in token_ids]
    cuts = steps.cut_steps(token_ids, tokenizer, answer_mark=answer_mark)
    return [*cuts, len(texts) - 1] if len(texts) > 1 and texts[-2].endswith("\n") else cuts


def spaces_are_text(token_ids, tokenizer, *, answer_mark):
    """spaces or tabs count as visible text, because only newlines are stripped. A token of them starts no step."""
    return _lines(token_ids, tokenizer, _begins_with(answer_mark), white="\n")


def other_line_ends(token_ids, tokenizer, *, answer_mark):
    """other characters end a line too, as in str.splitlines. Only "\\n" ends a line."""
    return _lines(token_ids, tokenizer, _begins_with(answer_mark), ends=lambda text: len(f"{text}x".splitlines()) > 1)


def mark_is_a_pattern(token_ids, tokenizer, *, answer_mark):
    """the mark is a regular expression. It is plain text: use startswith."""
    return _lines(token_ids, tokenizer, lambda texts: bool(answer_mark and re.match(answer_mark, "".join(texts).lstrip())))


def mark_in_two_tokens(token_ids, tokenizer, *, answer_mark):
    """only two tokens are compared with the mark. The mark may be spread over more tokens."""
    return _lines(token_ids, tokenizer, lambda texts: _begins_with(answer_mark)(texts[:2]))


def mark_without_white_space(token_ids, tokenizer, *, answer_mark):
    """whitespace inside the line is removed before the mark is compared. Only whitespace in front of the mark does not count."""
    return _lines(token_ids, tokenizer, lambda texts: _begins_with(answer_mark)("".join(texts).split()))


def line_from_its_token_on(token_ids, tokenizer, *, answer_mark):
    """a line is read from its first token on. The mark may begin in the token that ends the line before."""
    return _lines(token_ids, tokenizer, _begins_with(answer_mark), whole=False)


def mark_and_a_space(token_ids, tokenizer, *, answer_mark):
    """a space must follow the mark. Any text may follow it."""
    return _lines(token_ids, tokenizer, _begins_with(answer_mark and f"{answer_mark} "))


def nothing_before_the_first_line(token_ids, tokenizer, *, answer_mark):
    """the first step is left out if its line is an answer line. The first step starts at token 0, whatever this token is."""
    cuts = steps.cut_steps(token_ids, tokenizer, answer_mark=answer_mark)
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    return cuts[1:] if _begins_with(answer_mark)([text]) and len(cuts) > 1 else cuts


def hidden_line_lost(token_ids, tokenizer, *, answer_mark):
    """a line inside a token is lost if an answer line follows. Its step starts at the next token with text."""
    return _lines(token_ids, tokenizer, _begins_with(answer_mark))


def end_is_a_cut(token_ids, tokenizer, *, answer_mark):
    """the end of the response is added as a cut. Cuts are the places where steps start."""
    return [*steps.cut_steps(token_ids, tokenizer, answer_mark=answer_mark), len(token_ids)]


def _cut_cases():
    sums = Pieces("1+2", "=3", "\n", "3*4", "=12", "##", "\n\n", " 12", "5\n7", "12\n", "\n7", "## So", " ####")
    rare = Pieces("1+2", "\n", "3*4", " ", "\t", "#", "##", " 12", "####12", "a\rb", "\x0c", "5\n##", "## 12", "\\boxed", "{12}")
    words = Pieces("1+2", "\n", "3*4", "Ans", "wer:", " 12", "And", "####", "answer:")
    eos, end = 13, 9

    def case(*token_ids, tokenizer=sums, answer_mark="####"):
        return dict(token_ids=list(token_ids), tokenizer=tokenizer, answer_mark=answer_mark)

    return {
        "two lines": case(0, 1, 2, 3, 4),
        "an answer line": case(0, 1, 2, 3, 4, 2, 5, 5, 7, eos),
        "a blank line between": case(0, 1, 2, 2, 3, 4, 6, 0, eos),
        "blank lines first": case(2, 6, 0, 1, 2, 3, 4, eos),
        "a token that ends its line": case(0, 9, 3, 4, eos),
        "a token with text on two lines": case(3, 8, 1, 2, 0, eos),
        "a newline in front of a token": case(0, 10, 1, eos),
        "a line that begins with ##": case(0, 2, 11, 2, 3, eos),
        "a line after the answer": case(0, 2, 5, 5, 7, 2, 3, eos),
        "a space before ####": case(0, 2, 12, 7, eos),
        "#### inside a line": case(0, 2, 3, 12, 7, eos),
        "a space in front of a line": case(0, 1, 3, 2, 15, tokenizer=rare),
        "a tab in front of a line": case(0, 1, 4, 2, 15, tokenizer=rare),
        "a mark of four tokens": case(0, 1, 5, 5, 5, 5, 7, 15, tokenizer=rare),
        "## and ## with a space between": case(0, 1, 6, 3, 6, 7, 15, tokenizer=rare),
        "no space after the mark": case(0, 1, 8, 1, 2, 15, tokenizer=rare),
        "an answer line first": case(8, 1, 2, 15, tokenizer=rare),
        "a carriage return": case(0, 9, 2, 15, tokenizer=rare),
        "a form feed": case(0, 10, 2, 15, tokenizer=rare),
        "the mark \\boxed": case(0, 1, 2, 1, 13, 14, 15, tokenizer=rare, answer_mark="\\boxed"),
        "the mark 3.4 and a line 3*4": case(0, 1, 2, 1, 5, 15, tokenizer=rare, answer_mark="3.4"),
        "no answer mark": case(0, 2, 3, 2, 5, 5, 7, eos, answer_mark=None),
        "another answer mark": case(0, 1, 2, 1, 3, 4, 5, end, tokenizer=words, answer_mark="Answer:"),
        "another mark, and a line that begins like it": case(0, 1, 6, 2, 1, 7, 5, end, tokenizer=words, answer_mark="Answer:"),
        "a mark that is not complete": case(0, 2, 5, 0, 2, 3, eos),
        "an answer mark in other letters": case(0, 1, 2, 1, 8, 5, end, tokenizer=words, answer_mark="Answer:"),
        "the end on a line of its own": case(0, 2, 3, 2, eos),
        "nothing but the end": case(eos),
        "a mark that begins in the token before": case(0, 11, 12, 15, tokenizer=rare),
        "text on two lines, then the answer": case(3, 8, 2, 5, 5, 7, eos),
    }


# ex04: log-probs of a response


def _train(function, model, **arguments):
    """-> the log-probs, the number of forward passes, and the gradients of their sum for the model's last and first weights"""
    passes, weights = [], [model.lm_head.weight.requires_grad_(), model.model.embed.weight.requires_grad_()]
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        found = function(model, **arguments)
        flows = isinstance(found, torch.Tensor) and found.requires_grad
        gradients = torch.autograd.grad(found.sum(), weights, allow_unused=True) if flows else (None, None)
    finally:
        hook.remove()
        for weight in weights:
            weight.requires_grad_(False)
    last, first = (torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True))
    found = found.detach() if isinstance(found, torch.Tensor) else found
    outcome = {"log-probs": found, "forward passes": len(passes), "gradient of their sum for the model's last weights": last}
    return outcome | {"gradient of their sum for the model's first weights": first}


def _scored(model, input_ids, attention_mask, response_mask, temperature, shift=-1):
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits / temperature
    scores = logits.log_softmax(-1)
    if shift:
        scores = scores.roll(-shift, dims=1)
    return scores.gather(2, input_ids[..., None])[..., 0] * response_mask


def not_shifted(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """column t scores token t with the logits at t, which have already seen it. The logits at t - 1 predict it."""
    return _scored(model, input_ids, attention_mask, response_mask, temperature, shift=0)


def shifted_backwards(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the shift goes in the wrong direction. Column t is scored by the logits at t + 1."""
    return _scored(model, input_ids, attention_mask, response_mask, temperature, shift=1)


def temperature_forgotten(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the logits are not divided by the temperature at which the tokens were sampled."""
    return _scored(model, input_ids, attention_mask, response_mask, 1.0)


def one_column_early(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """each score stands in the column of its logits, one column before its token."""
    return _scored(model, input_ids, attention_mask, response_mask, temperature).roll(-1, dims=1)


def end_left_out(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the last response token, the end of the sequence, gets no score. The policy then cannot learn when to stop."""
    later = torch.cat([response_mask[:, 1:], torch.zeros_like(response_mask[:, :1])], dim=1)
    return _scored(model, input_ids, attention_mask, response_mask, temperature) * later


def nothing_masked(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """prompt and padding keep their scores. The result must be 0 outside the response."""
    scores = _scored(model, input_ids, attention_mask, torch.ones_like(response_mask), temperature)
    return torch.cat([torch.zeros_like(scores[:, :1]), scores[:, 1:]], dim=1)


def attention_mask_left_out(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the model does not get the attention mask. Rows with padding on the left then attend to their padding."""
    return _scored(model, input_ids, torch.ones_like(attention_mask), response_mask, temperature)


def without_gradients(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """no gradient flows from the log-probs (no_grad, .detach()). The policy then cannot be trained."""
    return _scored(model, input_ids, attention_mask, response_mask, temperature).detach()


def only_the_head_learns(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """no_grad stands around a part of the model, so only its last weights learn. Gradients must reach all weights."""
    with torch.no_grad():
        hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    scores = (model.lm_head(hidden) / temperature).log_softmax(-1).roll(1, dims=1)
    return scores.gather(2, input_ids[..., None])[..., 0] * response_mask


def exp_overflows(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the log-softmax is x - log of the sum of exp(x). exp overflows for large logits, and `log_softmax` does not."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1] / temperature
    scores = (logits - logits.exp().sum(-1, keepdim=True).log()).gather(2, input_ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(scores, (1, 0)) * response_mask


def token_zero_is_padding(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """the attention mask is computed from the ids, and id 0 counts as padding. `attention_mask` alone says what padding is."""
    return _scored(model, input_ids, (input_ids != 0).long(), response_mask, temperature)


def _score_cases():
    sharp = copy.deepcopy(decoder())
    sharp.lm_head.weight.mul_(300)
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
        "token 0 in the text, temperature 2": dict(
            model=decoder(),
            input_ids=torch.tensor([[3, 0, 4, 0, 1], [2, 5, 0, 7, 0]]),
            attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
            response_mask=torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=torch.float64),
            temperature=2.0,
        ),
        "logits far apart": right | {"model": sharp},
    }


EXERCISES = [
    Exercise(
        "ex03_cut_steps",
        "cut_steps",
        steps.cut_steps,
        _cut_cases,
        [
            newline_opens_the_step,
            answer_is_a_step,
            always_four_number_signs,
            first_character_of_the_mark,
            mark_in_one_token,
            mark_anywhere_in_the_line,
            everything_begins_with_nothing,
            nothing_after_the_answer,
            blank_lines_are_steps,
            starts_at_the_first_text,
            cut_in_text,
            newline_in_front_missed,
            end_is_text,
            end_is_a_cut,
            hidden_line_lost,
            spaces_are_text,
            other_line_ends,
            mark_is_a_pattern,
            mark_in_two_tokens,
            mark_without_white_space,
            line_from_its_token_on,
            mark_and_a_space,
            nothing_before_the_first_line,
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
            only_the_head_learns,
            exp_overflows,
            token_zero_is_padding,
        ],
        call=_train,
    ),
]
