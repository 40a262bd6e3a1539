"""What an iteration of VinePPO would take on 1 to 64 GPUs: tokens, seconds and memory, counted from shapes and assumptions.

The assumptions are the constants of this file. Reading prompts and prefixes for sampling takes no time. Arithmetic and memory
each take seconds, and the slower of the two counts. Communication and waiting take none.
"""

from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vine_mini.app.memory import estimate
from vine_mini.app.tables import columns


class Device(NamedTuple):
    """What one device does. The defaults are an H100's data sheet, with the shares of it that well-tuned engines reach."""

    memory: float = 80e9  # bytes
    flops: float = 989e12  # operations a second in dense bfloat16
    bandwidth: float = 3.35e12  # bytes a second from its memory
    training: float = 0.4  # share of `flops` that updates and scoring reach
    decoding: float = 0.6  # share of `bandwidth` and `flops` that sampling reaches
    number: int = 2  # bytes of a number in a matrix product


GPU = Device()
RESPONSE, STEPS, PROMPT = 200, 5, 100  # tokens of a response, its steps, tokens of a prompt: guesses, as in tutorial 14
SHAPES: dict[str, dict[str, Any]] = {  # TinyLlama 1.1B, DeepSeek 7B, Llama 3 70B
    "1B": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_key_value_heads=4),
    "7B": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=30, vocab_size=102400),
    "70B": dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)
    | dict(vocab_size=128256),
}


def tokens(config, response: int = RESPONSE, steps: int = STEPS) -> tuple[float, float]:
    """(tokens of responses, tokens of rollouts). Step i of n leaves (n - i) / n of a response to roll out."""
    sampled = config.prompts * config.group * response
    return sampled, sampled * config.k * (steps + 1) / 2


def seconds(weights, cached, config, device=GPU, *, gpus=1, engine=1, batch=None, shape=(PROMPT, RESPONSE, STEPS)):
    """Seconds of an iteration: (responses, rollouts, scoring and updates).

    Args:
        weights, cached: parameters of the policy; bytes of the keys and values of a token.
        engine, batch: GPUs that hold one copy of the policy for sampling; responses that they decode at once.
        shape: tokens of a prompt, tokens of a response, steps.
    """
    prompt, response, steps = shape
    episodes, most = config.prompts * config.group, batch or config.sample_batch_size

    def sampling(requests: int, n: float) -> float:
        """n tokens of so many responses. The batch of an engine is full, or holds its share of them all."""
        batch = min(most, max(1.0, requests * engine / gpus))
        moved = weights * device.number + batch * cached * (prompt + response / 2)  # bytes of a decoding step
        step = max(moved / device.bandwidth, 2 * weights * batch / device.flops) / device.decoding / engine
        return max(n / batch * step * engine / gpus, response * step)  # one token after the other

    sampled, rolled = tokens(config, response, steps)
    old, reference = config.epochs * episodes > config.minibatch_size, config.kl_coef > 0  # old log-probs, unless one update
    passes = (8 if config.gradient_checkpointing else 6) * config.epochs + 2 * (old + reference)
    updates = passes * weights * episodes * (prompt + response) / gpus / device.flops / device.training
    return sampling(episodes, sampled), sampling(episodes * steps * config.k, rolled), updates


class Row(NamedTuple):
    """The plan of one model on so many GPUs."""

    model: str
    gpus: int
    held: float  # bytes on a GPU, in the whole iteration
    update: float  # bytes of an update's activations
    batch: int  # responses that one engine decodes at once
    times: tuple[float, ...]  # seconds of responses, rollouts and updates; empty where the model does not fit


def rows(config, device=GPU) -> list[Row]:
    """Each model of `SHAPES` on 1 to 64 GPUs."""
    found = []
    for name, shape in SHAPES.items():
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**dict(num_attention_heads=32) | shape))
        weights, c = sum(p.numel() for p in model.parameters()), model.config
        cached = 2 * c.num_hidden_layers * c.num_key_value_heads * c.hidden_size // c.num_attention_heads * device.number
        update = estimate(model, config, PROMPT)["update: activations"]
        smallest = next(n for n in (1, 2, 4, 8) if weights * device.number / n < device.memory / 3)
        for gpus in (1, 2, 4, 8, 16, 32, 64):
            engine = min(smallest, gpus)
            held = weights * ((16 + 4 * (config.kl_coef > 0)) / gpus + device.number / engine)
            free = engine * (device.memory - held) / cached / (PROMPT + config.max_new_tokens)
            batch = int(min(config.sample_batch_size, max(0, free)))
            fits = engine == smallest and batch >= 1 and held + update <= device.memory
            times = seconds(weights, cached, config, device, gpus=gpus, engine=engine, batch=batch) if fits else ()
            found.append(Row(name, gpus, held, update, batch, times))
    return found


def plan(config, device=GPU) -> str:
    """The table of `--plan`, with its assumptions."""
    table = [["model", "GPUs", "GiB held", "GiB update", "batch", "sample, s", "rollouts, s", "update, s", "total, s"]]
    for row in rows(config, device):
        times = [f"{t:,.1f}" for t in (*row.times, sum(row.times))] if row.times else ["", "", "", "does not fit"]
        sizes = [f"{size / 2**30:,.1f}" for size in (row.held, row.update)]
        table.append([row.model, str(row.gpus), *sizes, str(row.batch), *times])
    sampled, rolled = tokens(config)
    return "\n".join(
        [
            f"an iteration: {sampled:,.0f} tokens of responses, at most {rolled:,.0f} of rollouts (K = {config.k})",
            f"assumed: prompts of {PROMPT} tokens, responses of {RESPONSE} in {STEPS} steps, no equal states",
            f"a GPU: {device.memory / 1e9:.0f} GB, {device.flops / 1e12:.0f} TFLOP/s, {device.bandwidth / 1e12:.2f} TB/s; "
            f"{device.training:.0%} of that in updates, {device.decoding:.0%} in sampling; no time for communication",
            "held: float32 weights, gradients, AdamW and reference on all GPUs together; bfloat16 weights on each engine",
            "not counted: memory of the host; an engine of several GPUs needs a vLLM server, which this command does not start",
            f"update: activations of {config.micro_batch_tokens} tokens; batch: responses that one engine decodes at once",
            columns(table),
        ]
    )
