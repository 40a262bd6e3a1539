"""Does VinePPO still learn with less memory or in lower precision?

The ways are AdamW's moments in 8 bits (`--adam_8bit`), LoRA, and bfloat16 (`--bf16`) without and with importance weights.

    pip install 'bitsandbytes>=0.50' peft
    python -m benchmarks.levers --out results/speed/levers

Each way trains the shipped policy on chains of six steps, from the same seeds. The only change is the way, and with LoRA the
learning rate too. Peft puts adapters into all linear layers, and nothing else is trained.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import command, count, machine, mean_error, report, writable
from vine_mini.app.config import TrainConfig
from vine_mini.app.files import append_row, read_rows, write_rows
from vine_mini.app.flags import read_preset
from vine_mini.app.setup import build_trainer
from vine_mini.trainer import Trainer
from vine_mini.types import UserError

RANK = 16
WAYS = {
    "AdamW": {},
    "AdamW, moments in 8 bits": dict(adam_8bit=True),
    "LoRA": dict(lr=2e-4),
    "LoRA, learning rate x 5": dict(lr=1e-3),
    "LoRA, learning rate x 25": dict(lr=5e-3),
    "bfloat16": dict(bf16=True),
    "bfloat16, importance weights up to 2": dict(bf16=True, importance_cap=2.0),
}


def with_adapters(trainer: Trainer) -> Trainer:
    """A trainer of the same policy, of which only new adapters are trained. They start as zero."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA needs peft: pip install peft") from error
    policy = trainer.policy
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"), policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return Trainer(trainer.config, policy, trainer.tokenizer, trainer.train_problems, trainer.test_problems)


def learn(way: str, seed: int, iterations: int) -> dict:
    """One run. -> pass@1 on the test problems before and after, bytes of the moments, how far the sampler's log-probs are off"""
    torch.set_num_threads(1)
    torch.manual_seed(seed)  # of the adapters
    trainer = build_trainer(
        replace(TrainConfig(**read_preset("arithmetic") | WAYS[way]), seed=seed, iterations=iterations, device="cpu")
    )
    if way.startswith("LoRA"):
        trainer = with_adapters(trainer)
    before = trainer.evaluate(with_kl=False)["pass@1"][0]
    gaps = [metrics["sampler_gap"] for metrics, *_ in trainer.train()]
    states = trainer.optimizer.state.values()
    moments = {x.data_ptr(): x for state in states for name, x in state.items() if name != "step"}  # qmaps are shared
    held = sum(x.numel() * x.element_size() for x in moments.values())
    found = dict(before=before, after=trainer.evaluate(with_kl=False)["pass@1"][0], moments=held, gap=statistics.mean(gaps))
    return dict(way=way, seed=seed, iterations=iterations) | found


def main():
    """Makes the runs that OUT/runs.jsonl lacks, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=count, default=30)
    parser.add_argument("--out", type=writable, default=Path("runs/levers"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "runs.jsonl"
    runs = {(r["way"], r["seed"], r["iterations"]): r for r in read_rows(log)}
    write_rows(log, [*runs.values()])  # without a line that a crash has cut, to which the next one would be appended
    wanted = [(way, seed, args.iterations) for seed in args.seeds for way in WAYS]
    for job in tqdm([job for job in wanted if job not in runs], desc="runs", dynamic_ncols=True):
        try:
            runs[job] = learn(*job)
        except UserError as error:  # bitsandbytes or peft is not installed
            print(f"{job[0]} does not run here: {error}")
            continue
        append_row(log, runs[job])
    wanted = [job for job in wanted if job in runs]
    rows = [["way", "seeds", "test accuracy before, %", "after, %", "optimizer's moments, KiB", "sampler gap"]]
    for way in dict.fromkeys(job[0] for job in wanted):
        of = [runs[job] for job in wanted if job[0] == way]
        after = [100 * run["after"] for run in of]
        before = statistics.mean(100 * run["before"] for run in of)
        gap = statistics.mean(run["gap"] for run in of)
        row = [way, str(len(of)), f"{before:.1f}", mean_error(after), f"{of[0]['moments'] / 1024:.0f}"]
        rows.append([*row, f"{gap:.1e}"])
    report(args.out, "levers", machine("cpu", 1), rows, {"runs": [runs[job] for job in wanted]})


if __name__ == "__main__":
    command(main)
