"""The three divisors of the policy loss against their definitions, and Dr. GRPO from the command line."""

from dataclasses import replace

import pytest
import torch

from vine_mini.algorithms import ALGORITHMS, clipped_loss_with_kl
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import parse
from vine_mini.divisors import importance
from vine_mini.types import Batch, UserError

CONFIG = TrainConfig(minibatch_size=3, prompts=3, group=1, max_new_tokens=10)


def a_batch():
    rng = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]).double()
    old, new = -torch.rand(2, 3, 6, generator=rng, dtype=torch.float64) * mask
    advantages = torch.randn(3, 1, generator=rng, dtype=torch.float64) * mask
    ids = torch.zeros(3, 6, dtype=torch.long)
    return new, Batch(ids, torch.ones_like(ids), mask, old_logprobs=old, advantages=advantages)


def terms(new, batch, clip):
    """The clipped loss of each token, one at a time."""
    out = []
    for row in range(3):
        of_row = []
        for t in range(6):
            if batch.response_mask[row, t]:
                ratio = (new - batch.old_logprobs)[row, t].exp().item()
                a = batch.advantages[row, t].item()
                of_row.append(max(-a * ratio, -a * min(max(ratio, 1 - clip), 1 + clip)))
        out.append(of_row)
    return out


@pytest.mark.parametrize("divisor", ["tokens", "sequences", "constant"])
def test_against_the_definitions(divisor):
    new, batch = a_batch()
    config = replace(CONFIG, divisor=divisor)
    each = terms(new, batch, config.clip)
    want = {
        "tokens": sum(map(sum, each)) / sum(map(len, each)),
        "sequences": sum(sum(row) / len(row) for row in each) / 3,
        "constant": sum(map(sum, each)) / (3 * 10),
    }[divisor]
    loss, _ = clipped_loss_with_kl(new, batch, config, batch.response_mask.sum())
    assert loss.item() == pytest.approx(want, abs=1e-12)
    parts = []
    for i in range(3):
        part = batch.rows(torch.tensor([i]))
        parts.append(clipped_loss_with_kl(new[[i], : part.input_ids.shape[1]], part, config, batch.response_mask.sum())[0])
    assert sum(parts).item() == pytest.approx(want, abs=1e-12)  # micro-batches add up


def test_dr_grpo_from_the_command_line():
    config = parse(TrainConfig, "train", "--algorithm grpo --no_scale_by_std --divisor constant".split())
    assert not config.scale_by_std and config.divisor == "constant"
    with pytest.raises(UserError, match="unknown divisor 'words': choose from tokens, sequences, constant"):
        parse(TrainConfig, "train", ["--divisor", "words"])


def test_grpo_without_the_standard_deviation():
    from types import SimpleNamespace

    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    episodes = SimpleNamespace(rewards=rewards, tokens=SimpleNamespace(response_mask=torch.ones(4, 2)))
    plain, _, _ = ALGORITHMS["grpo"].credit(episodes, None, None, replace(CONFIG, scale_by_std=False))
    assert torch.equal(plain[:, 0], torch.tensor([0.75, -0.25, -0.25, -0.25]))
    scaled, _, _ = ALGORITHMS["grpo"].credit(episodes, None, None, CONFIG)
    assert torch.allclose(scaled[:, 0], plain[:, 0] / 0.5)


def test_importance_weights_correct_for_another_sampler():
    """Tokens drawn from q, weighted by p / q, have the mean of p. The cap bounds the weights, and padding has weight 0."""
    p, q = (torch.tensor(x).log() for x in ([0.7, 0.2, 0.1], [0.4, 0.3, 0.3]))
    tokens = torch.multinomial(q.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0))[None]  # [1, T]
    mask = torch.ones(tokens.shape)
    weights, stats = importance(p[tokens], q[tokens], mask, 10.0)
    for token in range(3):
        assert (weights * (tokens == token)).mean() == pytest.approx(p[token].exp().item(), abs=0.005)  # 4 standard errors
    assert stats["importance_capped"] == 0.0
    assert stats["sampler_gap"] == pytest.approx(((p - q).abs() * q.exp()).sum().item(), abs=0.01)
    weights, stats = importance(p[tokens], q[tokens], mask, 1.5)
    assert weights.max() == 1.5 and stats["importance_capped"] == pytest.approx(0.4, abs=0.005)  # p / q = 1.75 for token 0
    mask[:, 1:] = 0
    assert importance(p[tokens], q[tokens], mask, 1.5)[0].count_nonzero() == 1
    assert importance(p[tokens], q[tokens], mask, 0.0)[0] is None
    assert importance(p[tokens], p[tokens], mask, 1.0)[1]["importance_capped"] == 0.0  # a weight of exactly the cap is not cut


def test_importance_weights_are_factors_of_the_loss():
    new, batch = a_batch()
    weights = 2.0 * batch.response_mask
    loss, _ = clipped_loss_with_kl(new, batch, CONFIG, batch.response_mask.sum())
    double, _ = clipped_loss_with_kl(new, replace(batch, weights=weights), CONFIG, batch.response_mask.sum())
    assert double.item() == pytest.approx(2 * loss.item(), abs=1e-12)


def test_importance_weights_need_a_sampler_in_bfloat16():
    with pytest.raises(UserError, match="add --bf16 or leave it out"):
        parse(TrainConfig, "train", ["--importance_cap", "2"])
    assert parse(TrainConfig, "train", ["--importance_cap", "2", "--bf16"]).importance_cap == 2.0
