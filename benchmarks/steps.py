"""How the gain of VinePPO grows with the number of steps and with K: measured noise, measured learning, and theory beside them.

    python -m vine_mini sft --model arithmetic-12 --steps 16 --min_steps 4 --max_new_tokens 190 --error_rate 0.15 \\
        --updates 300 --out runs/arithmetic-16
    python -m benchmarks.steps --model runs/arithmetic-16 --workers 2

One policy solves chains of 4, 6, 8, 12 and 16 steps. The noise of its credit comes from `credit-cost`. Learning runs of 60
seconds each then compare VinePPO with GRPO and PPO, at their settings of `vine_mini study`, and several K at 12 steps. The gain
is how many times fewer seconds VinePPO needs for an accuracy that both reach. The command goes on where it stopped.
"""

import argparse
import json
import math
import statistics
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import command, count, machine, writable
from vine_mini.app.files import write_text
from vine_mini.app.intervals import first_at, interval
from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.app.tables import columns
from vine_mini.credit_cost.command import measure
from vine_mini.credit_cost.config import CreditCostConfig
from vine_mini.study.claims import column
from vine_mini.study.config import NAMES, SETTINGS, SHARED
from vine_mini.study.prices import measure_missing, with_prices
from vine_mini.study.runs import key, learn, run_missing, trainer_of

STEPS, SECONDS = (4, 6, 8, 12, 16), 60
AT, KS = 12, (1, 2, 3, 9)  # K is compared at one number of steps
# mc_lam, mc_mu of the runs in results/claims/steps, chosen with an older weight of the noise (now 0.5, 0.5 at K = 9).
AVERAGING = {1: (0.7, 0.8), 2: (0.6, 0.7), 3: (0.6, 0.7), 9: (0.3, 0.5)}
OTHERS = ("grpo", "ppo")


def settings(steps: int, model: str) -> dict:
    """What a learning run shares with all others of this number of steps."""
    return SHARED | dict(task="arithmetic", steps=steps, max_new_tokens=20 + 11 * steps, model=model)


def noise_of(steps: int, model: str) -> dict:
    """Measured noise of GRPO's credit and of VinePPO's for each K, without and with averaging. -> success, way -> noise"""
    torch.set_num_threads(1)
    config = settings(steps, model) | SETTINGS["chains"]["vineppo"] | dict(problems=32, ks=list(KS))
    report = measure(CreditCostConfig(**config, device="cpu"))
    found = {"success": report.success[0], "whole": report.ways[0].noise}
    for k in KS:
        plain, *averaged = [way.noise for way in report.ways if way.name.startswith(f"VinePPO, K = {k}")]
        found |= {f"plain {k}": plain, f"averaged {k}": min([plain, *averaged])}
    return found


def theory(steps: int, success: float, k: int, group: int = SHARED["group"]) -> tuple[float, float]:
    """Noise of whole-response credit and of plain VinePPO on a chain of equal steps (facts: results/credit). -> whole, plain

    A step is right with p = success^(1 / steps). After i right steps the value is p^(steps - i); after a mistake it is 0. The
    credit R - V(s_0) misses the true one by the changes of value in all other steps: (steps - 1) success (1 - success) together.
    V(s_0) is the mean of the other rewards of the group, and its error is in the credit of every step. A value of K rollouts has
    the variance V (1 - V) / K. All states but the first one are used by two advantages. The group's rewards count as rollouts of
    the first one.
    """
    p, spread = success ** (1 / steps), success * (1 - success)
    variance = [success * (1 - p ** (steps - i)) for i in range(steps)]  # mean of V (1 - V) before step i: p^i of all get there
    whole = (steps - 1) * spread + steps * spread / (group - 1)
    return whole, 2 * sum(variance[1:]) / k + variance[0] / (k + group - 1)


