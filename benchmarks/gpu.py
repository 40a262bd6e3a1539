"""What this project does on one large GPU, in five pieces. Nothing is downloaded.

    python -m benchmarks.gpu                  # every piece that results/gpu/gpu.json lacks for this machine
    python -m benchmarks.gpu --pieces a c     # these pieces again
    python -m benchmarks.gpu --cpu-rehearsal  # every piece made small, on a CPU, into runs/gpu-rehearsal

    a  the tests of sampler, log-probs, trainer and checkpoints, with their models on the GPU and real CUDA graphs
    b  rollouts of random weights in the shapes of two models, beside `generate`, TRL and vLLM where they are installed
    c  an iteration of both GSM8K presets by phase, and its peak memory beside the estimate
    d  a policy of 29 million parameters learns `decisive` from scratch; then VinePPO, GRPO and PPO train it for equal seconds
    e  `credit-cost` on the GPU and on one thread of the CPU of the same machine

Each piece is a process of its own with a log beside the table. It is stopped after nine minutes, and what it had measured until
then is kept. A piece that fails is one line of the table, and the next call tries it again. The exit code is then 1. Another
commit or another machine begins anew.
"""

import argparse
import copy
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks import rollouts as workloads
from benchmarks.common import bars, command, machine, random_trainer
from benchmarks.train_step import trl_rollouts
from vine_mini.app.config import SFTConfig, TrainConfig
from vine_mini.app.files import whole, write_text
from vine_mini.app.flags import read_preset
from vine_mini.app.memory import memory_estimate
from vine_mini.app.plots import plot_comparison
from vine_mini.app.setup import build_trainer
from vine_mini.app.sft import imitate
from vine_mini.app.tables import columns, one_line
from vine_mini.credit_cost.command import measure
from vine_mini.credit_cost.config import CreditCostConfig
from vine_mini.credit_cost.picture import plot_cost
from vine_mini.models import bfloat16_copy, save_policy
from vine_mini.sampling import fast
from vine_mini.types import UserError

ROOT = Path(__file__).parents[1]
RESULTS, REHEARSAL = ROOT / "results" / "gpu", ROOT / "runs" / "gpu-rehearsal"
LIMIT, PEER_LIMIT = 540, 120  # seconds of a piece, and of a peer in it
CORE_TESTS = ("tests/sampling/test_*.py", "tests/test_logprobs.py", "tests/test_trainer.py", "tests/app/test_checkpoint.py")
SMALL_TESTS = ("tests/sampling/test_gpu.py",)
MODELS = {  # preset -> the kind of its model; hidden size, layers, heads, heads of keys, inner size, vocabulary; head = embedding
    "gsm8k-qwen0.5b": (Qwen2ForCausalLM, Qwen2Config, (896, 24, 14, 2, 4864, 151_936), True),
    "gsm8k-rho1b": (LlamaForCausalLM, LlamaConfig, (2048, 22, 32, 4, 5632, 32_000), False),
}
EIGHT_BITS, RECORD = {"adam_8bit": True}, '{"record": '
SMALL_MODEL = (64, 2, 4, 2, 128, 512)


@dataclass(frozen=True)
class Place:
    """Where a piece runs and writes, and whether it is the rehearsal."""

    device: str
    out: Path
    small: bool

    def size(self, full, small):
        """The one of the two that belongs here."""
        return small if self.small else full


