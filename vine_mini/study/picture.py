"""The pictures of `study`: the intervals of all comparisons, and the learning curves behind them."""

import math
from pathlib import Path

import numpy

from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.study.claims import PAPER, Finding, column, runs_of
from vine_mini.study.config import ALGORITHMS, NAMES

VERDICTS = {"holds": "#009E73", "does not hold": "#D55E00", "not shown": "0.5"}


def plot_findings(findings: dict[str, list[Finding]], path: Path) -> None:
    """Draws the interval of each comparison, a panel for each claim. The claim says that all of them lie right of the line."""
    findings = {claim: of for claim, of in findings.items() if of}
    heights = [len(of) for of in findings.values()]
    figure, axes = new_figure(1, len(findings), heights)
    figure.set_size_inches(11, sum(0.9 + 0.26 * height for height in heights))
    for (axis,), (claim, of) in zip(axes, findings.items(), strict=True):
        times = of[0].unit == "times"
        for y, f in enumerate(of):
            mean, low, high = (math.exp(min(x, 50)) if times else x for x in f.interval)
            axis.plot([low, high], [y, y], color=VERDICTS[f.verdict], linewidth=2)
            axis.plot(mean, y, "o", color=VERDICTS[f.verdict])
        axis.axvline(1 if times else 0, color="0.3", linewidth=1)
        axis.set_yticks(range(len(of)), [f"{f.task}: {f.what}" for f in of], fontsize=8)
        axis.set(ylim=(len(of) - 0.5, -0.5), xscale="log" if times else "linear")
        axis.set_xlabel(" or ".join(sorted({f.unit for f in of})), fontsize=8)
        if times:
            for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
                ticks("{x:g}")
        axis.tick_params(which="both", labelsize=8)
        axis.set_title(f"{claim}: {PAPER[claim]}", fontsize=8, loc="left")
    figure.suptitle("95 % intervals. Green: the claim holds. Red: it does not. Grey: not shown.", fontsize=10)
    save_figure(figure, path)


def plot_curves(runs: list[dict], path: Path) -> None:
    """Draws test accuracy of all algorithms over seconds, episodes and updates; bands are one standard deviation over seeds."""
    tasks = [task for task in ALGORITHMS if any(run["task"] == task for run in runs)]
    figure, axes = new_figure(3, len(tasks))
    for row, task in zip(axes, tasks, strict=True):
        for axis, unit in zip(row, ("seconds", "episodes", "updates"), strict=True):
            for name, config in ALGORITHMS[task].items():
                same = runs_of(runs, task, config)
                if not same:
                    continue
                x = numpy.linspace(0, min(column(run, unit)[-1] for run in same), 50)
                y = numpy.array([numpy.interp(x, column(run, unit), column(run, "test")) for run in same])
                band = y.std(axis=0, ddof=1) if len(y) > 1 else numpy.zeros(len(x))
                axis.plot(x, y.mean(axis=0), color=COLOURS[name], label=NAMES[name])
                axis.fill_between(x, y.mean(axis=0) - band, y.mean(axis=0) + band, color=COLOURS[name], alpha=0.15, linewidth=0)
            axis.set(xlabel=unit, ylim=(0, 1))
        row[0].set(ylabel=f"test accuracy, {task}")
        row[0].legend(frameon=False)
    save_figure(figure, path)
