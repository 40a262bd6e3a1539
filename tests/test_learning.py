"""That it learns: the slow test, run by `pytest -m learning`."""

import pytest
import torch

from vine_mini.config import TrainConfig, read_preset
from vine_mini.trainer import Trainer


@pytest.mark.learning
def test_vineppo_improves_the_shipped_policy():
    """Ten iterations from one seed raise sampled accuracy by far more than the errors of the two evaluations."""
    torch.set_num_threads(2)
    trainer = Trainer(TrainConfig(**read_preset("arithmetic") | {"iterations": 10, "algorithm": "vineppo"}))
    (before, error), greedy = trainer.evaluate()["pass@1"], trainer.evaluate()["greedy"][0]
    rewards = [metrics["reward"] for metrics, _, _ in trainer.train()]
    result = trainer.evaluate()
    assert 0.15 < before < 0.35 and greedy > 0.8
    assert result["pass@1"][0] - before > 0.2 > 5 * (error + result["pass@1"][1]) / 2
    assert result["greedy"][0] > greedy - 0.05
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3
