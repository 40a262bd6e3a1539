"""Tables of results, and the mean reciprocal rank of encodings over tasks."""

from random import Random
from statistics import fmean, mean, stdev

from vine_mini.app.tables import columns
from vine_mini.lengthgen import paper
from vine_mini.lengthgen.attention import SAME_SEED
from vine_mini.lengthgen.own import short
from vine_mini.lengthgen.tasks import TASKS
from vine_mini.types import UserError

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


def learned(results: dict) -> bool:
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


def accuracy_table(results: dict) -> str:
    """Accuracy in per cent, mean ± standard deviation of the seeds.

    The columns are the seen lengths, up to six longer lengths, the mean over all longer lengths, and the paper's mean. Where the
    mean over the examples of the original test set differs, it has a column too.
    """
    settings = results["settings"]
    shortest, longest = settings["train_lengths"]
    means = [extrapolation(results), *([extrapolation(results, by_example=True)] if uneven(results) else [])]
    curves = by_length(results)
    tested = [length for length in next(iter(curves.values())) if length > longest]
    some = tested if len(tested) <= 6 else [tested[round(i * (len(tested) - 1) / 5)] for i in range(6)]
    theirs = [
        paper.accuracy(results["task"], by_example=k > 0) if settings["scratchpad"] == "none" else {} for k in range(len(means))
    ]
    shown = any(paper.of(name, theirs[0]) is not None for name in curves)
    rows = [["", f"{shortest}-{longest} (seen)", *map(str, some)]]
    for how in ("", ", by example")[: len(means)]:
        rows[0] += [f"{tested[0]}-{tested[-1]}{how}", *[f"paper{how}"] * shown]
    for name, curve in curves.items():
        within = [mean(seed) for seed in zip(*(curve[n] for n in curve if n <= longest), strict=True)]
        cells = [cell(within), *(cell(curve[n]) for n in some)]
        for shares, figures in zip(means, theirs, strict=True):
            cells += [cell([*shares[name].values()]), *[_per_cent(paper.of(name, figures))] * shown]
        rows.append([short(name), *cells])
    seeds = len(settings["seeds"])
    title = f"{name_of(results)}, length = {TASKS[results['task']].length_unit}: exact match in %, " + (
        f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    )
    note = f"\n\n{paper.NOTE}" if shown else ""
    return f"{title}, {settings['steps']} updates on {settings['batch_size']} examples each\n\n{columns(rows)}{note}"


def reciprocal_ranks(query: dict[str, float]) -> dict[str, float]:
    """1 / rank by accuracy. A query is one task with one seed: encoding -> accuracy.

    Encodings with equal accuracy share the mean of their ranks, so the order of the encodings does not matter. (The official
    code gives the better rank to the encoding that comes first in its table.)
    """
    ranks = {}
    for name, accuracy in query.items():
        better = sum(other > accuracy for other in query.values())
        equal = sum(other == accuracy for other in query.values())  # itself included
        ranks[name] = 1 / (better + (equal + 1) / 2)
    return ranks


def mean_reciprocal_rank(queries: list[dict[str, float]]) -> dict[str, float]:
    """The mean of `reciprocal_ranks` over queries (figure 1)."""
    rows = [reciprocal_ranks(query) for query in queries]
    return {name: mean(row[name] for row in rows) for name in rows[0]}


def rank_intervals(tasks: list[list[dict[str, float]]], draws: int = 2000) -> dict[str, tuple[float, float]]:
    """95 % intervals of the mean reciprocal ranks: encoding -> low, high. tasks: the queries of each task, one for each seed."""
    means = redrawn([[reciprocal_ranks(query) for query in task] for task in tasks], draws)
    return {name: middle([row[name] for row in means]) for name in means[0]}


def redrawn(tasks: list[list[dict[str, float]]], draws: int = 2000) -> list[dict[str, float]]:
    """A bootstrap over tasks, and over the seeds of each drawn task: the mean of each number in each of the draws.

    tasks: the rows of each task, one for each seed; a row holds a number for each encoding.
    """
    rng, means = Random(0), []
    for _ in range(draws):
        drawn = [row for task in rng.choices(tasks, k=len(tasks)) for row in rng.choices(task, k=len(task))]
        means.append({name: fmean(row[name] for row in drawn) for name in drawn[0]})
    return means


def middle(values: list[float]) -> tuple[float, float]:
    """The ends of the middle 95 % of the values: two quantiles."""
    ordered, last = sorted(values), len(values) - 1
    return ordered[round(0.025 * last)], ordered[round(0.975 * last)]


def queries(all_results: list[dict]) -> list[list[dict[str, float]]]:
    """The queries of each task, one for each seed.

    A query ranks the paper's five encodings, as far as all results have them. Where not all results have `rope25`, `rope` takes
    its place. Raises UserError where nothing can be ranked.
    """
    tables = [extrapolation(results) for results in all_results]
    common = [name for name in (*paper.COLUMNS, "rope") if all(name in table for table in tables)]
    if "rope25" in common and "rope" in common:
        common.remove("rope")
    if len(common) < 2:
        raise UserError(f"the results have fewer than two of {', '.join(paper.COLUMNS)} (or rope) in common: nothing to rank")
    names = [name_of(results) for results in all_results]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two results are of {name}: name each task once")
    return [[{name: table[name][seed] for name in common} for seed in table[common[0]]] for table in tables]


