"""Gradients are scaled down to `max_grad_norm` before each update: the policy's, the critic's, and those of RestEM and DPO+."""

import pytest
import torch

from vine_mini.app.config import TrainConfig
from vine_mini.app.setup import build_trainer

LIMIT = 1e-3  # below the norm of any gradient here
SMALL = dict(steps=2, prompts=2, group=4, minibatch_size=4, epochs=1, iterations=1, k=1, max_grad_norm=LIMIT)


@pytest.mark.parametrize("algorithm, networks", [("grpo", 1), ("ppo", 2), ("restem", 1), ("dpo", 1)])
def test_an_update_has_gradients_of_the_largest_norm_that_is_allowed(algorithm, networks, monkeypatch):
    norms, step = [], torch.optim.AdamW.step

    def record(self, *args, **more):
        gradients = [[p.grad.flatten() for p in group["params"] if p.grad is not None] for group in self.param_groups]
        norms.append([torch.cat(of).norm().item() for of in gradients])
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    [(metrics, _, _)] = build_trainer(TrainConfig(algorithm=algorithm, **SMALL)).train()
    assert norms and all(of == pytest.approx([LIMIT] * networks, rel=1e-2) for of in norms)
    assert metrics["grad_norm"] > 10 * LIMIT  # as it was before
