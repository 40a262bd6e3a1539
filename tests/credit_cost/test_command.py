"""The command as people run it: what it prints and writes, what it refuses, and that it measures what training does."""

import json
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vine_mini.app.config import SHIPPED, TrainConfig
from vine_mini.app.setup import build_trainer
from vine_mini.cli import main
from vine_mini.credit_cost import command, noise
from vine_mini.credit_cost.command import CostReport, Way
from vine_mini.credit_cost.config import CreditCostConfig
from vine_mini.credit_cost.noise import Pool
from vine_mini.models import load_policy, save_policy
from vine_mini.types import UserError

QUICK = "--steps 3 --prompts 4 --group 4 --minibatch_size 8 --problems 4 --pool 8 --ks 1 3".split()


def test_the_command(empty_folder, capsys):
    assert main(["credit-cost", *QUICK, "--out", "here"]) == 0
    out = capsys.readouterr().out
    assert "VinePPO, K = 3, mc_lam 0.5, mc_mu 0.5" in out  # the setting that `train` would use
    assert out.count("VinePPO, K = 1") >= 2 and "GRPO, RLOO" in out and "PPO  " not in out
    report = json.loads(Path("here/credit_cost.json").read_text())
    assert report["advice"] in out and " for the same learning" in report["advice"]
    assert out.startswith("the shipped policy on arithmetic, 4 responses to each of 4 problems, 8 rollouts a state, seed 0, on ")
    assert [way["name"] for way in report["ways"]][:2] == ["GRPO, RLOO", "VinePPO, K = 1"]
    for way in report["ways"]:
        assert set(way["seconds"]) >= {"sample", "score", "update"} and way["error"] > 0
        assert ("rollouts" in way["seconds"]) == way["name"].startswith("VinePPO")
    assert report["ways"][0]["relative"] == 1.0 and report["ways"][1]["interval"][0] < report["ways"][1]["interval"][1]
    assert sum(report["places"]) == pytest.approx(1.0)
    assert Path("here/credit_cost.png").stat().st_size > 20_000
    assert report["advice"] in Path("here/credit_cost.md").read_text()


@pytest.mark.slow
def test_a_run_brings_its_policy_its_settings_and_its_critic(empty_folder, capsys, monkeypatch):
    monkeypatch.setattr("vine_mini.app.runs.plot_run", lambda *_: None)
    small = "--steps 3 --prompts 4 --group 4 --minibatch_size 8 --iterations 1 --eval_problems 4 --eval_samples 1".split()
    assert main(["train", "--algorithm", "ppo", *small, "--out", "run"]) == 0
    assert main(["credit-cost", "--run", "run", "--problems", "6", "--pool", "8", "--ks", "1", "--out", "here"]) == 0
    ways = {way["name"]: way for way in json.loads(Path("here/credit_cost.json").read_text())["ways"]}
    assert "PPO" in ways and ways["PPO"]["noise"] > 0
    assert sum(ways["PPO"]["seconds"].values()) > 0


def test_the_phases_of_training_are_timed_and_the_policy_stays_as_it_was():
    trainer = build_trainer(TrainConfig(algorithm="grpo", steps=3, prompts=4, minibatch_size=8, lr=0.0))
    before = {name: x.clone() for name, x in trainer.policy.state_dict().items()}
    found = command.seconds_of_training(trainer)
    assert list(found) == ["sample", "score", "update"] and all(seconds > 0 for seconds in found.values())
    assert all(torch.equal(before[name], x) for name, x in trainer.policy.state_dict().items())
    assert trainer.iteration == 0 < trainer.updates  # the pools begin with the first problems, whatever was timed


