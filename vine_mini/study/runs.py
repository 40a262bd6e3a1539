"""Learning runs of a study: each is made once and is one line of runs.jsonl. A study that was stopped goes on where it was."""

import json
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini.app.config import TrainConfig
from vine_mini.app.files import append_row, locked, read_rows, write_diverged, write_rows
from vine_mini.app.processes import SPAWN, end_with_parent
from vine_mini.app.setup import build_trainer
from vine_mini.health import Diverged
from vine_mini.study.prices import Clock
from vine_mini.trainer import Trainer
from vine_mini.types import UserError
from vine_mini.value_errors.command import measure, report_of
from vine_mini.value_errors.config import ValuesConfig
from vine_mini.value_errors.measures import Choice, State

GROWING = ("iteration", "updates", "tokens", "seconds", "episodes")  # numbers of a check
STAGES = 3  # of a PPO run at which values are measured


def trainer_of(job: dict) -> Trainer:
    """The trainer of a job, on as many training problems as it says, and on one thread of the CPU, where prices are measured."""
    torch.set_num_threads(1)
    settings = job["shared"] | {name: x for name, x in job["config"].items() if name != "train_size"} | dict(device="cpu")
    trainer = build_trainer(TrainConfig(**settings, iterations=100_000, seed=job["seed"], eval_problems=job["problems"]))
    if size := job["config"].get("train_size"):
        problems = trainer.train_problems[:size], trainer.test_problems, trainer.validation_problems
        return type(trainer)(trainer.config, trainer.policy, trainer.tokenizer, *problems)
    return trainer


def progress(job: dict, trainer: Trainer, clock: Clock):
    """Trains, and yields how much of its episodes or seconds the run has used: above 0, at the end 1 or more."""
    limits, used = job["limits"], 0.0
    for metrics, episodes, _ in trainer.train():
        clock.count(trainer, metrics, episodes)
        used = metrics["episodes"] / limits["episodes"] if "episodes" in limits else clock.seconds / limits["seconds"]
        yield used
        if used >= 1:
            return


def learn(job: dict) -> dict:
    """One learning run. -> the job with its `checks`, the first before training

    Checks have equal distances on the way to the limit. RestEM and DPO+ have few iterations, and a check after each.

    A check has iteration, seconds, episodes, updates and tokens. Tokens are all sampled tokens, rollouts included. `test` is
    pass@1 on test problems. `kl` is the KL to the start policy on these problems. `train` is measured with few training problems.
    """
    trainer, clock, few = trainer_of(job), Clock(job["prices"]), "train_size" in job["config"]
    checks = [check(trainer, clock, few)]
    for used in progress(job, trainer, clock):
        if used >= len(checks) / job["evaluations"] or trainer.algorithm.choose_examples:
            checks.append(check(trainer, clock, few))
    return job | dict(checks=checks)


def analyse(job: dict, quick: bool = False) -> dict:
    """A PPO run for the claim about values. -> the job with `reports`, one at the end of each third of the seconds"""
    trainer, clock = trainer_of(job), Clock(job["prices"])
    size: dict = dict(problems=4, truth=16, states=8, choices=2) if quick else dict(problems=12, states=16)
    values, reports = ValuesConfig(run="", seed=job["seed"], responses=1, **size), []
    for used in progress(job, trainer, clock):
        if used >= (len(reports) + 1) / STAGES:
            reports.append(measure(trainer, values))
    return job | dict(reports=[asdict(report) for report in reports])


def check(trainer: Trainer, clock: Clock, few: bool) -> dict:
    """The policy as it is now."""
    test, train = trainer.evaluate(), None
    if few:  # only then do responses to training problems differ from others
        train = trainer.evaluate(trainer.train_problems[: trainer.config.eval_problems], with_kl=False)["pass@1"][0]
    now = dict(iteration=trainer.iteration, updates=trainer.updates, tokens=clock.tokens, seconds=clock.seconds)
    now["episodes"] = trainer.iteration * trainer.config.prompts * trainer.config.group
    return now | dict(test=test["pass@1"][0], train=train, kl=test["kl"][0], greedy=test["greedy"][0])


