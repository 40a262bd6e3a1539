"""The pictures of `study`: the intervals of all comparisons, and the runs behind them."""

import math
from pathlib import Path
from textwrap import fill

import numpy

from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.study.claims import PAPER, Finding, best_at_episodes, column, runs_of, stepwise
from vine_mini.study.config import FEW_PROBLEMS, NAMES, PAPERS, SETTINGS, TASKS

VERDICTS = {"holds": "#009E73", "does not hold": "#D55E00", "not shown": "0.5"}


def plot_findings(findings: dict[str, list[Finding]], path: Path) -> None:
    """Draws the interval of each comparison, a panel for each claim and unit. The claim says that all lie right of the line."""
    panels: dict[tuple[str, str], list[Finding]] = {}
    for claim, of in findings.items():
        for f in sorted(of, key=lambda f: f.part):
            panels.setdefault((claim, f.unit), []).append(f)
    heights = [len(of) for of in panels.values()]
    figure, axes = new_figure(1, len(panels), heights)
    figure.set_size_inches(11, sum(0.9 + 0.26 * height for height in heights))
    for (axis,), ((claim, unit), of) in zip(axes, panels.items(), strict=True):
        times = unit == "times"
        for y, f in enumerate(of):
            mean, low, high = (math.exp(min(x, 50)) if times else x for x in f.interval)
            axis.plot([low, high], [y, y], color=VERDICTS[f.verdict], linewidth=2)
            axis.plot(mean, y, "<" if f.upper else "o", color=VERDICTS[f.verdict])
        axis.axvline(1 if times else 0, color="0.3", linewidth=1)
        axis.set_yticks(range(len(of)), [": ".join(filter(None, (f.task, f.part, f.what))) for f in of], fontsize=8)
        axis.set(ylim=(len(of) - 0.5, -0.5), xscale="log" if times else "linear")
        axis.set_xlabel(unit, fontsize=8)
        if times:
            axis.xaxis.get_major_locator().set_params(subs=(1, 2, 5), numticks=20)
            axis.minorticks_off()
        axis.tick_params(which="both", labelsize=8)
        axis.set_title(fill(f"{claim}: {PAPER[claim]}", 80), fontsize=8, loc="left")
    figure.suptitle(
        "95 % intervals. Green: the claim holds. Red: it does not. Grey: not shown. Triangles: upper bounds.", fontsize=10
    )
    save_figure(figure, path)


def plot_accuracy(runs: list[dict], path: Path) -> None:
    """Draws test accuracy over episodes and seconds, a row for each task. Thin lines are runs, thick lines their means.

    RestEM and DPO+ have a new policy only after an iteration, so their lines are steps.
    """
    tasks = _tasks_of(runs)
    figure, axes = new_figure(2, len(tasks))
    for row, task in zip(axes, tasks, strict=True):
        by_episodes = {name: best_at_episodes(runs, task, name) for name in SETTINGS[task]} | {"vineppo": PAPERS[task]}
        ways = {"episodes": ("9", by_episodes), "seconds": ("1, averaged", SETTINGS[task])}
        for axis, (x, (k, of)) in zip(row, ways.items(), strict=True):
            names = NAMES | {"vineppo": f"VinePPO, K = {k}"}
            _draw(axis, runs, task, {names[name]: (COLOURS[name], config) for name, config in of.items()}, x, "test")
        row[0].set_ylabel(f"{task}: test accuracy")
    axes[0, 0].set_title("Equal episodes")
    axes[0, 1].set_title("Equal seconds")
    save_figure(figure, path)


def plot_curves(runs: list[dict], path: Path) -> None:
    """Draws what the other claims compare, a row for each task: thin lines are runs, thick lines the means of their checks."""
    tasks = _tasks_of(runs)
    figure, axes = new_figure(4, len(tasks))
    figure.set_size_inches(14, 3.4 * len(tasks))
    for row, task in zip(axes, tasks, strict=True):
        usual = {NAMES[name]: (COLOURS[name], SETTINGS[task][name]) for name in ("vineppo", "ppo", "grpo")}
        few = {label: (colour, config | FEW_PROBLEMS) for label, (colour, config) in usual.items()}
        by_k = {f"K = {k}": (colour, PAPERS[task] | dict(k=k)) for k, colour in zip((1, 3, 9), COLOURS.values(), strict=False)}
        _draw(row[0], runs, task, usual, "updates", "test")
        _draw(row[1], runs, task, few, "train", "test")
        _draw(row[2], runs, task, usual, "test", "kl")
        _draw(row[3], runs, task, by_k, "episodes", "test")
        row[0].set_ylabel(f"{task}: test accuracy")
        row[1].set_xlabel(f"accuracy on {FEW_PROBLEMS['train_size']} training problems")
        row[2].set(xlabel="test accuracy", ylabel="KL to the start policy, nats a token")
    titles = "efficiency, K = 1 averaged", "generalization, K = 1 averaged", "KL, K = 1 averaged", "rollouts, no averages"
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    save_figure(figure, path)


def _tasks_of(runs: list[dict]) -> list[str]:
    return [task for task in TASKS if any(run["task"] == task for run in runs)]


def _draw(axis, runs: list[dict], task: str, settings: dict[str, tuple[str, dict]], x: str, y: str) -> None:
    for label, (colour, config) in settings.items():
        curves = [(column(run, x), column(run, y)) for run in runs_of(runs, task, config)]
        steps = stepwise(config)
        for xs, ys in curves:
            axis.plot(xs, ys, color=colour, alpha=0.25, linewidth=0.7, drawstyle="steps-post" if steps else "default")
        if not curves:
            continue
        if all(xs == sorted(xs) for xs, _ in curves):
            grid = numpy.linspace(0, min(xs[-1] for xs, _ in curves), 500 if steps else 50)
            at = [_step(grid, *curve) if steps else numpy.interp(grid, *curve) for curve in curves]
            mean = [grid, numpy.mean(at, axis=0)]
        else:  # accuracies and KL may fall again, so each check is averaged
            mean = [[numpy.mean(at) for at in zip(*of, strict=False)] for of in zip(*curves, strict=True)]
        axis.plot(*mean, color=colour, linewidth=2, label=label)
        axis.legend(frameon=False, fontsize=8)
    axis.set_xlabel(x)


def _step(grid, xs: list[float], ys: list[float]):
    """The y of the last x that each number of the grid has reached."""
    return numpy.array(ys)[numpy.searchsorted(xs, grid, side="right") - 1]