def tests(place: Place):
    """(a) The core of the test suite, a file at a time. Its slow tests are left out."""
    call = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k"]
    call += [place.size("not killed", "top_p_and_greedy or slots_in_a_group")]
    table, failed = {}, []
    for path in sorted(path for pattern in place.size(CORE_TESTS, SMALL_TESTS) for path in ROOT.glob(pattern)):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        done = subprocess.run([*call, str(path)], cwd=ROOT, env=os.environ | {"TEST_DEVICE": place.device}, **pipes)
        print(done.stdout, flush=True)
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["it ended without a word"]
        table[f"tests, {path.name}"] = lines[-1]
        named = [line.split()[1].rpartition("/")[2] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        failed += named or [path.name] * bool(done.returncode)
        yield {"table": table}
    if failed:
        raise RuntimeError(f"{len(failed)} failed: {', '.join(failed)}")


def _named(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)


def random_model(preset: str, place: Place):
    """Random weights in the shape of the preset's model, in float32."""
    kind, config, sizes, tied = MODELS[preset]
    names = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size".split()
    shape = dict(zip(names, place.size(sizes, SMALL_MODEL), strict=True)) | dict(max_position_embeddings=2048)
    torch.manual_seed(0)
    with torch.device(place.device):
        return kind(config(**shape, tie_word_embeddings=tied, pad_token_id=0, eos_token_id=1, bos_token_id=2)).eval()


def rollouts(place: Place):
    """(b) New tokens a second, and the share of both limits in `rollouts.limits`, which count all weights in bfloat16.

    This package samples as in training: in bfloat16, with a float32 head. TRL has a smaller workload of its own, see `peer_trl`.
    There are 64 responses, the paper has 512. So the capture of the graphs takes a larger part of the time than in training.
    """
    table, rates, limits = {}, {}, {}
    for preset in MODELS:
        model, slots = random_model(preset, place), place.size(512, 16)
        work = workloads.random_workload(bfloat16_copy(model), *place.size((64, 100, 150, 6, 9, 200), (4, 6, 9, 3, 2, 12)))
        plain = replace(work, model=copy.deepcopy(model).bfloat16())
        ours = partial(workloads.clocked, partial(workloads.ours, slots=slots), work)
        ways = {
            "vine_mini": ours,
            "vine_mini, no graphs": mock.patch.object(fast, "uses_graphs", lambda device: False)(ours),
            "generate": partial(workloads.clocked, partial(workloads.generate, rows=slots), plain),
            "TRL, smaller workload": partial(trl_rollouts, sys.executable, plain.model, PEER_LIMIT),
            "vLLM": partial(vllm, plain),
        }
        limits[preset], rates[preset] = workloads.limits(plain, place.device, slots), {}
        for name, way in ways.items():
            try:
                tokens, seconds = way()
            except Exception as error:  # a peer that is not installed must not hide the others' figures
                if name.startswith("vine_mini"):
                    raise
                found = f"does not run here: {_named(error)}"
            else:
                rates[preset][name] = rate = tokens / seconds
                shares = [f"{100 * rate / limit:.0f} % of the limit of {what}" for what, limit in limits[preset].items()]
                found = ", ".join([f"{rate:,.0f} tokens/s", *([] if name.startswith("TRL") else shares)])
            table[f"rollouts, {preset}, {name}"] = found
            bars(rates, place.out / "rollouts.png", "Rollouts of random weights", "new tokens a second")
            yield {"table": table, "data": {"limits": limits, "rates": rates}}


def vllm(work) -> tuple[int, float]:
    """vLLM, by its own clock, after a call that warms up. -> new tokens, seconds"""
    peer = workloads.Vllm(sys.executable, work, 1, "bfloat16", compiled=True, limit=PEER_LIMIT)
    try:
        peer()
        return peer()
    finally:
        peer.close()


def iteration(place: Place):
    """(c) One iteration of each preset, with its settings but random prompts of 100 tokens and responses of 256.

    Random weights never end a response, and few real ones are as long as the presets' limits. The second iteration is measured.
    """
    data, table = {}, {}
    runs = [*((name, name, "vineppo", {}) for name in MODELS), ("gsm8k-rho1b, ppo", "gsm8k-rho1b", "ppo", {})]
    for name, preset, algorithm, changes in [*runs, ("gsm8k-rho1b, adam_8bit", "gsm8k-rho1b", "vineppo", EIGHT_BITS)]:
        try:
            data[name] = found = phases_and_memory(preset, algorithm, changes, place)
        except (UserError, torch.OutOfMemoryError) as error:  # without bitsandbytes, or on a small GPU
            table[f"an iteration, {name}"] = f"does not run here: {_named(error)}"
            continue
        phases = ", ".join(f"{phase} {s:.2f} s" for phase, s in found["seconds"].items())
        table[f"an iteration, {name}"] = f"{phases}; sampling: {found['sampling']}; skipped updates: {found['skipped']:.0%}"
        held, reserved, estimate = found["peak_gib"], found["reserved_gib"], found["estimate_gib"]
        measured = "not measured on a CPU"
        if held is not None:
            measured = f"{held:.1f} GiB, {held / estimate:.2f} of the estimate; {reserved:.1f} GiB with what PyTorch keeps"
        table[f"peak memory at these lengths, {name}"] = f"{measured}; estimate {estimate:.3g} GiB"
        seconds = {name: {"total": sum(found["seconds"].values())} | found["seconds"] for name, found in data.items()}
        if algorithm == "ppo" and preset in seconds:
            table["VinePPO's iteration / PPO's, gsm8k-rho1b"] = f"{seconds[preset]['total'] / seconds[name]['total']:.2f}"
        bars(seconds, place.out / "iteration.png", "One iteration, random weights", "seconds")
        yield {"table": table, "data": data}
    yield {"table": table, "data": data}


def phases_and_memory(name: str, algorithm: str, changes: dict, place: Place) -> dict:
    """The second iteration of a preset: seconds of each phase, and in GiB the peak that PyTorch allocated and its estimate."""
    gc.collect()
    torch.cuda.empty_cache()
    preset = read_preset(name)
    shapes = dict(prompts=preset["prompts"], group=preset["group"], prompt=100, response=256, step=40, k=preset["k"])
    shapes = place.size(shapes, dict(prompts=2, group=2, prompt=6, response=8, step=4, k=2))
    own = (*shapes, "algorithm", "task", "model", "prompt", "chat", "max_new_tokens", "iterations")
    changes = {field: value for field, value in preset.items() if field not in own} | changes
    changes |= place.size({}, dict(minibatch_size=2, sample_batch_size=8))
    on_gpu = place.device == "cuda"
    trainer = random_trainer(random_model(name, place), algorithm, shapes, iterations=2, **changes)
    iterations = trainer.train()
    next(iterations)  # now the moments exist, and everything is warm
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    [(metrics, _, _)] = iterations
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    reserved = torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None
    seconds = {key.removeprefix("seconds_"): s for key, s in metrics.items() if key.startswith("seconds_")}
    found = dict(seconds=seconds, shapes=shapes, sampling=metrics["sampling"], skipped=metrics["skipped"])
    return found | dict(peak_gib=peak, reserved_gib=reserved, estimate_gib=memory_estimate(trainer)["peak"] / 2**30)


def decisive(place: Place, kind, **changes):
    """A configuration of the task of (d) and (e)."""
    return kind(**read_preset("decisive") | place.size({}, dict(prompts=2, group=4, minibatch_size=8)) | changes)


def start_policy(place: Place) -> str:
    """The folder of a policy that imitates demonstrations with mistakes. It is made where it is not there."""
    folder = place.size(ROOT / "runs" / "gpu-policy", place.out / "policy")
    if not folder.is_dir():
        new = dict(hidden=768, layers=6, updates=2000, lr=5e-4, bf16=True)
        small = dict(model="decisive", updates=2, lr=1e-5, batch_size=4)  # a new policy would get nothing right so soon
        task = dict(task="decisive", steps=12, max_new_tokens=140, error_rate=0.5, device=place.device)
        model, tokenizer, *_ = imitate(SFTConfig(**task, **place.size(new, small)), folder)
        with whole(folder) as fresh:
            save_policy(model, tokenizer, fresh)
    return str(folder)


def learning(place: Place):
    """(d) One run of each algorithm, all with the same settings: a picture, not a comparison with error bars."""
    policy, runs, table = start_policy(place), {}, {}
    large = dict(prompts=64, group=8, minibatch_size=128, lr=3e-5, max_seconds=60)
    size = place.size(large, dict(max_seconds=1.5, eval_problems=8)) | dict(model=policy, iterations=100_000)
    next(build_trainer(decisive(place, TrainConfig, device=place.device, algorithm="ppo", **size)).train())  # the first is slower
    for name in ("vineppo", "grpo", "ppo"):
        trainer = build_trainer(decisive(place, TrainConfig, device=place.device, algorithm=name, **size))
        before = {"episodes": 0, "seconds": 0.0, "eval": trainer.evaluate(with_kl=False)}
        rows = [before, *(metrics for metrics, _, _ in trainer.train())]
        rows[-1]["eval"] = trainer.evaluate()
        runs[name], start, (mean, error) = rows, before["eval"]["pass@1"], rows[-1]["eval"]["pass@1"]
        text = f"{100 * mean:.1f} ± {100 * error:.1f} %, {len(rows) - 1} iterations, {rows[-1]['episodes']:,} episodes"
        table[f"accuracy after {size['max_seconds']} s of {name}"] = text
        parameters = f"{trainer.policy.num_parameters() / 1e6:.1f} million parameters"
        table[f"accuracy at the start, {parameters}"] = f"{100 * start[0]:.1f} ± {100 * start[1]:.1f} %"
        plot_comparison(runs, place.out / "learning.png", f"{parameters}, {size['max_seconds']} s of training each, one run")
        yield {"table": table, "data": runs}


def credit_cost(place: Place):
    """(e) What `credit-cost` advises for the shipped policy on CPU and GPU, and for the policy of (d)."""
    torch.set_num_threads(1)  # the shipped policy is too small for more
    size = place.size(dict(ks=[1, 3, 9]), dict(problems=4, pool=6, ks=[1, 3]))
    large, table, data = start_policy(place), {"CPU": machine("cpu", 1)}, {}
    policies = {"shipped-on-cpu": (None, "cpu"), "shipped": (None, place.device), "policy-of-d": (large, place.device)}
    for name, (policy, device) in policies.items():
        found = measure(decisive(place, CreditCostConfig, model=policy, device=device, **size))
        plot_cost(found, place.out / f"credit-cost-{name}.png")
        table[f"credit-cost, {name}"], data[name] = found.advice, asdict(found)
        yield {"table": table, "data": data}


PIECES = {"a": tests, "b": rollouts, "c": iteration, "d": learning, "e": credit_cost}


def in_process(name: str, place: Place) -> dict:
    """The record of a piece from a process of its own: `table` and `data`, and an `error` of one line if it did not end well."""
    call = [sys.executable, "-m", "benchmarks.gpu", "--one", name, "--out", str(place.out), *place.size([], ["--cpu-rehearsal"])]
    log, start, error = place.out / f"{name}.log", time.perf_counter(), {}
    with log.open("w", encoding="utf-8") as file, log.with_suffix(".errors.log").open("w", encoding="utf-8") as errors:
        child = subprocess.Popen(call, stdout=file, stderr=errors, start_new_session=True)
        try:
            if code := child.wait(LIMIT):
                error = {"error": f"its process ended with exit code {code}"}
        except subprocess.TimeoutExpired:
            error = {"error": f"stopped after {LIMIT} s"}
        finally:
            with suppress(ProcessLookupError):  # its peers too
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith(RECORD)]
    found: dict = {"table": {}}
    for record in records:  # later ones hold what the earlier ones held
        found |= record["record"]
    return found | error | {"machine": where(place), "seconds": time.perf_counter() - start}


