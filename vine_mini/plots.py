"""Pictures of runs. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from pathlib import Path
from warnings import catch_warnings, simplefilter

from vine_mini.page import NAMES, STRONG, signed, visible

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
    """Writes the picture; a reader never meets half of it."""
    fresh = path.with_name(f".partial-{path.name}")
    figure.savefig(fresh, dpi=110)
    fresh.replace(path)
    from matplotlib import pyplot

    pyplot.close(figure)


def smooth(values: list[float], radius: int = 2) -> list[float]:
    """Mean over each value and up to `radius` neighbours on either side, as many on both, so that no curve lags behind."""
    means = []
    for i in range(len(values)):
        r = min(radius, i, len(values) - 1 - i)
        means.append(sum(values[i - r : i + r + 1]) / (2 * r + 1))
    return means


def plot_run(rows: list[dict], path: Path, title: str) -> None:
    """curves.png of a run from its metrics: reward, length and truncation, KL, and where the time went."""
    figure, ((reward, length), (kl, seconds)) = new_figure(2, 2)
    tests = [(row["episodes"], row["eval"]["pass@1"][0], row["eval"]["pass@1"][1] or 0) for row in rows if "eval" in row]
    rows = [row for row in rows if "reward" in row]
    x = [row["episodes"] for row in rows]
    reward.plot(x, [row["reward"] for row in rows], color="0.75", label="iteration")
    reward.plot(x, smooth([row["reward"] for row in rows]), color=COLOURS["vineppo"], label="smoothed")
    if tests:
        reward.errorbar(*zip(*tests, strict=True), fmt="o", color="black", capsize=3, label="test, pass@1")
    reward.set(title="Share of right answers", xlabel="episodes")
    reward.legend(frameon=False)
    length.plot(x, [row["length"] for row in rows], color=COLOURS["grpo"], label="tokens a response")
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
    """Several algorithms' sampled accuracy against seconds and against episodes.

    Args:
        runs: algorithm -> {"metrics": rows, "before": evaluation, "after": evaluation}.
    """
    figure, (axes,) = new_figure(2)
    for axis, key, label in zip(axes, ("seconds", "episodes"), ("training time (s)", "training episodes"), strict=True):
        for name, run in runs.items():
            rows, colour = run["metrics"], COLOURS[name]
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
    axes[1].set(title="lines: training problems as they are met; dots: test problems")
    axes[1].title.set_fontsize(9)
    figure.suptitle(title)
    save_figure(figure, path)


def plot_seeds(runs: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """Learning curves of several seeds: the mean, and a band of one standard deviation.

    Args:
        runs: label, beginning with the algorithm's name -> metrics rows of each seed. A variant ("vineppo-less") is dotted,
            a label that ends with "before" dashed.
    """
    import numpy

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


def plot_credit(page, path: Path) -> None:
    """The steps of a `page.Page` as rows; for each method the advantage as a coloured cell with its number."""
    from matplotlib.colors import LinearSegmentedColormap

    texts = [_one_line(text, 56) for text in page.steps]
    n, wide, text_wide = len(page.steps), 1.3, 0.095 * max(map(len, texts)) + 0.2  # inches
    colours = LinearSegmentedColormap.from_list("credit", [COLOURS["ppo"], "white", COLOURS["vineppo"]])
    figure, ((axis,),) = new_figure(1)
    figure.set_size_inches(text_wide + wide * len(page.credits), 1.3 + 0.42 * n)
    axis.set(xlim=(-text_wide, wide * len(page.credits)), ylim=(n, -1))
    axis.axis("off")
    for row, text in enumerate(texts):
        axis.text(-0.1, row + 0.5, text, ha="right", va="center", family="monospace", parse_math=False)
    for column, credit in enumerate(page.credits):
        left = wide * column
        axis.text(left + wide / 2, -0.35, NAMES[credit.name], ha="center", va="center", weight="bold")
        for row, advantage in enumerate(credit.advantages):
            colour = colours(0.5 + 0.3 * max(-1.0, min(1.0, advantage / STRONG)))  # never so dark that the number cannot be read
            axis.fill_between([left, left + wide], row, row + 1, color=colour, edgecolor="white")
            axis.text(left + wide / 2, row + 0.5, signed(advantage), ha="center", va="center")
    title = _one_line(page.question, int(11 * figure.get_figwidth()))
    figure.suptitle(f"{title}\nreward {page.reward:g}; the advantage of each step", fontsize=10, parse_math=False)
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # a character that the font lacks is drawn as a box
        save_figure(figure, path)


def _one_line(text: str, most: int) -> str:
    """The text on one line of at most so many characters; unlike textwrap's `shorten`, also where it has no spaces."""
    text = " ".join(visible(text).split())
    return text if len(text) <= most else text[: most - 3] + "..."
