"""Pictures of length generalization. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from pathlib import Path
from statistics import mean, stdev

from vine_mini.lengthgen.report import by_length, name_of
from vine_mini.plots import new_figure, save_figure

STYLES = {
    "nope": ("NoPE", "#0072B2", "o"),
    "t5": ("T5 bias", "#009E73", "s"),
    "alibi": ("ALiBi", "#E69F00", "^"),
    "rope": ("RoPE", "#D55E00", "v"),
    "rope25": ("RoPE, a quarter", "#D55E00", "<"),
    "sinusoidal": ("sinusoidal", "#CC79A7", "D"),
    "learned": ("learned", "#56B4E9", "P"),
    "hybrid": ("RoPE + NoPE layers", "#000000", "X"),
}


def plot_accuracy(results: dict, path: Path) -> None:
    """Accuracy against length, the mean of the seeds with a band of one standard deviation; a line where training ended."""
    figure, ((axis,),) = new_figure(1)
    figure.set_size_inches(7.2, 4)
    for name, curve in by_length(results).items():
        label, colour, marker = STYLES[name]
        middle = [mean(shares) for shares in curve.values()]
        spread = [stdev(shares) if len(shares) > 1 else 0 for shares in curve.values()]
        axis.plot(curve.keys(), middle, color=colour, marker=marker, markersize=4, label=label)
        low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(list(curve), low, high, color=colour, alpha=0.15, linewidth=0)
    _mark_training(axis, results)
    axis.set(xlabel="length", ylabel="exact match", ylim=(-0.02, 1.02), title=name_of(results))
    axis.legend(frameon=False)
    save_figure(figure, path)


def _mark_training(axis, results):
    longest = results["settings"]["train_lengths"][1]
    axis.axvline(longest + 0.5, color="0.4", linestyle="--", linewidth=1)
    axis.annotate("longest in training", (longest + 0.5, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
