"""The three divisors of the policy loss against their definitions, and Dr. GRPO from the command line."""

from dataclasses import replace

import pytest
import torch

from vine_mini.algorithms import ALGORITHMS, clipped_loss_with_kl
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import parse
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