def where(place: Place) -> str:
    """Machine, versions and commit."""
    call = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(call, cwd=ROOT, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return f"{machine(place.device, 1)}, commit {commit or 'unknown'}"


def write(records: dict, place: Place) -> str:
    """Writes gpu.md and gpu.json. -> the table"""
    table = [["piece", "what", "measured"]]
    for name, record in sorted(records.items()):
        lines = record["table"] | ({"does not end well": record["error"]} if "error" in record else {})
        table += [[name, what, text] for what, text in lines.items()] + [[name, "seconds in all", f"{record['seconds']:.0f}"]]
    text = f"{place.size('', 'A rehearsal on a CPU, whose figures mean nothing. ')}{where(place)}\n\n{columns(table)}\n"
    write_text(place.out / "gpu.md", text)
    write_text(place.out / "gpu.json", json.dumps({"machine": where(place), "pieces": records}, indent=1))
    return text


def main() -> int:
    """Runs the pieces that are asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", nargs="+", choices=PIECES, help="left out: those that are missing")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="every piece made small, on a CPU")
    parser.add_argument("--out", type=Path, help="folder for JSON, table and pictures")
    parser.add_argument("--one", choices=PIECES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    small = args.cpu_rehearsal
    if not small and not torch.cuda.is_available():
        raise UserError("there is no CUDA here: run this on a machine with a GPU, or add --cpu-rehearsal")
    place = Place("cpu" if small else "cuda", args.out or (REHEARSAL if small else RESULTS), small)
    if small and RESULTS in (place.out.resolve(), *place.out.resolve().parents):
        raise UserError("results/gpu is for figures of a GPU: give the rehearsal another --out")
    place.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        try:
            for record in PIECES[args.one](place):
                print(json.dumps({"record": record}), flush=True)
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"record": {"error": _named(error)}}), flush=True)
        return 0
    path, here = place.out / "gpu.json", where(place)
    known = json.loads(path.read_text(encoding="utf-8"))["pieces"] if path.exists() and not small else {}
    records = {name: record for name, record in known.items() if record["machine"] == here}
    wanted = args.pieces or [name for name in PIECES if "error" in records.get(name, {"error": ""})]
    for name in wanted:
        print(f"piece {name}: {PIECES[name].__doc__.splitlines()[0]}", flush=True)
        records[name] = in_process(name, place)
        write(records, place)
    print(f"\n{write(records, place)}\ntable, JSON and pictures: {place.out}")
    return int(any("error" in records[name] for name in wanted))


if __name__ == "__main__":
    command(main)
