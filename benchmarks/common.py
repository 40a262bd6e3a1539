"""What the benchmarks share: the machine in words, child processes, repeats, measured rates, a trainer, tables, pictures."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from vine_mini.app.config import TrainConfig
from vine_mini.app.files import check_writable
from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.app.tables import columns
from vine_mini.decoder.model import word_tokenizer
from vine_mini.trainer import Trainer
from vine_mini.types import Problem, UserError


def command(main) -> None:
    """Runs a benchmark. A mistake that the user can correct is one line and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def count(text: str) -> int:
    """The type of an argument that is at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1")
    return int(text)


def writable(text: str) -> Path:
    """The type of --out: a folder that can be made, or that may be written to."""
    try:
        check_writable(Path(text) / "x")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def machine(device: str, threads: int) -> str:
    """What the numbers were measured on."""
    name = platform.machine()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    where = name if device == "cuda" else f"{name}, {threads} thread{'s' * (threads > 1)}"
    return f"{where}, torch {torch.__version__}, transformers {transformers.__version__}"


def json_from(call: list[str], environment: dict[str, str] | None = None, limit: float | None = None):
    """The JSON in the last line that a process prints. Raises RuntimeError with the last line of its errors, or without JSON."""
    variables = os.environ | (environment or {})
    done = subprocess.run(call, capture_output=True, text=True, env=variables, timeout=limit, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"it ended with exit code {done.returncode}").splitlines()[-1])
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise RuntimeError("the last line that it printed is not JSON") from error


def synchronize(device: str) -> None:
    """Waits for the GPU, if there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def alternate(ways: dict, repeats: int, title: str) -> dict[str, list]:
    """Calls every way once to warm up, then all of them in turn, `repeats` times. -> name -> what it returned each time

    A way that raises is left out, with its reason in one line.
    """
    results: dict[str, list] = {name: [] for name in ways}
    with tqdm(total=len(ways) * (repeats + 1), desc=title, leave=False) as bar:
        for repeat in range(repeats + 1):
            for name in list(results):
                bar.set_postfix_str(name)
                try:
                    value = ways[name]()
                except Exception as error:  # a peer that cannot run this must not hide the others' figures
                    bar.write(f"{name} does not run here: {' '.join(str(error).split())[:200]}")
                    del results[name]
                    continue
                if repeat:
                    results[name].append(value)
                bar.update()
    return results


def timed(function, device: str = "cpu"):
    """-> seconds, what the function returned"""
    synchronize(device)
    start = time.perf_counter()
    value = function()
    synchronize(device)
    return time.perf_counter() - start, value


def gemm_rate(hidden: int, inner: int, dtype, device: str, rows: int = 256) -> float:
    """Floating point operations a second of the matrix product [rows, hidden] x [hidden, inner], the median of 30."""
    x, w = torch.randn(rows, hidden, dtype=dtype, device=device), torch.randn(inner, hidden, dtype=dtype, device=device)
    n = 10 if device == "cpu" else 200  # enough to hide the first launches on a GPU
    seconds = [timed(lambda: [x @ w.T for _ in range(n)], device)[0] / n for _ in range(31)][1:]
    return 2 * rows * hidden * inner / statistics.median(seconds)


def bandwidth(device: str) -> float:
    """Bytes a second that a copy of 256 MiB reads and writes."""
    x = torch.empty(1 << 26, device=device)
    y = torch.empty_like(x)
    seconds = [timed(lambda: [y.copy_(x) for _ in range(20)], device)[0] / 20 for _ in range(9)][1:]
    return 2 * 4 * x.numel() / statistics.median(seconds)


def random_trainer(model, algorithm: str, shapes: dict, **changes) -> Trainer:
    """A trainer of any model on random prompts. Every response has full length, because no response ends by itself.

    A response that the length limit cuts has reward 0. So all rewards are 0 here. Times and memory do not depend on them.

    Args:
        model: a causal LM. Its own end-of-sequence token is taken from its generation config.
        shapes: prompts in an iteration, group, tokens of a prompt, of a response and of a step, k.
        changes: other fields of the config.
    """
    rows, vocab = shapes["prompts"] * shapes["group"], model.config.vocab_size
    config = dict(
        algorithm=algorithm, prompts=shapes["prompts"], group=shapes["group"], k=shapes["k"], step_tokens=shapes["step"]
    )
    config |= dict(max_new_tokens=shapes["response"], minibatch_size=rows, epochs=1, kl_coef=0.0, lr=1e-5, prompt="{question}")
    config = TrainConfig(**config | dict(eval_problems=1, eval_samples=1) | changes)
    tokenizer = word_tokenizer({"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(3, vocab)}, r"\S+")
    model.generation_config.eos_token_id = None
    size = (shapes["prompts"] * config.iterations, shapes["prompt"])
    ids = torch.randint(3, vocab, size, generator=torch.Generator().manual_seed(0)).tolist()
    problems = [Problem(" ".join(f"w{i}" for i in row), "", "") for row in ids]
    trainer = Trainer(config, model, tokenizer, problems, problems[:1])
    trainer.sampling = replace(trainer.sampling, eos_token_id=(-1,))  # no token ends a response
    return trainer


def median_span(values: list[float]) -> str:
    """The median, and how far apart the repeats were."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def mean_error(values: list[float]) -> str:
    """The mean and its standard error, which a single value has not."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{error}"


def report(out: Path | None, name: str, title: str, rows: list[list[str]], data: dict) -> None:
    """Prints a Markdown table; with `out` also writes it and the data to NAME.md and NAME.json."""
    text = f"{title}\n\n{columns(rows)}\n"
    print(f"\n{text}", flush=True)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.md").write_text(text, encoding="utf-8")
        (out / f"{name}.json").write_text(json.dumps(data, indent=1), encoding="utf-8")


def bars(groups: dict[str, dict[str, float]], path: Path, title: str, label: str) -> None:
    """A picture with a panel of horizontal bars for each group. The first bar of each panel is this package."""
    figure, axes = new_figure(len(groups))
    for axis, (name, values) in zip(axes[0], groups.items(), strict=True):
        ways = list(values)[::-1]
        colours = [COLOURS["vineppo"] if way == next(iter(values)) else "0.7" for way in ways]
        drawn = axis.barh(ways, [values[way] for way in ways], color=colours)
        axis.bar_label(drawn, [f"{values[way]:,.3g}" if values[way] < 100 else f"{values[way]:,.0f}" for way in ways], padding=3)
        axis.set(title=name, xlabel=label)
        axis.margins(x=0.2)
    figure.suptitle(title)
    save_figure(figure, path)