def jobs(model: str, seeds: list[int]) -> list[dict]:
    """The learning runs: three algorithms for each number of steps, and VinePPO with each K."""
    every = [(n, SETTINGS["chains"][name]) for n in STEPS for name in ("vineppo", *OTHERS)]
    every += [(AT, with_k(k)) for k in KS[1:]]
    shared = dict(limits=dict(seconds=SECONDS), evaluations=8, problems=200)
    return [
        shared | dict(task=f"{n} steps", seed=seed, config=config, shared=settings(n, model))
        for seed, (n, config) in product(seeds, every)
    ]


def with_k(k: int) -> dict:
    """VinePPO with K rollouts, and with the averaging that suits them."""
    return SETTINGS["chains"]["vineppo"] | dict(k=k, mc_lam=AVERAGING[k][0], mc_mu=AVERAGING[k][1])


def gains(runs: list[dict], steps: int, config: dict, other: str) -> list[float]:
    """For each seed: log(seconds of another algorithm / of a setting of VinePPO) to the same test accuracy.

    The accuracy is nine tenths of the lower of two means: of the best accuracies of the runs, over the seeds. A run that is never
    there counts as twice its end.
    """

    def of(c: dict) -> dict:
        return {run["seed"]: run for run in runs if run["task"] == f"{steps} steps" and run["config"] == c}

    both = of(config), of(SETTINGS["chains"][other])
    level = 0.9 * min(statistics.mean(max(column(run, "test")) for run in same.values()) for same in both)

    def seconds(run: dict) -> float:
        reached = first_at(column(run, "seconds"), column(run, "test"), level)
        return 2 * column(run, "seconds")[-1] if reached is None else max(reached, 1.0)  # it may be there at the start

    return [math.log(seconds(both[1][seed]) / seconds(both[0][seed])) for seed in sorted(both[0].keys() & both[1].keys())]


def factor_and_interval(values: list[float]) -> tuple[float, float, float]:
    """The mean factor and its 95 % interval, of logarithms."""
    mean, low, high = interval(values)
    return math.exp(mean), math.exp(low), math.exp(min(high, 50.0))


def draw(noise: dict[str, dict], runs: list[dict], path: Path) -> None:
    """Above: how many times noisier GRPO's credit is. Below: how many times more seconds GRPO and PPO need."""
    figure, ((by_steps, by_k), (learn_steps, learn_k)) = new_figure(2, 2)
    grey = dict(color="0.5", linestyle="--")
    for k, colour in ((1, COLOURS["vineppo"]), (3, COLOURS["ppo"]), (9, COLOURS["grpo"])):
        for kind, style in (("plain", "o:"), ("averaged", "o-")):
            ratio = [noise[str(n)]["whole"] / noise[str(n)][f"{kind} {k}"] for n in STEPS]
            by_steps.plot(STEPS, ratio, style, color=colour, label=f"K = {k}, {kind}")
        predicted = [theory(n, noise[str(n)]["success"], k) for n in STEPS]
        label = "theory, plain" if k == 9 else None
        by_steps.plot(STEPS, [whole / plain for whole, plain in predicted], label=label, **grey)
    for kind, style in (("plain", "o:"), ("averaged", "o-")):
        ratio = [noise[str(AT)]["whole"] / noise[str(AT)][f"{kind} {k}"] for k in KS]
        by_k.plot(KS, ratio, style, color=COLOURS["vineppo"], label=kind)
    predicted = [theory(AT, noise[str(AT)]["success"], k) for k in KS]
    by_k.plot(KS, [whole / plain for whole, plain in predicted], label="theory, plain", **grey)
    for other, shift in zip(OTHERS, (-0.1, 0.1), strict=True):
        points = {n: factor_and_interval(gains(runs, n, with_k(1), other)) for n in STEPS}
        _bars(learn_steps, {n + shift: point for n, point in points.items()}, other)
        points = {k: factor_and_interval(gains(runs, AT, with_k(k), other)) for k in KS}
        _bars(learn_k, {k + shift / 2: point for k, point in points.items()}, other)
    for axis in (by_steps, by_k, learn_steps, learn_k):
        axis.axhline(1, color="0.3", linewidth=1)
        axis.set(yscale="log")
        axis.legend(frameon=False, fontsize=8, loc="lower center", ncols=3)
    by_steps.set(ylabel="noise of GRPO / noise of VinePPO", title="Noise of the credit", ylim=(0.1, 30))
    by_k.set(title=f"Noise at {AT} steps", ylim=(0.1, 30))
    learn_steps.set(xlabel="steps", ylabel="seconds of the other / of VinePPO", ylim=(0.1, 10), title="Learning, K = 1 averaged")
    learn_k.set(xlabel="K", ylim=(0.1, 10), title=f"Learning at {AT} steps, averaged")
    save_figure(figure, path)


