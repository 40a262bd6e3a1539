"""The plan of an iteration on many GPUs, against hand-made numbers, measured times and the package's estimate of memory."""

import json
from statistics import mean, median

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl_runs import ROOT

from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.memory import estimate
from vine_mini.integrations.trl import __main__ as command
from vine_mini.integrations.trl import plan as plans
from vine_mini.integrations.trl.plan import Device, seconds, tokens


def test_the_tokens_of_the_plan_by_hand():
    """6 responses of 10 tokens in 4 steps. 10, 7.5, 5 and 2.5 tokens of a response come after the states before its steps."""
    config = TrainConfig(prompts=3, group=2, minibatch_size=6, k=3)
    assert tokens(config, response=10, steps=4) == (6 * 10, 6 * 3 * 25) and tokens(config, 10, 1) == (6 * 10, 6 * 3 * 10)


def test_the_plan_is_close_to_the_measured_iteration_of_one_device():
    """results/speed/train_step: random Llama, 16 x 4 responses of 64 tokens, 4 steps, K = 3. Its update gives the CPU's rate."""
    results = json.loads((ROOT / "results/speed/train_step/train_step.json").read_text())["results"]

    def seconds_of(phase, *algorithms):
        return mean(median(row["seconds"][phase] for row in results[f"{name}, vine_mini"]) for name in algorithms)

    sample, update = (seconds_of(phase, "GRPO", "VinePPO") for phase in ("sample", "update"))  # both algorithms do these alike
    rollouts = seconds_of("rollouts", "VinePPO")
    weights = 6 * (4 * 256**2 + 3 * 256 * 1024) + 2 * 512 * 256
    cpu = Device(flops=6 * weights * 64 * 96 / update, bandwidth=10e9, training=1.0, number=4)
    config = TrainConfig(prompts=16, group=4, k=3, epochs=1, kl_coef=0.0, sample_batch_size=64)
    planned = seconds(weights, 2 * 6 * 256 * 4, config, cpu, shape=(32, 64, 4))
    assert 1 / 1.5 < planned[0] / sample < 1.5 and 1 / 1.5 < planned[1] / rollouts < 1.5
    assert planned[2] == pytest.approx(update)  # one update, so nothing is scored; the CPU's rate was fitted to it


def test_the_memory_of_the_plan_on_one_device_is_that_of_the_package():
    """results/speed/memory compares `app.memory.estimate` with measured peaks. In bfloat16 both count a copy that samples."""
    config = TrainConfig(**read_preset("gsm8k-rho1b") | {"kl_coef": 0.0})
    for row in (row for row in plans.rows(config) if row.gpus == 1):
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**dict(num_attention_heads=32) | plans.SHAPES[row.model]))
        parts = estimate(model, config, plans.PROMPT)
        sampling = sum(size for name, size in parts.items() if name.startswith("sampling"))
        assert row.held + row.update == pytest.approx(sum(parts.values()) - parts["peak"] - sampling, rel=0.01)


def test_the_plan_names_its_assumptions_and_halves_with_the_gpus():
    text = plans.plan(command.TrlConfig(task="gsm8k", model="m", k=9, prompts=64, group=8))
    assert "TFLOP/s" in text and "does not fit" in text
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.split("\n")
        if line.startswith(("| 1B", "| 7B", "| 70B"))
    ]
    assert [row[1] for row in rows[:7]] == ["1", "2", "4", "8", "16", "32", "64"] and len(rows) == 21
    assert float(rows[0][6]) == pytest.approx(2 * float(rows[1][6]), rel=0.05)
    # 64 GPUs cannot write 200 tokens one after the other in less than the time of 200 steps: 2 bytes of each weight per step.
    fewest = 200 * 2 * 1.1e9 / 3.35e12 / 0.6
    assert float(rows[6][5]) >= round(fewest, 1) > 0.1
