"""The pictures of `analyze values`."""

from pathlib import Path

from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.value_errors.measures import CONSTANT

SHADES = ("#CC79A7", "#56B4E9", "#0072B2", "#009E73", "#E69F00")  # of the numbers of rollouts


def colours(names: list[str]) -> dict[str, str]:
    """A colour for each estimator."""
    rollouts = [name for name in names if name not in ("critic", CONSTANT)]
    return {"critic": COLOURS["ppo"], CONSTANT: "0.5"} | {name: SHADES[i % len(SHADES)] for i, name in enumerate(rollouts)}


def plot_values(report, run: str, path: Path) -> None:
    """Draws each estimator's values against the truth, the error along the trajectory, and the agreement about next steps."""
    names, colour = report.names, colours(report.names)
    scattered = [name for name in names if name != CONSTANT]
    figure, axes = new_figure(3, -(-(len(scattered) + 2) // 3))
    flat = list(axes.flat)
    for axis, name in zip(flat, scattered, strict=False):
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        axis.plot([s.truth for s in report.states], [s.values[name] for s in report.states], ".", color=colour[name], alpha=0.35)
        mean, bias = report.errors[name]["error"], report.errors[name]["bias"]
        axis.set(
            title=f"{name}: mean error {mean[0]:.3f}, bias {bias[0]:+.3f}", xlabel="truth", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05)
        )
    flat[0].set(ylabel="value")
    by_place, ranking = flat[len(scattered)], flat[len(scattered) + 1]
    for name in names:
        places = report.by_place[name]
        by_place.plot([(i + 0.5) / len(places) for i in range(len(places))], places, "o-", color=colour[name], label=name)
    by_place.set(title="mean absolute error", xlabel="place in the response", xlim=(0, 1), ylim=(0, None))
    by_place.legend(frameon=False)
    for i, name in enumerate(report.agreement):
        for offset, what, alpha in ((-0.2, "top", 1.0), (0.2, "pairs", 0.5)):
            mean, error = report.agreement[name][what]
            ranking.bar(i + offset, mean, 0.38, yerr=error or 0.0, color=colour[name], alpha=alpha, capsize=3)
    chance = report.agreement[names[0]]["chance"][0] if report.agreement else float("nan")
    ranking.axhline(chance, color="0.3", linestyle="--", linewidth=1)
    ranking.axhline(0.5, color="0.3", linestyle=":", linewidth=1)
    ranking.set_xticks(range(len(report.agreement)), list(report.agreement))
    ranking.set(title="best next step found; pale: better of two\n(dashed, dotted: chance)", ylim=(0, 1))
    for axis in flat[len(scattered) + 2 :]:
        axis.axis("off")
    counts = f"{len(report.states)} states, {sum(c.clear for c in report.choices)} with a clear best next step"
    figure.suptitle(f"iteration {report.iteration} of {run}: {counts}")
    save_figure(figure, path)


def plot_trend(reports: list, path: Path) -> None:
    """Draws the errors and the choice of the best next step over the checkpoints of a run."""
    names, colour = reports[0].names, colours(reports[0].names)
    figure, ((error, top),) = new_figure(2)
    ranked = [report for report in reports if report.agreement]
    for name in names:
        for axis, shown, pairs in (
            (error, reports, [r.errors[name]["error"] for r in reports]),
            (top, ranked, [r.agreement[name]["top"] for r in ranked if name in r.agreement]),
        ):
            if not pairs:
                continue
            x, (means, bars) = [r.iteration for r in shown], zip(*pairs, strict=True)
            axis.errorbar(x, means, yerr=[bar or 0.0 for bar in bars], fmt="o-", capsize=3, color=colour[name], label=name)
    chances = [r.agreement[names[0]]["chance"][0] for r in ranked]
    top.plot([r.iteration for r in ranked], chances, "--", color="0.3", label="chance")
    error.set(title="mean absolute error", xlabel="iteration", ylim=(0, None))
    top.set(title="best of several next steps found", xlabel="iteration", ylim=(0, 1))
    top.legend(frameon=False)
    save_figure(figure, path)
