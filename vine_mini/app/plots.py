"""Pictures of runs. The colours are Okabe and Ito's, which colour-blind readers can tell apart."""

import os
from pathlib import Path

from vine_mini.app.files import whole

COLOURS = {
    "vineppo": "#0072B2",
    "ppo": "#D55E00",
    "grpo": "#009E73",
    "rloo": "#CC79A7",
    "reinforce": "#E69F00",
    "restem": "#56B4E9",
    "dpo": "#999999",
}
PHASES = dict(zip(("sample", "rollouts", "score", "update", "validate"), COLOURS.values(), strict=False))  # of an iteration


def new_figure(columns: int, rows: int = 1, heights: list[int] | None = None):
    """An empty figure in this project's style. `heights` are the relative ones of the rows. -> figure, axes [rows, columns]"""
    backend = os.environ.get("MPLBACKEND", "")
    if not backend.startswith("module:"):  # notebooks set a backend of this form
        os.environ.pop("MPLBACKEND", None)  # an unknown name would end the import, and these pictures need no backend
    import matplotlib  # imported late: most commands draw nothing

    if backend:  # for other programs that this one starts
        os.environ["MPLBACKEND"] = backend
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})
    matplotlib.rcParams.update({"text.usetex": False, "text.parse_math": False})  # a $ in the name of a user's file is a $
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)


def save_figure(figure, path: Path) -> None:
    """Writes the picture, or replaces it. A reader never sees half a file. Raises UserError where that is impossible."""
    from matplotlib.ticker import LogFormatter

    for side in (side for axis in figure.axes for side in (axis.xaxis, axis.yaxis)):
        if isinstance(side.get_major_formatter(), LogFormatter):  # it writes formulas, which `new_figure` has switched off
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter("")
    with whole(path) as fresh:
        figure.savefig(fresh, dpi=110, format=path.suffix.removeprefix("."))


def smooth(values: list[float]) -> list[float]:
    """The mean over each value and its neighbours, at most two and equally many on each side: the curve does not lag."""
    radii = [min(2, i, len(values) - 1 - i) for i in range(len(values))]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(radii)]


def plot_run(rows: list[dict], path: Path, title: str) -> None:
    """Draws curves.png of a run from the rows of its metrics.jsonl: reward, length, KL and seconds."""
    figure, ((reward, length), (kl, seconds)) = new_figure(2, 2)
    tests = [(row["episodes"], row["eval"]["pass@1"][0], row["eval"]["pass@1"][1] or 0) for row in rows if row.get("eval")]
    validation = [(row["episodes"], row["validation"]["pass@1"][0]) for row in rows if "validation" in row]
    rows = [row for row in rows if "reward" in row]
    x, rewards = [row["episodes"] for row in rows], [row["reward"] for row in rows]
    reward.plot(x, rewards, color="0.75", label="iteration")
    reward.plot(x, smooth(rewards), color=COLOURS["vineppo"], label="smoothed")
    if tests:
        reward.errorbar(*zip(*tests, strict=True), fmt="o", color="black", capsize=3, label="test, pass@1")
    if validation:
        reward.plot(*zip(*validation, strict=True), "s", color=COLOURS["reinforce"], label="validation, pass@1")
    length.plot(x, [row["length"] for row in rows], color=COLOURS["grpo"])
    length.set(ylabel="tokens", ylim=(0, None))
    kl.plot(x, [row.get("kl", float("nan")) for row in rows], color=COLOURS["ppo"], label="to the reference")
    kl.plot(x, [row.get("approx_kl", float("nan")) for row in rows], color=COLOURS["reinforce"], label="to the sampling policy")
    phases = [phase for phase in PHASES if phase == "sample" or any(row.get(f"seconds_{phase}") for row in rows)]
    stacks = [[row.get(f"seconds_{phase}", 0.0) for row in rows] for phase in phases]
    seconds.stackplot(x, stacks, labels=phases, colors=[PHASES[phase] for phase in phases])
    headings = "Mean reward", "Response length", "KL a token (nats)", "Seconds an iteration"
    for axis, heading in zip((reward, length, kl, seconds), headings, strict=True):
        axis.set(title=heading, xlabel="episodes")
    for axis in (reward, kl, seconds):
        axis.legend(frameon=False)
    figure.suptitle(title)
    save_figure(figure, path)


def plot_comparison(runs: dict[str, list[dict]], path: Path, title: str) -> None:
    """Draws the sampled accuracy of several algorithms against seconds and against episodes.

    Args:
        runs: algorithm -> the rows of its metrics.jsonl, with an evaluation in the first row and in the last.
    """
    figure, ((left, right),) = new_figure(2)
    for axis, key, label in ((left, "seconds", "training time (s)"), (right, "episodes", "training episodes")):
        for name, rows in runs.items():
            x, rewards = [row[key] for row in rows[1:]], [row["reward"] for row in rows[1:]]
            colour = COLOURS.get(name, "0.4")
            axis.plot(x, rewards, color=colour, alpha=0.18)
            axis.plot(x, smooth(rewards), color=colour, label=name, marker="." if len(x) < 3 else "")
            mean, error = rows[-1]["eval"]["pass@1"]
            axis.errorbar(x[-1], mean, yerr=error or 0, fmt="o", color=colour, capsize=4)
        mean, error = rows[0]["eval"]["pass@1"]  # of any run: all start from the same policy
        axis.errorbar(0, mean, yerr=error or 0, fmt="o", color="black", capsize=4, label="start")
        axis.set(xlabel=label, ylim=(0, 1))
    left.set(ylabel="sampled accuracy")
    left.legend(frameon=False, loc="best")
    right.set_title("lines: training problems; dots: test problems", fontsize=9)
    figure.suptitle(title)
    save_figure(figure, path)
