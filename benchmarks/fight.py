"""The fair fight: VinePPO, PPO and GRPO at equal seconds, each at its own best setting, on several tasks and batch sizes.

    python -m benchmarks.fight grid      settings for each algorithm, equally many; validation problems choose the best
    python -m benchmarks.fight rest      the same for RLOO, RestEM, DPO-Positive and the paper's VinePPO (K = 9), for `study`
    python -m benchmarks.fight fresh     the best setting of each algorithm, on seeds that the grid has not seen
    python -m benchmarks.fight predict   what `credit-cost` says of GRPO, plain VinePPO and the best VinePPO, before they run
    python -m benchmarks.fight order     GRPO, plain VinePPO and the best VinePPO
    python -m benchmarks.fight report    tables and pictures of what has run

Each call does what results/credit/fight/runs.jsonl lacks, so a study that was stopped goes on where it was. A run counts CPU
seconds of one thread. Leave the machine alone meanwhile: other work slows down the memory too. Five times in a run the clock
stops and 100 validation problems are measured. The policy with the highest validation accuracy is tested at the end.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from benchmarks.common import command, count, writable
from vine_mini.app.config import TrainConfig
from vine_mini.app.files import read_rows
from vine_mini.app.flags import read_preset
from vine_mini.app.intervals import interval
from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.app.setup import build_trainer
from vine_mini.app.tables import columns
from vine_mini.credit_cost.command import measure
from vine_mini.credit_cost.config import CreditCostConfig
from vine_mini.study.runs import run_missing

CHAIN12 = dict(steps=12, max_new_tokens=140, model="arithmetic-12")
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
PLAIN_3 = dict(algorithm="vineppo", k=3, mc_lam=0.0, mc_mu=0.0)
PLAIN_9 = PLAIN_3 | dict(k=9)  # the paper's
LRS, EPOCHS = (5e-5, 1e-4, 2e-4), (1, 2)
REST_SETTINGS = ["decisive", "chain12"]
LARGE = dict(prompts=64, group=16, minibatch_size=64)  # RestEM and DPO-Positive learn from many responses at once
SECONDS, GRID_SEED = 60, 100
PAPERS_SECONDS = 200  # about twenty iterations with K = 9
POINTS, EVALUATIONS = 40, 5


def trainer_of(job: dict):
    """A trainer that counts CPU seconds of one thread."""
    torch.set_num_threads(1)
    limits = dict(iterations=100_000, max_seconds=job["seconds"], eval_every=100_000, validation=100, seed=job["seed"])
    settings = read_preset("arithmetic") | SETTINGS[job["setting"]] | job["config"] | limits
    trainer = build_trainer(TrainConfig(**settings | dict(device="cpu")))
    trainer.clock = time.process_time
    return trainer


def one_run(job: dict, make: Callable = trainer_of) -> dict:
    """One learning run. -> the job with its curve, the accuracies on validation problems, and the best policy's on test ones"""
    trainer, seconds = make(job), job["seconds"]
    points, validation, best = [], [], None
    for metrics, _, _ in trainer.train():
        points.append([metrics["seconds"], metrics["episodes"], trainer.updates, metrics["reward"]])
        if trainer.done or metrics["seconds"] >= seconds * (len(validation) + 1) / EVALUATIONS:
            accuracy = trainer.evaluate(trainer.validation_problems, with_kl=False)["pass@1"][0]
            if accuracy > max(validation, default=-1):
                best = copy.deepcopy(trainer.policy.state_dict())
            validation.append(accuracy)
    trainer.policy.load_state_dict(best)
    parts = numpy.array_split(points, min(POINTS, len(points)))
    curve = [[round(float(x), 4) for x in part.mean(axis=0)] for part in parts]
    phases = {name: total / len(points) for name, total in trainer.seconds.items()}
    return job | dict(curve=curve, validation=validation, test=trainer.evaluate(with_kl=False)["pass@1"][0], phases=phases)


