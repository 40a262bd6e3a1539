"""Exercises on silent mistakes: a loss and a mask."""

import torch
import torch.nn.functional as F

from grading.engine import Exercise
from grading.inputs import random
from vine_mini import losses
from vine_mini.types import Trajectory, collate

# ex17: a loss with a silent mistake


def _token_mean(logits, labels):
    scores = -F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().clamp(min=0), reduction="none")
    mask = (labels[:, 1:] != -100).flatten().to(scores.dtype)
    return losses.masked_mean(-scores, mask)


def as_it_stood(logits, labels):
    """the program is not changed. Hint: print the labels before and after the call."""
    targets, outputs = labels[:, 1:], logits[:, :-1]
    targets[targets == -100] = 0
    scores = outputs.log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (labels[:, 1:] != -100).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def mask_of_the_changed_targets(logits, labels):
    """the targets are copied, but the mask comes from the changed copy, which contains no -100."""
    targets = labels[:, 1:].clone()
    targets[targets == -100] = 0
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (targets != -100).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def mask_excludes_token_zero(logits, labels):
    """token 0 is left out of the loss together with -100. Token 0 is a token like any other."""
    targets = labels[:, 1:].clamp(min=0)
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (targets != 0).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def mask_not_shifted(logits, labels):
    """the mask is taken from columns 0 to T - 2 and the targets from columns 1 to T - 1. Both need the same shift."""
    targets = labels[:, 1:].clamp(min=0)
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (labels[:, :-1] != -100).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def rows_averaged(logits, labels):
    """each row is averaged separately first. Tokens of short rows then weigh more."""
    targets = labels[:, 1:].clamp(min=0)
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (labels[:, 1:] != -100).to(scores.dtype)
    return -((scores * mask).sum(1) / mask.sum(1)).mean()


def gaps_learned(logits, labels):
    """everything between the first and the last token to learn counts. Labels between them can be -100 as well."""
    targets = labels[:, 1:].clamp(min=0)
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    learn = (labels[:, 1:] != -100).long()
    mask = ((learn.cumsum(1) > 0) & (learn.flip(1).cumsum(1).flip(1) > 0)).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def _label_cases():
    logits = random(2, 5, 4, seed=11)
    return {
        "one token to learn": dict(logits=logits[:1, :3, :2], labels=torch.tensor([[-100, 1, -100]])),
        "one row, two tokens of padding": dict(logits=logits[:1], labels=torch.tensor([[-100, 2, 1, -100, -100]])),
        "one row, nothing to mask": dict(logits=logits[:1], labels=torch.tensor([[3, 2, 1, 3, 2]])),
        "two tokens to learn, with a gap": dict(
            logits=random(1, 6, 4, seed=23), labels=torch.tensor([[-100, 2, -100, -100, 1, -100]])
        ),
        "two rows, with token 0": dict(logits=logits, labels=torch.tensor([[-100, -100, 0, 3, 0], [-100, 1, 2, -100, -100]])),
    }


# ex18: a mask with a silent mistake


def _mask(input_ids, prompt_lengths, eos):
    rows = []
    for ids, n in zip(input_ids.tolist(), prompt_lengths, strict=True):
        end = ids.index(eos, n) + 1 if eos in ids[n:] else len(ids)
        rows.append(Trajectory(ids[:n], ids[n:end], [0.0] * (end - n), eos in ids[n:]))
    mask = collate(rows).response_mask
    return F.pad(mask, (0, input_ids.shape[1] - mask.shape[1]))


def _after(input_ids, prompt_lengths):
    return torch.arange(input_ids.shape[1]) >= torch.tensor(prompt_lengths)[:, None]


def end_is_padding(input_ids, prompt_lengths, eos):
    """the program is not changed. Hint: which tokens of the example did the policy choose, and what are their ids?"""
    return ((input_ids != eos) & _after(input_ids, prompt_lengths)).to(torch.float64)


def everything_after_the_prompt(input_ids, prompt_lengths, eos):
    """padding counts as response. The policy is then trained to repeat the end-of-sequence token."""
    return _after(input_ids, prompt_lengths).to(torch.float64)


def end_is_always_two(input_ids, prompt_lengths, eos):
    """the end-of-sequence token is always 2, as in the example. Its id is the argument `eos`."""
    return _mask(input_ids, prompt_lengths, 2)


def one_token_of_padding(input_ids, prompt_lengths, eos):
    """the mask includes one token of padding. The mask must stop after the end-of-sequence token."""
    mask = _mask(input_ids, prompt_lengths, eos)
    return torch.maximum(mask, torch.cat([mask[:, :1], mask[:, :-1]], dim=1))


def first_end_of_the_row(input_ids, prompt_lengths, eos):
    """the first end-of-sequence token of the row ends the mask. A chat prompt contains such tokens itself."""
    is_end = (input_ids == eos).long()
    before_or_at = is_end.cumsum(1) - is_end == 0
    return (before_or_at & _after(input_ids, prompt_lengths)).to(torch.float64)


def padding_by_its_neighbour(input_ids, prompt_lengths, eos):
    """an end-of-sequence token after another one counts as padding. Such a token can also be a whole response."""
    before = torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids[:, :-1]], dim=1)
    return (_after(input_ids, prompt_lengths) & ~((input_ids == eos) & (before == eos))).to(torch.float64)


def without_the_last_response_token(input_ids, prompt_lengths, eos):
    """the last token of every response is left out, also in responses that the limit cut."""
    mask = _mask(input_ids, prompt_lengths, eos)
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1) * mask


def _mask_cases():
    return {
        "an end-of-sequence token, then padding": dict(input_ids=torch.tensor([[5, 6, 7, 2, 2, 2]]), prompt_lengths=[2], eos=2),
        "cut by the limit": dict(input_ids=torch.tensor([[5, 6, 7, 8, 9, 9]]), prompt_lengths=[3], eos=2),
        "an end-of-sequence token in the prompt": dict(input_ids=torch.tensor([[5, 2, 6, 7, 2, 2]]), prompt_lengths=[3], eos=2),
        "a prompt that ends with an end-of-sequence token, an empty response": dict(
            input_ids=torch.tensor([[5, 2, 2, 2]]), prompt_lengths=[2], eos=2
        ),
        "another end-of-sequence token": dict(input_ids=torch.tensor([[5, 6, 2, 3, 7, 7]]), prompt_lengths=[2], eos=7),
        "three rows": dict(
            input_ids=torch.tensor([[5, 2, 2, 2, 2], [5, 6, 3, 4, 8], [2, 7, 3, 3, 2]]), prompt_lengths=[1, 2, 2], eos=2
        ),
    }


EXERCISES = [
    Exercise(
        "ex17_silent_loss",
        "token_mean_loss",
        _token_mean,
        _label_cases,
        [as_it_stood, mask_of_the_changed_targets, mask_excludes_token_zero, mask_not_shifted, rows_averaged, gaps_learned],
        gradient=("logits",),
    ),
    Exercise(
        "ex18_silent_mask",
        "response_mask",
        _mask,
        _mask_cases,
        [
            end_is_padding,
            everything_after_the_prompt,
            end_is_always_two,
            one_token_of_padding,
            first_end_of_the_row,
            padding_by_its_neighbour,
            without_the_last_response_token,
        ],
    ),
]
