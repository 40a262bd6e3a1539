"""Numbers that are not finite end a training and say where; degenerate episodes are defined; metrics warn."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import slow
from safetensors.torch import load_file
from test_trainer import SMALL, batch_of, weights

from vine_mini import algorithms, losses
from vine_mini.advantages import gae, group_relative, leave_one_out, whiten
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.setup import build_trainer
from vine_mini.cli import main
from vine_mini.divisors import importance
from vine_mini.health import Diverged, finite, symptoms
from vine_mini.logprobs import response_logprobs
from vine_mini.offline import dpo_positive_loss, imitation_loss
from vine_mini.sampling import sample
from vine_mini.types import Batch, Trajectory, collate

NAN, INF = float("nan"), float("inf")
TRAIN = "train --steps 2 --prompts 2 --group 4 --minibatch_size 4 --k 1 --iterations 3 --epochs 1 --eval_problems 2 --eval_samples 1 --validation 0".split()


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """An empty folder, and no pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vine_mini.app.runs.plot_run", lambda *_: None)


class Bad(torch.autograd.Function):
    """The identity, whose gradient is NaN or infinite."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.value, None


def spoil(monkeypatch, what: str, value: float, at: int, module: str = "vine_mini.trainer") -> None:
    """Log-probs of the `at`-th forward pass with gradients (counted from 1) are bad, or have a bad loss or gradient."""
    original, count = importlib.import_module(module).response_logprobs, [0]

    def response_logprobs(*args, **kwargs):
        logprobs = original(*args, **kwargs)
        if logprobs.requires_grad:
            count[0] += 1
            if count[0] == at:
                response = args[3].bool()
                if what == "gradient":
                    return Bad.apply(logprobs, value)
                return logprobs.masked_fill(response & (response.cumsum(1) == 2), value)
        return logprobs

    monkeypatch.setattr(f"{module}.response_logprobs", response_logprobs)


@pytest.mark.parametrize(
    "what, value, says",
    [("log-prob", NAN, "a log-prob"), ("log-prob", -INF, "a log-prob"), ("gradient", INF, "the gradient")],
)
def test_a_number_that_is_not_finite_ends_the_run_and_says_where(what, value, says, quick, monkeypatch, capsys):
    """The third minibatch is the first of iteration 2: the checkpoint is of iteration 1."""
    with monkeypatch.context() as patch:
        spoil(patch, what, value, 3)
        assert main([*TRAIN, "--algorithm", "rloo", "--out", "run"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"train: iteration 2, minibatch 1: {says} is not finite: it has diverged; lower --lr; run/diverged.json" in line
    found = json.loads(Path("run/diverged.json").read_text())
    assert found["rows"] and len(found["ids"]) == 4 and all(isinstance(i, int) for i in found["ids"][0])
    assert found["last_iteration"]["iteration"] == 1 and "iteration 2, minibatch 1" in found["error"]
    assert Path("run/policy").readlink() == Path("checkpoints/1")
    good = load_file("run/policy/model.safetensors")
    assert all(x.isfinite().all() for x in good.values())
    assert main(["train", "--resume", "run"]) == 0  # what has broken it is gone


def test_after_the_first_update_of_an_iteration_the_last_checkpoint_stays(quick, monkeypatch, capsys):
    """The state of an unfinished iteration is none from which a run could go on."""
    spoil(monkeypatch, "gradient", NAN, 4)
    assert main([*TRAIN, "--algorithm", "rloo", "--save_every", "1", "--out", "run"]) == 2
    assert "iteration 2, minibatch 2: the gradient" in capsys.readouterr().err.splitlines()[-1]
    assert Path("run/policy").readlink() == Path("checkpoints/1")
    found = json.loads(Path("run/diverged.json").read_text())
    assert len(found["metrics"]["grad_norm"]) == 1  # of the minibatch before


@pytest.mark.parametrize("algorithm", ["restem", "dpo"])
@pytest.mark.parametrize("what, says", [("log-prob", "a log-prob"), ("gradient", "the gradient")])
def test_offline_algorithms_say_where_a_number_is_not_finite(algorithm, what, says, quick, monkeypatch, capsys):
    spoil(monkeypatch, what, NAN, 2)
    assert main([*TRAIN, "--algorithm", algorithm, "--epochs", "3", "--out", "run"]) == 2
    assert f"iteration 1, minibatch 2: {says} is not finite" in capsys.readouterr().err.splitlines()[-1]
    assert json.loads(Path("run/diverged.json").read_text())["ids"]


def test_a_value_that_is_not_finite_names_the_critic(quick, monkeypatch):
    trainer = build_trainer(replace(SMALL, algorithm="ppo"))
    batch = batch_of(trainer)
    with pytest.raises(Diverged, match="iteration 1, minibatch 1: the critic's loss is not finite"):
        trainer.update(replace(batch, returns=batch.returns * INF))
    with torch.no_grad():
        trainer.critic.head.weight.fill_(NAN)
    with pytest.raises(Diverged, match="a critic's value is not finite"):
        trainer.score(trainer.sample_episodes())


@pytest.mark.parametrize("what, says", [("log-prob", "a log-prob"), ("gradient", "the gradient")])
def test_fine_tuning_ends_the_same_way_with_its_last_good_policy(what, says, quick, monkeypatch, capsys):
    spoil(monkeypatch, what, NAN, 3, "vine_mini.app.sft")
    flags = "--updates 5 --batch_size 4 --hidden 16 --layers 1 --out tiny".split()
    assert main(["sft", *flags]) == 2
    assert f"sft: update 3: {says} is not finite: it has diverged; lower --lr; tiny-diverged" in capsys.readouterr().err
    assert not Path("tiny").exists() and len(json.loads(Path("tiny-diverged/diverged.json").read_text())["ids"]) == 4
    assert all(x.isfinite().all() for x in load_file("tiny-diverged/model.safetensors").values())


def test_a_policy_that_cannot_sample_does_not_replace_the_last_checkpoint(quick, monkeypatch, capsys):
    """Its weights are those of a finished iteration, and yet no good state."""
    original, calls = sample, []

    def sample_badly(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:  # two of the first evaluation, then one of each iteration
            raise Diverged("the policy's logits are not numbers: it has diverged; lower --lr")
        return original(*args, **kwargs)

    monkeypatch.setattr("vine_mini.trainer.sample", sample_badly)
    monkeypatch.setattr("vine_mini.evaluate.sample", sample_badly)
    assert main([*TRAIN, "--algorithm", "rloo", "--save_every", "1", "--out", "run"]) == 2
    assert "train: iteration 3: the policy's logits are not numbers: it has diverged; lower --lr;" in capsys.readouterr().err
    assert Path("run/policy").readlink() == Path("checkpoints/2")


def test_finite_gives_the_tensor_back():
    x = torch.zeros(2)
    assert finite("x", x) is x
    for value in (NAN, INF, -INF):
        with pytest.raises(Diverged, match="x is not finite"):
            finite("x", torch.tensor([1.0, value]))


# Degenerate episodes


def episodes_of(trainer, texts: list[str], finished: bool = True):
    """Episodes with these responses, `group` of them to each problem; "" is the end token alone."""
    tokenizer, config = trainer.tokenizer, trainer.config
    rows = []
    for i, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * finished
        rows.append(Trajectory(trainer.prompts[i // config.group], ids, [-1.0] * len(ids), finished))
    return trainer.as_episodes(trainer.train_problems[: len(texts) // config.group], rows)


CASES = {
    "all right": (["1+1=2\n#### {}"] * 4, True),
    "all wrong": (["1+1=3\n#### 99"] * 4, True),
    "one token": ([""] * 4, True),
    "no newline": (["#### {}", "#### 99", "7", ""], True),
    "all cut": (["1+1=2\n#### {}"] * 4, False),
    "one token that is cut": (["1"] * 4, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algorithm", [name if name in ("vineppo", "ppo") else slow(name) for name in ALGORITHMS])
def test_degenerate_episodes_give_finite_credit_and_a_finite_update(algorithm, case):
    """All advantages are 0 where a group has one reward; then the loss is that of the KL alone."""
    trainer = build_trainer(replace(SMALL, algorithm=algorithm, prompts=1, group=4, minibatch_size=2, k=1, warmup=0))
    texts, finished = CASES[case]
    episodes = episodes_of(trainer, [text.format(trainer.train_problems[0].answer) for text in texts], finished)
    trainer.sample_episodes = lambda: episodes
    trainer.roll_out = lambda trajectories, cuts, k: [[[t] * k for _ in row] for t, row in zip(trajectories, cuts, strict=True)]
    if ALGORITHMS[algorithm].choose_examples and len(episodes.rewards.unique()) == 1:
        trainer.iteration = 1  # in the first iteration a policy without an example is an error
    trainer.config = replace(trainer.config, iterations=trainer.iteration + 1)
    [(metrics, _, advantages)] = trainer.train()
    assert all(map(torch.isfinite, map(torch.tensor, [x for x in metrics.values() if isinstance(x, float)])))
    assert advantages.isfinite().all() and weights(trainer.policy).isfinite().all()
    if len(episodes.rewards.unique()) == 1 and algorithm in ("grpo", "rloo"):
        assert advantages.abs().max() == 0 and metrics["nonzero_advantages"] == 0
    if not finished:
        assert metrics["reward"] == 0 and metrics["truncated"] == 1


@pytest.mark.parametrize("algorithm", [name for name, a in ALGORITHMS.items() if not a.needs_group])
def test_a_group_of_one(algorithm):
    trainer = build_trainer(replace(SMALL, algorithm=algorithm, prompts=4, group=1, minibatch_size=2, iterations=1))
    [(metrics, episodes, advantages)] = trainer.train()
    assert episodes.rewards.shape == (4, 1) and advantages.isfinite().all() and metrics["loss"] == metrics["loss"]


def test_an_empty_response_does_not_exist():
    """The sampler always leaves one token. A minibatch without response tokens can therefore only be made by hand."""
    with pytest.raises(ValueError, match="0 response tokens"):
        Trajectory([1], [], [], True)


@pytest.mark.parametrize("reward", [0.1, 0.2, 0.3, 1 / 3, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("n", [3, 8, 16, 3333])
def test_equal_rewards_give_no_advantage_whatever_their_rounding(reward, n):
    """In float32 the mean of eight rewards of 0.1 is not 0.1. Rounding over rounding made advantages of 0.4."""
    rewards = torch.full((2, n), reward)
    assert group_relative(rewards).abs().max() == 0 and whiten(rewards, torch.ones(2, n)).abs().max() == 0
    assert leave_one_out(rewards).abs().max() < 1e-5


def tensors(T=6):
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]], dtype=torch.float64)
    return mask, [torch.randn(2, T, generator=g, dtype=torch.float64) for _ in range(5)]


def kl_loss(logprobs, old, advantages, reference, mask):
    config = replace(SMALL, kl_coef=0.5, minibatch_size=2)
    ids = torch.ones(mask.shape, dtype=torch.long)
    batch = Batch(ids, ids, mask, old_logprobs=old, advantages=advantages, ref_logprobs=reference)
    return algorithms.clipped_loss_with_kl(logprobs, batch, config, mask.sum())


LOSSES = {
    "mean": lambda x, a, b, c, mask: (losses.masked_mean(x, mask), {}),
    "policy": lambda x, a, b, c, mask: losses.clipped_policy_loss(x, a, b, mask),
    "policy and KL": kl_loss,
    "critic": lambda x, a, b, c, mask: losses.value_loss(x, a, b, mask),
    "imitation": lambda x, a, b, c, mask: imitation_loss(x[:, None], a[:, None], mask[:, None], SMALL, mask.sum()),
    "pairs": lambda x, a, b, c, mask: dpo_positive_loss(x[None], a[None], mask[None], SMALL, 1),
}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_reaches_neither_a_loss_nor_its_gradient(name, value):
    mask, (x, *others, _) = tensors()
    clean, bad = ([y.where(mask.bool(), fill) for y in (x, *others)] for fill in (0.0, value))
    results = []
    for first, *rest in (clean, bad):
        first = first.requires_grad_()
        loss, stats = LOSSES[name](first, *rest, mask)
        results.append((loss, torch.autograd.grad(loss, first)[0], stats))
    assert results[0][0].isfinite() and torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1]) and results[0][2] == results[1][2]


@pytest.mark.parametrize("value", [NAN, INF])
def test_padding_reaches_no_advantage(value):
    mask, (x, y, *_) = tensors()
    bad = [z.where(mask.bool(), value) for z in (x, y)]
    assert torch.equal(whiten(x, mask), whiten(bad[0], mask))
    assert all(map(torch.equal, gae(x, y, mask, lam=0.9), gae(*bad, mask, lam=0.9)))
    one, other = importance(x, y, mask, 2.0), importance(*bad, mask, 2.0)
    assert torch.equal(one[0], other[0]) and one[1] == other[1]


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "pairs"])
def test_a_minibatch_without_response_tokens_has_loss_0_and_no_gradient(name):
    mask, (x, *others, _) = tensors()
    loss, _ = LOSSES[name](x.requires_grad_(), *others, 0 * mask)
    assert loss == 0 and torch.autograd.grad(loss, x)[0].abs().max() == 0
    assert whiten(x.detach(), 0 * mask).abs().max() == 0


def test_a_model_may_have_anything_at_padding(llama):
    """Hidden states at padding never leave the model: log-probs are scattered into zeros."""
    tokens = collate([Trajectory([5, 6], [7], [0.0], True), Trajectory([5], [6, 7, 8, 9], [0.0] * 4, True)])
    inner = llama.base_model.forward

    def forward(**inputs):
        out = inner(**inputs)
        out.last_hidden_state = out.last_hidden_state.masked_fill(tokens.attention_mask[..., None] == 0, NAN)
        return out

    llama.base_model.forward = forward
    logprobs = response_logprobs(llama, tokens.input_ids, tokens.attention_mask, tokens.response_mask)
    logprobs.sum().backward()
    assert logprobs.isfinite().all() and all(p.grad.isfinite().all() for p in llama.parameters() if p.grad is not None)


# Warnings

HEALTHY = dict(truncated=0.0, nonzero_advantages=0.4, reward=0.5, entropy=0.1, length=60.0, kl=0.19, ratio=0.999, first_ratio=1.0)


def test_healthy_metrics_have_no_symptom():
    """The extremes of runs of the presets, and of the runs in results/."""
    assert symptoms(HEALTHY | dict(skipped=0.0)) == symptoms({}) == symptoms({"iteration": 0, "eval": {}}) == {}
    solved = dict(reward=0.96, entropy=0.0139, length=25.0, nonzero_advantages=0.1)
    rare = dict(reward=0.02, nonzero_advantages=0.03)
    for more in (solved, rare, dict(truncated=0.5), dict(ratio=1.002), dict(entropy=0.6)):
        assert symptoms(HEALTHY | more) == {}


@pytest.mark.parametrize(
    "name, more, try_this",
    [
        ("truncated", dict(truncated=0.6), "--max_new_tokens"),
        ("nonzero_advantages", dict(nonzero_advantages=0.0, reward=0.0), "--group"),
        ("entropy", dict(entropy=0.001), "--temperature"),
        ("entropy", dict(entropy=5.9), "--kl_coef"),
        ("kl", dict(kl=2.0), "--kl_coef"),
        ("ratio", dict(ratio=1.3), "--epochs"),
        ("ratio", dict(ratio=0.7), "--epochs"),
        ("first_ratio", dict(first_ratio=1.1), "report a bug"),
        ("sampler_gap", dict(sampler_gap=0.11), "--importance_cap 2"),
        ("skipped", dict(skipped=0.25), "--lr"),
    ],
)
def test_each_symptom_says_what_to_try(name, more, try_this):
    [(found, says)] = symptoms(HEALTHY | more).items()
    assert found == name and try_this in says and "\n" not in says


def test_a_warning_is_printed_once_in_a_run(quick, capsys):
    """Every response is cut in each of three iterations."""
    assert main([*TRAIN, "--algorithm", "rloo", "--max_new_tokens", "3", "--out", "run"]) == 0
    said = capsys.readouterr().err
    assert said.count("iteration 1: truncated = 1: most responses are cut by the limit") == said.count("truncated = ") == 1
    assert said.count("nonzero_advantages = 0: ") == 1
