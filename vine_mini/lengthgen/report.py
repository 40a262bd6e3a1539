"""Tables of results, and the mean reciprocal rank of encodings over tasks."""

from statistics import mean, stdev

from vine_mini.lengthgen.paper import ACCURACY, COLUMNS
from vine_mini.types import UserError


def name_of(results: dict) -> str:
    """The task, with its scratchpad if it has one."""
    pad = results["settings"]["scratchpad"]
    return results["task"] + ("" if pad == "none" else f", scratchpad {pad}")


def extrapolation(results: dict) -> dict[str, dict[int, float]]:
    """Accuracy on the test lengths, their mean: encoding -> seed -> share."""
    shares: dict[str, dict[int, float]] = {}
    for run in results["runs"]:
        beyond = [share for length, share in run["accuracy"].items() if length > results["settings"]["train_lengths"][1]]
        shares.setdefault(run["positions"], {})[run["seed"]] = mean(beyond)
    return shares


def by_length(results: dict) -> dict[str, dict[int, list[float]]]:
    """encoding -> length -> accuracy of each seed."""
    table: dict[str, dict[int, list[float]]] = {}
    for run in results["runs"]:
        for length, share in run["accuracy"].items():
            table.setdefault(run["positions"], {}).setdefault(length, []).append(share)
    return table


def accuracy_table(results: dict) -> str:
    """Accuracy in per cent, mean ± standard deviation of the seeds: seen lengths, some longer ones, their mean, the paper's."""
    settings = results["settings"]
    shortest, longest = settings["train_lengths"]
    curves = by_length(results)
    tested = [length for length in next(iter(curves.values())) if length > longest]
    some = tested if len(tested) <= 6 else [tested[round(i * (len(tested) - 1) / 5)] for i in range(6)]
    head = ["", f"{shortest}-{longest} (seen)", *map(str, some), f"{tested[0]}-{tested[-1]}", "paper"]
    paper = dict(zip(COLUMNS, ACCURACY[results["task"]], strict=True)) if settings["scratchpad"] == "none" else {}
    rows = []
    for name, curve in curves.items():
        seen = [mean(seed) for seed in zip(*(curve[n] for n in curve if n <= longest), strict=True)]
        beyond = list(extrapolation(results)[name].values())
        cells = [cell(seen), *(cell(curve[n]) for n in some), cell(beyond)]
        theirs = paper.get(name, paper.get("rope25") if name == "rope" else None)
        rows.append([name, *cells, "" if theirs is None else f"{100 * theirs:.1f}"])
    title = (
        f"{name_of(results)}: accuracy in %, mean ± standard deviation of {len(settings['seeds'])} seeds, "
        f"{settings['steps']} steps of {settings['batch_size']}"
    )
    return title + "\n" + columns([head, *rows])


def mean_reciprocal_rank(queries: list[dict[str, float]]) -> dict[str, float]:
    """1 / rank by accuracy, averaged over queries (section 4, figure 1). A query is one task with one seed: encoding -> accuracy.

    Ties share the mean of the ranks that they take up together, so that no encoding gains by being named first. (The
    official code gives the better rank to the first row of its table.)
    """
    ranks: dict[str, list[float]] = {name: [] for name in queries[0]}
    for query in queries:
        for name, accuracy in query.items():
            better = sum(other > accuracy for other in query.values())
            equal = sum(other == accuracy for other in query.values())  # itself included
            ranks[name].append(1 / (better + (equal + 1) / 2))
    return {name: mean(values) for name, values in ranks.items()}


def queries(all_results: list[dict]) -> tuple[list[str], list[dict[str, float]]]:
    """The encodings that all results have, and a query for each task and seed. Raises UserError where nothing can be ranked."""
    tables = [extrapolation(results) for results in all_results]
    common = [name for name in tables[0] if all(name in table for table in tables)]
    if len(common) < 2:
        raise UserError("the results have fewer than two encodings in common: nothing to rank")
    names = [name_of(results) for results in all_results]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two results are of {name}: name each task once")
    rows = []
    for table in tables:
        seeds = [seed for seed in table[common[0]] if all(seed in table[name] for name in common)]
        rows += [{name: table[name][seed] for name in common} for seed in seeds]
    return common, rows


def rank_table(all_results: list[dict]) -> str:
    """One row a task: accuracy on test lengths in per cent, ours and (the paper's); last the mean reciprocal rank."""
    names, rows = queries(all_results)
    lines = [["", *names]]
    for results in all_results:
        shares = extrapolation(results)
        theirs = dict(zip(COLUMNS, ACCURACY[results["task"]], strict=True))
        theirs["rope"] = theirs["rope25"]
        known = results["settings"]["scratchpad"] == "none"
        cells = [
            cell(list(shares[name].values())) + (f" ({100 * theirs[name]:.1f})" if known and name in theirs else "")
            for name in names
        ]
        lines.append([name_of(results), *cells])
    ranks = mean_reciprocal_rank(rows)
    lines.append(["mean reciprocal rank", *(f"{ranks[name]:.3f}" for name in names)])
    return columns(lines)


def columns(rows: list[list[str]]) -> str:
    """Rows as a Markdown table that also reads well as text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def cell(shares: list[float]) -> str:
    """Mean ± standard deviation, in per cent."""
    return f"{100 * mean(shares):.1f}" + (f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else "")
