"""The mean reciprocal rank of encodings over tasks (figure 1), with intervals, and its table."""

import math
from statistics import fmean

from vine_mini.app.intervals import t_quantile
from vine_mini.app.tables import columns
from vine_mini.lengthgen import paper
from vine_mini.lengthgen.own import short
from vine_mini.lengthgen.report import cell, extrapolation, is_learned, name_of, paper_figures, uneven
from vine_mini.types import UserError

FEWEST = 8  # families of tasks for an interval


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


def mean_reciprocal_rank(tasks: list[list[dict[str, float]]]) -> dict[str, float]:
    """The mean over tasks of the mean over seeds of `reciprocal_ranks` (figure 1). tasks: for each task a query of each seed."""
    ranked = [[reciprocal_ranks(query) for query in task] for task in tasks]
    return {name: fmean(fmean(row[name] for row in task) for task in ranked) for name in ranked[0][0]}


def rank_intervals(tasks: list[list[dict[str, float]]], families: list[str]) -> dict[str, tuple[float, float]]:
    """95 % intervals of the mean reciprocal ranks: encoding -> low, high. tasks: the queries of each task, one for each seed."""
    ranked = [[reciprocal_ranks(query) for query in task] for task in tasks]
    return {name: family_interval([fmean(row[name] for row in task) for task in ranked], families)[1:] for name in ranked[0][0]}


def family(task: str) -> str:
    """The name that the variants of a task share: "copy" for copy-2x. The file of a task of one's own is a family by itself."""
    return task if task.endswith(".py") else task.split("-")[0]


def enough(families: list[str]) -> bool:
    """Whether there are enough families of tasks for an interval."""
    return len({*families}) >= FEWEST


def family_interval(values: list[float], families: list[str]) -> tuple[float, float, float]:
    """The mean over tasks and its 95 % interval: a jackknife over families of tasks, with Student's t. -> mean, low, high

    The variants of a task have similar results. As separate tasks they would make the interval too narrow. With ten families as
    here the interval covers about 92 % in simulations with normal numbers (a test repeats them). Fewer than FEWEST families have
    no interval.

    Args:
        values: a number for each task, such as a mean over seeds.
        families: the family of each task.
    """
    mean, names = fmean(values), [*dict.fromkeys(families)]  # in a fixed order, so that sums round alike in each process
    if not enough(families):
        return mean, -math.inf, math.inf
    without = [fmean(x for x, family in zip(values, families, strict=True) if family != left_out) for left_out in names]
    variance = (len(names) - 1) / len(names) * sum((x - mean) ** 2 for x in without)
    half = t_quantile(0.975, len(names) - 1) * variance**0.5
    return mean, mean - half, mean + half


def queries(all_results: list[dict], encodings: list[str] | None = None) -> list[list[dict[str, float]]]:
    """The queries of each task, one for each seed.

    A query ranks `encodings`. Left out: the paper's five encodings, as far as all results have them. Where not all results have
    `rope25`, `rope` then takes its place. Raises UserError where nothing can be ranked.
    """
    if encodings and len({*encodings}) < max(2, len(encodings)):
        raise UserError("--encodings: name two or more, and each of them once")
    tables = [extrapolation(results) for results in all_results]
    common = [name for name in encodings or (*paper.COLUMNS, "rope") if all(name in table for table in tables)]
    if encodings and len(common) < len({*encodings}):
        raise UserError(f"the results have only {', '.join(common) or 'none'} of these encodings in common")
    if "rope25" in common and "rope" in common and not encodings:
        common.remove("rope")
    if len(common) < 2:
        which = f"{', '.join(paper.COLUMNS)} (or rope)"
        raise UserError(f"the results have fewer than two of {which} in common: name those to rank with --encodings")
    names = [name_of(results) for results in all_results]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two results are of {name}: name each task once")
    return [[{name: table[name][seed] for name in common} for seed in table[common[0]]] for table in tables]


def rank_table(all_results: list[dict], encodings: list[str] | None = None) -> str:
    """One row for each task: accuracy on test lengths in per cent, ours and (the paper's). Then the mean reciprocal ranks.

    Where the original test set has unequally many examples of the lengths, another row has the mean over examples. Where some
    tasks were not learned, another row ranks the others alone. `encodings` as for `queries`.
    """
    tasks = queries(all_results, encodings)
    families = [family(results["task"]) for results in all_results]
    ranks = mean_reciprocal_rank(tasks)
    known = [i for i, results in enumerate(all_results) if is_learned(results)]
    tables = [extrapolation(results) for results in all_results]
    others = [name for name in tables[0] if name not in ranks and all(name in table for table in tables)]
    rows = [["", *map(short, [*ranks, *others])]]
    for results in all_results:
        for by_example in (False, True)[: 1 + uneven(results)]:
            label = name_of(results) + ", by example" * by_example
            shares = extrapolation(results, by_example=by_example)
            unranked = [cell([*shares[name].values()]) for name in others]
            rows.append([label, *_cells(results, list(ranks), by_example), *unranked])
    theirs, over = paper_ranks(all_results, [*ranks])
    figures = {name: f" ({paper.of(name, theirs):.3f})" if theirs else "" for name in ranks}
    blank = [""] * len(others)
    rows.append(["mean reciprocal rank", *(f"{rank:.3f}{figures[name]}" for name, rank in ranks.items()), *blank])
    rows += _intervals(tasks, families, blank)
    if 0 < len(known) < len(tasks):
        of_learned = [tasks[i] for i in known], [families[i] for i in known]
        row = [f"{rank:.3f}" for rank in mean_reciprocal_rank(of_learned[0]).values()]
        rows.append([f"the same, {len(known)} learned tasks", *row, *blank])
        rows += _intervals(*of_learned, blank)
    left_out = sorted({short(run["encoding"]) for results in all_results for run in results["runs"]} - {*map(short, ranks)})
    note = f" Not ranked: {', '.join(left_out)}." if left_out else ""
    brackets = "The paper's numbers are in brackets" + (f"; its mean reciprocal rank is over {over}." if theirs else ".")
    brackets, source = (brackets, f" {paper.NOTE}") if any(map(paper_figures, all_results)) else ("", "")
    interval = f" An interval is a jackknife over at least {FEWEST} families of tasks, with Student's t."
    interval += " Ranks are by the mean over lengths."
    unlearned = [name_of(results) for results in all_results if not is_learned(results)]
    if unlearned:
        note += f" Not learned (below 90 % on the seen lengths, mean of the encodings): {', '.join(unlearned)}."
    return f"{columns(rows)}\n\n{brackets}{interval}{note}{source}"


def paper_ranks(all_results: list[dict], names: list[str]) -> tuple[dict[str, float], str]:
    """`paper.ranks` of these results; empty where one of them has other lengths than the paper's."""
    theirs, over = paper.ranks({results["task"] for results in all_results}, names)
    return (theirs if all(map(paper_figures, all_results)) else {}), over


def _intervals(tasks, families: list[str], blank: list[str]) -> list[list[str]]:
    """The row of intervals, where there are enough families."""
    if not enough(families):
        return []
    return [["95 % interval", *(f"{low:.2f} to {high:.2f}" for low, high in rank_intervals(tasks, families).values()), *blank]]


def _cells(results: dict, names: list[str], by_example: bool) -> list[str]:
    theirs, shares, cells = paper_figures(results, by_example=by_example), extrapolation(results, by_example=by_example), []
    for name in names:
        figure = theirs.get(name)
        cells.append(cell(list(shares[name].values())) + ("" if figure is None else f" ({100 * figure:.1f})"))
    return cells
