"""How the algorithms of the demo compare when each has its own best learning rate: several rates and seeds for each.

    python -m benchmarks.learning_rates --out results/learning_rates

Every run starts from the shipped policy and trains for the same seconds on one thread. `--workers` runs go side by side.
"""

import argparse
import json
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.plots import COLOURS, new_figure, save_figure, smooth
from vine_mini.app.setup import build_trainer

VARIANTS = {"vineppo-k9": {"algorithm": "vineppo", "k": 9}}


def one_run(algorithm: str, lr: float, seed: int, seconds: float) -> dict:
    """One training run. -> its metrics and its accuracy on test problems before and after"""
    torch.set_num_threads(1)
    changes = VARIANTS.get(algorithm, {"algorithm": algorithm}) | {
        "lr": lr,
        "seed": seed,
        "iterations": 100_000,
        "max_seconds": seconds,
    }
    trainer = build_trainer(TrainConfig(**read_preset("arithmetic") | changes))
    before = trainer.evaluate(with_kl=False)
    rows = [{key: metrics[key] for key in ("seconds", "episodes", "reward", "kl")} for metrics, _, _ in trainer.train()]
    return {"algorithm": algorithm, "lr": lr, "seed": seed, "before": before, "after": trainer.evaluate(), "metrics": rows}


def summarise(runs: list[dict]) -> tuple[str, dict[str, float]]:
    """-> a table with a row for each algorithm and rate (mean ± deviation over seeds), the best rate of each algorithm"""
    lines = ["| algorithm | lr | sampled accuracy | greedy | iterations | KL a token |", "|---|---|---|---|---|---|"]
    means: dict[str, dict[float, float]] = {}
    for algorithm, lr in dict.fromkeys((run["algorithm"], run["lr"]) for run in runs):
        same = [run for run in runs if (run["algorithm"], run["lr"]) == (algorithm, lr)]
        cells = [algorithm, f"{lr:g}"]
        for name in ("pass@1", "greedy"):
            values = [100 * run["after"][name][0] for run in same]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f} %")
        cells.append(f"{statistics.mean(len(run['metrics']) for run in same):.0f}")
        cells.append(f"{statistics.mean(run['after']['kl'][0] for run in same):.3f}")
        lines.append("| " + " | ".join(cells) + " |")
        means.setdefault(algorithm, {})[lr] = statistics.mean(run["after"]["pass@1"][0] for run in same)
    return "\n".join(lines), {algorithm: max(rates, key=rates.get) for algorithm, rates in means.items()}


def plot_seeds(runs: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """Learning curves of several seeds: the mean, and a band of one standard deviation.

    Args:
        runs: label, beginning with the algorithm's name -> metrics rows of each seed. A variant ("vineppo-k9") is dotted,
            a label that ends with "before" dashed.
    """
    figure, (axes,) = new_figure(2)
    for axis, key, label in zip(axes, ("seconds", "episodes"), ("training time (s)", "training episodes"), strict=True):
        for name, seeds in runs.items():
            grid = numpy.linspace(max(rows[0][key] for rows in seeds), min(rows[-1][key] for rows in seeds), 100)
            curves = [numpy.interp(grid, [r[key] for r in rows], smooth([r["reward"] for r in rows])) for rows in seeds]
            mean, deviation = numpy.mean(curves, axis=0), numpy.std(curves, axis=0, ddof=1 if len(curves) > 1 else 0)
            colour = COLOURS[name.split(",")[0].split("-")[0]]
            style = "--" if name.endswith("before") else ":" if "-" in name.split(",")[0] else "-"
            axis.plot(grid, mean, style, color=colour, label=name)
            axis.fill_between(grid, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel=label, ylim=(0, 1))
    axes[0].set(ylabel="sampled accuracy, training problems")
    axes[0].legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    save_figure(figure, path)


def _percent(result: tuple[float, float]) -> str:
    return f"{100 * result[0]:.1f} %"


def main():
    """Runs the grid, prints the table, draws the best rate of each algorithm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["vineppo", "ppo", "grpo"], help=f"also {', '.join(VARIANTS)}")
    parser.add_argument("--lrs", nargs="+", type=float, default=[5e-5, 1e-4, 2e-4], help="learning rates")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each algorithm and rate")
    parser.add_argument("--seconds", type=float, default=60, help="training time of a run")
    parser.add_argument("--before", type=Path, help="runs.json of an earlier run, drawn dashed")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("results/learning_rates"), help="folder for tables, runs and picture")
    args = parser.parse_args()

    grid = list(product(args.seeds, args.algorithms, args.lrs))
    with ProcessPoolExecutor(args.workers) as pool:
        jobs = [pool.submit(one_run, algorithm, lr, seed, args.seconds) for seed, algorithm, lr in grid]
        runs = [job.result() for job in tqdm(jobs, desc="runs")]
    args.out.mkdir(parents=True, exist_ok=True)
    table, best = summarise(runs)
    before = runs[0]["before"]
    head = (
        f"`{' '.join(['python -m benchmarks.learning_rates', *sys.argv[1:]])}`, torch {torch.__version__}\n\n"
        f"From the shipped policy ({_percent(before['pass@1'])} sampled, {_percent(before['greedy'])} greedy), "
        f"{args.seconds:g} s of training on one thread each, {args.workers} runs side by side. "
        f"Test problems; mean ± deviation over {len(args.seeds)} seeds.\n"
    )
    print(head, table, sep="\n")
    (args.out / "table.md").write_text(f"{head}\n{table}\n", encoding="utf-8")
    (args.out / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    curves = {f"{a}, lr {best[a]:g}": [r["metrics"] for r in runs if (r["algorithm"], r["lr"]) == (a, best[a])] for a in best}
    if args.before:
        earlier = json.loads(args.before.read_text(encoding="utf-8"))
        for a, lr in best.items():
            if same := [r["metrics"] for r in earlier if (r["algorithm"], r["lr"]) == (a, lr)]:
                curves[f"{a}, lr {lr:g}, before"] = same
    plot_seeds(curves, args.out / "curves.png", f"Each at its best learning rate, {len(args.seeds)} seeds, one thread")


if __name__ == "__main__":
    main()
