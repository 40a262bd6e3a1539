"""The `study` command: makes the learning runs that are missing, judges the claims, writes verdicts.md, CSV and pictures."""

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from vine_mini.app.files import check_writable, locked, whole, write_text
from vine_mini.app.tables import columns
from vine_mini.study.claims import PAPER, Finding, judge, overall
from vine_mini.study.config import CLAIMS, TASKS, StudyConfig, episodes_of, jobs, seeds_of
from vine_mini.study.picture import plot_accuracy, plot_curves, plot_findings
from vine_mini.study.prices import TIMED, measure_missing, with_prices
from vine_mini.study.runs import analyse, finished_runs, key, learn, run_missing, trainer_of
from vine_mini.types import UserError
from vine_mini.value_errors.command import CheckpointErrors, report_of, table
from vine_mini.value_errors.measures import Choice, State, with_constant
from vine_mini.value_errors.picture import plot_values

OWN = {"runs.jsonl", "values.jsonl", "prices.json", "prices-quick.json", "verdicts.md"}


def study(config: StudyConfig) -> int:
    """The `study` command."""
    folder = Path(config.out)
    check_writable(folder / "runs.jsonl")
    held = {path.name.removesuffix(".partial") for path in folder.glob("*")} - {"lock"}
    if held and not held & OWN:
        raise UserError(f"{folder} holds something else than a study: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    prices = prices_of(config, folder)
    for claim in config.claims:  # before anything is measured
        finished_runs(log_of(claim, folder))
    try:
        for claim in config.claims:
            with locked(folder):  # another study would disturb the clock
                measure_missing(jobs(claim, config), trainer_of, prices, 0 if config.quick else TIMED)
            run = partial(analyse, quick=config.quick) if claim == "values" else learn
            run_missing(with_prices(jobs(claim, config), prices), log_of(claim, folder), key, run, config.workers)
    finally:  # whatever happens, the runs that have finished are judged
        report(config, folder)
    return 0


def log_of(claim: str, folder: Path) -> Path:
    """Where the runs of a claim stand."""
    return folder / ("values.jsonl" if claim == "values" else "runs.jsonl")


def prices_of(config: StudyConfig, folder: Path) -> Path:
    """Where the prices stand. Those of `quick` include the warm-up, so no other study reads them."""
    return folder / ("prices-quick.json" if config.quick else "prices.json")


def report(config: StudyConfig, folder: Path) -> None:
    """Judges all claims by the runs that have finished, in this call or before, and prints what it wrote."""
    findings, learned, measured = {}, {}, []
    for claim in CLAIMS:
        wanted = {key(job) for job in with_prices(jobs(claim, config), prices_of(config, folder))}
        runs = {name: run for name, run in finished_runs(log_of(claim, folder)).items() if name in wanted}
        if found := judge(claim, [*runs.values()], seeds_of(claim, config)):
            findings[claim] = found
        if claim == "values":
            measured = [*runs.values()]
        else:
            learned |= runs
    if findings:
        write(config, findings, [*learned.values()], folder)
        write_values(measured, folder)
        print(f"{(folder / 'verdicts.md').read_text(encoding='utf-8')}\neverything is in {folder}")


def write(config: StudyConfig, findings: dict[str, list[Finding]], runs: list[dict], folder: Path) -> None:
    """Writes the verdicts with their intervals, all checks, and the pictures."""
    summary = [["claim", "part", "the paper", *TASKS, "command"]]
    rows = [["claim", "part", "task", "what", "mean", "95 % interval", "seeds", "verdict"]]
    for claim, of in findings.items():
        for part in dict.fromkeys(f.part for f in of):
            by_task = [[f for f in of if (f.task, f.part) == (task, part)] for task in TASKS]
            verdicts = [overall(same) if same else "-" for same in by_task]
            summary.append([claim, part, PAPER[claim], *verdicts, f"`python -m vine_mini study {claim}`"])
            rows += [
                [claim, part, f.task, f.what, *f.text, f"{len(f.values)} of {f.seeds or len(f.values)}", f.verdict]
                for same in by_task
                for f in same
            ]
    prices = prices_of(config, folder).name
    where = f"{config.seconds:g} seconds a run by the prices in {prices}, on one thread, or {episodes_of(config):,} episodes"
    how = (
        "All intervals of a part of a claim on one task are true at once, with a probability of 95 %. "
        "VinePPO has K = 1 and averaged values (mc_lam, mc_mu). At equal episodes it is the paper's, without averages."
    )
    text = f"{where}\n\n{columns(summary)}\n\n{how}\n\n{columns(rows)}\n"
    write_text(folder / "verdicts.md", text)
    with whole(folder / "checks.csv") as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        sheet = csv.writer(file)
        names = ["iteration", "seconds", "episodes", "updates", "tokens", "train", "test", "greedy", "kl"]
        sheet.writerow(["task", "seed", "config", *names])
        for run in runs:
            settings = " ".join(f"{name}={x}" for name, x in run["config"].items())
            sheet.writerows([run["task"], run["seed"], settings, *(check[n] for n in names)] for check in run["checks"])
    plot_findings(findings, folder / "claims.png")
    if runs:
        plot_accuracy(runs, folder / "accuracy.png")
        plot_curves(runs, folder / "curves.png")


def write_values(runs: list[dict], folder: Path) -> None:
    """Writes what all runs of a task measured about values: a table of the stages of training, and a picture of the last one."""
    tables = []
    for task in TASKS:
        of_task = [run["reports"] for run in sorted(runs, key=lambda run: run["seed"]) if run["task"] == task]
        if reports := [pooled(stage) for stage in zip(*of_task, strict=False)]:
            tables.append(f"{len(of_task)} PPO runs on {task}:\n\n{table(reports)}\n")
            plot_values(reports[-1], f"{len(of_task)} PPO runs on {task}", folder / f"values-{task}.png")
    if tables:
        write_text(folder / "values.md", "\n".join(tables))


def pooled(reports: Sequence[dict]) -> CheckpointErrors:
    """What several runs measured at one stage, as one report. The standard errors are between the runs."""
    states, choices = [], []
    for run, report in enumerate(reports):
        states += with_constant([State(**s | {"problem": run}) for s in report["states"]])
        choices += [Choice(**c | {"problem": run}) for c in report["choices"]]
    return report_of(round(mean(report["iteration"] for report in reports)), states, choices)
