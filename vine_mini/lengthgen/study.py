"""The `lengthgen study` command: all runs, then tables, pictures, and claims.md with a verdict for each claim of the paper.

    OUT/TASK, OUT/PART/TASK, OUT/scratchpad/TASK-FORMAT      what `lengthgen` writes; TASK alone: the part `rows`
    OUT/TASK/attention.md, OUT/TASK/probe.md                 distances of attention; where NoPE writes positions
    OUT/rates/TASK-RATE, rates/rates.md     accuracy on seen lengths at two learning rates
    OUT/rank.md, rank.png, public.md        mean reciprocal ranks: all tasks; those with public figures by length
    OUT/heatmap.png, later/heatmap.png      accuracy by length and encoding, a panel for each task
    OUT/later/encodings.md                  all encodings: exact match on longer inputs (addition-reversed has its table only)
    OUT/scratchpad/formats.md               accuracy by format and encoding
    OUT/claims.md                           the claims with their verdicts
    OUT/.../models                          the trained models; all other files are small

A folder's table and picture are written after each of its sweeps, distances and probes after the part `rows`, and everything
else at the end. They use the seeds with which all encodings of a folder have run.
"""

from itertools import product
from pathlib import Path
from typing import Any

from vine_mini.app.files import check_writable, locked, write_text
from vine_mini.health import Diverged
from vine_mini.lengthgen import claims, commands, paper, pictures, ranking, report
from vine_mini.lengthgen.config import PARTS, AttentionConfig, LengthgenStudyConfig, ProbeConfig
from vine_mini.lengthgen.parts import QUICK, folders, sweeps
from vine_mini.lengthgen.results import load_so_far, merged, only
from vine_mini.lengthgen.sweep import sweep
from vine_mini.types import UserError

MEASURED: dict[str, tuple[Any, Any, Any, list[str]]] = {  # command, its settings, judge, tasks of `rows` with the models
    "attention": (commands.attention, AttentionConfig, claims.attention, ["sort", "scan"]),
    "probe": (commands.probe, ProbeConfig, claims.positions, ["copy", "copy-v3", "sort"]),
}


def study(config: LengthgenStudyConfig) -> None:
    """The `lengthgen study` command."""
    folder = Path(config.out or "")
    check_writable(folder / "claims.md")
    _check_own(folder)
    folder.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    _check_quick(config, folder)
    for name, (_, _, _, tasks) in MEASURED.items():  # refuses before hours of runs
        for task in tasks:
            claims.measured(folder / task, name)
    with locked(folder):
        try:
            for part in config.parts:
                todo = sweeps(part, config)
                for i, (name, settings) in enumerate(todo):
                    print(f"{part}, sweep {i + 1} of {len(todo)}: {name}, seed {settings.seeds[0]}", flush=True)
                    try:
                        sweep(settings, folder / name, again=folder)
                    except (Diverged, UserError) as error:  # hours of other runs do not wait for this folder
                        failed.append(f"{name}: {error}")
                    if _or_none(folder / name):
                        commands.write_tables(folder / name)
                if part == "rows":
                    measure(folder)
        finally:  # whatever happens, the runs that have finished are judged
            write_report(folder)
    print(*failed, f"everything is in {folder}", sep="\n")


def _check_own(folder: Path) -> None:
    """A foreign folder would be filled with some fifty folders and files."""
    files = {"lock", "claims.md", "rank.md", "rank.png", "public.md", "heatmap.png"}
    own = files | {Path(name).parts[0] for part in PARTS for name in folders(part)}
    there = {path.name.removesuffix(".partial").removesuffix("-diverged") for path in folder.glob("*")}
    if there and not there & own:
        raise UserError(f"{folder} holds {min(there)} and nothing of a study: choose another --out")


def _check_quick(config: LengthgenStudyConfig, folder: Path) -> None:
    """Tiny runs and real ones would be merged into one table."""
    for of in so_far(folder).values():
        for results in of.values():
            if (results["settings"]["updates"] == QUICK["updates"]) != config.quick:
                raise UserError(f"{folder} holds {'real' if config.quick else 'quick'} runs: choose another --out")


