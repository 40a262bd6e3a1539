"""Pictures of runs. The colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from pathlib import Path

COLOURS = {"vineppo": "#0072B2", "ppo": "#D55E00", "grpo": "#009E73", "rloo": "#CC79A7", "reinforce": "#E69F00"}
PHASES = ("sample", "rollouts", "score", "update")


def new_figure(columns: int, rows: int = 1):
    """An empty figure in this project's style. -> figure, array of axes [rows, columns]"""
    import matplotlib  # imported late: most commands draw nothing

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})
    return pyplot.subplots(rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False, layout="constrained")


def save_figure(figure, path: Path) -> None:
    """Writes the picture under another name and renames it, so that a reader never sees half a file."""
    fresh = path.with_name(f".partial-{path.name}")
    figure.savefig(fresh, dpi=110)
    fresh.replace(path)
    from matplotlib import pyplot

    pyplot.close(figure)


def smooth(values: list[float], radius: int = 2) -> list[float]:
    """The mean over each value and its neighbours, at most `radius` on each side.

    Both sides have equally many neighbours. A curve would lag behind its values otherwise.
    """
    means = []
    for i in range(len(values)):
        r = min(radius, i, len(values) - 1 - i)
        means.append(sum(values[i - r : i + r + 1]) / (2 * r + 1))
    return means


def plot_run(rows: list[dict], path: Path, title: str) -> None:
    """Draws curves.png of a run from the rows of its metrics.jsonl: reward, length, KL and seconds."""
    figure, ((reward, length), (kl, seconds)) = new_figure(2, 2)
    tests = [(row["episodes"], row["eval"]["pass@1"][0], row["eval"]["pass@1"][1] or 0) for row in rows if "eval" in row]
    rows = [row for row in rows if "reward" in row]
    x = [row["episodes"] for row in rows]
    reward.plot(x, [row["reward"] for row in rows], color="0.75", label="iteration")
    reward.plot(x, smooth([row["reward"] for row in rows]), color=COLOURS["vineppo"], label="smoothed")
    if tests:
        reward.errorbar(*zip(*tests, strict=True), fmt="o", color="black", capsize=3, label="test, pass@1")
    reward.set(title="Mean reward", xlabel="episodes")
    reward.legend(frameon=False)
    length.plot(x, [row["length"] for row in rows], color=COLOURS["grpo"])
    length.set(title="Response length", xlabel="episodes", ylabel="tokens", ylim=(0, None))
    kl.plot(x, [row.get("kl", float("nan")) for row in rows], color=COLOURS["ppo"], label="to the reference")
    kl.plot(x, [row["approx_kl"] for row in rows], color=COLOURS["reinforce"], label="to the sampling policy")
    kl.set(title="KL a token (nats)", xlabel="episodes")
    kl.legend(frameon=False)
    stacks = [[row.get(f"seconds_{phase}", 0.0) for row in rows] for phase in PHASES]
    seconds.stackplot(x, stacks, labels=PHASES, colors=list(COLOURS.values()))
    seconds.set(title="Seconds an iteration", xlabel="episodes")
    seconds.legend(frameon=False)
    figure.suptitle(title)
    save_figure(figure, path)


def plot_comparison(runs: dict[str, dict], path: Path, title: str) -> None:
    """Draws the sampled accuracy of several algorithms against seconds and against episodes.

    Args:
        runs: algorithm -> {"metrics": rows, "before": evaluation, "after": evaluation}.
    """
    figure, (axes,) = new_figure(2)
    for axis, key, label in zip(axes, ("seconds", "episodes"), ("training time (s)", "training episodes"), strict=True):
        for name, run in runs.items():
            rows, colour = run["metrics"], COLOURS.get(name, "0.4")
            x = [row[key] for row in rows]
            axis.plot(x, [row["reward"] for row in rows], color=colour, alpha=0.18)
            axis.plot(x, smooth([row["reward"] for row in rows]), color=colour, label=name, marker="." if len(x) < 3 else "")
            mean, error = run["after"]["pass@1"]
            axis.errorbar([x[-1]], [mean], yerr=[error or 0], fmt="o", color=colour, capsize=4)
        mean, error = next(iter(runs.values()))["before"]["pass@1"]
        axis.errorbar([0], [mean], yerr=[error or 0], fmt="o", color="black", capsize=4, label="start")
        axis.set(xlabel=label, ylim=(0, 1))
    axes[0].set(ylabel="sampled accuracy")
    axes[0].legend(frameon=False, loc="best")
    axes[1].set(title="lines: training problems; dots: test problems")
    axes[1].title.set_fontsize(9)
    figure.suptitle(title)
    save_figure(figure, path)
