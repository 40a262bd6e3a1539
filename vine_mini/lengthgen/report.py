"""Tables of results."""

import math
from statistics import fmean, mean, stdev

from vine_mini.app import intervals
from vine_mini.app.tables import columns
from vine_mini.lengthgen import paper
from vine_mini.lengthgen.attention import SAME_SEED
from vine_mini.lengthgen.own import short
from vine_mini.lengthgen.tasks import TASKS

LEARNED = 0.9  # accuracy on seen lengths


def name_of(results: dict) -> str:
    """The task, and its scratchpad if there is one."""
    pad = results["settings"]["scratchpad"]
    return short(results["task"]) + ("" if pad == "none" else f", scratchpad {pad}")


def seen(results: dict) -> dict[str, dict[int, float]]:
    """encoding -> seed -> accuracy in training: the mean over its lengths"""
    shares: dict[str, dict[int, float]] = {}
    for run in results["runs"]:
        within = [share for n, share in run["accuracy"].items() if n <= results["settings"]["train_lengths"][1]]
        shares.setdefault(run["encoding"], {})[run["seed"]] = fmean(within)
    return shares


def extrapolation(results: dict, *, by_example: bool = False) -> dict[str, dict[int, float]]:
    """encoding -> seed -> accuracy beyond training: the mean over test lengths, or over the examples of the original test set"""
    shares: dict[str, dict[int, float]] = {}
    for run in results["runs"]:
        beyond = {n: share for n, share in run["accuracy"].items() if n > results["settings"]["train_lengths"][1]}
        weights = [TASKS[results["task"]].weight(n) if by_example else 1 for n in beyond]
        shares.setdefault(run["encoding"], {})[run["seed"]] = fmean(beyond.values(), weights)
    return shares


def is_learned(results: dict) -> bool:
    """Whether the encodings have learned the task: their mean accuracy on the seen lengths is at least 90 %."""
    return fmean(fmean(seeds.values()) for seeds in seen(results).values()) >= LEARNED


def uneven(results: dict) -> bool:
    """Whether the original test set has more examples of some lengths than of others, so that the two means differ."""
    task = TASKS[results["task"]]
    return len({task.weight(n) for n in task.lengths(*results["settings"]["test_lengths"])}) > 1


