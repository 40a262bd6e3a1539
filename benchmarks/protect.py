"""What destroys a policy that succeeds 7 times in 100, and what protects it: one change each to a run at a risky learning rate.

    python -m benchmarks.protect

VinePPO and GRPO on chains of twelve, 32 episodes an iteration, with twice the learning rate that is best there, no warm-up, and
30 CPU seconds a run. A policy counts as lost if it is right less often at the end than at the start. The command goes on where it
stopped (results/credit/fight/protect.jsonl) and writes protect.md beside it.
"""

import argparse
import dataclasses
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.common import machine
from benchmarks.fight import ALGORITHMS, area, one_run, read, run_missing, trainer_of
from vine_mini.algorithms import ALGORITHMS as RECORDS
from vine_mini.app.tables import columns

SETTING, SECONDS, AT_START = "chain12, 32 episodes", 30, 0.07
RISKY = dict(epochs=2, minibatch_size=16, lr=1e-4)
CHANGES = {
    "none": {},
    "warm-up over 20 updates": dict(warmup=20),
    "warm-up over 100 updates": dict(warmup=100),
    "half the learning rate": dict(lr=5e-5),
    "one epoch, minibatches of 32": dict(epochs=1, minibatch_size=32),
    "KL coefficient 0.01": dict(kl_coef=0.01),
    "KL coefficient 0.1": dict(kl_coef=0.1),
    "clip 0.05": dict(clip=0.05),
    "no clip": dict(clip=1e9),
    "gradient norm at most 0.1": dict(max_grad_norm=0.1),
    "advantages not divided by a deviation": dict(divided=False),
    "no negative advantages": dict(negative=False),
}


def risky_trainer(job: dict):
    """A trainer for a job whose change may be one that `train` has no option for."""
    config = dict(job["config"])
    divided, negative = config.pop("divided", True), config.pop("negative", True)
    trainer = trainer_of(job | dict(config=config))
    algorithm = trainer.algorithm
    if not divided:  # neither by the deviation of the group nor by that of all tokens; RLOO is GRPO without it, times G / (G - 1)
        credit = RECORDS["rloo"].credit if config["algorithm"] == "grpo" else algorithm.credit
        algorithm = dataclasses.replace(algorithm, credit=credit, whitened=False)
    if not negative:
        algorithm = dataclasses.replace(algorithm, loss=partial(positive_loss, algorithm.loss))
    trainer.algorithm = algorithm
    return trainer


def positive_loss(loss, logprobs, batch, config, denominator):
    """The loss with 0 in the place of negative advantages."""
    return loss(logprobs, dataclasses.replace(batch, advantages=batch.advantages.clamp(min=0)), config, denominator)


def table(runs: list[dict]) -> list[list[str]]:
    """For each change: how many policies were lost, and the mean reward over the seconds of each run."""
    rows = [["change", *(f"{name}: {what}" for name in ("vineppo", "grpo") for what in ("lost", "mean reward"))]]
    for label, change in CHANGES.items():
        cells = [label]
        for name in ("vineppo", "grpo"):
            same = [run for run in runs if run["config"] == ALGORITHMS[name] | RISKY | change]
            lost = sum(run["validation"][-1] < AT_START for run in same)
            cells += [f"{lost} of {len(same)}", " ".join(f"{area(run):.2f}" for run in sorted(same, key=lambda run: run["seed"]))]
        rows.append(cells)
    return rows


def main():
    """Makes the missing runs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="runs side by side; more than one slows each of them down")
    parser.add_argument("--out", type=Path, default=Path("results/credit/fight"), help="folder of protect.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        dict(setting=SETTING, seconds=SECONDS, seed=seed, config=ALGORITHMS[name] | RISKY | change)
        for seed, change, name in product(args.seeds, CHANGES.values(), ("vineppo", "grpo"))
    ]
    run_missing(jobs, args.out / "protect.jsonl", partial(one_run, make=risky_trainer), args.workers)
    text = f"{machine('cpu', 1)}\n\n{SETTING}, learning rate {RISKY['lr']:g}, {SECONDS} CPU seconds a run\n\n"
    text += f"{columns(table(read(args.out / 'protect.jsonl')))}\n"
    (args.out / "protect.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
