"""The command line of length generalization: `python -m vine_mini lengthgen [rank | attention | temperature | theory]`."""

from pathlib import Path

from vine_mini.lengthgen import pictures, report
from vine_mini.lengthgen.config import AttentionConfig, LengthgenConfig, RankConfig, TemperatureConfig, TheoryConfig
from vine_mini.lengthgen.sweep import load_results, sweep
from vine_mini.runs import check_writable, new_folder


def train(config: LengthgenConfig) -> None:
    """The `lengthgen` command."""
    pad = "" if config.scratchpad == "none" else f"-{config.scratchpad}"
    folder = new_folder(config.out, f"lengthgen-{config.task}{pad}")
    results = sweep(config, folder)
    table = report.accuracy_table(results)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    pictures.plot_accuracy(results, folder / "accuracy.png")
    print(table)
    print(f"everything is in {folder}")


def rank(config: RankConfig) -> None:
    """The `lengthgen rank` command."""
    if config.out:
        check_writable(Path(config.out))
    all_results = [load_results(folder) for folder in config.results]
    table = report.rank_table(all_results)
    print(table)
    if config.out:
        folder = Path(config.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rank.md").write_text(table + "\n", encoding="utf-8")
        pictures.plot_rank(all_results, folder / "rank.png")


COMMANDS = {
    "lengthgen": (train, LengthgenConfig),
    "lengthgen rank": (rank, RankConfig),
}


def words(argv: list[str]) -> tuple[str, list[str]]:
    """`lengthgen rank A B --out C` -> its command's name, and flags alone: --results A B --out C."""
    if not argv or argv[0].startswith("-"):
        return "lengthgen", argv
    folders = 1
    while folders < len(argv) and not argv[folders].startswith("-"):
        folders += 1
    results = ["--results", *argv[1:folders]] if folders > 1 else []
    return f"lengthgen {argv[0]}", results + argv[folders:]
