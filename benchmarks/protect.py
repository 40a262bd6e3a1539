"""What destroys a policy that succeeds 7 times in 100, and what protects it: one change each to a run at a risky learning rate.

    python -m benchmarks.protect

VinePPO and GRPO on chains of twelve, 32 episodes an iteration, with twice the learning rate that is best there, no warm-up, and
30 CPU seconds a run. A policy counts as lost if it is right less often at the end than at the start. What protects may also slow
down: the second table has a stronger KL at the best learning rates, beside the runs of `benchmarks.fight`. The command goes on
where it stopped (results/credit/fight/protect.jsonl) and writes protect.md beside it.
"""

import argparse
import dataclasses
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.common import command, count, machine, writable
from benchmarks.fight import ALGORITHMS, area, best_configs, key, mean_and_error, one_run, trainer_of
from benchmarks.fight import SECONDS as WHOLE
from vine_mini.algorithms import ALGORITHMS as RECORDS
from vine_mini.app.files import read_rows
from vine_mini.app.flags import read_preset
from vine_mini.app.tables import columns
from vine_mini.study.runs import run_missing

SETTING, SECONDS, AT_START = "chain12, 32 episodes", 30, 0.07
PRICED, STRONGER = ("chain12, 32 episodes", "decisive"), (0.01, 0.1)
USUAL = read_preset("arithmetic")["kl_coef"]
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
        algorithm = dataclasses.replace(algorithm, credit=credit, whiten_advantages=False)
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


def price_jobs(done: list[dict], seeds: list[int]) -> list[dict]:
    """Each algorithm at its best setting of the grid, with a stronger KL."""
    every = product(seeds, PRICED, STRONGER, ("vineppo", "grpo"))
    return [
        dict(setting=setting, seconds=WHOLE, seed=seed, config=best_configs(done, setting)[name] | dict(kl_coef=kl))
        for seed, setting, kl, name in every
    ]


def price_table(done: list[dict], runs: list[dict], seeds: list[int]) -> list[list[str]]:
    """The mean reward over the seconds and the test accuracy, with the usual KL and with a stronger one."""
    rows = [["setting", "algorithm", "KL coefficient", "seeds", "mean reward over the seconds", "test accuracy"]]
    for setting, name, kl in product(PRICED, ("vineppo", "grpo"), (None, *STRONGER)):
        config = best_configs(done, setting)[name] | ({} if kl is None else dict(kl_coef=kl))
        same = [r for r in (done if kl is None else runs) if r["setting"] == setting and r["config"] == config]
        same = [r for r in same if r["seed"] in seeds and r["seconds"] == WHOLE]
        if same:
            (mean, error), (test, spread) = mean_and_error([area(r) for r in same]), mean_and_error([r["test"] for r in same])
            cells = [str(len(same)), f"{mean:.3f} ± {error:.3f}", f"{100 * test:.1f} ± {100 * spread:.1f} %"]
            rows.append([setting, name, f"{kl or USUAL:g}", *cells])
    return rows


def main():
    """Makes the missing runs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=count, default=1, help="runs side by side; more than one slows each of them down")
    parser.add_argument("--out", type=writable, default=Path("results/credit/fight"), help="folder of protect.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        dict(setting=SETTING, seconds=SECONDS, seed=seed, config=ALGORITHMS[name] | RISKY | change)
        for seed, change, name in product(args.seeds, CHANGES.values(), ("vineppo", "grpo"))
    ]
    run_missing(jobs, args.out / "protect.jsonl", key, partial(one_run, make=risky_trainer), args.workers)
    grid = read_rows(args.out / "runs.jsonl")
    if grid:  # without a grid there is no best setting
        run_missing(price_jobs(grid, args.seeds), args.out / "protect.jsonl", key, one_run, args.workers)
    text = f"{machine('cpu', 1)}\n\n{SETTING}, learning rate {RISKY['lr']:g}, {SECONDS} CPU seconds a run\n\n"
    text += f"{columns(table(read_rows(args.out / 'protect.jsonl')))}\n"
    if grid:
        rows = price_table(grid, read_rows(args.out / "protect.jsonl"), args.seeds)
        text += f"\nEach at its best setting of the grid, {WHOLE} CPU seconds a run\n\n{columns(rows)}\n"
    (args.out / "protect.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    command(main)
