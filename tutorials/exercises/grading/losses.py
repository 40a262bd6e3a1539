"""Exercises on losses: the clipped surrogate, KL estimators, one denominator, and two programs that are silently wrong."""

import torch
import torch.nn.functional as F

from grading.credit import tensor
from grading.engine import Exercise
from grading.sampling import random
from vine_mini import losses
from vine_mini.types import Trajectory, collate

# ex10: the clipped loss


def _loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    return losses.clipped_policy_loss(logprobs, old_logprobs, advantages, mask, clip=clip)[0]


def _parts(logprobs, old_logprobs, advantages, mask, clip):
    ratio = ((logprobs - old_logprobs.detach()) * mask).exp()
    a = advantages.detach()
    return -a * ratio, -a * ratio.clamp(1 - clip, 1 + clip), a


def inverted_for_negative_advantages(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the two objectives are exchanged where the advantage is negative: a bad token that became likelier is not corrected."""
    plain, clipped, a = _parts(logprobs, old_logprobs, advantages, mask, clip)
    worst = torch.where(a < 0, torch.minimum(plain, clipped), torch.maximum(plain, clipped))
    return (worst * mask).sum() / mask.sum()


def optimistic(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the better of the two objectives is taken instead of the worse one (a loss needs the maximum, an objective the minimum)."""
    plain, clipped, _ = _parts(logprobs, old_logprobs, advantages, mask, clip)
    return (torch.minimum(plain, clipped) * mask).sum() / mask.sum()


def only_the_clipped_one(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """only the clipped ratio is used: a token that moved the wrong way gets no gradient back."""
    _, clipped, _ = _parts(logprobs, old_logprobs, advantages, mask, clip)
    return (clipped * mask).sum() / mask.sum()


def never_clipped(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """nothing is clipped: the ratio may move as far as it likes."""
    plain, _, _ = _parts(logprobs, old_logprobs, advantages, mask, clip)
    return (plain * mask).sum() / mask.sum()


def mean_over_padding(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the sum is divided by all entries, padding included: long rows of padding make the loss small."""
    return _loss(logprobs, old_logprobs, advantages, mask, clip=clip) * mask.mean()


def log_ratio_clipped(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the log of the ratio is clipped to ±clip; the ratio itself is clipped, to 1 ± clip."""
    a, log_ratio = advantages.detach(), (logprobs - old_logprobs.detach()) * mask
    worst = torch.maximum(-a * log_ratio.exp(), -a * log_ratio.clamp(-clip, clip).exp())
    return (worst * mask).sum() / mask.sum()


def gradient_through_the_old(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the old log-probs are not detached: they are constants that the sampler wrote down."""
    ratio, a = ((logprobs - old_logprobs) * mask).exp(), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum()


def an_objective_not_a_loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the sign is that of an objective: minimising it makes bad tokens likelier."""
    return -_loss(logprobs, old_logprobs, advantages, mask, clip=clip)


def exp_of_padding(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """exp runs over whatever stands in the padding: it may overflow, and infinity times the mask's 0 is not a number."""
    ratio, a = (logprobs - old_logprobs.detach()).exp(), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum()


def masked_after_exp(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """exp overflows in the padding before that is masked: the loss survives, its gradient does not. Mask the difference first."""
    ratio, a = (logprobs - old_logprobs.detach()).exp(), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
    return torch.where(mask.bool(), worst, 0.0).sum() / mask.sum()


def no_lower_clip(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the ratio is clipped from above only: a bad token is pushed down without end."""
    ratio, a = ((logprobs - old_logprobs.detach()) * mask).exp(), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(max=1 + clip))
    return (worst * mask).sum() / mask.sum()


def sequence_means(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """each sequence is averaged for itself first: tokens of short responses then weigh more."""
    plain, clipped, _ = _parts(logprobs, old_logprobs, advantages, mask, clip)
    return ((torch.maximum(plain, clipped) * mask).sum(1) / mask.sum(1)).mean()


def _clip_cases():
    def case(ratio, advantage, **more):
        logs = torch.log(tensor([ratio]))
        return dict(logprobs=logs - 1, old_logprobs=tensor([-1.0]), advantages=tensor([advantage]), mask=tensor([1.0]), **more)

    mask = tensor([1, 1, 1, 1, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0])
    return {
        "ratio 1, a good token": case(1.0, 1.0),
        "ratio 2, a good token": case(2.0, 1.0),
        "ratio 2, a bad token": case(2.0, -1.0),
        "ratio 0.5, a bad token": case(0.5, -1.0),
        "ratio 0.5, a good token": case(0.5, 1.0),
        "clip 0.5": case(1.4, 1.0, clip=0.5),
        "two rows with padding": dict(
            logprobs=tensor([-1.0, -0.5], [-2.0, -9.0]),
            old_logprobs=tensor([-1.5, -0.4], [-2.1, 0.0]),
            advantages=tensor([1.0, -1.0], [0.5, 3.0]),
            mask=tensor([1, 1], [1, 0]),
        ),
        "padding that would overflow": dict(
            logprobs=tensor([-1.0, 0.0]), old_logprobs=tensor([-1.1, -1e4]), advantages=tensor([1.0, -1.0]), mask=tensor([1, 0])
        ),
        "three rows": dict(
            logprobs=random(3, 5, seed=5) - 2,
            old_logprobs=random(3, 5, seed=6) - 2,
            advantages=random(3, 5, seed=7),
            mask=mask,
        ),
    }


# ex11: KL estimators


def d_turned(logprobs, ref_logprobs, *, kind):
    """d is policy minus reference; it is reference minus policy."""
    return losses.kl_penalty(ref_logprobs, logprobs, kind=kind)


def no_half(logprobs, ref_logprobs, *, kind):
    """k2 lacks its factor of one half."""
    found = losses.kl_penalty(logprobs, ref_logprobs, kind=kind)
    return 2 * found if kind == "k2" else found


def no_minus_one(logprobs, ref_logprobs, *, kind):
    """k3 lacks its -1, so that it is not 0 where policy and reference agree."""
    found = losses.kl_penalty(logprobs, ref_logprobs, kind=kind)
    return found + 1 if kind == "k3" else found


def absolute_k1(logprobs, ref_logprobs, *, kind):
    """k1 is made positive; then it no longer averages to the KL."""
    found = losses.kl_penalty(logprobs, ref_logprobs, kind=kind)
    return found.abs() if kind == "k1" else found


def ratio_only(logprobs, ref_logprobs, *, kind):
    """k3 is exp(d) - 1 without the -d: its mean over samples is 0 whatever the policies are."""
    d = ref_logprobs - logprobs
    return d.exp() - 1 if kind == "k3" else losses.kl_penalty(logprobs, ref_logprobs, kind=kind)


def policy_detached(logprobs, ref_logprobs, *, kind):
    """the policy's log-probs are detached: the penalty is shown but never pulls."""
    return losses.kl_penalty(logprobs.detach(), ref_logprobs, kind=kind)


def summed(logprobs, ref_logprobs, *, kind):
    """the result is summed up; an estimate for each token is wanted, the same shape."""
    return losses.kl_penalty(logprobs, ref_logprobs, kind=kind).sum()


def _kl_cases():
    p, q = tensor([-1.0, -0.5]), tensor([-1.2, -0.1])
    wide = dict(logprobs=random(3, 4, seed=8) - 2, ref_logprobs=random(3, 4, seed=9) - 2)
    cases = {f"{kind}, two tokens": dict(logprobs=p, ref_logprobs=q, kind=kind) for kind in ("k1", "k2", "k3")}
    return cases | {f"{kind}, three rows": wide | {"kind": kind} for kind in ("k1", "k2", "k3")}


# ex13: one denominator for all micro-batches


def _micro_batches(per_token_loss, mask, rows):
    pairs = zip(per_token_loss.split(rows), mask.split(rows), strict=True)
    return [losses.masked_mean(x, m, mask.sum()) for x, m in pairs]


def own_denominators(per_token_loss, mask, rows):
    """each micro-batch divides by its own tokens: short ones then weigh more, and the sum is not the minibatch's mean."""
    return [losses.masked_mean(x, m) for x, m in zip(per_token_loss.split(rows), mask.split(rows), strict=True)]


def mean_of_means(per_token_loss, mask, rows):
    """means of micro-batches are averaged: right only if all have the same number of tokens."""
    means = own_denominators(per_token_loss, mask, rows)
    return [x / len(means) for x in means]


def divided_twice(per_token_loss, mask, rows):
    """the losses are divided by the number of micro-batches on top of the common denominator."""
    found = _micro_batches(per_token_loss, mask, rows)
    return [x / len(found) for x in found]


def padding_counted(per_token_loss, mask, rows):
    """the denominator counts padding: all entries instead of the masked ones."""
    pairs = zip(per_token_loss.split(rows), mask.split(rows), strict=True)
    return [(x * m).sum() / mask.numel() for x, m in pairs]


def divided_by_sequences(per_token_loss, mask, rows):
    """the sum is divided by the number of sequences instead of tokens: the gradient then grows with their length."""
    pairs = zip(per_token_loss.split(rows), mask.split(rows), strict=True)
    return [(x * m).sum() / len(mask) for x, m in pairs]


def mask_forgotten(per_token_loss, mask, rows):
    """the losses of padding are summed, too."""
    return [x.sum() / mask.sum() for x in per_token_loss.split(rows)]


def _micro_batch_cases():
    mask = tensor([1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0])
    return {
        "two rows, one at a time": dict(per_token_loss=tensor([1, 2, 3], [4, 9, 9]), mask=tensor([1, 1, 1], [1, 0, 0]), rows=1),
        "all at once": dict(per_token_loss=tensor([1, 2, 3], [4, 9, 9]), mask=tensor([1, 1, 1], [1, 0, 0]), rows=2),
        "five rows in parts of two": dict(per_token_loss=random(5, 4, seed=10), mask=mask, rows=2),
    }


# ex17: a silently wrong loss


def _token_mean(logits, labels):
    scores = -F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().clamp(min=0), reduction="none")
    mask = (labels[:, 1:] != -100).flatten().to(scores.dtype)
    return losses.nll_loss(scores, mask)


def as_it_stood(logits, labels):
    """the program is left as it stood. A hint: print the labels before and after the call."""
    targets, outputs = labels[:, 1:], logits[:, :-1]
    targets[targets == -100] = 0
    scores = outputs.log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (labels[:, 1:] != -100).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def mask_of_the_changed_targets(logits, labels):
    """the targets are copied, but the mask is still made from the changed ones, which hold no -100 any more."""
    targets = labels[:, 1:].clone()
    targets[targets == -100] = 0
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (targets != -100).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def mask_excludes_token_zero(logits, labels):
    """token 0 is left out of the loss together with what is not to be learned."""
    targets = labels[:, 1:].clamp(min=0)
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (targets != 0).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def mask_not_shifted(logits, labels):
    """the mask is that of columns 0 to T - 2 and the targets are those of columns 1 to T - 1."""
    targets = labels[:, 1:].clamp(min=0)
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (labels[:, :-1] != -100).to(scores.dtype)
    return -(scores * mask).sum() / mask.sum()


def rows_averaged(logits, labels):
    """each row is averaged for itself first: tokens of short rows then weigh more."""
    targets = labels[:, 1:].clamp(min=0)
    scores = logits[:, :-1].log_softmax(-1).gather(2, targets[..., None])[..., 0]
    mask = (labels[:, 1:] != -100).to(scores.dtype)
    return -((scores * mask).sum(1) / mask.sum(1)).mean()


def _label_cases():
    logits = random(2, 5, 4, seed=11)
    return {
        "one token to learn": dict(logits=logits[:1, :3, :2], labels=torch.tensor([[-100, 1, -100]])),
        "one row, padding of two": dict(logits=logits[:1], labels=torch.tensor([[-100, 2, 1, -100, -100]])),
        "one row, nothing to mask": dict(logits=logits[:1], labels=torch.tensor([[3, 2, 1, 3, 2]])),
        "two rows, token 0 among them": dict(
            logits=logits, labels=torch.tensor([[-100, -100, 0, 3, 0], [-100, 1, 2, -100, -100]])
        ),
    }


# ex18: a silently wrong mask


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
    """the program is left as it stood. A hint: which tokens of the example did the policy choose, and what are their ids?"""
    return ((input_ids != eos) & _after(input_ids, prompt_lengths)).to(torch.float64)


def everything_after_the_prompt(input_ids, prompt_lengths, eos):
    """padding counts as response: the model is trained to write the end again and again."""
    return _after(input_ids, prompt_lengths).to(torch.float64)


def one_token_of_padding(input_ids, prompt_lengths, eos):
    """the mask goes one token too far, into the padding: up to the end, and it included, not beyond."""
    mask = _mask(input_ids, prompt_lengths, eos)
    return torch.maximum(mask, torch.cat([mask[:, :1], mask[:, :-1]], dim=1))


def first_end_of_the_row(input_ids, prompt_lengths, eos):
    """the first end token of the row is looked for; a chat prompt has end tokens of its own."""
    is_end = (input_ids == eos).long()
    before_or_at = is_end.cumsum(1) - is_end == 0
    return (before_or_at & _after(input_ids, prompt_lengths)).to(torch.float64)


def padding_by_its_neighbour(input_ids, prompt_lengths, eos):
    """an end token after another one is taken for padding, also where the prompt ends with one and the response is empty."""
    before = torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids[:, :-1]], dim=1)
    return (_after(input_ids, prompt_lengths) & ~((input_ids == eos) & (before == eos))).to(torch.float64)


def without_the_last_response_token(input_ids, prompt_lengths, eos):
    """the last token of every response is left out, also of those that the limit cut."""
    mask = _mask(input_ids, prompt_lengths, eos)
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1) * mask


def _mask_cases():
    return {
        "an end, then padding": dict(input_ids=torch.tensor([[5, 6, 7, 2, 2, 2]]), prompt_lengths=[2], eos=2),
        "cut by the limit": dict(input_ids=torch.tensor([[5, 6, 7, 8, 9, 9]]), prompt_lengths=[3], eos=2),
        "an end token in the prompt": dict(input_ids=torch.tensor([[5, 2, 6, 7, 2, 2]]), prompt_lengths=[3], eos=2),
        "a prompt that ends with an end token, an empty response": dict(
            input_ids=torch.tensor([[5, 2, 2, 2]]), prompt_lengths=[2], eos=2
        ),
        "three rows": dict(
            input_ids=torch.tensor([[5, 2, 2, 2, 2], [5, 6, 3, 4, 8], [2, 7, 3, 3, 2]]), prompt_lengths=[1, 2, 2], eos=2
        ),
    }


EXERCISES = [
    Exercise(
        "ex10_clipped_policy_loss",
        "clipped_policy_loss",
        _loss,
        _clip_cases,
        [
            inverted_for_negative_advantages,
            optimistic,
            only_the_clipped_one,
            never_clipped,
            mean_over_padding,
            log_ratio_clipped,
            gradient_through_the_old,
            an_objective_not_a_loss,
            exp_of_padding,
            masked_after_exp,
            no_lower_clip,
            sequence_means,
        ],
        gradient=("logprobs", "old_logprobs", "advantages"),
    ),
    Exercise(
        "ex11_kl_penalty",
        "kl_penalty",
        losses.kl_penalty,
        _kl_cases,
        [d_turned, no_half, no_minus_one, absolute_k1, ratio_only, policy_detached, summed],
        gradient=("logprobs",),
    ),
    Exercise(
        "ex13_micro_batches",
        "micro_batch_losses",
        _micro_batches,
        _micro_batch_cases,
        [own_denominators, mean_of_means, divided_twice, padding_counted, divided_by_sequences, mask_forgotten],
        gradient=("per_token_loss",),
    ),
    Exercise(
        "ex17_silent_loss",
        "token_mean_loss",
        _token_mean,
        _label_cases,
        [as_it_stood, mask_of_the_changed_targets, mask_excludes_token_zero, mask_not_shifted, rows_averaged],
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
            one_token_of_padding,
            first_end_of_the_row,
            padding_by_its_neighbour,
            without_the_last_response_token,
        ],
    ),
]
