"""RestEM and DPO-Positive: the choice of examples, the losses against closed forms, and their loop on the shipped policy."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vine_mini.app.config import TrainConfig
from vine_mini.app.plots import PHASES
from vine_mini.app.setup import build_trainer
from vine_mini.cli import main
from vine_mini.losses import masked_mean
from vine_mini.offline import dpo_positive_loss, imitation_loss, pairs, right_responses
from vine_mini.types import Trajectory, UserError, collate

SMALL = TrainConfig(steps=2, prompts=4, group=4, minibatch_size=4, epochs=2, iterations=2, eval_problems=4, eval_samples=2)
REWARDS = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.5, 1.0, 0.0]])


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_right_responses_up_to_the_limit():
    rng = random.Random(0)
    assert right_responses(REWARDS, 10, rng) == [[0], [2], [3], [8], [9], [10], [11], [14]]  # half a reward is not right
    two = right_responses(REWARDS, 2, rng)
    assert [sum(i // 4 == problem for [i] in two) for problem in range(4)] == [2, 0, 2, 1]
    seen = {i for seed in range(50) for [i] in right_responses(REWARDS, 1, random.Random(seed))}
    assert seen == {0, 2, 3, 8, 9, 10, 11, 14}  # each may be chosen


def test_pairs_are_right_and_wrong_responses_to_one_problem():
    every = pairs(REWARDS, 64, random.Random(0))
    assert sorted(every) == [[0, 1], [2, 1], [3, 1], [14, 12], [14, 13], [14, 15]]
    some = pairs(REWARDS, 2, random.Random(0))
    assert len(some) == 4 and all(pair in every for pair in some) and len(set(map(tuple, some))) == 4


def some_logprobs(m=5, T=7):
    rng = torch.Generator().manual_seed(0)
    mask = (torch.rand(m, 2, T, generator=rng) > 0.3).double()
    reference = -torch.rand(m, 2, T, generator=rng, dtype=torch.float64)
    logprobs = reference + 0.1 * torch.randn(m, 2, T, generator=rng, dtype=torch.float64)
    return logprobs, reference, mask


@pytest.mark.parametrize("beta, penalty", [(0.3, 50.0), (0.1, 0.0), (1.0, 2.0)])
def test_dpo_positive_against_its_equation(beta, penalty):
    config = replace(SMALL, dpo_beta=beta, dpo_penalty=penalty)
    logprobs, reference, mask = some_logprobs()
    logprobs.requires_grad_()
    loss, stats = dpo_positive_loss(logprobs, reference, mask, config, 5)
    losses, margins = [], []
    for row in range(5):
        d = [
            sum((x - r) * keep for x, r, keep in zip(*(t[row, side].tolist() for t in (logprobs, reference, mask)), strict=True))
            for side in (0, 1)
        ]
        margins.append(d[0] - d[1] - penalty * max(0.0, -d[0]))
        losses.append(math.log(1 + math.exp(-beta * margins[-1])))
    assert any(m > 0 for m in margins) and any(m < 0 for m in margins)
    assert loss.item() == pytest.approx(sum(losses) / 5, abs=1e-12)
    assert stats["margin"] == pytest.approx(sum(margins) / 5, abs=1e-12)
    assert stats["pair_accuracy"] == sum(m > 0 for m in margins) / 5
    assert torch.autograd.gradcheck(lambda x: dpo_positive_loss(x, reference, mask, config, 5)[0], logprobs)


def test_dpo_positive_at_the_reference_and_its_penalty():
    """At the reference the loss is log 2. Where both responses lose as much, plain DPO sees nothing and the penalty does."""
    _, reference, mask = some_logprobs()
    plain, positive = replace(SMALL, dpo_penalty=0.0), replace(SMALL, dpo_penalty=50.0)
    assert dpo_positive_loss(reference, reference, mask, positive, 5)[0].item() == pytest.approx(math.log(2))
    ones = torch.ones_like(mask)
    assert dpo_positive_loss(reference - 0.1, reference, ones, plain, 5)[0].item() == pytest.approx(math.log(2))
    assert dpo_positive_loss(reference - 0.1, reference, ones, positive, 5)[0].item() > 10


def test_the_imitation_loss_is_minus_the_mean_logprob():
    logprobs, reference, mask = some_logprobs()
    loss, _ = imitation_loss(logprobs, reference, mask, SMALL, mask.sum())
    assert loss.item() == pytest.approx(-masked_mean(logprobs, mask).item())


def test_parts_hold_each_example_once_within_the_limit():
    lengths = [3, 9, 4, 4, 20, 5]
    examples = [[0, 1], [2, 3], [4, 5], [0, 3]]
    tokens = collate([Trajectory([1], [1] * (length - 1), [0.0] * (length - 1), True) for length in lengths])
    parts = tokens.micro_batches(torch.tensor(examples), 20)
    assert sorted(row for part in parts for row in part.tolist()) == sorted(examples)
    for part in parts:
        assert len(part) == 1 or part.numel() * max(lengths[i] for i in part.flatten()) <= 20
    assert [len(part) for part in parts] == [2, 1, 1]


@pytest.mark.parametrize("name", ["restem", "dpo"])
def test_gradients_do_not_depend_on_the_micro_batch(name):
    trainer = build_trainer(replace(SMALL, algorithm=name, min_steps=1))
    episodes = trainer.sample_episodes()
    reference = trainer.score(episodes)[0]["ref_logprobs"]
    assert (reference is None) == (name == "restem")  # imitation needs none
    reference = None if reference is None else reference.double() - 0.01
    trainer.policy.double()
    examples = trainer.algorithm.choose_examples(episodes.rewards, 10, random.Random(0))
    found = []
    for micro in (10**6, 1):
        trainer.config = replace(trainer.config, micro_batch_tokens=micro, max_grad_norm=1e9)
        trainer.optimizer = torch.optim.SGD(trainer.policy.parameters(), lr=0.0)
        parameters = list(trainer.policy.parameters())
        trainer.optimizer.step = lambda: found.append(torch.cat([p.grad.flatten() for p in parameters]))  # noqa: B023
        assert trainer._update(episodes.tokens, examples[:6], reference, 1.0)["grad_norm"] > 0
    assert (found[0] - found[1]).abs().max() < 1e-10 < found[0].abs().max()


@pytest.mark.parametrize("name", ["restem", "dpo"])
def test_each_iteration_starts_from_the_start_policy(name):
    """With learning rate 0 the policy is the start policy again, whatever it was before."""
    trainer = build_trainer(replace(SMALL, algorithm=name, lr=0.0, iterations=1, kl_coef=0.0))
    start = weights(trainer.policy)
    with torch.no_grad():
        trainer.policy.lm_head.weight.mul_(1.001)
    [(metrics, episodes, rewards)] = trainer.train()
    assert torch.equal(weights(trainer.policy), start) and trainer.updates == metrics["updates_made"] > 0
    assert torch.equal(rewards.amax(dim=1), episodes.rewards.flatten())
    assert metrics["reward"] == episodes.rewards.mean().item()


@pytest.mark.parametrize(
    "accuracies, ran, best",
    [
        ([0.3, 0.5, 0.4, 0.9], 3, 1),  # it stops at the first fall
        ([0.3, 0.5, 0.5, 0.4, 0.9], 4, 2),  # it goes on where the accuracy stays the same
        ([0.0, 0.0, 0.1, 0.2, 0.2], 5, 4),
    ],
)
def test_the_best_epoch_by_validation_is_kept(accuracies, ran, best, monkeypatch):
    trainer = build_trainer(replace(SMALL, algorithm="restem", epochs=5, iterations=1, eval_every=1, validation=4))
    left, policies = iter(accuracies), []

    def evaluate(problems, with_kl, greedy):
        assert problems is trainer.validation_problems
        policies.append(weights(trainer.policy))
        return {"pass@1": (next(left), 0.0)}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    [(metrics, _, _)] = trainer.train()
    assert {name.removeprefix("seconds_") for name in metrics if name.startswith("seconds_")} <= {*PHASES}  # all are drawn
    assert len(policies) == metrics["validations"] == ran and torch.equal(weights(trainer.policy), policies[best])


def test_each_iteration_has_a_new_optimizer():
    """The moments of the last iteration belong to a policy that is gone."""
    trainer = build_trainer(replace(SMALL, algorithm="restem"))
    for metrics, _, _ in trainer.train():
        assert {state["step"].item() for state in trainer.optimizer.state.values()} == {metrics["updates_made"]}
        assert {*trainer.optimizer.state} == {*trainer.policy.parameters()}
    assert metrics["iteration"] == 2 and trainer.updates > metrics["updates_made"]


def test_at_most_so_many_examples_from_a_problem_as_the_setting_says():
    [(metrics, episodes, _)] = build_trainer(replace(SMALL, algorithm="restem", examples=2, iterations=1)).train()
    right = (episodes.rewards == 1).sum(dim=1)  # [N]
    assert metrics["examples"] == right.clamp(max=2).sum() < right.sum()


@pytest.mark.parametrize("algorithm", ["restem", "dpo"])
def test_the_start_policy_is_kept_in_float32(algorithm):
    """Each iteration starts from it. A reference in bfloat16, as other algorithms have with `bf16`, would round its weights."""
    trainer = build_trainer(replace(SMALL, algorithm=algorithm, bf16=True))
    start, kept = trainer.policy.state_dict(), trainer.reference.state_dict()
    assert all(kept[name].dtype == x.dtype == torch.float32 and torch.equal(kept[name], x) for name, x in start.items())


def test_an_iteration_without_examples_changes_nothing(monkeypatch):
    """A policy that solves everything has no wrong response for a pair. The run goes on."""
    trainer = build_trainer(replace(SMALL, algorithm="dpo", iterations=2))
    first, _, _ = next(iter(trainer.train()))
    assert first["examples"] > 0
    before, updates = weights(trainer.policy), trainer.updates
    monkeypatch.setattr("vine_mini.tasks.grade", lambda *_: 1.0)
    [(metrics, _, _)] = trainer.train()
    assert metrics["examples"] == 0 and torch.equal(weights(trainer.policy), before) and trainer.updates == updates


def test_no_example_is_told(monkeypatch):
    trainer = build_trainer(replace(SMALL, algorithm="dpo"))
    monkeypatch.setattr("vine_mini.tasks.grade", lambda *_: 0.0)
    with pytest.raises(UserError, match="no response is an example to learn from: raise --prompts or --group"):
        next(trainer.train())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["restem", "dpo"])
def test_the_command_and_its_resumed_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = f"train --algorithm {name} --steps 2 --prompts 3 --group 4 --epochs 1 --minibatch_size 5 --eval_problems 4 --eval_samples 2".split()
    assert main([*flags, "--iterations", "2", "--out", "whole"]) == 0
    assert main([*flags, "--iterations", "2", "--max_seconds", "1e-9", "--out", "parts"]) == 0  # one iteration
    assert main(["train", "--resume", "parts", "--max_seconds", "0"]) == 0
    whole, parts = (
        [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()] for run in ("whole", "parts")
    )
    assert [row["iteration"] for row in parts] == [0, 1, 2]
    for a, b in zip(whole, parts, strict=True):
        same = [key for key in a if "seconds" not in key and key != "eval"]
        assert {key: a[key] for key in same} == {key: b[key] for key in same}
    assert Path("whole/curves.png").stat().st_size > 10_000
    capsys.readouterr()
    assert main(["credit", "--run", "whole", "--critic_iterations", "0", "--group", "2", "--k", "1", "--out", "page"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name, lr", [("restem", 3e-4), ("dpo", 3e-4)])
def test_it_learns(name, lr):
    """From 9 % on the task with decisive steps."""
    more = dict(
        prompts=64, group=16, minibatch_size=64, warmup=5, eval_problems=100, eval_samples=4, epochs=2, max_new_tokens=140
    )
    trainer = build_trainer(TrainConfig(task="decisive", algorithm=name, lr=lr, iterations=4, **more))
    before = trainer.evaluate(with_kl=False)["pass@1"]
    list(trainer.train())
    after = trainer.evaluate(with_kl=False)["pass@1"]
    assert after[0] - before[0] > 3 * (after[1] + before[1]), (before, after)


def test_each_iteration_has_a_warm_up_where_one_is_asked_for():
    """By default restem and dpo have none, because an iteration may have few updates."""
    assert [TrainConfig(algorithm=name).warmup for name in ("restem", "dpo", "vineppo")] == [0, 0, 20]
    for warmup, rates in ((0, {1e-3}), (1000, {1e-6 * made for made in range(1, 100)})):
        trainer = build_trainer(replace(SMALL, algorithm="restem", iterations=1, epochs=1, lr=1e-3, warmup=warmup))
        seen, step = [], trainer._update
        trainer._update = lambda *args, step=step, seen=seen: seen.append(step(*args)) or seen[-1]
        list(trainer.train())
        assert seen and all(any(stats["lr"] == pytest.approx(rate) for rate in rates) for stats in seen)
        assert [stats["lr"] for stats in seen] == sorted(stats["lr"] for stats in seen)


@pytest.mark.parametrize("name, value", [("divisor", "sequences"), ("importance_cap", 2.0), ("max_ratio", 2.0)])
@pytest.mark.parametrize("algorithm", ["restem", "dpo"])
def test_settings_that_they_do_not_use_are_refused(algorithm, name, value):
    with pytest.raises(UserError, match=f"{algorithm} does not use {name}: set it to "):
        TrainConfig(algorithm=algorithm, bf16=True, **{name: value})
