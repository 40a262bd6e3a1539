"""The doctor says what the machine has, which way sampling takes, and which presets fit."""

from types import SimpleNamespace
from urllib.error import HTTPError

import pytest
import torch
from transformers import LlamaConfig

from vine_mini.cli import main
from vine_mini.doctor import command
from vine_mini.types import UserError


@pytest.mark.slow
def test_the_whole_command(capsys, monkeypatch):
    monkeypatch.setattr(command, "hub_answers", lambda: False)
    small = "--seconds 0.1 --prompts 2 --group 2 --minibatch_size 4 --device cpu".split()
    assert main(["doctor", *small]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out and "CPU: " in out and "GPU: none" in out and "memory of cpu: " in out
    assert "sampling: fast; " in out and " tokens/s" in out and "memory estimate: " in out
    assert "preset arithmetic: fits" in out and "preset gsm8k-qwen0.5b: " in out


def test_what_is_not_there_is_one_line(capsys):
    assert main(["doctor", "--model", "./no/such/folder"]) == 2
    assert capsys.readouterr().err == "vine_mini doctor: no model folder no/such/folder\n"


@pytest.mark.parametrize("flag", ["out", "resume"])
def test_no_run_is_written_or_resumed(flag):
    with pytest.raises(UserError, match="doctor writes and resumes no run: leave out --out and --resume"):
        command.DoctorConfig(**{flag: "run"})


def test_a_preset_fits_or_says_what_to_lower(monkeypatch):
    def fits(preset, room, kind="cpu"):
        monkeypatch.setattr(command, "memory", lambda device: room)
        return command.fits(preset, torch.device(kind), True)

    assert fits("arithmetic", 1 << 34).startswith("fits: ")
    shapes = dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4)
    monkeypatch.setattr(command.AutoConfig, "from_pretrained", lambda name, **how: LlamaConfig(**shapes, vocab_size=32000))
    said = fits("gsm8k-rho1b", 80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    on_gpu = fits("gsm8k-rho1b", 80 << 30, "cuda")  # the shapes are on no device, but the estimate is the GPU's
    assert said.startswith("fits: ") and on_gpu.startswith("fits: ") and float(on_gpu.split()[1]) > float(said.split()[1])
    said = fits("gsm8k-rho1b", 8 << 30)
    assert said.startswith("does not fit: ") and "--sample_batch_size 64" in said

    def offline(name, **how):
        raise OSError("no network")

    monkeypatch.setattr(command.AutoConfig, "from_pretrained", offline)
    assert fits("gsm8k-rho1b", 80 << 30) == (
        "unknown, because the configuration of realtreetune/rho-1b-sft-GSM8K cannot be read (OSError)"
    )


def test_a_hub_that_cannot_be_reached_is_asked_once_and_its_client_not_at_all(monkeypatch):
    """The client of the Hub would try again for half a minute, for every file."""
    for error, answers in ((OSError("no network"), False), (HTTPError("", 404, "", None, None), True)):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(command, "urlopen", fails)
        assert command.hub_answers() == answers
    asked = []
    monkeypatch.setattr(
        command.AutoConfig, "from_pretrained", lambda name, local_files_only: asked.append(local_files_only) or 1 / 0
    )
    command.fits("gsm8k-rho1b", torch.device("cpu"), False)
    command.fits("gsm8k-rho1b", torch.device("cpu"), True)
    assert asked == [True, False]


def test_a_gpu_is_described(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 << 30))
    lines = command.facts_of(torch.device("cuda"))
    assert lines[2:] == ["GPU: Some GPU, bfloat16", "memory of cuda: 24.0 GiB"]
