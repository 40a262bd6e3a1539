"""The fair fight: VinePPO, PPO and GRPO at equal seconds, each at its own best setting, on several tasks and batch sizes.

    python -m benchmarks.fight grid     settings for each algorithm, equally many; validation problems choose the best
    python -m benchmarks.fight fresh    the best setting of each algorithm, on seeds that the grid has not seen
    python -m benchmarks.fight order    GRPO, plain VinePPO and the best VinePPO, against what `credit-cost` predicts
    python -m benchmarks.fight lrs      at which learning rates each algorithm still learns

Each call goes on with what results/credit/fight/runs.jsonl lacks, and writes tables and pictures of all that is there. A run
counts CPU seconds of one thread, so that a busy machine disturbs it little. It stops several times, outside its seconds, to
measure 100 validation problems. The best policy by them is tested at the end.
"""

import argparse
import copy
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from benchmarks.common import machine
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.app.setup import build_trainer
from vine_mini.lengthgen.report import columns

CHAIN12 = dict(steps=12, max_new_tokens=140, model="../shared/policies/chain12")
DECISIVE = dict(task="decisive", steps=12, max_new_tokens=140)
SMALL = dict(prompts=8)
SETTINGS = {
    "six": {},
    "six, 32 episodes": SMALL,
    "chain12": CHAIN12,
    "chain12, 32 episodes": CHAIN12 | SMALL,
    "decisive": DECISIVE,
    "decisive, 32 episodes": DECISIVE | SMALL,
}
ALGORITHMS = {
    "vineppo": dict(algorithm="vineppo", k=1, mc_lam=0.7, mc_mu=0.8),  # by `credit-cost`
    "ppo": dict(algorithm="ppo"),
    "grpo": dict(algorithm="grpo"),
}
PLAIN = dict(algorithm="vineppo", k=3, mc_lam=0.0, mc_mu=0.0)
FOUGHT = ["chain12", "decisive", "chain12, 32 episodes", "decisive, 32 episodes"]
LRS, EPOCHS = (5e-5, 1e-4, 2e-4), (1, 2)
SECONDS, GRID_SEED, SEEDS = 60, 100, (0, 1, 2, 3, 4)
POINTS, EVALUATIONS = 40, 5


def one_run(job: dict) -> dict:
    """One learning run. -> the job with its curve, the accuracy on validation problems, and that of the best policy on test ones"""
    torch.set_num_threads(1)
    seconds = job["seconds"]
    limits = dict(iterations=100_000, max_seconds=seconds, eval_every=100_000, validation=100, seed=job["seed"])
    trainer = build_trainer(TrainConfig(**read_preset("arithmetic") | SETTINGS[job["setting"]] | job["config"] | limits))
    trainer.clock = time.process_time
    points, validation, best = [], [], None
    for metrics, _, _ in trainer.train():
        points.append([metrics["seconds"], metrics["episodes"], trainer.updates, metrics["reward"]])
        if trainer.done or metrics["seconds"] >= seconds * (len(validation) + 1) / EVALUATIONS:
            accuracy = trainer.evaluate(trainer.validation_problems, with_kl=False)["pass@1"][0]
            if accuracy > max(validation, default=-1):
                best = copy.deepcopy(trainer.policy.state_dict())
            validation.append(accuracy)
    trainer.policy.load_state_dict(best)
    parts = [part for part in numpy.array_split(points, min(POINTS, len(points)))]
    curve = [[round(float(x), 4) for x in part.mean(axis=0)] for part in parts]
    phases = {name: total / len(points) for name, total in trainer.seconds.items()}
    return job | dict(curve=curve, validation=validation, test=trainer.evaluate(with_kl=False)["pass@1"][0], phases=phases)


def updates_of(setting: str, epochs: int) -> dict:
    """One update an epoch at one epoch; at two epochs two updates each."""
    episodes = 4 * SETTINGS[setting].get("prompts", 32)
    return dict(epochs=epochs, minibatch_size=episodes // epochs)


def jobs_of(study: str, done: list[dict]) -> list[dict]:
    """The runs of a study, in an order in which the algorithms alternate."""
    shared = dict(seconds=SECONDS)
    if study == "grid":
        every = product(FOUGHT, EPOCHS, LRS, ALGORITHMS.values())
        return [
            shared | dict(setting=s, seed=GRID_SEED, config=c | updates_of(s, epochs) | dict(lr=lr)) for s, epochs, lr, c in every
        ]
    best = {setting: best_configs(done, setting) for setting in FOUGHT}
    if study == "fresh":
        return [shared | dict(setting=s, seed=seed, config=c) for s in FOUGHT for seed in SEEDS for c in best[s].values()]
    if study == "order":
        ways = {s: [best[s]["grpo"], best[s]["vineppo"], best[s]["vineppo"] | PLAIN] for s in FOUGHT}
        ways |= {s: ways["chain12" + s.removeprefix("six")] for s in SETTINGS if s not in FOUGHT}
        return [shared | dict(setting=s, seed=seed, config=c) for s in ways for seed in SEEDS[:3] for c in ways[s]]
    raise ValueError(study)


def key(job: dict) -> str:
    """What tells one run from another."""
    return json.dumps([job["setting"], job["seed"], job["seconds"], sorted(job["config"].items())])


def area(run: dict) -> float:
    """The mean reward over the seconds of the run: how much was learned, and how soon."""
    seconds, rewards = [0.0, *(p[0] for p in run["curve"])], [p[3] for p in run["curve"]]
    return float(numpy.dot(numpy.diff(seconds), rewards) / seconds[-1])


def best_configs(done: list[dict], setting: str) -> dict[str, dict]:
    """algorithm -> the setting of the grid whose best policy was right most often on validation problems"""
    best = {}
    for run in done:
        if run["setting"] == setting and run["seed"] == GRID_SEED:
            name = run["config"]["algorithm"]
            if name not in best or max(run["validation"]) > max(best[name]["validation"]):
                best[name] = run
    if len(best) < len(ALGORITHMS):
        raise SystemExit(f"the grid of {setting} is not complete: run `python -m benchmarks.fight grid` first")
    return {name: best[name]["config"] for name in ALGORITHMS}


def main():
    """Runs what is missing of a study, then writes the tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["grid", "fresh", "order", "report"])
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="training time of a run")
    parser.add_argument("--settings", nargs="+", default=FOUGHT, choices=SETTINGS, help="only these")
    parser.add_argument("--out", type=Path, default=Path("results/credit/fight"), help="folder of runs.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "runs.jsonl"
    done = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    finished = {key(run) for run in done}
    jobs = [] if args.study == "report" else jobs_of(args.study, done)
    jobs = [job for job in jobs if key(job) not in finished and job["setting"] in args.settings]
    with ProcessPoolExecutor(args.workers) as pool:
        for future in tqdm(as_completed([pool.submit(one_run, job) for job in jobs]), total=len(jobs), desc=args.study):
            done.append(future.result())
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")


if __name__ == "__main__":
    main()