def test_a_pool_holds_the_states_of_training():
    trainer = build_trainer(TrainConfig(algorithm="grpo", steps=3, prompts=4, minibatch_size=8))
    pools, [episodes, _] = command.sample_pools(trainer, 6, 5)
    assert len(pools) == 24 and [p.problem for p in pools] == [i // 4 for i in range(24)]
    for p, cuts, t, R in zip(pools, episodes.cuts, episodes.trajectories, episodes.rewards.flatten().tolist(), strict=False):
        assert p.rewards.shape == (len(cuts), 5) and p.reward == R
        assert p.places == [cut / len(t.response_ids) for cut in cuts]
        ids = torch.tensor([t.prompt_ids + t.response_ids])
        logits = trainer.policy(ids).logits[0, len(t.prompt_ids) - 1 : -1].detach().double().requires_grad_()  # [tokens, V]
        logprobs = logits.log_softmax(dim=-1).gather(1, ids[0, len(t.prompt_ids) :, None])
        logprobs.sum().backward()  # a token's log-prob depends on its own row of logits only
        squares = logits.grad.square().sum(dim=1)
        steps = [squares[a:b].sum().item() for a, b in pairwise([*cuts, len(t.response_ids)])]
        assert p.freedom.tolist() == pytest.approx(steps, rel=1e-4, abs=1e-9)


def test_the_advice():
    def made(name, x, low, high):
        return Way(name, 0.2, 0.1, 0.2, [0.2], {"update": 1.0}, x, (low, high))

    base, cheap = made("GRPO, RLOO", 1.0, 1.0, 1.0), made("VinePPO, K = 1", 0.7, 0.6, 0.9)
    dear, near = made("VinePPO, K = 9", 1.3, 1.1, 1.5), made("VinePPO, K = 2", 0.9, 0.7, 1.1)
    assert command.advice([base, cheap, dear]) == (
        "Take VinePPO, K = 1: it needs 0.70 [0.60, 0.90] times the seconds of GRPO, RLOO for the same learning."
    )
    assert command.advice([base, dear]) == (
        "Take GRPO, RLOO: VinePPO, K = 9 comes next and needs 1.30 [1.10, 1.50] times its seconds for the same learning."
    )
    for ways in ([base, near], [base, dear, near]):
        assert command.advice(ways) == (
            "VinePPO, K = 2 needs 0.90 [0.70, 1.10] times the seconds of GRPO, RLOO for the same learning: no difference is shown."
        )


@pytest.mark.slow
def test_a_policy_that_never_succeeds(empty_folder, capsys):
    policy, tokenizer = load_policy(str(SHIPPED / "arithmetic"), "cpu")
    with torch.no_grad():
        policy.model.embed_tokens.weight.zero_()  # the head too: all tokens are equally likely
    save_policy(policy, tokenizer, Path("random"))
    assert main(["credit-cost", *QUICK, "--model", "random", "--out", "here"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "rollouts have reward 0, so there is no credit to measure: take easier problems" in line and not Path("here").exists()


@pytest.mark.slow
def test_problems_that_are_always_or_never_solved(empty_folder, capsys, monkeypatch):
    """Rewards differ between problems and never within one, so every advantage is 0."""
    monkeypatch.setattr("vine_mini.tasks.grade", lambda task, problem, *_: float(problem.question < "M"))
    assert main(["credit-cost", *QUICK, "--out", "here"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "too small to tell from 0: raise --problems or --pool" in line and not Path("here").exists()


def test_a_damaged_critic_is_told_before_the_rollouts(empty_folder, capsys, monkeypatch):
    monkeypatch.setattr("vine_mini.app.runs.plot_run", lambda *_: None)
    small = "--steps 3 --prompts 4 --group 4 --minibatch_size 8 --iterations 1 --eval_problems 4 --eval_samples 1".split()
    assert main(["train", "--algorithm", "ppo", *small, "--out", "run"]) == 0
    Path("run/policy/training_state.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(command, "sample_pools", None)
    assert main(["credit-cost", "--run", "run", "--out", "here"]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("reward, change", [(0.0, "easier problems"), (1.0, "harder problems"), (0.5, "harder problems")])
def test_equal_rewards_hold_no_credit(reward, change):
    pool = noise.Pool(
        torch.full((3, 4), reward, dtype=torch.float64), reward, 0, [0.0, 0.3, 0.6], torch.ones(3, dtype=torch.float64)
    )
    with pytest.raises(
        Exception, match=f"all 12 rollouts have reward {reward:g}, so there is no credit to measure: take {change}"
    ):
        command.check([pool])


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--ks", "64"], "K = 64 must be at least 1 and at most pool = 32: raise --pool or leave it out"),
        (["--ks", "0"], "K = 0 must be at least 1"),
        (["--pool", "1"], "pool = 1: must be at least 4"),
        (["--problems", "1"], "problems = 1: must be at least 2"),
        (["--problems", "100000"], "problems = 100000, but there are only"),
        (["--group", "1", "--minibatch_size", "32"], "needs a group of at least 2"),
        (["--resume", "run"], "there is no run/config.yaml"),
        (["--steps", "1", "--problems", "2"], "each response is a single step, so all methods give the same credit"),
    ],
)
@pytest.mark.slow
def test_bad_input(flags, said, empty_folder, capsys):
    assert main(["credit-cost", *flags]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1] and not list(empty_folder.iterdir())


def test_the_report_of_a_policy_without_right_responses():
    ways = [Way("GRPO, RLOO", 1.0, 0.1, 1.0, [1.0], {"update": 1.0})]
    report = CostReport("made", ways, (0.1, 0.01), (0.0, 0.0), None, [0.1] * 10, "advice")
    table = command.table(report)
    assert "right responses" not in table and "not corrected for choosing the cheapest" in table and table.endswith("advice")


def test_a_full_disk_does_not_lose_the_measurement(empty_folder, capsys, monkeypatch):
    """The picture was drawn first, and the table printed last."""

    def full(*_):
        raise UserError("credit_cost.png cannot be written: No space left on device")

    monkeypatch.setattr(command, "new_folder", lambda out, name: empty_folder)
    monkeypatch.setattr(command, "plot_cost", full)
    ways = [Way("GRPO, RLOO", 1.0, 0.1, 1.0, [1.0], {"update": 1.0})]
    report = CostReport("made", ways, (0.1, 0.01), (0.0, 0.0), None, [0.1] * 10, "advice")
    monkeypatch.setattr(command, "measure", lambda config: report)
    with pytest.raises(UserError):
        command.credit_cost(CreditCostConfig())
    assert capsys.readouterr().out.endswith("advice\n") and {p.name for p in empty_folder.iterdir()} == {
        "credit_cost.json",
        "credit_cost.md",
    }


def test_the_weight_of_a_step_is_how_unsure_the_policy_is_in_it():
    pools = [
        Pool(torch.zeros(2, 4, dtype=torch.float64), 1.0, i, [0.0, 0.5], torch.tensor(free, dtype=torch.float64))
        for i, free in enumerate(FREE)
    ]
    found = command.way("x", pools, [torch.tensor([2.0, 4.0], dtype=torch.float64)] * 2, {})
    assert found.noise == 6.0 and found.in_gradient == pytest.approx((1 * 2 + 3 * 4 + 0 * 2 + 4 * 4) / (2 + 2))
    assert found.by_problem == pytest.approx([14 / 4, 16 / 4])


def test_the_interval_over_problems_by_hand():
    """Two problems, in which the way has a quarter of the base's noise and the whole of it. t of one degree of freedom: 12.7."""
    base, mixed = (Way(name, 1.0, 0.1, 1.0, noise_of, {"update": seconds}) for name, noise_of, seconds in BY_HAND)
    base, mixed = command.compare([base, mixed], Way("signal", 0.0, 0.0, 0.0, [0.0, 0.0], {}))
    assert base.relative == 1.0 and base.interval == (1.0, 1.0)
    assert mixed.relative == pytest.approx(2 * (5 / 8) ** 0.5) and mixed.interval == pytest.approx(
        (mixed.relative / math.exp(half := 12.706 * 0.5 * 0.3 * 2), mixed.relative * math.exp(half)), rel=1e-3
    )
    few, more = ([1.0, 2.0, 3.0] * 4, [1.0, 2.0, 3.0] * 400)
    widths = []
    for noise_of in (few, more):
        ways = [Way("a", 1.0, 0.1, 1.0, [1.0] * len(noise_of), {"x": 1.0}), Way("b", 1.0, 0.1, 1.0, noise_of, {"x": 1.0})]
        ways = command.compare(ways, Way("signal", 0.0, 0.0, 0.0, [0.0] * len(noise_of), {}))
        assert ways[1].interval[0] < ways[1].relative < ways[1].interval[1]
        widths.append(ways[1].interval[1] - ways[1].interval[0])
    assert widths[0] == pytest.approx(10 * widths[1], rel=0.3)  # a hundred times as many problems


def test_the_interval_over_few_problems_covers():
    """The noise of a problem is drawn at random, twice as large on average for the second way."""
    rng, inside, n = random.Random(0), 0, 8
    for _ in range(1000):
        share = [rng.expovariate(1.0) for _ in range(n)]  # what both ways have in common
        noises = [[scale * (x + rng.expovariate(1.0)) for x in share] for scale in (1.0, 2.0)]
        ways = [Way("", 1.0, 0.1, 1.0, of, {"x": 1.0}) for of in noises]
        ways = command.compare(ways, Way("signal", 0.0, 0.0, 0.0, [0.0] * n, {}))
        inside += ways[1].interval[0] <= 2**0.5 <= ways[1].interval[1]
    assert 920 <= inside <= 980  # the percentiles of a bootstrap: 890


def test_one_problem_alone_is_refused():
    ways = [Way(name, 1.0, 0.1, 1.0, [1.0], {"x": 1.0}) for name in "ab"]
    with pytest.raises(UserError, match="all responses belong to one problem"):
        command.compare(ways, Way("signal", 0.0, 0.0, 0.0, [0.0], {}))


def test_what_credit_cost_refuses():
    with pytest.raises(UserError, match="credit-cost measures all states of a response: leave out --max_states"):
        CreditCostConfig(max_states=2)


def test_a_problem_of_two_epochs_is_one_problem():
    """Otherwise its responses would count as independent, and the errors would be too small."""
    trainer = build_trainer(TrainConfig(steps=2, prompts=4, group=2, minibatch_size=4, k=1, algorithm="grpo"))
    trainer.train_problems, trainer.prompts = trainer.train_problems[:5], trainer.prompts[:5]
    pools, _ = command.sample_pools(trainer, 8, 4)
    assert len(pools) == 16 and 4 < len({pool.problem for pool in pools}) <= 5


def test_the_time_to_the_same_learning_by_hand(monkeypatch):
    """Seconds of an iteration, times the root of noise + signal, relative to GRPO. K = 2 lies between K = 1 and 3."""
    used = []

    def seconds_of_training(trainer):
        used.append(trainer.config)
        return {"sample": 1.0, "score": 1.0, "update": 2.0}

    monkeypatch.setattr(command, "seconds_of_training", seconds_of_training)
    monkeypatch.setattr(command, "seconds_of_rollouts", lambda trainer, k: 2.0 * k)
    config = CreditCostConfig(steps=3, prompts=4, minibatch_size=8, problems=4, pool=8, ks=[1, 2], k=2)
    report = command.measure(config)
    assert [(of.algorithm, of.lr, of.critic_lr) for of in used] == [("grpo", 0.0, 0.0)]
    signal = report.signal[0]
    base = report.ways[0]
    assert base.name == "GRPO, RLOO" and base.relative == 1.0 and report.ways[1].name == "VinePPO, K = 1"
    seconds = {way.name.split(",")[1].strip(): sum(way.seconds.values()) for way in report.ways[1:]}
    assert seconds == {"K = 1": 6.0, "K = 2": 8.0} and signal > 0
    pools, _ = command.sample_pools(
        build_trainer(TrainConfig(algorithm="grpo", steps=3, prompts=4, minibatch_size=8, lr=0.0)), 4, 8
    )
    weighted = command.way("signal", pools, [noise.signal(p) for p in pools], {}).in_gradient
    for way in report.ways:
        more = sum(way.seconds.values()) / 4.0
        assert way.relative == pytest.approx(more * ((way.in_gradient + weighted) / (base.in_gradient + weighted)) ** 0.5)


FREE = [[1.0, 3.0], [0.0, 4.0]]
BY_HAND = (("GRPO, RLOO", [4.0, 4.0], 1.0), ("VinePPO, K = 1", [1.0, 4.0], 2.0))
