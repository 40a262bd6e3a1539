"""An iteration beside TRL's: GRPO, and VinePPO with its Monte Carlo phase, on the same random Llama and the same shapes.

    python -m benchmarks.train_step --quick
    python -m benchmarks.train_step --trl PATH/TO/trl/bin/python --out results/speed/train_step

An iteration has 16 prompts of 32 tokens, 4 responses of exactly 64 tokens to each of them, and one update. The model has 6.6
million parameters in float32; AdamW updates them, without a KL. VinePPO samples K = 3 rollouts from each of 4 states of a
response. Each distinct state is rolled out once, so the responses to a prompt share the first one. TRL runs in an environment of
its own, made with `pip install trl`. Each way is a process of its own, because its peak memory is measured. The ways take turns.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import bars, count, json_from, machine, random_trainer, report, writable
from benchmarks.rollouts import random_llama

SHAPES = dict(prompts=16, group=4, prompt=32, response=64, step=16, k=3)


def one_step(algorithm: str, micro_batch_tokens: int, prompts: int, repeats: int, threads: int, bf16: bool) -> dict:
    """This package's seconds of each phase (medians) and its peak memory, measured in this process."""
    torch.set_num_threads(threads)
    model = random_llama(256, 6, 8, 8, 1024, 512)
    shapes = SHAPES | {"prompts": prompts}
    trainer = random_trainer(model, algorithm, shapes, iterations=repeats + 1, micro_batch_tokens=micro_batch_tokens, bf16=bf16)
    rows = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        metrics, _, _ = next(trainer.train())
        phases = {name.removeprefix("seconds_"): s for name, s in metrics.items() if name.startswith("seconds_")}
        rows.append(phases | {"total": time.perf_counter() - start})
    seconds = {phase: statistics.median(row[phase] for row in rows[1:]) for phase in rows[0]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    guard = {name: metrics[name] for name in ("first_ratio", "skipped", "sampler_gap") if name in metrics}
    return {"seconds": seconds, "peak_mb": peak, "guard": guard}


def trl_step(python: str, arguments: list[str], threads: int, repeats: int, limit: float | None = None) -> dict:
    """TRL's seconds of each phase and its peak memory, from `benchmarks/peer_trl.py`, within `limit` seconds."""
    script = str(Path(__file__).with_name("peer_trl.py"))
    call = [python, script, "--repeats", str(repeats), "--threads", str(threads), *arguments]
    return json_from(call, {"OMP_NUM_THREADS": str(threads)}, limit)


def trl_rollouts(python: str, model, limit: float) -> tuple[int, float]:
    """VinePPO's rollouts on TRL, K = 3, from a policy in bfloat16 on the device where the model is. -> new tokens, seconds"""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        on_gpu = ["--cuda"] * (model.device.type == "cuda")
        done = trl_step(python, ["--model", folder, "--rollouts", "3", "--no-gc", *on_gpu], 1, repeats=1, limit=limit)
    return done["rollout_tokens"], done["seconds"]["rollouts"]


def main():
    """Measures, prints a table, writes JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="the Python of an environment with TRL")
    parser.add_argument("--threads", type=count, default=1, help="threads of each process")
    parser.add_argument("--rounds", type=count, default=5, help="turns of each way")
    parser.add_argument("--repeats", type=count, default=1, help="measured iterations in a turn, after one to warm up")
    parser.add_argument("--bf16", action="store_true", help="also in bfloat16")
    parser.add_argument("--quick", action="store_true", help="one round of this package alone, with 4 prompts")
    parser.add_argument("--out", type=writable, help="folder for the table, its numbers and a picture")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        algorithm, tokens, prompts, bf16 = args.one
        print(json.dumps(one_step(algorithm, int(tokens), int(prompts), args.repeats, args.threads, bf16 == "1")))
        return
    if args.trl and not Path(args.trl).exists():
        parser.error(f"there is no {args.trl}")

    prompts = "4" if args.quick else str(SHAPES["prompts"])

    def ours(algorithm, tokens, bf16=False):
        base = [sys.executable, "-m", "benchmarks.train_step", "--repeats", str(args.repeats), "--threads", str(args.threads)]
        return json_from([*base, "--one", algorithm, str(tokens), prompts, str(int(bf16))])

    ways = {"GRPO, vine_mini": lambda: ours("grpo", 2048), "VinePPO, vine_mini": lambda: ours("vineppo", 2048)}
    if args.bf16:
        ways["VinePPO, vine_mini, bf16"] = lambda: ours("vineppo", 2048, True)
    if args.trl and not args.quick:
        settings = {"all at once": ["--no-gc"], "micro-batches of 16": ["--no-gc", "--micro", "16"], "checkpointing": []}
        for label, flags in settings.items():
            ways[f"GRPO, TRL, {label}"] = lambda flags=flags: trl_step(args.trl, flags, args.threads, args.repeats)
        for chunk in ("64", "512"):
            flags = ["--no-gc", "--rollouts", "3", "--chunk", chunk]
            label = f"VinePPO on TRL, batches of {chunk}"
            ways[label] = lambda flags=flags: trl_step(args.trl, flags, args.threads, args.repeats)
    rounds = 1 if args.quick else args.rounds
    results: dict[str, list] = {name: [] for name in ways}
    with tqdm(total=rounds * len(ways), desc="iterations") as bar:
        for _ in range(rounds):
            for name, way in ways.items():
                bar.set_postfix_str(name)
                results[name].append(way())
                bar.update()

    def median(name, phase):
        return statistics.median(r["seconds"].get(phase, 0.0) for r in results[name])

    def cell(name, phase):  # with the least and the most of the phases that the results compare
        seconds = [r["seconds"].get(phase, 0.0) for r in results[name]]
        ends = f" ({min(seconds):.2f}-{max(seconds):.2f})" if phase in ("rollouts", "total") else ""
        return f"{median(name, phase):.2f}{ends}"

    phases = ["sample", "rollouts", "update", "total"]
    table = [["", *(f"{phase}, s" for phase in phases), "peak, MB"]]
    for name in ways:
        peak = statistics.median(r["peak_mb"] for r in results[name])
        table.append([name, *(cell(name, phase) for phase in phases), f"{peak:,.0f}"])
    title = f"One iteration, medians of {rounds}, {machine('cpu', args.threads)}"
    if args.bf16:
        guard = results["VinePPO, vine_mini, bf16"][-1]["guard"]
        title += f". bfloat16: {', '.join(f'{name} {value:.4g}' for name, value in guard.items())}"
    report(args.out, "train_step", title, table, {"machine": machine("cpu", args.threads), "results": results})
    if args.out:
        totals = {kind: {n: median(n, "total") for n in ways if n.startswith(kind)} for kind in ("GRPO", "VinePPO")}
        bars(totals, args.out / "train_step.png", "One iteration", "seconds")


if __name__ == "__main__":
    main()
