"""Losses against formulas written out token by token, gradients included, in float64."""

import math

import pytest
import torch

from vine_mini.losses import clipped_policy_loss, kl_penalty, masked_mean, value_loss


def slow_policy_loss(logprobs, old, advantages, mask, clip):
    total, count = 0.0, 0
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                ratio = torch.exp(logprobs[b, t] - old[b, t])
                low, high = 1 - clip, 1 + clip
                bounded = min(max(ratio.item(), low), high)
                unbounded_counts = (ratio * advantages[b, t]).item() <= bounded * advantages[b, t].item()
                total = total + (ratio * advantages[b, t] if unbounded_counts else bounded * advantages[b, t])
                count += 1
    return -total / count


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    logprobs, old, advantages = torch.randn(3, 4, 6, generator=g, dtype=torch.float64)
    mask = (torch.rand(4, 6, generator=g) < 0.6).double()
    return logprobs.requires_grad_(), old, advantages, mask


@pytest.mark.parametrize("seed", range(3))
def test_policy_loss_and_gradient_equal_the_slow_formula(seed):
    logprobs, old, advantages, mask = inputs(seed)
    loss, _ = clipped_policy_loss(logprobs, old, advantages, mask, clip=0.2)
    expected = slow_policy_loss(logprobs, old, advantages, mask, 0.2)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    [got] = torch.autograd.grad(loss, logprobs)
    [want] = torch.autograd.grad(expected, logprobs)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "ratio, advantage, moves",
    [
        (2.0, 1.0, False),  # a good action is already likely enough
        (0.5, 1.0, True),  # a good action became unlikely: pull it back
        (2.0, -1.0, True),  # a bad action became likely: push it down (clipping inverted would stop here)
        (0.5, -1.0, False),  # a bad action is already unlikely enough
        (1.1, 1.0, True),
        (0.9, -1.0, True),
    ],
)
def test_where_the_clip_stops_the_gradient(ratio, advantage, moves):
    logprob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    loss, stats = clipped_policy_loss(logprob, zero, advantage * one, one)
    [gradient] = torch.autograd.grad(loss, logprob)
    assert gradient.item() == pytest.approx(-advantage * ratio if moves else 0.0, abs=1e-12)
    assert stats["clip_frac"] == (0.0 if moves else 1.0)


def test_first_pass_is_plain_policy_gradient():
    logprobs, _, advantages, mask = inputs()
    loss, stats = clipped_policy_loss(logprobs, logprobs, advantages, mask)
    [gradient] = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, -advantages * mask / mask.sum(), rtol=0, atol=1e-12)
    assert stats == {"ratio": pytest.approx(1.0), "clip_frac": 0.0, "approx_kl": 0.0}


def test_padding_changes_nothing_even_where_it_would_overflow():
    logprobs, old, advantages, mask = inputs()
    wild = (1 - mask) * 1e4
    plain = clipped_policy_loss(logprobs, old, advantages, mask)
    padded = clipped_policy_loss(logprobs + wild, old - wild, advantages + wild, mask)
    torch.testing.assert_close(plain[0], padded[0], rtol=0, atol=0)
    assert plain[1] == padded[1]
    assert torch.isfinite(torch.autograd.grad(padded[0], logprobs)[0]).all()


@pytest.mark.parametrize("sizes", [[1, 3], [2, 2], [1, 1, 2]])
def test_micro_batches_add_up(sizes):
    logprobs, old, advantages, mask = inputs(3)
    whole, whole_stats = clipped_policy_loss(logprobs, old, advantages, mask)
    parts = [x.split(sizes) for x in (logprobs, old, advantages, mask)]
    losses, stats = zip(*[clipped_policy_loss(*p, denominator=mask.sum()) for p in zip(*parts, strict=True)], strict=True)
    torch.testing.assert_close(sum(losses), whole, rtol=0, atol=1e-12)
    for name, value in whole_stats.items():
        assert sum(s[name] for s in stats) == pytest.approx(value, abs=1e-12)


def test_inputs_are_not_modified():
    arguments = inputs()
    copies = [x.detach().clone() for x in arguments]
    clipped_policy_loss(*arguments)
    value_loss(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


def test_value_loss_by_hand():
    values = torch.tensor([[1.0, 0.1, 5.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.5, 0.0, 5.0]], dtype=torch.float64)
    returns = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    # Token 0 sits on the return, but further than 0.2 from the old value: the clipped error (0.7 - 1)^2 counts, without gradient.
    loss, stats = value_loss(values, old, returns, mask, clip=0.2)
    assert loss.item() == pytest.approx(0.5 * (0.09 + 0.81) / 2)
    [gradient] = torch.autograd.grad(loss, values)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.45, 0.0]], dtype=torch.float64))
    assert stats == {"value_clip_frac": 0.5, "value_error": pytest.approx(0.45)}


def test_kl_estimators_by_hand():
    p, q = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_penalty(p, q, kind="k1").item() == pytest.approx(math.log(2))
    assert kl_penalty(p, q, kind="k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_penalty(p, q).item() == pytest.approx(0.5 - math.log(0.5) - 1)
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_penalty(p, q, kind="k4")


def test_kl_estimators_in_expectation():
    """Exact expectations over a distribution of 7 tokens: the values and gradients that the docstring states."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=g, dtype=torch.float64, requires_grad=True)
    q = torch.randn(7, generator=g, dtype=torch.float64).log_softmax(0)
    p = logits.log_softmax(0)
    forward_kl, reverse_kl = (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum()

    def expected(kind):
        return (p.exp().detach() * kl_penalty(p, q, kind=kind)).sum()  # the sample's weight carries no gradient

    def grad(x):
        return torch.autograd.grad(x, logits, retain_graph=True)[0]

    for kind in ("k1", "k3"):
        torch.testing.assert_close(expected(kind), forward_kl)
    torch.testing.assert_close(grad(expected("k1")), torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad(expected("k2")), grad(forward_kl))
    torch.testing.assert_close(grad(expected("k3")), grad(reverse_kl))


def test_the_masked_mean():
    logprobs, mask = torch.tensor([[-1.0, -3.0, -100.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert masked_mean(-logprobs, mask).item() == 2.0
    assert masked_mean(-logprobs, mask, denominator=8).item() == 0.5
    assert masked_mean(torch.ones(2, 3), torch.zeros(2, 3)).item() == 0.0  # without tokens


def test_the_value_loss_equals_its_formula_for_each_token():
    generator = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) > 0.3
    expected, n = 0.0, int(mask.sum())
    for v, o, r in zip(values[mask].tolist(), old[mask].tolist(), returns[mask].tolist(), strict=True):
        near = min(max(v, o - 0.2), o + 0.2)
        expected += max((v - r) ** 2, (near - r) ** 2) / 2 / n
    loss, stats = value_loss(values, old, returns, mask.double())  # the default clip is 0.2
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert stats["value_error"] == pytest.approx((values - returns)[mask].abs().mean().item(), abs=1e-12)


def test_the_statistics_of_the_policy_loss():
    ratios, mask = torch.tensor([[0.7, 1.0, 1.5, 9.0]], dtype=torch.float64), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    advantages = torch.tensor([[-1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    loss, stats = clipped_policy_loss(ratios.log(), torch.zeros(1, 4, dtype=torch.float64), advantages, mask)
    assert loss.item() == pytest.approx((0.8 - 1.0 - 1.2) / 3)  # the default clip is 0.2
    assert stats["ratio"] == pytest.approx(3.2 / 3) and stats["clip_frac"] == pytest.approx(2 / 3)
    kept = [0.7, 1.0, 1.5]
    assert stats["approx_kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in kept) / 3)
