"""Peak memory of one iteration of each algorithm, beside the estimate that is printed before a run.

    python -m benchmarks.memory --quick
    python -m benchmarks.memory --out results/speed

A random Llama of 6.6 million parameters, 16 prompts of 32 tokens, 4 responses of 64, with fewer and fewer tokens in a forward
pass and responses decoded at once. Each setting is a process of its own; Python, torch and data are subtracted.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm


def peak(algorithm: str, tokens: int, slots: int) -> dict:
    """Peak and estimate in MB, measured in this very process."""
    import torch

    from benchmarks.common import random_trainer
    from benchmarks.rollouts import random_llama
    from benchmarks.train_step import SHAPES
    from vine_mini.app.memory import memory_estimate

    torch.set_num_threads(1)
    model = random_llama(256, 6, 8, 8, 1024, 512)
    changes = dict(iterations=2, micro_batch_tokens=tokens, sample_batch_size=slots)
    trainer = random_trainer(model, algorithm, SHAPES, **changes)
    weights = 4 * sum(p.numel() for p in model.parameters()) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - weights
    for _ in trainer.train():
        pass
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    estimate = memory_estimate(model, trainer.config, SHAPES["prompt"], critic=False, reference=False)["peak"] / 2**20
    return {"algorithm": algorithm, "tokens": tokens, "slots": slots, "measured_mb": after - before, "estimate_mb": estimate}


def main():
    """Measures every setting, prints a table, writes JSON."""
    from benchmarks.common import machine, report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two settings")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(peak(args.one[0], int(args.one[1]), int(args.one[2]))))
        return
    settings = [(a, t, s) for a in ("grpo", "vineppo") for t, s in ((8192, 512), (2048, 256), (512, 64))]
    settings = [("grpo", 2048, 256), ("vineppo", 2048, 256)] if args.quick else settings
    results = []
    for setting in tqdm(settings, desc="memory"):
        command = [sys.executable, "-m", "benchmarks.memory", "--one", *map(str, setting)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    table = [["algorithm", "tokens in a forward pass", "responses decoded at once", "measured, MB", "estimate, MB"]]
    for r in results:
        numbers = f"{r['measured_mb']:,.0f}", f"{r['estimate_mb']:,.0f}"
        table.append([r["algorithm"], f"{r['tokens']:,}", str(r["slots"]), *numbers])
    report(args.out, "memory", f"Peak memory of two iterations, {machine('cpu', 1)}", table, {"results": results})


if __name__ == "__main__":
    main()
