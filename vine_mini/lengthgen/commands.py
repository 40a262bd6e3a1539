"""The `lengthgen` commands, but for `lengthgen study`."""

from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini.app.cost import check_cost
from vine_mini.app.files import check_writable, new_folder, write_text
from vine_mini.decoder.table import ENCODINGS
from vine_mini.lengthgen import pictures, ranking, report
from vine_mini.lengthgen.attention import distances_to_nope, of_each_seed, summary
from vine_mini.lengthgen.config import (
    AttentionConfig,
    FullSizeConfig,
    LengthgenConfig,
    ProbeConfig,
    RankConfig,
    TheoryConfig,
)
from vine_mini.lengthgen.cost import cost
from vine_mini.lengthgen.own import short
from vine_mini.lengthgen.probe import means, probe_folder
from vine_mini.lengthgen.results import check_files, load_results, load_so_far, write_json
from vine_mini.lengthgen.sweep import sweep
from vine_mini.lengthgen.theory import demonstrate
from vine_mini.models import pick_device
from vine_mini.types import UserError


def train(config: LengthgenConfig) -> None:
    """The `lengthgen` command."""
    of_a_run = 3 * config.updates * config.batch_size + len(config.lengths()) * config.examples  # a backward pass counts twice
    matrices = 4 * config.hidden * config.heads * config.head_dim + 8 * config.hidden**2  # of a layer: attention and MLP
    table = config.max_positions * config.hidden * any(ENCODINGS[name].table for name in config.encodings)
    parameters, length = config.layers * matrices + table, 8 * max(config.test_lengths)
    runs = len(config.encodings) * len(config.seeds)
    check_cost(config, parameters, runs * of_a_run, max(config.batch_size, config.examples), length)
    pad = "" if config.scratchpad == "none" else f"-{config.scratchpad}"
    begun = config.out is not None and (Path(config.out) / "results.json").is_file()
    folder = Path(config.out) if begun else new_folder(config.out, f"lengthgen-{short(config.task)}{pad}")
    sweep(config, folder)
    print(write_tables(folder) if load_so_far(folder) else "no table yet: no seed has run with all encodings of this folder")
    print(f"everything is in {folder}")


def full_size(config: FullSizeConfig) -> None:
    """The `lengthgen full-size` command."""
    pick_device(config.device)  # refuses before models are made
    for name in config.encodings:
        print(f"{short(name)}: {cost(config, name)}", flush=True)
    train(config)


def write_tables(folder: Path) -> str:
    """Writes table and picture of the seeds with which all encodings of a folder have run. -> the table"""
    results = load_so_far(folder)
    if results is None:
        raise UserError(f"{folder} has no results")
    table = report.accuracy_table(results)
    write_text(folder / "table.md", table + "\n")
    pictures.plot_accuracy(results, folder / "accuracy.png")
    return table


def rank(config: RankConfig) -> None:
    """The `lengthgen rank` command."""
    if config.out:
        check_writable(Path(config.out) / "rank.md")
    all_results = [load_results(folder) for folder in config.results]
    table = ranking.rank_table(all_results, config.encodings)
    print(table)
    if config.out:
        folder = Path(config.out)
        write_text(folder / "rank.md", table + "\n")
        pictures.plot_rank(all_results, folder / "rank.png", config.encodings)


def attention(config: AttentionConfig) -> None:
    """The `lengthgen attention` command."""
    folder, results = _results_of(config)
    settings = results["settings"]
    if "nope" not in settings["encodings"] or len(settings["seeds"]) < 2:
        raise UserError(f"{folder}: the comparison needs nope with at least two seeds")
    with tqdm(total=len(results["runs"]), desc="pairs of models", dynamic_ncols=True) as bar:
        tables = distances_to_nope(results, folder, config.examples, bar.update)
    summaries = {measure: summary(table, settings["train_lengths"][1]) for measure, table in tables.items()}
    seeds = {
        measure: {name: of_each_seed(by_length, len(settings["seeds"])) for name, by_length in table.items()}
        for measure, table in tables.items()
    }
    pictures.plot_distances(tables, results, folder / "attention.png")
    numbers = {"seeds": settings["seeds"], "means": summaries, "of each seed": seeds}
    _leave(folder, "attention", numbers, report.distance_table(summaries, results, config.examples))


def probe(config: ProbeConfig) -> None:
    """The `lengthgen probe` command."""
    folder, results = _results_of(config)
    settings = results["settings"]
    if "nope" not in settings["encodings"]:
        raise UserError(f"{folder}: there is no NoPE to probe")
    with tqdm(total=len(settings["seeds"]), desc="NoPE models", dynamic_ncols=True) as bar:
        found = probe_folder(results, folder, config.examples, bar.update)
    pictures.plot_probe(means(found), results, folder / "probe.png")
    numbers = {"seeds": settings["seeds"], "networks": found}
    _leave(folder, "probe", numbers, report.probe_table(means(found), results))


def _results_of(config) -> tuple[Path, dict]:
    torch.set_num_threads(1)  # more threads do not speed up such small models
    folder = Path(config.results[0])
    check_writable(folder / "table.md")
    results = load_so_far(folder) or load_results(folder)  # the latter says what is missing
    check_files(results, folder)
    return folder, results


def _leave(folder: Path, name: str, numbers: dict, table: str) -> None:
    write_text(folder / f"{name}.md", table + "\n")
    write_json(numbers, folder / f"{name}.json")
    print(f"{table}\ntable, numbers and picture: {folder / name}.*")


def theory(config: TheoryConfig) -> None:
    """The `lengthgen theory` command."""
    folder = new_folder(config.out, "lengthgen-theory")
    shown = demonstrate(config.length)
    print(f"NoPE with weights built for {config.length + 1} positions. Largest errors:")
    for what, error in shown["errors"].items():
        print(f"{error:12.1e}   {what}")
    print(f"The position that layer 1 writes at position {config.length + 1}, and at twice that position:")
    for what, curve in shown["curves"].items():
        beyond = f"{curve[-1]:12.2f}" if len(curve) > config.length + 1 else " " * 12
        print(f"{curve[config.length]:12.2f} {beyond}   {what}")
    pictures.plot_theory(shown, folder / "theory.png")
    print(f"picture: {folder / 'theory.png'}")
