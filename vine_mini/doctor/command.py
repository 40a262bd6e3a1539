"""The `doctor` command: what the machine has, how it samples the policy, how fast, in how much memory, and which presets fit."""

import os
import platform
import time
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from vine_mini import models
from vine_mini.app.config import TrainConfig
from vine_mini.app.fields import Seconds, knob
from vine_mini.app.flags import PRESETS, read_preset
from vine_mini.app.memory import estimate, format_memory, memory_estimate
from vine_mini.app.setup import build_trainer, policy_name
from vine_mini.hardware import memory
from vine_mini.sampling import sample, way
from vine_mini.sampling.fast.graphs import uses_graphs
from vine_mini.types import UserError

PROMPT = 300  # tokens of the longest prompt, which the estimates of the presets assume


@dataclass
class DoctorConfig(TrainConfig):
    """Say what this machine has, how it samples your policy, how fast, in how much memory, and which presets fit."""

    seconds: Seconds = knob(10.0, "Length of the measurement of speed.")

    def __post_init__(self):
        super().__post_init__()
        if self.out or self.resume:
            raise UserError("doctor writes and resumes no run: leave out --out and --resume (--preset RUN/config.yaml reads one)")


def doctor(config: DoctorConfig) -> int:
    """The `doctor` command."""
    device = models.pick_device(config.device)
    print("\n".join(facts_of(device)))
    trainer = build_trainer(config)
    print(f"policy: {policy_name(config)}, {trainer.policy.num_parameters():,} parameters")
    taken = way(trainer.sampler())
    graphs = " with CUDA graphs" if taken == "fast" and uses_graphs(device) else ""
    print(f"measuring speed for {config.seconds:g} s", flush=True)
    print(f"sampling: {taken}{graphs}; {speed(trainer, config.seconds):,.0f} tokens/s")
    print(format_memory(memory_estimate(trainer)))
    online = hub_answers()
    for path in sorted(PRESETS.glob("*.yaml")):
        print(f"preset {path.stem}: {fits(path.stem, device, online)}")
    return 0


def facts_of(device) -> list[str]:
    """Lines about versions, the CPU, the GPU and memory."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.is_file() else []
    bf16 = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if name in flags]
    lines = [
        f"versions: Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}",
        f"CPU: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 units: {', '.join(bf16) or 'none found'}",
        "GPU: none",
    ]
    if device.type == "cuda":
        half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        lines[-1] = f"GPU: {torch.cuda.get_device_name(device)}, {half}"
    return [*lines, f"memory of {device.type}: {memory(device) / 2**30:.1f} GiB"]


def speed(trainer, seconds: float) -> float:
    """New tokens a second of responses to the training problems. Batches double, up to a whole iteration; the last one counts."""
    prompts = [prompt for prompt in trainer.prompts[: trainer.config.prompts] for _ in range(trainer.config.group)]
    sampler, n, begin = trainer.sampler(), 1, time.perf_counter()
    sample(sampler, prompts[:1], trainer.sampling, seed=0)  # warms up
    while True:
        start = time.perf_counter()
        tokens = sum(len(t.response_ids) for t in sample(sampler, prompts[:n], trainer.sampling, seed=n))
        taken = time.perf_counter() - start
        if time.perf_counter() - begin + 2 * taken > seconds:  # the next batch might take twice as long
            return tokens / taken
        n = min(2 * n, len(prompts))


def hub_answers() -> bool:
    """Whether the Hub can be reached. Its client would try again for half a minute, for every file."""
    try:
        urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=3).close()
    except (OSError, ValueError, HTTPException) as error:
        return isinstance(error, HTTPError)  # it answers, though not with a page
    return True


def fits(preset: str, device, online: bool) -> str:
    """Whether the estimate of a preset is below the device's memory, in words. Only the configuration of its model is read."""
    config = TrainConfig(**read_preset(preset))
    try:
        shapes = AutoConfig.from_pretrained(policy_name(config), local_files_only=not online)
    except Exception as error:  # the Hub client has many kinds
        return f"unknown, because the configuration of {config.model} cannot be read ({type(error).__name__})"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes)
    low = replace(config, micro_batch_tokens=1, sample_batch_size=64, gradient_checkpointing=True)
    need, least = (estimate(model, settings, PROMPT, device)["peak"] for settings in (config, low))
    if need < memory(device):
        return f"fits: {need / 2**30:.1f} GiB with prompts of {PROMPT} tokens"
    lower = "--micro_batch_tokens 1 --sample_batch_size 64 --gradient_checkpointing"
    return f"does not fit: {need / 2**30:.1f} GiB with prompts of {PROMPT} tokens, {least / 2**30:.1f} GiB with {lower}"
