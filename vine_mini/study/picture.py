"""The pictures of `study`: the intervals of all comparisons, and the learning curves behind them."""

from pathlib import Path

import numpy

from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.study.claims import Finding, column, runs_of
from vine_mini.study.config import ALGORITHMS

VERDICTS = {"holds": "#009E73", "does not hold": "#D55E00", "not shown": "0.5"}


def plot_findings(findings: dict[str, list[Finding]], path: Path) -> None:
    """Draws each interval in units of its own mean or half width, so that all fit on one axis; a claim says right of 0."""
    rows = [(claim, f) for claim, of in findings.items() for f in of]
    figure, ((axis,),) = new_figure(1)
    figure.set_size_inches(11, 1.2 + 0.3 * len(rows))
    for y, (_, f) in enumerate(rows):
        mean, low, high = f.interval
        scale = max(abs(low), abs(high), 1e-12) if numpy.isfinite(low) else max(abs(mean), 1e-12)
        axis.plot([max(low / scale, -1), min(high / scale, 1)], [y, y], color=VERDICTS[f.verdict], linewidth=2)
        axis.plot(mean / scale, y, "o", color=VERDICTS[f.verdict])
    axis.axvline(0, color="0.3", linewidth=1)
    axis.set_yticks(range(len(rows)), [f"{claim}, {f.task}: {f.what}" for claim, f in rows])
    axis.set(
        ylim=(len(rows) - 0.5, -0.5), xlim=(-1.1, 1.1), xticks=[-1, 0, 1], xticklabels=["against the claim", "0", "for the claim"]
    )
    axis.set_title("95 % intervals, each on its own scale: green holds, red does not, grey is not shown", fontsize=10)
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
                axis.plot(x, y.mean(axis=0), color=COLOURS.get(name, "0.4"), label=name)
                axis.fill_between(
                    x, y.mean(axis=0) - band, y.mean(axis=0) + band, color=COLOURS.get(name, "0.4"), alpha=0.15, linewidth=0
                )
            axis.set(xlabel=unit, ylim=(0, 1))
        row[0].set(ylabel=f"test accuracy, {task}")
        row[0].legend(frameon=False)
    save_figure(figure, path)