def _bars(axis, points: dict[float, tuple[float, float, float]], other: str) -> None:
    means = [mean for mean, _, _ in points.values()]
    below = [mean - low for mean, low, _ in points.values()]
    above = [high - mean for mean, _, high in points.values()]
    how = dict(fmt="o-", capsize=3, color=COLOURS[other], label=f"over {NAMES[other]}")
    axis.errorbar(list(points), means, yerr=[below, above], **how)


def tables(noise: dict[str, dict], runs: list[dict]) -> str:
    """Noise and gains as text."""
    first = [
        ["steps", "success", "GRPO", *(f"K = {k}" for k in KS), *(f"K = {k}, averaged" for k in KS), "theory: GRPO", "K = 1"]
    ]
    for n in STEPS:
        of = noise[str(n)]
        cells = [of["whole"], *(of[f"plain {k}"] for k in KS), *(of[f"averaged {k}"] for k in KS), *theory(n, of["success"], 1)]
        first.append([str(n), f"{of['success']:.3f}", *(f"{x:.3f}" for x in cells)])
    second = [["steps", "K", "other", "seeds", "seconds of the other / of VinePPO", "95 %"]]
    for n, k in [*((n, 1) for n in STEPS), *((AT, k) for k in KS[1:])]:
        for other in OTHERS:
            values = gains(runs, n, with_k(k), other)
            mean, low, high = factor_and_interval(values)
            second.append([str(n), str(k), other, str(len(values)), f"{mean:.2f}", f"{low:.2f} to {high:.2f}"])
    return f"Noise of the credit, summed over the steps of a response:\n\n{columns(first)}\n\nLearning:\n\n{columns(second)}\n"


def main():
    """Measures what is missing, and writes steps.md and steps.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a policy for chains of 4 to 16 steps: see above")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--workers", type=count, default=1, help="runs side by side")
    parser.add_argument("--out", type=writable, default=Path("results/claims/steps"), help="folder of noise.json and runs.jsonl")
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error("an interval needs at least two --seeds")
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "noise.json"
    of_models = json.loads(log.read_text(encoding="utf-8")) if log.exists() else {}
    noise = of_models.setdefault(args.model, {})
    for n in tqdm([n for n in STEPS if str(n) not in noise], desc="noise", dynamic_ncols=True):
        noise[str(n)] = noise_of(n, args.model)
        write_text(log, json.dumps(of_models, indent=1))
    wanted = jobs(args.model, args.seeds)
    prices = args.out / f"prices-{Path(args.model).name}.json"
    measure_missing(wanted, trainer_of, prices)
    wanted = with_prices(wanted, prices)
    runs = run_missing(wanted, args.out / "runs.jsonl", key, learn, args.workers)
    text = f"{machine('cpu', 1)}\n\n{SECONDS} seconds a run\n\n{tables(noise, runs)}"
    write_text(args.out / "steps.md", text)
    draw(noise, runs, args.out / "steps.png")
    print(text)


if __name__ == "__main__":
    command(main)