def key(job: dict) -> str:
    """What tells one run from another."""
    names = ("task", "seed", "limits", "evaluations", "problems", "config", "shared", "prices")
    return json.dumps({name: job[name] for name in names}, sort_keys=True)


def read_runs(log: Path, name: Callable[[dict], str] = key) -> dict[str, dict]:
    """The runs of a log by their names; one that is there twice counts once. Raises UserError for a line that is no run."""
    try:
        return {name(run): run for run in read_rows(log)}
    except (KeyError, RecursionError) as error:
        raise UserError(f"{log} has a line that is no run, without {error}: move the file away to go on") from error


def finished_runs(log: Path) -> dict[str, dict]:
    """The runs of a log that `learn` or `analyse` wrote. Raises UserError where one has something else as its numbers."""
    found = read_runs(log)
    for number, run in enumerate(found.values(), 1):
        try:
            if "reports" in run:
                run["reports"] = [_report(**report) for report in run["reports"]]
            elif not _are_checks(run["checks"], "train_size" in run["config"]):
                raise ValueError("its checks are no numbers that grow from 0")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, RecursionError) as error:
            says = f"{log}, run {number}, is not what the study wrote ({type(error).__name__}: {error})"
            raise UserError(f"{says}: move the file away to go on") from error
    return found


def _are_checks(checks: list[dict], few: bool) -> bool:
    """Whether they are the checks of `learn`, on few training problems or not."""
    of = {name: [check[name] for check in checks] for name in (*GROWING, "test", "kl", "greedy", *["train"] * few)}
    numbers = all(type(x) in (int, float) and math.isfinite(x) for column in of.values() for x in column)
    return numbers and all(of[name][0] == 0 and of[name] == sorted(of[name]) for name in GROWING)


def _report(iteration: int, states: list[dict], choices: list[dict], **_) -> dict:
    """A report of `analyse`, computed from its states and choices."""
    report = asdict(report_of(int(iteration), [State(**state) for state in states], [Choice(**choice) for choice in choices]))
    json.dumps([report["errors"]["critic"], report["errors"]["K = 9"], report], allow_nan=False)
    return report


def run_missing(
    jobs: list[dict], log: Path, name: Callable[[dict], str], run: Callable[[dict], dict], workers: int
) -> list[dict]:
    """Makes the runs that the log lacks, each in a process, and appends them to the log. -> the runs of the jobs

    If a run raises, the runs that have ended are kept and the others are given up. If it has diverged, diverged.json says what is
    known of it. Raises UserError while another process makes runs in the same folder, and where the system kills the process of
    a run.
    """
    with locked(log.parent):
        finished = read_runs(log, name)
        write_rows(log, [*finished.values()])  # without a line that a crash has cut, to which the next one would be appended
        missing = {name(job): job for job in jobs if name(job) not in finished}
        with ProcessPoolExecutor(workers, SPAWN, initializer=end_with_parent) as pool:
            futures = {pool.submit(run, job) for job in missing.values()}
            try:
                with tqdm(total=len(futures), desc="learning runs", dynamic_ncols=True) as bar:
                    for future in as_completed([*futures]):
                        futures.discard(future)
                        append_row(log, future.result())
                        bar.update()
            except BaseException as error:  # after Ctrl-C, SIGTERM or a failed run, nobody waits for the other runs
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.kill()
                for future in futures:
                    if future.done() and not future.cancelled() and not future.exception():
                        append_row(log, future.result())
                if isinstance(error, Diverged):
                    write_diverged(log.parent, error)
                if isinstance(error, BrokenProcessPool):
                    says = "the process of a run was killed, perhaps for lack of memory: lower --workers, and call again"
                    raise UserError(says) from error
                raise
    found = read_runs(log, name)
    return [found[of] for of in dict.fromkeys(map(name, jobs))]
