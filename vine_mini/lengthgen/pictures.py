"""Pictures of length generalization. The colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from pathlib import Path
from statistics import mean, stdev

from vine_mini.app.plots import new_figure, save_figure
from vine_mini.decoder.table import ENCODINGS
from vine_mini.lengthgen import paper
from vine_mini.lengthgen.ranking import enough, family, mean_reciprocal_rank, paper_ranks, queries, rank_intervals
from vine_mini.lengthgen.report import by_length, name_of
from vine_mini.lengthgen.tasks import TASKS

COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999", "#000000")
MARKERS = "ov^sDP<X>*hpd"
LINES = ("-", "--", ":", "-.")


def style(encoding: str) -> tuple[str, str, str]:
    """-> label, colour and marker of an encoding. The first eight of the table have a colour of their own."""
    place = list(ENCODINGS).index(encoding)
    return ENCODINGS[encoding].label, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def _line(encoding: str) -> str:
    """The line of an encoding, which is another one where the colour comes again."""
    return LINES[list(ENCODINGS).index(encoding) // len(COLOURS) % len(LINES)]


def plot_accuracy(results: dict, path: Path) -> None:
    """Draws accuracy against length: the mean of the seeds, a band of one standard deviation, a line at the end of training."""
    figure, ((axis,),) = new_figure(1)
    figure.set_size_inches(7.2, 4)
    for name, curve in by_length(results).items():
        label, colour, marker = style(name)
        middle = [mean(shares) for shares in curve.values()]
        spread = [stdev(shares) if len(shares) > 1 else 0 for shares in curve.values()]
        axis.plot(curve.keys(), middle, _line(name), color=colour, marker=marker, markersize=4, label=label)
        low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(list(curve), low, high, color=colour, alpha=0.15, linewidth=0)
    _mark_training(axis, results)
    axis.set(xlabel=TASKS[results["task"]].length_unit, ylabel="exact match", ylim=(-0.02, 1.02), title=name_of(results))
    if len(by_length(results)) <= len(COLOURS):
        axis.legend(frameon=False)
    else:  # it would cover the curves
        figure.set_size_inches(9.6, 4)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    save_figure(figure, path)


def _mark_training(axis, results: dict):
    longest = results["settings"]["train_lengths"][1]
    axis.axvline(longest + 0.5, color="0.4", linestyle="--", linewidth=1, label="end of training")
    axis.xaxis.get_major_locator().set_params(integer=True)


def plot_rank(all_results: list[dict], path: Path, encodings: list[str] | None = None) -> None:
    """Draws the mean reciprocal rank of each encoding, as in the paper's figure 1. Hollow bars are the paper's ranks.

    Whiskers are 95 % intervals, where there are enough families of tasks.
    """
    tasks, families = queries(all_results, encodings), [family(results["task"]) for results in all_results]
    ranks = mean_reciprocal_rank(tasks)
    intervals = rank_intervals(tasks, families) if enough(families) else {}
    theirs, over = paper_ranks(all_results, [*ranks])
    names, beside = sorted(ranks, key=ranks.get, reverse=True), 0.2 if theirs else 0.0
    figure, ((axis,),) = new_figure(1)
    for i, name in enumerate(names):
        colour = style(name)[1]
        ours, other = ("here", f"paper ({over})") if i == 0 else (None, None)  # one legend entry each
        whisker = [[abs(ranks[name] - end)] for end in intervals[name]] if intervals else None
        axis.bar(i - beside, ranks[name], 0.38, color=colour, label=ours, yerr=whisker, ecolor="0.3", capsize=3)
        if theirs:
            axis.bar(i + beside, paper.of(name, theirs), 0.38, color="none", edgecolor=colour, label=other)
    axis.set_xticks(range(len(names)), [style(name)[0].replace(", ", ",\n") for name in names])
    axis.set(ylabel="mean reciprocal rank", ylim=(0, 1), title=f"{len(all_results)} tasks, {sum(map(len, tasks))} rankings")
    if theirs:
        axis.legend(frameon=False)
    save_figure(figure, path)


def _panels(n: int):
    """-> a figure, its n axes in rows of three, and how many stand in a row"""
    across = min(3, n)
    figure, axes = new_figure(across, -(-n // across))
    for axis in axes.flatten()[n:]:
        axis.remove()
    return figure, axes.flatten()[:n], across


def plot_heatmap(all_results: list[dict], path: Path) -> None:
    """Draws accuracy by length and encoding, a panel for each task. A line stands at the end of training."""
    figure, axes, across = _panels(len(all_results))
    most = max(len(by_length(results)) for results in all_results)
    figure.set_size_inches(4.6 * across, (0.9 + 0.2 * most) * -(-len(axes) // across))
    for axis, results in zip(axes, all_results, strict=True):
        table = by_length(results)
        lengths = list(next(iter(table.values())))
        shares = [[mean(curve[length]) for length in lengths] for curve in table.values()]
        image = axis.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        axis.axvline(sum(n <= results["settings"]["train_lengths"][1] for n in lengths) - 0.5, color="white", linestyle="--")
        some = range(0, len(lengths), -(-len(lengths) // 10))
        axis.set_xticks(some, [lengths[i] for i in some], fontsize=8)
        axis.set_yticks(range(len(table)), [style(name)[0] for name in table], fontsize=8)
        axis.set_title(f"{name_of(results)}: {TASKS[results['task']].length_unit}", fontsize=9)
        axis.grid(False)
    figure.colorbar(image, ax=list(axes), label="exact match", shrink=0.4)
    save_figure(figure, path)


def plot_distances(tables: dict, results: dict, path: Path) -> None:
    """Draws the distance of each encoding's attention from NoPE's, by layer and by length; a row for each measure."""
    figure, axes = new_figure(2, len(tables))
    for (layers, lengths), (measure, table) in zip(axes, tables.items(), strict=True):
        for name, curve in table.items():
            label, colour, marker = style(name)
            label = "NoPE, other seed" if name == "nope" else label
            rows = [row for rows in curve.values() for row in rows]
            by_layer = [mean(layer) for layer in zip(*rows, strict=True)]
            layers.plot(range(1, len(by_layer) + 1), by_layer, _line(name), color=colour, marker=marker, label=label)
            middle = [mean(map(mean, rows)) for rows in curve.values()]
            lengths.plot(curve.keys(), middle, _line(name), color=colour, marker=marker, markersize=4)
        layers.set(title=measure, xlabel="layer", ylabel="distance to NoPE (nats)", ylim=(0, None))
        layers.set_xticks(range(1, len(by_layer) + 1))
        lengths.set(title=measure, xlabel=TASKS[results["task"]].length_unit, ylim=(0, None))
        _mark_training(lengths, results)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"Distance of attention from NoPE's ({name_of(results)})")
    save_figure(figure, path)


def plot_probe(means: dict, results: dict, path: Path) -> None:
    """Draws R² of the probes at each place: t and 1/t, on seen lengths (filled) and on longer ones (hollow)."""
    figure, (axes,) = new_figure(2)
    figure.set_size_inches(11, 4.6)
    names = list(means["trained"])
    for axis, target in zip(axes, ("t", "1/t"), strict=True):
        for (network, table), colour in zip(means.items(), COLOURS, strict=False):
            for lengths, fill in (("seen", colour), ("longer", "none")):
                shown = {i: max(table[place][target][lengths], -1) for i, place in enumerate(names) if place in table}
                label = f"{network}, {lengths} lengths"
                line = dict(color=colour, alpha=1 if lengths == "seen" else 0.6, label=label)
                axis.plot(shown.keys(), shown.values(), "o-", markerfacecolor=fill, **line)
        axis.axhline(0, color="0.4", linewidth=1)
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axis.set(title=f"probe of {target}", ylabel="R² (values below -1 are drawn at -1)", ylim=(-1.08, 1.08))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"Does NoPE write positions? ({name_of(results)})")
    save_figure(figure, path)


def plot_theory(shown: dict, path: Path) -> None:
    """Draws the positions that the built weights write, whole and broken, and the last token's attention beside ALiBi's."""
    figure, ((positions, attention),) = new_figure(2)
    styles = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":")]
    for (name, curve), (colour, line) in zip(shown["curves"].items(), styles, strict=True):
        positions.plot(range(1, len(curve) + 1), curve, color=colour, linestyle=line, linewidth=2, label=name)
    T = len(shown["curves"]["no causal mask"])
    positions.plot([1, 2 * T], [1, 2 * T], color="0.7", linewidth=1, zorder=0)
    positions.axvline(T, color="0.4", linestyle="--", linewidth=1)
    positions.set(xlabel="true position", ylabel="position that layer 1 writes", title="Theorem 1")
    positions.legend(frameon=False)
    (name, ours), (other, theirs) = shown["attention"].items()
    attention.plot(range(1, T + 1), theirs, color="#E69F00", linewidth=4, alpha=0.6, label=other)
    attention.plot(range(1, T + 1), ours, color="#0072B2", linestyle="none", marker="o", markersize=3, label=name)
    attention.set(xlabel="key position", ylabel="attention of the last token, layer 2", title="Theorem 2")
    attention.legend(frameon=False)
    save_figure(figure, path)
