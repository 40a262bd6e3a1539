"""The peak memory of two iterations on a CPU, beside the estimate that is printed before a run.

    python -m benchmarks.memory --quick
    python -m benchmarks.memory --out results/speed/memory

Two random Llamas are trained: a small one of 6.6 million parameters, and a large one of 118 million. An iteration has 16 prompts
of 32 tokens and 4 responses of 64 tokens. Each setting runs in two processes of its own, under Linux. In the first one, malloc
returns freed blocks to the system at once. So the peak counts what is in use. In the second one, malloc works as usual and keeps
freed blocks below 32 MiB.

Memory that does not depend on the setting is measured before and subtracted: Python, PyTorch and the data, and in bfloat16 the
1,024 compiled matrix products that oneDNN keeps.
"""

import argparse
import json
import os
import resource
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import json_from, machine, random_trainer, report, writable
from benchmarks.rollouts import random_llama
from benchmarks.train_step import SHAPES
from vine_mini.app.memory import memory_estimate

SMALL, LARGE = (256, 6, 8, 8, 1024, 512), (2048, 2, 32, 32, 5632, 4096)  # arguments of `random_llama`
ROLLOUTS = dict(algorithm="vineppo", micro_batch_tokens=512)  # sampling needs more memory than the update
SETTINGS = {
    "small, GRPO": (SMALL, dict(algorithm="grpo")),
    "small, GRPO, 2,048 tokens in a forward pass": (SMALL, dict(algorithm="grpo", micro_batch_tokens=2048)),
    "small, GRPO, 512 tokens, 64 slots": (SMALL, dict(algorithm="grpo", micro_batch_tokens=512, sample_batch_size=64)),
    "small, GRPO, checkpointing": (SMALL, dict(algorithm="grpo", gradient_checkpointing=True)),
    "small, GRPO, bfloat16": (SMALL, dict(algorithm="grpo", bf16=True)),
    "small, PPO": (SMALL, dict(algorithm="ppo")),
    "small, VinePPO, 512 tokens": (SMALL, ROLLOUTS),
    "small, VinePPO, 512 tokens, bfloat16, checkpointing": (SMALL, ROLLOUTS | dict(bf16=True, gradient_checkpointing=True)),
    "large, GRPO, 4,800 tokens": (LARGE, dict(algorithm="grpo", micro_batch_tokens=4800)),
    "large, PPO, checkpointing": (LARGE, dict(algorithm="ppo", gradient_checkpointing=True)),
    "large, GRPO, bfloat16": (LARGE, dict(algorithm="grpo", bf16=True)),
}
QUICK = ("small, GRPO, 512 tokens, 64 slots",)
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}  # blocks from 64 KiB are mapped, so a freed one is returned


def measure(name: str) -> dict:
    """The peak of a setting in this process, and its estimate, in MiB."""
    torch.set_num_threads(1)
    sizes, changes = SETTINGS[name]

    def train(sizes, shapes):
        trainer = random_trainer(random_llama(*sizes), shapes=shapes, iterations=2, **changes)
        for _ in trainer.train():
            pass
        return memory_estimate(trainer)["peak"] / 2**20

    train((32, 2, 4, 4, 64, 64), dict(prompts=2, group=2, prompt=4, response=6, step=3, k=2))  # loads what an iteration loads
    if changes.get("bf16"):
        for rows in range(1, 1025):  # each shape is compiled, until oneDNN begins to replace what it has compiled
            torch.ones(rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])  # resident now
    before = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    estimate = train(sizes, SHAPES)
    return {"estimate": estimate, "measured": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before}


def in_process(name: str, environment: dict) -> dict:
    """`measure` in a process of its own."""
    return json_from([sys.executable, "-m", "benchmarks.memory", "--one", name], environment | {"OMP_NUM_THREADS": "1"})


def main():
    """Measures every setting, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one setting")
    parser.add_argument("--out", type=writable, help="folder for the table and its numbers as JSON")
    parser.add_argument("--one", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not Path("/proc/self/statm").is_file():
        parser.error("this benchmark reads /proc/self/statm, so it needs Linux")
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    table = [["setting", "estimate, MiB", "measured, MiB", "measured / estimate", "malloc as usual, MiB", "this / estimate"]]
    results = {}
    for name in tqdm(QUICK if args.quick else SETTINGS, desc="memory"):
        found, usual = in_process(name, RETURNED), in_process(name, {})
        results[name] = found = found | {"as_usual": usual["measured"]}
        estimate, *peaks = found["estimate"], found["measured"], found["as_usual"]
        table.append([name, f"{estimate:,.0f}", *(x for peak in peaks for x in (f"{peak:,.0f}", f"{peak / estimate:.2f}"))])
    report(args.out, "memory", f"Peak memory of two iterations, {machine('cpu', 1)}", table, {"results": results})


if __name__ == "__main__":
    main()