def measure(folder: Path) -> None:
    """Distances of attention and probes of positions, where they are not there yet and the models of all seeds are."""
    for name, (command, config, _, tasks) in MEASURED.items():
        for path in (folder / task for task in tasks):
            results = _or_none(path)
            if not results or (claims.measured(path, name) or {}).get("seeds") == results["settings"]["seeds"]:
                continue
            try:
                command(config([str(path)]))
            except UserError as error:  # a single seed; or models of another machine, which the repository does not have
                print(f"{name}: {error}")


def write_report(folder: Path) -> None:
    """Writes what compares several folders, from the runs that have finished, and prints the claims."""
    found = so_far(folder)
    rows = found["rows"]
    joined = [merged(rows[r["task"]], r) for r in found["later"].values() if r["task"] in rows]
    later = [results for results in joined if results["settings"]["seeds"]]
    if rates := rates_of(found):
        write_text(folder / "rates" / "rates.md", report.rates_table(rates) + "\n")
    if rows:
        write_text(folder / "rank.md", ranking.rank_table([*rows.values()]) + "\n")
        pictures.plot_rank([*rows.values()], folder / "rank.png")
        pictures.plot_heatmap([*rows.values()], folder / "heatmap.png")
    if {*paper.PUBLIC} <= {*rows}:
        write_text(folder / "public.md", ranking.rank_table([rows[task] for task in paper.PUBLIC]) + "\n")
    if later:
        write_text(folder / "later" / "encodings.md", report.encodings_table(later) + "\n")
        pictures.plot_heatmap(later, folder / "later" / "heatmap.png")
    formats: dict[str, dict[str, dict]] = {}
    for results in found["scratchpad"].values():
        formats.setdefault(results["task"], {})[results["settings"]["scratchpad"]] = results
    if formats:
        write_text(folder / "scratchpad" / "formats.md", report.formats_table(formats) + "\n")
    findings = claims.ranks([*rows.values()]) + claims.levels([*rows.values()]) + claims.scratchpad(formats)
    findings += claims.levels([*found["more-updates"].values()], "more-updates")
    five = [r for r in found["more-updates"].values() if {*paper.COLUMNS} <= {*r["settings"]["encodings"]}]
    findings += claims.ranks(five, "more-updates")
    findings += claims.frequencies([*found["narrow"].values()])
    for name, (_, _, judge, tasks) in MEASURED.items():
        for task in tasks:
            measured = claims.measured(folder / task, name)
            if task in rows and measured and {*measured["seeds"]} <= {*rows[task]["settings"]["seeds"]}:
                findings += judge(rows[task], measured)
    if findings:
        table = claims.claims_table(findings)
        write_text(folder / "claims.md", table + "\n")
        print(table)


def rates_of(found: dict[str, dict[str, dict]]) -> dict[str, dict[float, dict]]:
    """Task -> learning rate -> results: of the part `rates`, and of the same encodings and seeds at the task's own rate."""
    rates = {}
    for other, row in product(found["rates"].values(), [*found["rows"].values(), *found["short"].values()]):
        same = [{**results["settings"], "lr": 0, "seeds": [], "encodings": []} for results in (other, row)]
        if same[0] == same[1] and (row := only(row, other["settings"]["encodings"], other["settings"]["seeds"])):
            rates[other["task"]] = {each["settings"]["lr"]: each for each in (other, row)}
    return rates


def so_far(folder: Path) -> dict[str, dict[str, dict]]:
    """Part -> folder -> results, of the runs that have finished."""
    every = {part: {name: _or_none(folder / name) for name in folders(part)} for part in PARTS}
    return {part: {name: results for name, results in of.items() if results} for part, of in every.items()}


def _or_none(path: Path) -> dict | None:
    try:
        return load_so_far(path)
    except UserError as error:  # one broken file does not keep the others from the report
        print(f"left out: {error}")
        return None