def rank_table(all_results: list[dict]) -> str:
    """One row for each task: accuracy on test lengths in per cent, ours and (the paper's). Then the mean reciprocal ranks.

    Where the original test set has unequally many examples of the lengths, another row has the mean over examples. Where some
    tasks were not learned, another row ranks the others alone.
    """
    tasks = queries(all_results)
    ranks, intervals = mean_reciprocal_rank([query for task in tasks for query in task]), rank_intervals(tasks)
    known = [task for task, results in zip(tasks, all_results, strict=True) if learned(results)]
    everywhere = set.intersection(*({run["encoding"] for run in results["runs"]} for results in all_results))
    others = [run["encoding"] for run in all_results[0]["runs"] if run["encoding"] in everywhere - {*ranks}]
    others = list(dict.fromkeys(others))
    rows = [["", *ranks, *map(short, others)]]
    for results in all_results:
        for by_example in (False, True)[: 1 + uneven(results)]:
            label = name_of(results) + ", by example" * by_example
            shares = extrapolation(results, by_example=by_example)
            unranked = [cell([*shares[name].values()]) for name in others]
            rows.append([label, *_beside_the_paper(results, list(ranks), by_example), *unranked])
    public = {results["task"] for results in all_results} == {*paper.PUBLIC}
    theirs = dict(zip(paper.COLUMNS, paper.PUBLIC_RANK if public else paper.MEAN_RECIPROCAL_RANK, strict=True))
    comparable = len(ranks) == len(theirs)  # fewer encodings give better ranks
    figures = {name: f" ({paper.of(name, theirs):.3f})" if comparable else "" for name in ranks}
    blank = [""] * len(others)
    rows.append(["mean reciprocal rank", *(f"{rank:.3f}{figures[name]}" for name, rank in ranks.items()), *blank])
    rows.append(["95 % interval", *_intervals(intervals), *blank])
    if 0 < len(known) < len(tasks):
        of_learned = mean_reciprocal_rank([query for task in known for query in task])
        rows.append([f"the same, {len(known)} learned tasks", *(f"{rank:.3f}" for rank in of_learned.values()), *blank])
        rows.append(["95 % interval", *_intervals(rank_intervals(known)), *blank])
    left_out = sorted({short(run["encoding"]) for results in all_results for run in results["runs"]} - {*ranks})
    note = f" Not ranked: {', '.join(left_out)}." if left_out else ""
    over = "these tasks" if public else "17 tasks"
    brackets = f"The paper's numbers are in brackets; its mean reciprocal rank is over {over}."
    interval = " The interval is a bootstrap over tasks and seeds. Ranks are by the mean over lengths."
    unlearned = [name_of(results) for results in all_results if not learned(results)]
    if unlearned:
        note += f" Not learned (below 90 % on the seen lengths, mean of the encodings): {', '.join(unlearned)}."
    return f"{columns(rows)}\n\n{brackets}{interval}{note} {paper.NOTE}"


def _intervals(found: dict[str, tuple[float, float]]) -> list[str]:
    return [f"{low:.2f} to {high:.2f}" for low, high in found.values()]


def _beside_the_paper(results: dict, names: list[str], by_example: bool) -> list[str]:
    theirs = paper.accuracy(results["task"], by_example=by_example) if results["settings"]["scratchpad"] == "none" else {}
    shares, cells = extrapolation(results, by_example=by_example), []
    for name in names:
        figure = paper.of(name, theirs)
        cells.append(cell(list(shares[name].values())) + ("" if figure is None else f" ({100 * figure:.1f})"))
    return cells


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
            theirs = [paper.of(name, paper.ATTENTION_DISTANCE) for name in names]
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
    return f"{columns(rows)}\n\n{name_of(results)}: NoPE, mean of {seeds} seeds. t is the position, counted from 1."


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
        rows.append([task, *(f"{100 * every[rate][n]:.1f}" for n in names for rate in every), f"{best_rate(by_rate):g}"])
    return columns(rows)


def best_rate(by_rate: dict[float, dict]) -> float:
    """The learning rate with the higher accuracy on seen lengths, the mean of the encodings, in tenths of a per cent; the lower one in a tie."""
    means = {rate: fmean(fmean(seeds.values()) for seeds in seen(results).values()) for rate, results in by_rate.items()}
    return max(sorted(means), key=lambda rate: round(means[rate], 3))


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


def temperature_table(curves: dict[str, dict[float, dict[int, list[float]]]], longest: int) -> str:
    """Accuracy in per cent on the lengths beyond `longest`: a row for each encoding, a column for each temperature."""
    rows = [["exact match beyond training, %", *(f"{t:g}" for t in next(iter(curves.values())))]]
    for name, by_temperature in curves.items():
        cells = []
        for curve in by_temperature.values():
            seeds = zip(*(shares for length, shares in curve.items() if length > longest), strict=True)
            cells.append(cell([mean(seed) for seed in seeds]))
        rows.append([short(name), *cells])
    return columns(rows)


def _per_cent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def cell(shares: list[float]) -> str:
    """Mean ± standard deviation, in per cent."""
    return f"{100 * mean(shares):.1f}" + (f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else "")
