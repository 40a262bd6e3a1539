"""The clock of a study. Each phase of an iteration has a price, measured once, and a run's seconds follow from its work.

So the seconds of a run do not depend on what else the machine does meanwhile, and a run repeats exactly from its seed.
"""

import json
import math
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from tqdm import tqdm

from vine_mini.app.files import write_text
from vine_mini.trainer import Trainer
from vine_mini.types import Episodes, UserError

TIMED = 3  # iterations
PHASES = {"sample", "score", "rollouts", "update"}  # that every setting has a price of


class Clock:
    """The seconds of a run, and the tokens that it has sampled, rollouts included."""

    def __init__(self, prices: dict[str, float]):
        self.prices, self.seconds, self.tokens, self.updates = prices, 0.0, 0, 0

    def count(self, trainer: Trainer, metrics: dict, episodes: Episodes) -> None:
        """Adds the iteration that has just ended."""
        amounts = work(metrics, episodes, trainer.updates - self.updates)
        self.seconds += sum(self.prices[phase] * amount for phase, amount in amounts.items())
        self.tokens += amounts["sample"] + amounts["rollouts"]
        self.updates = trainer.updates


def work(metrics: dict, episodes: Episodes, updates: int) -> dict[str, int]:
    """An iteration's work by phase: sampled and scored tokens, tokens of rollouts, updates, passes over validation problems."""
    sampled = sum(len(t.response_ids) for t in episodes.trajectories)
    work = {"sample": sampled, "score": sampled, "rollouts": metrics.get("rollout_tokens", 0), "update": updates}
    return work | ({"validate": metrics["validations"]} if "validations" in metrics else {})


def timed(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Trains, and yields what each iteration took: seconds for a unit of the work of each phase."""
    updates = 0
    for metrics, episodes, _ in trainer.train():
        amounts = work(metrics, episodes, trainer.updates - updates)
        updates = trainer.updates
        yield {phase: metrics.get(f"seconds_{phase}", 0.0) / max(n, 1) for phase, n in amounts.items()}


def measure_missing(jobs: list[dict], make, path: Path, timed_iterations: int = TIMED) -> None:
    """Measures the prices that the file lacks: medians over iterations, in which the settings alternate.

    The machine must do nothing else meanwhile. It may be faster or slower than it was when the other prices were measured.
    Therefore three known settings are measured again, and the new prices are scaled by what these take now.
    """
    prices, settings = _read(path), {name_of(job): job for job in jobs}
    missing = [name for name in settings if name not in prices]
    known = [name for name in settings if name in prices][:3] if missing and timed_iterations else []
    found: dict[str, list] = {name: [] for name in [*missing, *known]}
    runs: dict[str, Iterator] = {}
    for _, name in tqdm([*product(range(1 + timed_iterations), found)], desc="prices", dynamic_ncols=True, disable=not found):
        runs[name] = runs.get(name) or timed(make(settings[name]))
        found[name].append(next(runs[name]))
    now = {}
    for name, iterations in found.items():
        iterations = iterations[1:] or iterations  # the first one has warmed up
        now[name] = {phase: statistics.median(of[phase] for of in iterations) for phase in iterations[0]}
    ratios = [prices[name][phase] / x for name in known for phase, x in now[name].items() if x > 0]
    scale = statistics.median(ratios) if ratios else 1.0
    prices |= {name: {phase: scale * x for phase, x in now[name].items()} for name in missing}
    if missing:
        write_text(path, json.dumps(prices, indent=1))


def with_prices(jobs: list[dict], path: Path) -> list[dict]:
    """The jobs whose prices the file holds. Each has its own: phase -> seconds for a unit of its work."""
    prices = _read(path)
    return [job | dict(prices=prices[name_of(job)]) for job in jobs if name_of(job) in prices]


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        prices = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        prices = {name: {phase: float(x) for phase, x in of.items()} for name, of in prices.items()}
        if not all(of.keys() >= PHASES and all(0 <= x < math.inf for x in of.values()) for of in prices.values()):
            raise ValueError("a price is missing, or no number of seconds")
        return prices
    except (ValueError, AttributeError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(f"{path} holds no prices: move it away, and they are measured again") from error


def name_of(job: dict) -> str:
    """The setting of a job, without what has no price. Jobs of one setting have the same prices."""
    settings = {name: x for name, x in job["config"].items() if name not in ("train_size", "lr", "dpo_beta")}
    return ", ".join([job["task"], *(f"{name} {x}" for name, x in settings.items())])
