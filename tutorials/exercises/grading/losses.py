"""Exercises on losses: the policy gradient, the clipped surrogate, KL estimators, micro-batches, DPO-Positive."""

import math
from types import SimpleNamespace

import torch
from torch.nn.functional import logsigmoid

from grading.engine import Exercise
from grading.inputs import random, tensor
from vine_mini import losses, offline

# ex10: the clipped loss


def _loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    return losses.clipped_policy_loss(logprobs, old_logprobs, advantages, mask, clip=clip)[0]


def _parts(logprobs, old_logprobs, advantages, mask, clip):
    ratio = ((logprobs - old_logprobs.detach()) * mask).exp()
    a = advantages.detach()
    return -a * ratio, -a * ratio.clamp(1 - clip, 1 + clip), a


def inverted_for_negative_advantages(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """max and min are exchanged where the advantage is negative. Then a bad token that became more likely is not corrected."""
    plain, clipped, a = _parts(logprobs, old_logprobs, advantages, mask, clip)
    worst = torch.where(a < 0, torch.minimum(plain, clipped), torch.maximum(plain, clipped))
    return (worst * mask).sum() / mask.sum()


def optimistic(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the smaller of the two losses is taken. A loss needs the maximum. Only an objective would need the minimum."""
    plain, clipped, _ = _parts(logprobs, old_logprobs, advantages, mask, clip)
    return (torch.minimum(plain, clipped) * mask).sum() / mask.sum()


def only_the_clipped_one(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """only the clipped ratio is used. A token that moved in the wrong direction then has no gradient."""
    _, clipped, _ = _parts(logprobs, old_logprobs, advantages, mask, clip)
    return (clipped * mask).sum() / mask.sum()


def never_clipped(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """nothing is clipped. The ratio may then move without a limit."""
    plain, _, _ = _parts(logprobs, old_logprobs, advantages, mask, clip)
    return (plain * mask).sum() / mask.sum()


def mean_over_padding(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the sum is divided by the number of all entries, including padding. Long padding then makes the loss small."""
    return _loss(logprobs, old_logprobs, advantages, mask, clip=clip) * mask.mean()


def log_ratio_clipped(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the log of the ratio is clipped to ±clip. The ratio itself must be clipped to 1 ± clip."""
    a, log_ratio = advantages.detach(), (logprobs - old_logprobs.detach()) * mask
    worst = torch.maximum(-a * log_ratio.exp(), -a * log_ratio.clamp(-clip, clip).exp())
    return (worst * mask).sum() / mask.sum()


def gradient_through_the_old(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the old log-probs are not detached. The old log-probs are constants, because they belong to the policy that sampled."""
    ratio, a = ((logprobs - old_logprobs) * mask).exp(), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum()


def an_objective_not_a_loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the sign is wrong: this is an objective to maximise. Minimising it makes bad tokens more likely."""
    return -_loss(logprobs, old_logprobs, advantages, mask, clip=clip)


def exp_of_padding(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """exp is applied to padding and can overflow there. Infinity times the mask's 0 is not a number."""
    ratio, a = (logprobs - old_logprobs.detach()).exp(), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum()


def masked_after_exp(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """padding is masked after exp, which overflows. Then the loss is right and its gradient is not. Mask before exp."""
    ratio, a = (logprobs - old_logprobs.detach()).exp(), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
    return torch.where(mask.bool(), worst, 0.0).sum() / mask.sum()


def no_lower_clip(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """the ratio is clipped only from above. A bad token is then pushed down without a limit."""
    ratio, a = ((logprobs - old_logprobs.detach()) * mask).exp(), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(max=1 + clip))
    return (worst * mask).sum() / mask.sum()


def sequence_means(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """each sequence is averaged separately first. Tokens of short responses then weigh more."""
    plain, clipped, _ = _parts(logprobs, old_logprobs, advantages, mask, clip)
    return ((torch.maximum(plain, clipped) * mask).sum(1) / mask.sum(1)).mean()


def zero_advantages_left_out(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """tokens with the advantage 0 are left out of the mean. They count like all masked tokens."""
    return _loss(logprobs, old_logprobs, advantages, mask * (advantages != 0), clip=clip)


def large_ratio_limited(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    """a large ratio of a bad token is limited, as in the dual clip. The loss of this token has no limit here."""
    ratio, a = ((logprobs - old_logprobs.detach()) * mask).exp().clamp(max=10), advantages.detach()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum()


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
        "ratio 50, a bad token": case(50.0, -1.0),
        "a huge ratio, a bad token": case(math.exp(30), -1.0),
        "a token with the advantage 0": dict(
            logprobs=tensor([-1.0, -2.0]), old_logprobs=tensor([-1.1, -2.0]), advantages=tensor([1.0, 0.0]), mask=tensor([1, 1])
        ),
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
    """d is log p - log p_ref instead of log p_ref - log p."""
    return losses.kl_penalty(ref_logprobs, logprobs, kind=kind)


def no_half(logprobs, ref_logprobs, *, kind):
    """k2 lacks its factor of one half."""
    found = losses.kl_penalty(logprobs, ref_logprobs, kind=kind)
    return 2 * found if kind == "k2" else found


def no_minus_one(logprobs, ref_logprobs, *, kind):
    """k3 lacks its -1. The estimate is then not 0 where policy and reference agree."""
    found = losses.kl_penalty(logprobs, ref_logprobs, kind=kind)
    return found + 1 if kind == "k3" else found


def absolute_k1(logprobs, ref_logprobs, *, kind):
    """k1 is made positive. The mean of the estimate is then no longer the KL."""
    found = losses.kl_penalty(logprobs, ref_logprobs, kind=kind)
    return found.abs() if kind == "k1" else found


def ratio_only(logprobs, ref_logprobs, *, kind):
    """k3 is exp(d) - 1 without the -d. The expectation is then 0 for any two policies."""
    d = ref_logprobs - logprobs
    return d.exp() - 1 if kind == "k3" else losses.kl_penalty(logprobs, ref_logprobs, kind=kind)


def policy_detached(logprobs, ref_logprobs, *, kind):
    """the policy's log-probs are detached. The penalty then has no gradient."""
    return losses.kl_penalty(logprobs.detach(), ref_logprobs, kind=kind)


def summed(logprobs, ref_logprobs, *, kind):
    """the result is summed. One estimate for each token is needed, in the same shape."""
    return losses.kl_penalty(logprobs, ref_logprobs, kind=kind).sum()


def k3_limited(logprobs, ref_logprobs, *, kind):
    """k3 is limited to 10 nats a token, as in the loss of tutorial 7. The estimate itself has no limit."""
    found = losses.kl_penalty(logprobs, ref_logprobs, kind=kind)
    return found.clamp(max=10) if kind == "k3" else found


def _kl_cases():
    far = dict(logprobs=tensor([-9.0, -0.5]), ref_logprobs=tensor([-0.5, -9.0]))
    farther = dict(logprobs=tensor([-40.5, -0.5]), ref_logprobs=tensor([-0.5, -40.5]))
    p, q = tensor([-1.0, -0.5]), tensor([-1.2, -0.1])
    wide = dict(logprobs=random(3, 4, seed=8) - 2, ref_logprobs=random(3, 4, seed=9) - 2)
    cases = {f"{kind}, two tokens": dict(logprobs=p, ref_logprobs=q, kind=kind) for kind in ("k1", "k2", "k3")}
    more = {"three rows": wide, "policy and reference far apart": far, "40 nats apart": farther}
    return cases | {f"{kind}, {name}": x | {"kind": kind} for name, x in more.items() for kind in ("k1", "k2", "k3")}


# ex13: one denominator for all micro-batches


def _micro_batches(per_token_loss, mask, rows):
    pairs = zip(per_token_loss.split(rows), mask.split(rows), strict=True)
    return [losses.masked_mean(x, m, mask.sum()) for x, m in pairs]


def own_denominators(per_token_loss, mask, rows):
    """each micro-batch divides by its own tokens. The sum is then not the mean over the minibatch."""
    return [losses.masked_mean(x, m) for x, m in zip(per_token_loss.split(rows), mask.split(rows), strict=True)]


def mean_of_means(per_token_loss, mask, rows):
    """the means of the micro-batches are averaged. The result is right only if all of them have equally many tokens."""
    means = own_denominators(per_token_loss, mask, rows)
    return [x / len(means) for x in means]


def divided_twice(per_token_loss, mask, rows):
    """the losses are divided by the number of micro-batches in addition to the common denominator."""
    found = _micro_batches(per_token_loss, mask, rows)
    return [x / len(found) for x in found]


def padding_counted(per_token_loss, mask, rows):
    """the denominator counts padding. The denominator must be the number of masked entries."""
    pairs = zip(per_token_loss.split(rows), mask.split(rows), strict=True)
    return [(x * m).sum() / mask.numel() for x, m in pairs]


def divided_by_sequences(per_token_loss, mask, rows):
    """the sum is divided by the number of sequences. The gradient then grows with the length of the responses."""
    pairs = zip(per_token_loss.split(rows), mask.split(rows), strict=True)
    return [(x * m).sum() / len(mask) for x, m in pairs]


def empty_parts_left_out(per_token_loss, mask, rows):
    """a micro-batch without response tokens has no entry. Its loss is 0, and every micro-batch needs an entry."""
    return [x for x, m in zip(_micro_batches(per_token_loss, mask, rows), mask.split(rows), strict=True) if m.any()]


def mask_forgotten(per_token_loss, mask, rows):
    """the losses of padding are added as well."""
    return [x.sum() / mask.sum() for x in per_token_loss.split(rows)]


def parts_of_equal_size(per_token_loss, mask, rows):
    """the rows are cut into parts of equal size (chunk). Each part has `rows` rows, and only the last one may have fewer."""
    parts = -(-len(mask) // rows)
    pairs = zip(per_token_loss.chunk(parts), mask.chunk(parts), strict=True)
    return [losses.masked_mean(x, m, mask.sum()) for x, m in pairs]


def zero_losses_not_counted(per_token_loss, mask, rows):
    """tokens with a loss of 0 are taken for padding. The mask alone says what padding is."""
    pairs = zip(per_token_loss.split(rows), mask.split(rows), strict=True)
    return [losses.masked_mean(x, m, (per_token_loss * mask != 0).sum()) for x, m in pairs]


def _micro_batch_cases():
    mask = tensor([1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0])
    return {
        "two rows, one at a time": dict(per_token_loss=tensor([1, 2, 3], [4, 9, 9]), mask=tensor([1, 1, 1], [1, 0, 0]), rows=1),
        "all at once": dict(per_token_loss=tensor([1, 2, 3], [4, 9, 9]), mask=tensor([1, 1, 1], [1, 0, 0]), rows=2),
        "five rows in parts of two": dict(per_token_loss=random(5, 4, seed=10), mask=mask, rows=2),
        "six rows in parts of four": dict(per_token_loss=random(6, 3, seed=24), mask=tensor(*6 * [[1, 1, 1]]), rows=4),
        "tokens with a loss of 0": dict(per_token_loss=tensor([0, 2, 3], [4, 0, 9]), mask=tensor([1, 1, 1], [1, 1, 0]), rows=1),
        "a part without response tokens": dict(
            per_token_loss=tensor([1, 2], [9, 9], [3, 4]), mask=tensor([1, 1], [0, 0], [1, 0]), rows=1
        ),
    }


# ex19: the policy gradient


def policy_gradient_loss(logprobs, advantages, mask):
    """-mean(A log pi) over the masked tokens. At ratio 1 the package's clipped loss has the same gradient."""
    return -losses.masked_mean(advantages.detach() * logprobs, mask)


def pushed_away(logprobs, advantages, mask):
    """the minus sign is missing. Minimising this loss makes good tokens less likely."""
    return -policy_gradient_loss(logprobs, advantages, mask)


def every_token_imitated(logprobs, advantages, mask):
    """the advantages are left out. The loss then imitates every sampled token, the bad ones as well."""
    return -losses.masked_mean(logprobs, mask)


def probabilities(logprobs, advantages, mask):
    """probabilities stand in the place of log-probs. The sampling has already weighted each token by its probability once."""
    return -losses.masked_mean(advantages.detach() * logprobs.exp(), mask)


def over_all_entries(logprobs, advantages, mask):
    """the sum is divided by the number of all entries, padding included. Long padding then makes the gradient small."""
    return policy_gradient_loss(logprobs, advantages, mask) * mask.mean()


def with_padding(logprobs, advantages, mask):
    """the mask is left out. Tokens of the prompt and of the padding are then trained too."""
    return -(advantages.detach() * logprobs).mean()


def responses_equal(logprobs, advantages, mask):
    """each response is averaged separately first. Tokens of short responses then weigh more."""
    return -((advantages.detach() * logprobs * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def not_divided(logprobs, advantages, mask):
    """the sum is not divided by the number of masked tokens. The gradient then grows with the batch."""
    return policy_gradient_loss(logprobs, advantages, mask) * mask.sum()


def one_for_each_response(logprobs, advantages, mask):
    """the advantages of a response are averaged before they are multiplied. Each token has an advantage of its own."""
    average = (advantages.detach() * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    return -losses.masked_mean(average * logprobs, mask)


def advantages_learn(logprobs, advantages, mask):
    """the advantages are not detached. They are constants, and a critic behind them would be trained to please the policy."""
    return -losses.masked_mean(advantages * logprobs, mask)


def zero_advantages_not_counted(logprobs, advantages, mask):
    """tokens with the advantage 0 are left out of the mean. They count like all masked tokens."""
    return policy_gradient_loss(logprobs, advantages, mask * (advantages != 0))


def _policy_gradient_cases():
    mask = tensor([0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0])
    return {
        "two tokens": dict(logprobs=tensor([-0.5, -2.0]), advantages=tensor([1.0, -0.5]), mask=tensor([1, 1])),
        "padding": dict(logprobs=tensor([-0.5, -2.0]), advantages=tensor([1.0, -0.5]), mask=tensor([1, 0])),
        "an advantage of 0 and a rare token": dict(
            logprobs=tensor([-0.5, -30.0, -1.0]), advantages=tensor([1.0, -0.5, 0.0]), mask=tensor([1, 1, 1])
        ),
        "three rows": dict(logprobs=random(3, 5, seed=11) - 2, advantages=random(3, 5, seed=12), mask=mask),
    }


# ex21: DPO-Positive


def _dpo_positive(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    logprobs, reference = torch.stack([right, wrong], dim=1)[..., None], torch.stack([ref_right, ref_wrong], dim=1)[..., None]
    config = SimpleNamespace(dpo_beta=beta, dpo_penalty=penalty)
    return offline.dpo_positive_loss(logprobs, reference, torch.ones_like(logprobs), config, len(right))[0]


def plain_dpo(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the penalty is left out, as in DPO. The right response may then become less likely, if the wrong one does so faster."""
    return _dpo_positive(right, wrong, ref_right, ref_wrong, beta=beta, penalty=0.0)


def rewarded(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the penalty is added to the margin instead of taken away."""
    return _dpo_positive(right, wrong, ref_right, ref_wrong, beta=beta, penalty=-penalty)


def more_likely_punished(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the penalty falls on a right response that becomes more likely: max(0, d) instead of max(0, -d)."""
    d, other = right - ref_right.detach(), wrong - ref_wrong.detach()
    return -logsigmoid(beta * (d - other - penalty * d.clamp(min=0))).mean()


def wrong_punished(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the penalty looks at the wrong response instead of the right one."""
    d, other = right - ref_right.detach(), wrong - ref_wrong.detach()
    return -logsigmoid(beta * (d - other - penalty * (-other).clamp(min=0))).mean()


def beta_only_on_the_difference(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the penalty is not multiplied by beta. beta multiplies the whole margin."""
    return _dpo_positive(right, wrong, ref_right, ref_wrong, beta=beta, penalty=penalty / beta)


def without_a_reference(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the reference is left out."""
    return _dpo_positive(right, wrong, 0 * ref_right, 0 * ref_wrong, beta=beta, penalty=penalty)


def responses_exchanged(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """right and wrong responses are exchanged. The loss then prefers the wrong ones."""
    return _dpo_positive(wrong, right, ref_wrong, ref_right, beta=beta, penalty=penalty)


def pairs_summed(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the pairs are summed. The loss is their mean."""
    return _dpo_positive(right, wrong, ref_right, ref_wrong, beta=beta, penalty=penalty) * len(right)


def one_margin(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the margins are averaged before log sigmoid. Each pair has its own."""
    d, other = right - ref_right.detach(), wrong - ref_wrong.detach()
    return -logsigmoid(beta * (d - other - penalty * (-d).clamp(min=0)).mean())


def log_of_sigmoid(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """log and exp are taken one after the other. They overflow for a margin far below 0, and `logsigmoid` does not."""
    d, other = right - ref_right.detach(), wrong - ref_wrong.detach()
    return -(beta * (d - other - penalty * (-d).clamp(min=0))).sigmoid().log().mean()


def reference_learns(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    """the reference is not detached. It is a constant."""
    d, other = right - ref_right, wrong - ref_wrong
    return -logsigmoid(beta * (d - other - penalty * (-d).clamp(min=0))).mean()


def _dpo_cases():
    def case(right, wrong, beta=1.0, penalty=2.0):
        zero = tensor([-2.0, -1.5])[0]
        d, other = tensor(right)[0], tensor(wrong)[0]
        ref = zero[:1].expand(len(d)), zero[1:].expand(len(d))
        return dict(
            right=d + ref[0], wrong=other + ref[1], ref_right=ref[0].clone(), ref_wrong=ref[1].clone(), beta=beta, penalty=penalty
        )

    return {
        "one pair, both less likely": case([-0.1], [-0.5]),
        "one pair, the right response more likely": case([0.5], [0.25]),
        "three pairs": case([0.5, -0.25, -1.0], [-0.5, 0.25, -2.0], beta=0.3),
        "DPO": case([0.5, -0.25, -1.0], [-0.5, 0.25, -2.0], beta=0.5, penalty=0.0),
        "a penalty of 50, a margin far below 0": case([-20.0, 0.1], [1.0, -0.1], penalty=50.0),
        "a margin far above 0": case([800.0, 0.1], [0.0, -0.1]),
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
            zero_advantages_left_out,
            large_ratio_limited,
        ],
        gradient=("logprobs", "old_logprobs", "advantages"),
    ),
    Exercise(
        "ex11_kl_penalty",
        "kl_penalty",
        losses.kl_penalty,
        _kl_cases,
        [d_turned, no_half, no_minus_one, absolute_k1, ratio_only, policy_detached, summed, k3_limited],
        gradient=("logprobs",),
    ),
    Exercise(
        "ex13_micro_batches",
        "micro_batch_losses",
        _micro_batches,
        _micro_batch_cases,
        [
            own_denominators,
            mean_of_means,
            divided_twice,
            padding_counted,
            divided_by_sequences,
            empty_parts_left_out,
            mask_forgotten,
            parts_of_equal_size,
            zero_losses_not_counted,
        ],
        gradient=("per_token_loss",),
    ),
    Exercise(
        "ex19_policy_gradient",
        "policy_gradient_loss",
        policy_gradient_loss,
        _policy_gradient_cases,
        [
            pushed_away,
            every_token_imitated,
            probabilities,
            over_all_entries,
            with_padding,
            responses_equal,
            not_divided,
            one_for_each_response,
            advantages_learn,
            zero_advantages_not_counted,
        ],
        gradient=("logprobs", "advantages"),
    ),
    Exercise(
        "ex21_dpo_positive",
        "dpo_positive_loss",
        _dpo_positive,
        _dpo_cases,
        [
            plain_dpo,
            rewarded,
            more_likely_punished,
            wrong_punished,
            beta_only_on_the_difference,
            without_a_reference,
            responses_exchanged,
            pairs_summed,
            one_margin,
            log_of_sigmoid,
            reference_learns,
        ],
        gradient=("right", "wrong", "ref_right", "ref_wrong"),
    ),
]