def updates_of(setting: str, epochs: int) -> dict:
    """With one epoch: one update an iteration. With two epochs: two updates in each of them."""
    episodes = 4 * SETTINGS[setting].get("prompts", 32)
    return dict(epochs=epochs, minibatch_size=episodes // epochs)


def jobs_of(study: str, done: list[dict], settings: list[str], seeds: list[int]) -> list[dict]:
    """The runs of a study, in an order in which the algorithms alternate."""
    shared = dict(seconds=SECONDS)
    if study == "grid":
        every = product(settings, EPOCHS, LRS, ALGORITHMS.values())
        return [
            shared | dict(setting=s, seed=GRID_SEED, config=c | updates_of(s, epochs) | dict(lr=lr)) for s, epochs, lr, c in every
        ]
    if study == "rest":
        every = [(s, config) for s in settings if s in REST_SETTINGS for config in rest_of_grid(s)]
        jobs = [shared | dict(setting=s, seed=GRID_SEED, config=config) for s, config in every]
        return [job | (dict(seconds=PAPERS_SECONDS) if job["config"].get("k") == PLAIN_9["k"] else {}) for job in jobs]
    jobs = []
    for setting in settings:
        best = best_configs(done, setting)
        ways = list(best.values()) if study == "fresh" else [best["grpo"], best["vineppo"], best["vineppo"] | PLAIN_3]
        jobs += [shared | dict(setting=setting, seed=seed, config=c) for seed in seeds for c in ways]
    return jobs


def rest_of_grid(setting: str) -> list[dict]:
    """Six settings of each algorithm."""
    on_policy = [c | dict(lr=lr) | updates_of(setting, e) for c, e, lr in product([dict(algorithm="rloo"), PLAIN_9], EPOCHS, LRS)]
    restem = [dict(algorithm="restem", lr=lr, epochs=epochs) | LARGE for epochs, lr in product((3, 6), (1e-4, 2e-4, 4e-4))]
    dpo = [dict(algorithm="dpo", lr=lr, dpo_beta=beta, epochs=3, examples=64) | LARGE for beta, lr in product((0.1, 0.3), LRS)]
    return on_policy + restem + dpo


def key(job: dict) -> str:
    """What tells one run from another."""
    return json.dumps([job["setting"], job["seed"], job["seconds"], sorted(job["config"].items())])


def area(run: dict) -> float:
    """The mean reward over the seconds of the run: how much was learned, and how soon."""
    seconds, rewards = [0.0, *(p[0] for p in run["curve"])], [p[3] for p in run["curve"]]
    return float(numpy.dot(numpy.diff(seconds), rewards) / seconds[-1])


def best_runs(done: list[dict], setting: str) -> dict[str, dict]:
    """algorithm -> the run of the grid whose best policy was right most often on validation problems"""
    best = {}
    for run in done:
        if run["setting"] == setting and run["seed"] == GRID_SEED:
            name = name_of(run)
            if name not in best or max(run["validation"]) > max(best[name]["validation"]):
                best[name] = run
    return best


def best_configs(done: list[dict], setting: str) -> dict[str, dict]:
    """algorithm -> its best setting, of VinePPO, PPO and GRPO"""
    best = best_runs(done, setting)
    if not set(ALGORITHMS) <= set(best):
        raise SystemExit(f"the grid of {setting} is not complete: run `python -m benchmarks.fight grid` first")
    return {name: best[name]["config"] for name in ALGORITHMS}


def predict(setting: str, config: dict) -> dict[str, float]:
    """What `credit-cost` says: way -> seconds to the same learning, GRPO's = 1. `vineppo` has the lam and mu that it advises."""
    torch.set_num_threads(1)
    settings = read_preset("arithmetic") | SETTINGS[setting] | {n: config[n] for n in ("epochs", "minibatch_size")}
    report = measure(CreditCostConfig(**settings | dict(problems=32, ks=[1, 3], device="cpu")))
    ways = {way.name: way.relative for way in report.ways}
    averaged = min(relative for name, relative in ways.items() if name.startswith("VinePPO, K = 1"))
    return {"grpo": 1.0, "vineppo": averaged, "plain": ways["VinePPO, K = 3"]}


def name_of(run: dict) -> str:
    """The algorithm, or `plain` for VinePPO as in the paper."""
    config = run["config"]
    return "plain" if config.get("mc_lam") == 0 else config["algorithm"]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def summary(done: list[dict]) -> tuple[list[list[str]], dict]:
    """A row for each setting and algorithm: fresh seeds only."""
    table = [["setting", "algorithm", "lr", "epochs", "seeds", "test accuracy", "mean reward over the seconds", "episodes"]]
    groups: dict = {}
    complete = [s for s in SETTINGS if set(ALGORITHMS) <= set(best_runs(done, s))]
    for run in (run for run in done if run["setting"] in complete and run["seed"] != GRID_SEED):
        best = best_configs(done, run["setting"])
        if run["config"] in [*best.values(), best["vineppo"] | PLAIN_3]:
            groups.setdefault((run["setting"], name_of(run)), []).append(run)
    for (setting, name), runs in sorted(groups.items(), key=lambda item: (list(SETTINGS).index(item[0][0]), item[0][1])):
        test, areas = (mean_and_error([x(run) for run in runs]) for x in (lambda run: run["test"], area))
        config = runs[0]["config"]
        cells = [f"{config['lr']:g}", str(config["epochs"]), str(len(runs)), f"{100 * test[0]:.1f} ± {100 * test[1]:.1f} %"]
        episodes = statistics.mean(run["curve"][-1][1] for run in runs)
        table.append([setting, name, *cells, f"{areas[0]:.3f} ± {areas[1]:.3f}", f"{episodes:,.0f}"])
    return table, groups


def paired(groups: dict) -> list[list[str]]:
    """The differences of VinePPO's runs to those of the others with the same seeds, where five seeds or more have run."""
    found = {}
    for (setting, name), runs in groups.items():
        mine = {run["seed"]: run for run in groups[setting, "vineppo"]}
        gaps = [100 * (mine[run["seed"]]["test"] - run["test"]) for run in runs if run["seed"] in mine]
        if name in ("grpo", "ppo") and len(gaps) >= 5:
            found[setting, name] = gaps
    table = [["setting", "VinePPO minus", "seeds", "test accuracy, points", "95 %", f"95 %, all {len(found)} together"]]
    for (setting, name), gaps in found.items():
        mean, low, high = interval(gaps)
        _, lower, higher = interval(gaps, len(found))
        spans = [f"{low:+.1f} to {high:+.1f}", f"{lower:+.1f} to {higher:+.1f}"]
        table.append([setting, name, str(len(gaps)), f"{mean:+.1f}", *spans])
    return table


def order(groups: dict, predictions: dict) -> list[list[str]]:
    """For each pair of ways in each setting: which one is predicted to be ahead, and which one was."""
    table = [["setting", "pair", "predicted, GRPO = 1", "seen: mean reward over the seconds", "verdict"]]
    for setting, predicted in predictions.items():
        for a, b in (("grpo", "plain"), ("grpo", "vineppo"), ("vineppo", "plain")):
            if (setting, a) in groups and (setting, b) in groups:
                seen = {name: mean_and_error([area(run) for run in groups[setting, name]]) for name in (a, b)}
                gap, error = seen[a][0] - seen[b][0], (seen[a][1] ** 2 + seen[b][1] ** 2) ** 0.5
                right = (predicted[a] < predicted[b]) == (gap > 0)
                verdict = "too close" if abs(gap) < error else "right" if right else "wrong"
                cells = [f"{predicted[a]:.2f}, {predicted[b]:.2f}", f"{seen[a][0]:.3f}, {seen[b][0]:.3f} (± {error:.3f})"]
                table.append([setting, f"{a}, {b}", *cells, verdict])
    return table


def draw_curves(setting: str, runs: dict[str, list[dict]], path: Path) -> None:
    """Mean reward over seconds, episodes and updates, with a band of one standard deviation over seeds."""
    figure, (axes,) = new_figure(3)
    for column, (axis, label) in enumerate(zip(axes, ("CPU seconds", "episodes", "updates"), strict=True)):
        for name, same in runs.items():
            curves = [numpy.array(run["curve"]) for run in same]
            grid = numpy.linspace(max(c[0, column] for c in curves), min(c[-1, column] for c in curves), 100)
            rewards = numpy.array([numpy.interp(grid, c[:, column], c[:, 3]) for c in curves])
            mean, spread = rewards.mean(axis=0), rewards.std(axis=0, ddof=1 if len(rewards) > 1 else 0)
            colour = COLOURS.get(name, "#56B4E9")
            axis.plot(grid, mean, color=colour, label={"plain": "vineppo, K = 3 plain"}.get(name, name))
            axis.fill_between(grid, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel=label, ylim=(0, 1))
    axes[0].set(ylabel="reward, training problems")
    axes[0].legend(frameon=False)
    counts = " or ".join(map(str, sorted({len(same) for same in runs.values()})))
    figure.suptitle(f"{setting}: each algorithm at its best setting, {counts} seeds")
    save_figure(figure, path)


def chosen(done: list[dict]) -> list[list[str]]:
    """What the grid has chosen for each algorithm: only those six settings of each that have run."""
    table = [["setting", "algorithm", "its best setting", "validation accuracy"]]
    for setting in SETTINGS:
        for name, run in sorted(best_runs(done, setting).items()):
            config = ", ".join(f"{n} {x:g}" for n, x in run["config"].items() if n != "algorithm")
            table.append([setting, name, config, f"{100 * max(run['validation']):.1f} %"])
    return table


def write_report(done: list[dict], out: Path) -> None:
    """Tables and pictures of all runs."""
    table, groups = summary(done)
    text = f"{SECONDS} CPU seconds of one thread a run, ± standard error over seeds.\n\n{columns(table)}\n"
    if len(differences := paired(groups)) > 1:
        text += f"\nThe same seeds:\n\n{columns(differences)}\n"
    if (out / "predictions.json").exists():
        predictions = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
        verdicts = order(groups, predictions)
        counts = [sum(row[-1] == verdict for row in verdicts[1:]) for verdict in ("right", "wrong", "too close")]
        text += f"\nPredicted order: {counts[0]} pairs right, {counts[1]} wrong, {counts[2]} within one standard error.\n\n"
        text += f"{columns(verdicts)}\n"
    text += f"\nChosen by the grid:\n\n{columns(chosen(done))}\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    for setting in {setting for setting, _ in groups}:
        curves = {name: runs for (where, name), runs in groups.items() if where == setting}
        draw_curves(setting, curves, out / f"{setting.replace(', ', '-').replace(' ', '-')}.png")


def main():
    """Runs what is missing of a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["grid", "rest", "fresh", "predict", "order", "report"])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of every study but the grid")
    parser.add_argument("--workers", type=count, default=1, help="runs side by side; more than one slows each of them down")
    parser.add_argument("--out", type=writable, default=Path("results/credit/fight"), help="folder of runs.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log, predicted = args.out / "runs.jsonl", args.out / "predictions.json"
    done = read_rows(log)
    if args.study == "report":
        return write_report(done, args.out)
    if args.study == "predict":
        found = json.loads(predicted.read_text(encoding="utf-8")) if predicted.exists() else {}
        for setting in tqdm([s for s in args.settings if s not in found], desc="predict"):
            found[setting] = predict(setting, best_configs(done, setting)["vineppo"])
            predicted.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return None
    run_missing(jobs_of(args.study, done, args.settings, args.seeds), log, key, one_run, args.workers)


if __name__ == "__main__":
    command(main)