def by_length(results: dict) -> dict[str, dict[int, list[float]]]:
    """encoding -> length -> accuracy of each seed"""
    table: dict[str, dict[int, list[float]]] = {}
    for run in results["runs"]:
        for length, share in run["accuracy"].items():
            table.setdefault(run["encoding"], {}).setdefault(length, []).append(share)
    return table


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and interval over seeds. Equal values, such as 100 % of all seeds, say nothing about the spread: no interval."""
    return intervals.interval(values) if len({*values}) > 1 else (values[0], -math.inf, math.inf)


def paper_figures(results: dict, *, by_example: bool = False) -> dict[str, float]:
    """encoding -> the paper's accuracy on test lengths; empty with a scratchpad, other lengths, or a user's own task

    `rope` has none beside `rope25`.
    """
    settings, task = results["settings"], TASKS[results["task"]]
    names, lengths = settings["encodings"], ([*settings["train_lengths"]], [*settings["test_lengths"]])
    if settings["scratchpad"] != "none" or lengths != ([*task.train], [*task.test]):
        return {}
    figures = paper.accuracy(results["task"], by_example=by_example)
    known = {name: paper.of(name, figures) for name in names if not (name == "rope" and "rope25" in names)}
    return {name: figure for name, figure in known.items() if figure is not None}


def accuracy_table(results: dict) -> str:
    """Accuracy in per cent, mean ± standard deviation of the seeds.

    The columns are the seen lengths, up to six longer lengths, the mean over all longer lengths, and the paper's mean. Where the
    mean over the examples of the original test set differs, it has a column too. With several seeds, the last column is the
    difference of the means over longer lengths to the first encoding, paired by seed, with its 95 % interval.
    """
    settings = results["settings"]
    shortest, longest = settings["train_lengths"]
    means = [extrapolation(results), *([extrapolation(results, by_example=True)] if uneven(results) else [])]
    curves = by_length(results)
    tested = [length for length in next(iter(curves.values())) if length > longest]
    some = tested if len(tested) <= 6 else [tested[round(i * (len(tested) - 1) / 5)] for i in range(6)]
    theirs = [paper_figures(results, by_example=k > 0) for k in range(len(means))]
    shown = any(name in theirs[0] for name in curves)
    rows = [["", f"{shortest}-{longest} (seen)", *map(str, some)]]
    for how in ("", ", by example")[: len(means)]:
        rows[0] += [f"{tested[0]}-{tested[-1]}{how}", *[f"paper{how}"] * shown]
    first, paired = next(iter(curves)), len(settings["seeds"]) > 1
    rows[0] += [f"minus {short(first)}, 95 % interval"] * paired
    for name, curve in curves.items():
        within = [mean(seed) for seed in zip(*(curve[n] for n in curve if n <= longest), strict=True)]
        cells = [cell(within), *(cell(curve[n]) for n in some)]
        for shares, figures in zip(means, theirs, strict=True):
            cells += [cell([*shares[name].values()]), *[_per_cent(figures.get(name))] * shown]
        rows.append([short(name), *cells])
        if paired:
            gaps = [100 * (means[0][name][seed] - base) for seed, base in means[0][first].items()]
            gap, low, high = interval(gaps)
            rows[-1].append("" if name == first else f"{gap:+.1f}" + ("" if math.isinf(low) else f" ({low:+.1f} to {high:+.1f})"))
    seeds = len(settings["seeds"])
    title = f"{name_of(results)}, length = {TASKS[results['task']].length_unit}: exact match in %, " + (
        f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    )
    note = f"\n\n{paper.NOTE}" if shown else ""
    return f"{title}, {settings['updates']} updates on {settings['batch_size']} examples each\n\n{columns(rows)}{note}"


def distance_table(means: dict[str, dict[str, dict[str, float]]], results: dict, examples: int) -> str:
    """A table for each measure. Rows are layers and means. Columns are encodings, the nearest to NoPE first.

    means: measure -> encoding -> what -> distance. The official code's measure has a row with the paper's figures.
    """
    right = seen(results)
    texts = []
    for measure, distances in means.items():
        names = sorted(distances, key=lambda name: distances[name]["all layers"])
        rows = [["distance to NoPE (nats)", *("nope, other seed" if name == "nope" else short(name) for name in names)]]
        rows += [[what, *(f"{distances[name][what]:.3f}" for name in names)] for what in distances[names[0]]]
        if measure == SAME_SEED:
            theirs = [
                None if name == "rope" and "rope25" in names else paper.of(name, paper.ATTENTION_DISTANCE) for name in names
            ]
            rows.append(["paper, all layers (SCAN)", *("" if figure is None else f"{figure:.3f}" for figure in theirs)])
        rows.append(["exact match on seen lengths, %", *(cell([*right[name].values()]) for name in names)])
        texts.append(f"{measure}\n\n{columns(rows)}\n")
    return "\n".join([*texts, f"{name_of(results)}: {examples} sequences of each length and seed"])


def probe_table(means: dict, results: dict) -> str:
    """R² of each probe, a row for each place in the network; the columns are networks, targets and lengths."""
    columns_of = [(network, target, name) for network in means for target in ("t", "1/t") for name in ("seen", "longer")]
    rows = [["R² of a linear probe", *(f"{network}: {target}, {name}" for network, target, name in columns_of)]]
    for place in means["trained"]:
        cells = []
        for network, target, name in columns_of:
            value = means[network].get(place, {}).get(target, {}).get(name)  # the construction has two layers
            cells.append("" if value is None else f"{value:.3f}" if value > -10 else "below -10")
        rows.append([place, *cells])
    seeds = len(results["settings"]["seeds"])
    mean_of = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    return f"{columns(rows)}\n\n{name_of(results)}: NoPE, {mean_of}. t is the position, counted from 1."


def encodings_table(all_results: list[dict]) -> str:
    """Accuracy on longer inputs in per cent: a row for each encoding, the best mean over tasks first; a column for each task."""
    tables = [extrapolation(results) for results in all_results]
    common = [name for name in tables[0] if all(name in table for table in tables)]
    means = {name: fmean(fmean(table[name].values()) for table in tables) for name in common}
    rows = [["exact match beyond training, %", *map(name_of, all_results), "mean"]]
    for name in sorted(common, key=lambda name: -means[name]):
        rows.append([short(name), *(cell([*table[name].values()]) for table in tables), f"{100 * means[name]:.1f}"])
    return columns(rows)


def rates_table(rates: dict[str, dict[float, dict]]) -> str:
    """Accuracy on seen lengths in per cent: a row for each task, a column for each encoding and learning rate.

    rates: task -> rate -> results. The last column is `best_rate`.
    """
    rows: list[list[str]] = []
    for task, by_rate in rates.items():
        every = {rate: {name: fmean(seeds.values()) for name, seeds in seen(by_rate[rate]).items()} for rate in sorted(by_rate)}
        names = [*next(iter(every.values()))]
        rows = rows or [["exact match on seen lengths, %", *(f"{short(n)}, {rate:g}" for n in names for rate in every), "chosen"]]
        lengths = "{}-{}".format(*by_rate[min(by_rate)]["settings"]["train_lengths"])
        rows.append(
            [f"{task} ({lengths})", *(f"{100 * every[rate][n]:.1f}" for n in names for rate in every), f"{best_rate(by_rate):g}"]
        )
    return columns(rows)


def best_rate(by_rate: dict[float, dict]) -> float:
    """The highest learning rate whose accuracy on seen lengths, the mean of the encodings, is within a point of the best."""
    means = {rate: fmean(fmean(seeds.values()) for seeds in seen(results).values()) for rate, results in by_rate.items()}
    return max(rate for rate in means if max(means.values()) - means[rate] < 0.01)


def formats_table(formats: dict[str, dict[str, dict]]) -> str:
    """Accuracy on longer inputs in per cent, for each task, format of the scratchpad, and encoding. formats: task -> format ->
    results
    """
    every = {task: {pad: extrapolation(results) for pad, results in of.items()} for task, of in formats.items()}
    names = list(dict.fromkeys(name for of in every.values() for shares in of.values() for name in shares))
    rows = [["task", "scratchpad", *map(short, names)]]
    for task, of in every.items():
        for pad, shares in of.items():
            rows.append([task, pad, *(cell([*shares[name].values()]) if name in shares else "" for name in names)])
    return columns(rows)


def _per_cent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def cell(shares: list[float]) -> str:
    """Mean ± standard deviation, in per cent."""
    return f"{100 * mean(shares):.1f}" + (f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else "")
