"""Learning runs of a study: each is made once and is one line of runs.jsonl. A study that was stopped goes on where it was."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini.app.config import TrainConfig
from vine_mini.app.setup import build_trainer
from vine_mini.study.prices import Clock
from vine_mini.trainer import Trainer
from vine_mini.value_errors.command import measure
from vine_mini.value_errors.config import ValuesConfig

STAGES = 3  # of a PPO run at which values are measured


def trainer_of(job: dict) -> Trainer:
    """The trainer of a job, on as many training problems as it says, and on one thread."""
    torch.set_num_threads(1)
    settings = job["shared"] | {name: x for name, x in job["config"].items() if name != "train_size"}
    trainer = build_trainer(TrainConfig(**settings, iterations=100_000, seed=job["seed"], eval_problems=job["problems"]))
    if size := job["config"].get("train_size"):
        trainer.train_problems, trainer.prompts = trainer.train_problems[:size], trainer.prompts[:size]
    return trainer


def progress(job: dict, trainer: Trainer, clock: Clock):
    """Trains, and yields how much of its iterations or seconds the run has used: above 0, at the end 1 or more."""
    limits, used = job["limits"], 0.0
    for metrics, episodes, _ in trainer.train():
        clock.count(trainer, metrics, episodes)
        used = trainer.iteration / limits["iterations"] if "iterations" in limits else clock.seconds / limits["seconds"]
        yield used
        if used >= 1:
            return


def learn(job: dict) -> dict:
    """One learning run. -> the job with its `checks`, at equal distances of its limit, the first before training

    A check holds iteration, seconds, episodes, updates, tokens (sampled, rollouts included), and the policy's pass@1 on test and
    on training problems with the KL to the start policy.
    """
    trainer, clock = trainer_of(job), Clock(job["prices"])
    checks = [check(trainer, clock)]
    for used in progress(job, trainer, clock):
        if used >= len(checks) / job["evaluations"]:
            checks.append(check(trainer, clock))
    return job | dict(checks=checks)


def analyse(job: dict, quick: bool = False) -> dict:
    """A PPO run for the claim about values. -> the job with `reports`, one at the end of each third of the seconds"""
    trainer, clock = trainer_of(job), Clock(job["prices"])
    few: dict = dict(problems=4, responses=1, truth=16, states=8, choices=2) if quick else {}
    values, reports = ValuesConfig(run="", seed=job["seed"], **few), []
    for used in progress(job, trainer, clock):
        if used >= (len(reports) + 1) / STAGES:
            reports.append(measure(trainer, values))
    return job | dict(reports=[asdict(report) for report in reports])


def check(trainer: Trainer, clock: Clock) -> dict:
    """The policy as it is now."""
    n = trainer.config.eval_problems
    test, training = trainer.evaluate(trainer.test_problems[:n]), trainer.evaluate(trainer.train_problems[:n])
    now = dict(iteration=trainer.iteration, updates=trainer.updates, tokens=clock.tokens, seconds=clock.seconds)
    now["episodes"] = trainer.iteration * trainer.config.prompts * trainer.config.group
    return now | dict(test=test["pass@1"][0], train=training["pass@1"][0], kl=test["kl"][0], greedy=test["greedy"][0])


def key(job: dict) -> str:
    """What tells one run from another."""
    names = ("task", "seed", "limits", "evaluations", "problems", "config", "shared", "prices")
    return json.dumps({name: job[name] for name in names}, sort_keys=True)


def read(log: Path) -> list[dict]:
    """The runs that have finished."""
    rows = []
    for line in log.read_text(encoding="utf-8").split("\n") if log.exists() else []:
        with suppress(json.JSONDecodeError):  # the end of the file, or a line that a crash has cut
            rows.append(json.loads(line))
    return rows


def run_missing(jobs: list[dict], log: Path, key: Callable[[dict], str], run: Callable[[dict], dict], workers: int) -> list[dict]:
    """Makes the runs that the log lacks, each in a process, and appends them to the log. -> the runs of the jobs

    If a run raises, those that have not started are given up, those that are under way are kept, and the error is raised.
    """
    finished = {key(done) for done in read(log)}
    missing = {key(job): job for job in jobs if key(job) not in finished}
    written = set()

    def keep(future) -> None:
        """Appends the run of a future that has ended. Raises what the run raised."""
        written.add(future)
        row = json.dumps(future.result())
        with log.open("a", encoding="utf-8") as file:
            file.write("\n" * _is_cut(log) + row + "\n")

    pool = ProcessPoolExecutor(workers)
    futures = [pool.submit(run, job) for job in missing.values()]
    try:
        for future in tqdm(as_completed(futures), total=len(futures), desc="learning runs", dynamic_ncols=True):
            keep(future)
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the runs that are under way
        for future in futures:
            if future not in written and not future.cancelled() and not future.exception():
                keep(future)
    made = {key(done): done for done in read(log)}  # a run that is there twice counts once
    return [made[name] for name in dict.fromkeys(map(key, jobs))]


def _is_cut(log: Path) -> bool:
    """Whether the last line has no end: a crash has cut it."""
    text = log.read_bytes()
    return bool(text) and not text.endswith(b"\n")
