"""The command line of length generalization: `python -m vine_mini lengthgen [rank | attention | temperature | theory]`."""

from pathlib import Path
from statistics import mean

from tqdm import tqdm

from vine_mini.lengthgen import pictures, report
from vine_mini.lengthgen.attention import distances_to_nope, summary
from vine_mini.lengthgen.config import AttentionConfig, LengthgenConfig, RankConfig, TemperatureConfig, TheoryConfig
from vine_mini.lengthgen.pictures import STYLES
from vine_mini.lengthgen.sweep import load_model, load_results, sweep, write_json
from vine_mini.lengthgen.tasks import TASKS
from vine_mini.lengthgen.theory import demonstrate
from vine_mini.lengthgen.train import evaluate
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


def attention(config: AttentionConfig) -> None:
    """The `lengthgen attention` command."""
    [folder] = config.results
    results = load_results(folder)
    pairs = len(results["settings"]["positions"]) * len(results["settings"]["seeds"])
    with tqdm(total=pairs, desc="pairs of models", dynamic_ncols=True) as bar:
        table = distances_to_nope(results, folder, config.examples, bar.update)
    shown = summary(table, results["settings"]["train_lengths"][1])
    shown = dict(sorted(shown.items(), key=lambda item: item[1]["all layers"]))
    measures = list(next(iter(shown.values())))
    rows = [["distance to NoPE (nats)", *(STYLES[name][0] if name != "nope" else "NoPE, other seed" for name in shown)]]
    rows += [[measure, *(f"{shown[name][measure]:.3f}" for name in shown)] for measure in measures]
    text = report.columns(rows)
    print(text)
    folder = Path(folder)
    (folder / "attention.md").write_text(text + "\n", encoding="utf-8")
    write_json(shown, folder / "attention.json")
    pictures.plot_distances(table, results, folder / "attention.png")
    print(f"table and picture are in {folder}")


def temperature(config: TemperatureConfig) -> None:
    """The `lengthgen temperature` command."""
    [folder] = config.results
    results = load_results(folder)
    run = LengthgenConfig(**results["settings"])
    lengths = sum(len(TASKS[run.task].lengths(*ends)) for ends in (run.train_lengths, run.test_lengths))
    curves = {}
    models = [(name, seed, t) for name in run.positions for seed in run.seeds for t in config.temperatures]
    with tqdm(total=len(models) * lengths, desc="temperatures", dynamic_ncols=True) as bar:
        for name, seed, t in models:
            model = load_model(folder, name, seed, attention_temperature=t)
            for length, share in evaluate(model, run, bar.update).items():
                curves.setdefault(name, {}).setdefault(t, {}).setdefault(length, []).append(share)
    longest = run.train_lengths[1]
    rows = [["accuracy beyond training, %", *(f"{t:g}" for t in config.temperatures)]]
    for name in run.positions:
        beyond = [
            [mean(seed) for seed in zip(*(shares for n, shares in curve.items() if n > longest), strict=True)]
            for curve in curves[name].values()
        ]
        rows.append([STYLES[name][0], *map(report.cell, beyond)])
    text = report.columns(rows)
    print(text)
    folder = Path(folder)
    (folder / "temperature.md").write_text(text + "\n", encoding="utf-8")
    write_json(curves, folder / "temperature.json")
    pictures.plot_temperatures(curves, results, folder / "temperature.png")
    print(f"table and picture are in {folder}")


def theory(config: TheoryConfig) -> None:
    """The `lengthgen theory` command."""
    folder = new_folder(config.out, "lengthgen-theory")
    shown = demonstrate(config.length)
    print(f"NoPE, weights built for {config.length + 1} positions. Largest error:")
    for what, error in shown["errors"].items():
        print(f"{error:12.1e}   {what}")
    print("The position that it reads at the last one built for, and at twice that:")
    for what, curve in shown["curves"].items():
        beyond = f"{curve[-1]:12.2f}" if len(curve) > config.length + 1 else " " * 12
        print(f"{curve[config.length]:12.2f} {beyond}   {what}")
    folder.mkdir(parents=True, exist_ok=True)
    pictures.plot_theory(shown, folder / "theory.png")
    print(f"picture: {folder / 'theory.png'}")


COMMANDS = {
    "lengthgen": (train, LengthgenConfig),
    "lengthgen rank": (rank, RankConfig),
    "lengthgen attention": (attention, AttentionConfig),
    "lengthgen temperature": (temperature, TemperatureConfig),
    "lengthgen theory": (theory, TheoryConfig),
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
