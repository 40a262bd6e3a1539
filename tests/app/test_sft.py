"""Supervised fine-tuning: it learns the solutions and their end, from exact gradients; the card says how to make the policy again."""

import copy
import math
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import VOCAB, ragged_prompts, tiny_model

from vine_mini import tasks
from vine_mini.app import commands, sft
from vine_mini.app.config import SFTConfig
from vine_mini.app.flags import parse
from vine_mini.cli import main
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import masked_mean
from vine_mini.models import load_policy
from vine_mini.types import Trajectory, collate


def scores(model, tokenizer, config) -> tuple[float, float]:
    """-> nats a token of the solutions to twenty test problems, mean probability of the end after them"""
    problems = tasks.load_problems(config)[1][:20]
    solutions = [[*tokenizer(p.solution)["input_ids"], tokenizer.eos_token_id] for p in problems]
    prompts = tasks.prompt_ids(problems, tokenizer, config)
    batch = collate([Trajectory(p, s, [0.0] * len(s), True) for p, s in zip(prompts, solutions, strict=True)])
    with torch.no_grad():
        logprobs = response_logprobs(model, batch.input_ids, batch.attention_mask, batch.response_mask)
    ends = batch.attention_mask.sum(dim=1, keepdim=True) - 1
    return -masked_mean(logprobs, batch.response_mask).item(), logprobs.gather(1, ends).exp().mean().item()


def test_a_new_policy_learns_the_solutions_and_to_end_them(tmp_path, capsys):
    config = SFTConfig(steps=1, updates=60, batch_size=16, hidden=16, layers=1, lr=0.02)
    model, tokenizer, loss, lr = sft.imitate(config, tmp_path / "policy")
    nats, end = scores(model, tokenizer, config)
    assert 0 < loss < math.log(400) / 2 and nats < math.log(400) / 2 and end > 0.5 and lr == 0.02


def small_batch():
    """Responses of one to five random tokens."""
    generator = torch.Generator().manual_seed(0)
    responses = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in (1, 5, 2, 4)]
    return collate([Trajectory(p, r, [0.0] * len(r), True) for p, r in zip(ragged_prompts(4), responses, strict=True)])


def gradients(model, batch, micro_batch_tokens: int):
    """-> gradients, loss, as `sft` computes them"""
    model.zero_grad()
    config = SimpleNamespace(micro_batch_tokens=micro_batch_tokens, bf16=False)
    loss = sft._gradients(model, batch, config, torch.device("cpu"))
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss


def test_a_training_that_is_stopped_keeps_its_policy(tmp_path, monkeypatch, capsys):
    """After Ctrl-C hours of training were lost."""
    monkeypatch.chdir(tmp_path)
    exact, before = sft._gradients, []

    def stopped_in_the_third(model, *parts):
        before.append(copy.deepcopy(model.state_dict()))
        if len(before) == 3:
            raise KeyboardInterrupt
        return exact(model, *parts)

    monkeypatch.setattr(sft, "_gradients", stopped_in_the_third)
    assert main("sft --steps 2 --updates 9 --hidden 16 --layers 1 --out mine".split()) == commands.INTERRUPTED
    assert "stopped at update 2 of 9; policy: mine-stopped" in capsys.readouterr().out and not Path("mine").exists()
    monkeypatch.setattr(sft, "_gradients", exact)
    kept = load_policy("mine-stopped", torch.device("cpu"))[0].state_dict()
    assert all(torch.equal(x, kept[name]) for name, x in before[2].items())
    assert not all(torch.equal(x, kept[name]) for name, x in before[1].items())
    assert main("sft --steps 2 --updates 1 --model mine-stopped --eval_problems 2 --eval_samples 1 --out more".split()) == 0


def test_a_folder_that_is_a_link_or_that_is_taken_meanwhile_keeps_the_policy(tmp_path, monkeypatch):
    """The finished training was lost when the folder could not be renamed to the link."""
    monkeypatch.chdir(tmp_path)
    words = "sft --steps 2 --updates 1 --hidden 16 --layers 1 --eval_problems 2 --eval_samples 1 --out".split()
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    assert main([*words, "link"]) == 0 and Path("empty/model.safetensors").exists() and Path("link").is_symlink()
    made = commands.imitate

    def slowly(config, folder):
        found = made(config, folder)
        folder.mkdir()
        (folder / "of another command").touch()
        return found

    monkeypatch.setattr(commands, "imitate", slowly)
    assert main([*words, "taken"]) == 0 and Path("taken-2/model.safetensors").exists()


