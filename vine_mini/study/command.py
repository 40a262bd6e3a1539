"""The `study` command: makes the learning runs that are missing, judges the claims, writes claims.md, CSV and pictures."""

import csv
import json
from functools import partial
from pathlib import Path

from vine_mini.app.commands import machine
from vine_mini.app.files import whole, write_text
from vine_mini.app.runs import check_writable
from vine_mini.app.tables import columns
from vine_mini.models import pick_device
from vine_mini.study.claims import PAPER, Finding, judge, overall
from vine_mini.study.config import TASKS, StudyConfig, jobs
from vine_mini.study.picture import plot_curves, plot_findings
from vine_mini.study.runs import analyse, key, learn, run_missing


def study(config: StudyConfig) -> int:
    """The `study` command."""
    folder = Path(config.out)
    check_writable(folder / "runs.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    findings: dict[str, list[Finding]] = {}
    runs: list[dict] = []
    for claim in config.claims:
        measure = partial(analyse, quick=config.quick) if claim == "values" else learn
        log = folder / ("values.jsonl" if claim == "values" else "runs.jsonl")
        made = run_missing(jobs(claim, config), log, key, measure, config.workers)
        findings[claim] = judge(claim, made)
        runs += made if claim != "values" else []
        write(config, findings, runs, folder)
    print(f"{(folder / 'claims.md').read_text(encoding='utf-8')}\neverything is in {folder}")
    return 0


def write(config: StudyConfig, findings: dict[str, list[Finding]], runs: list[dict], folder: Path) -> None:
    """Writes the claims that have been measured so far."""
    summary = [["claim", "the paper", *TASKS, "command"]]
    rows = [["claim", "task", "what", "mean", "95 % interval", "seeds", "verdict"]]
    for claim, of in findings.items():
        verdicts = [overall([f for f in of if f.task == task]) if any(f.task == task for f in of) else "-" for task in TASKS]
        summary.append([claim, PAPER[claim], *verdicts, f"`python -m vine_mini study --claims {claim}`"])
        rows += [[claim, f.task, f.what, *f.text, str(len(f.values)), f.verdict] for f in of]
    where = f"{machine(pick_device('cpu'))}; {config.seconds:g} CPU seconds a run"
    text = f"{where}\n\n{columns(summary)}\n\nThe intervals of a claim hold together at 95 %:\n\n{columns(rows)}\n"
    write_text(folder / "claims.md", text)
    found = {c: [vars(f) | dict(interval=f.interval, verdict=f.verdict) for f in of] for c, of in findings.items()}
    write_text(folder / "claims.json", json.dumps(found, indent=1))
    with whole(folder / "checks.csv") as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        names = ["iteration", "seconds", "episodes", "updates", "tokens", "train", "test", "greedy", "kl"]
        table.writerow(["task", "seed", "config", *names])
        for run in {key(run): run for run in runs}.values():
            settings = " ".join(f"{name}={x}" for name, x in run["config"].items())
            table.writerows([run["task"], run["seed"], settings, *(check[n] for n in names)] for check in run["checks"])
    if any(findings.values()):
        plot_findings(findings, folder / "claims.png")
    if runs:
        plot_curves(runs, folder / "curves.png")