@pytest.mark.parametrize("scale, clipped", [(1.0, True), (1e-3, False)])
def test_gradients_are_those_of_the_mean_over_all_tokens_scaled_to_a_norm_of_1(scale, clipped, monkeypatch):
    model, batch, logprobs = tiny_model("llama").double(), small_batch(), response_logprobs
    monkeypatch.setattr(sft, "response_logprobs", lambda *inputs: scale * logprobs(*inputs))
    model.zero_grad()
    expected = -masked_mean(sft.response_logprobs(model, *vars(batch).values()), batch.response_mask)
    expected.backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (whole.norm() > 1) == clipped
    for tokens in (1, 10**6):
        found, loss = gradients(model, batch, tokens)
        assert loss == pytest.approx(expected.item())
        torch.testing.assert_close(found, whole / whole.norm() if clipped else whole, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(prompt="-{question}"),
        dict(task="decisive", steps=6, lr=0.003, hidden=16),  # arithmetic's number of steps by default
        dict(steps=2, min_steps=1, model="a folder's name", seed=3, eval_problems=0, error_rate=0.25, bf16=True),
        dict(task="jsonl", data="my data", prompt="It's {question}\n", chat=True, date="2025-01-31", max_new_tokens=512),
    ],
)
def test_the_command_on_the_card_makes_the_same_config(settings):
    config = SFTConfig(**settings)
    card = sft.model_card(config, 0.5, "pass@1 ...")
    command = card.partition("    python -m vine_mini sft ")[2].partition("\n\nThe loss")[0]
    assert parse(SFTConfig, "sft", shlex.split(command)) == config


def test_each_demonstration_is_drawn_with_the_error_rate(tmp_path, monkeypatch):
    rates, whole = [], tasks.demonstration
    monkeypatch.setattr(tasks, "demonstration", lambda task, p, rate, rng: rates.append(rate) or whole(task, p, rate, rng))
    sft.imitate(SFTConfig(steps=1, updates=2, batch_size=3, hidden=16, layers=1, error_rate=0.2), tmp_path / "policy")
    assert set(rates) == {0.2}


def test_the_card_gives_a_license_only_to_a_policy_from_scratch():
    """A policy that was trained from another one has the license of that one."""
    assert "license: mit\n---" in sft.model_card(SFTConfig(), 0.5, "")
    assert "license" not in sft.model_card(SFTConfig(model="meta-llama/Llama-3.2-1B"), 0.5, "")


LONG = """from vine_mini.tasks.arithmetic import ANSWER_MARK, DEFAULTS, TEMPLATE, extract_answer, problems, reward
def demonstration(problem, error_rate, rng):
    return 40 * "1+1=2\\n" + problem.solution
"""


def test_the_length_of_demonstrations_is_what_counts(tmp_path, monkeypatch, capsys):
    """It measured the solutions, and a policy learned responses that are always cut."""
    monkeypatch.chdir(tmp_path)
    Path("long.py").write_text(LONG)
    assert main("sft --task long.py --steps 2 --updates 1 --hidden 16 --layers 1 --out policy".split()) == 2
    assert "the longest demonstration has 2" in capsys.readouterr().err and not Path("policy").exists()


def test_a_training_that_an_error_ends_keeps_its_policy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gradients, done = sft._gradients, []

    def out_of_memory_in_the_third(model, *parts):
        done.append(1)
        if len(done) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients(model, *parts)

    monkeypatch.setattr(sft, "_gradients", out_of_memory_in_the_third)
    with pytest.raises(torch.OutOfMemoryError):
        sft.imitate(SFTConfig(updates=9, batch_size=2, hidden=16, layers=1, device="cpu"), Path("mine"))
    assert "stopped at update 2 of 9; policy: mine-stopped" in capsys.readouterr().out
    assert load_policy("mine-stopped", torch.device("cpu"))
