"""Each claim as a comparison of learning runs, paired by seed: differences with intervals, and a verdict."""

import math
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product

from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.intervals import at_levels, first_at, interval, verdict
from vine_mini.study.config import BY_EPISODES, FEW_PROBLEMS, HOT, NAMES, PAPERS, SETTINGS, TASKS

VERSIONS = {
    "K = 9": PAPERS,  # the paper's
    "K = 1": {task: of["vineppo"] for task, of in SETTINGS.items()},  # few rollouts, averaged (mc_lam, mc_mu)
}
LEVELS = [round(0.05 * i, 2) for i in range(1, 20)]  # accuracies at which runs are compared
PAPER = {
    "accuracy": "VinePPO 53.4 %, PPO 50.1, DPO+ 46.4, RestEM 42.8 (GSM8K, RhoMath 1.1B); GRPO, RLOO lower",
    "efficiency": "VinePPO is at PPO's peak after up to 9 times fewer updates and 3 times fewer seconds",
    "generalization": "VinePPO's test accuracy is higher at the same training accuracy",
    "kl": "VinePPO's KL to the start policy is lower at the same accuracy",
    "values": "mean absolute error 0.11 (critic) and 0.03 (K = 9); best of five next steps near chance and 70 to 90 %",
    "rollouts": "more rollouts K help (1, 3, 9)",
    "temperature": "VinePPO tolerates a higher sampling temperature",
}


@dataclass(frozen=True)
class Finding:
    """One comparison. The claim says that its number is positive."""

    task: str
    what: str
    unit: str  # "times": the values are logarithms of a factor
    values: list[float]  # of each seed
    part: str = ""  # of the claim; each part has a verdict of its own
    seeds: int = 0  # that have run or are wanted; where fewer have a value, nothing is shown
    upper: bool = False  # the values are upper bounds, which can only show that the claim does not hold
    comparisons: int = 1  # of this part on this task: with a probability of 95 % all their intervals are true at once

    @property
    def interval(self) -> tuple[float, float, float]:
        """The mean and its interval: mean, low, high."""
        return interval(self.values, self.comparisons)

    @property
    def verdict(self) -> str:
        """Whether the claim holds."""
        found = verdict(self.interval) if len(self.values) >= self.seeds else "not shown"
        return "not shown" if self.upper and found == "holds" else found

    @property
    def text(self) -> list[str]:
        """The mean with its unit, and the interval."""
        mean, low, high = self.interval
        if self.unit == "times":
            return [
                f"{'at most ' * self.upper}{math.exp(mean):.2f} times",
                f"{math.exp(low):.3g} to {math.exp(min(high, 700)):.3g}",
            ]
        return [f"{mean:+.3g} {self.unit}".strip(), f"{low:+.3g} to {high:+.3g}"]


def judge(claim: str, runs: list[dict], seeds: int = 0) -> list[Finding]:
    """The findings of a claim. The intervals of a part are corrected for their number. With fewer seeds nothing is shown."""
    found = MEASURES[claim](runs)
    counts = Counter((f.task, f.part) for f in found)
    return [replace(f, comparisons=counts[f.task, f.part], seeds=max(seeds, f.seeds)) for f in found]


def overall(findings: list[Finding]) -> str:
    """The verdict of a part of a claim. One comparison that does not hold is enough for "does not hold"."""
    verdicts = {f.verdict for f in findings}
    return "holds" if verdicts == {"holds"} else "does not hold" if "does not hold" in verdicts else "not shown"


def runs_of(runs: list[dict], task: str, config: dict) -> list[dict]:
    """The runs of one setting, in the order of their seeds."""
    return sorted((r for r in runs if r["task"] == task and r["config"] == config), key=lambda r: r["seed"])


def column(run: dict, name: str) -> list[float]:
    """One number of all checks of a run."""
    return [check[name] for check in run["checks"]]


def _pairs(runs, version: str, name: str, **changes):
    """Yields (task, [(run of VinePPO, run of another algorithm with the same seed)]) for each task where both have run."""
    for task in TASKS:
        configs = VERSIONS[version][task], SETTINGS[task][name]
        if same := paired(*(runs_of(runs, task, config | changes) for config in configs)):
            yield task, same


def paired(*settings: list[dict]) -> list[tuple[dict, ...]]:
    """The runs of several settings, put together by their seeds; seeds that one of them lacks are left out."""
    by_seed = [{run["seed"]: run for run in runs} for runs in settings]
    return [tuple(of[seed] for of in by_seed) for seed in sorted(set.intersection(*map(set, by_seed)))]


def accuracy(runs: list[dict]) -> list[Finding]:
    """Claim 1: VinePPO has a higher test accuracy than each other algorithm.

    In the paper all on-policy algorithms learn from equally many episodes. Equal seconds are harder for VinePPO.
    """
    found = []
    for task, (version, x) in product(TASKS, {"K = 9": "episodes", "K = 1": "seconds"}.items()):
        for name in [name for name in SETTINGS[task] if name != "vineppo"]:
            other = best_at_episodes(runs, task, name) if x == "episodes" else SETTINGS[task][name]
            pairs = paired(*(runs_of(runs, task, config) for config in (VERSIONS[version][task], other)))
            ends = [common_end(pair, x) for pair in pairs]
            gaps = [accuracy_at(a, x, n) - accuracy_at(b, x, n) for (a, b), n in zip(pairs, ends, strict=True)]
            found += _known(task, f"VinePPO, {version} - {NAMES[name]}, test accuracy", "points", gaps, f"equal {x}", 100)
    return found


def efficiency(runs: list[dict]) -> list[Finding]:
    """Claim 2: VinePPO is at PPO's best accuracy after fewer updates and seconds.

    A run of VinePPO that never gets there counts as if it got there at its end, which is too kind to it. With such a run, the
    claim may be shown not to hold, and never to hold. PPO's best accuracy is the largest of several noisy checks, so it is too
    high. Therefore 95 % of it is a level too.
    """
    found = []
    for version, unit, share in product(VERSIONS, ("updates", "seconds"), (1.0, 0.95)):
        peak, part = (
            ("its peak", f"{unit}, {version}") if share == 1 else (f"{share:.0%} of its peak", f"{unit}, {version}, 95 %")
        )
        for task, pairs in _pairs(runs, version, "ppo"):
            ratios, reached = [], 0
            for a, b in pairs:
                level = share * max(column(b, "test"))
                needed, mine = (first_at(column(run, unit), column(run, "test"), level) for run in (b, a))
                reached += mine is not None
                ratios.append(math.log(max(needed, 1) / max(mine if mine is not None else column(a, unit)[-1], 1)))
            what = f"PPO's {unit} to {peak} / VinePPO's, who reaches it in {reached} of {len(pairs)} runs"
            found.append(Finding(task, what, "times", ratios, part, upper=reached < len(pairs)))
    return found


def best_at_episodes(runs: list[dict], task: str, name: str) -> dict:
    """The setting of an algorithm at equal episodes: where the grid leaves two, the one that VinePPO finds harder to beat."""

    def reached(config: dict) -> float:
        pairs = paired(runs_of(runs, task, PAPERS[task]), runs_of(runs, task, config))
        return statistics.mean([accuracy_at(pair[1], "episodes", common_end(pair, "episodes")) for pair in pairs] or [0.0])

    return max([SETTINGS[task][name], *filter(None, [BY_EPISODES[task].get(name)])], key=reached)


def common_end(pair: tuple[dict, ...], x: str) -> float:
    """Where the shorter run ends. At equal episodes, RestEM and DPO+ are compared at the end of an iteration of theirs."""
    end = min(column(run, x)[-1] for run in pair)
    if x == "episodes":
        end = min(max(at for at in column(run, x) if at <= end) if stepwise(run["config"]) else end for run in pair)
    return end


def accuracy_at(run: dict, x: str, end: float) -> float:
    """The test accuracy when x is `end`: the mean at 90 and 100 % of it, on straight lines between the checks.

    RestEM and DPO+ have no policy between two iterations: the accuracy after the last iteration that has ended by then.
    """
    xs, ys = column(run, x), column(run, "test")
    if stepwise(run["config"]):
        return [y for at, y in zip(xs, ys, strict=True) if at <= end][-1]
    return statistics.mean(at_levels(xs, ys, [0.9 * end, end]))


def stepwise(config: dict) -> bool:
    """Whether the algorithm fine-tunes the start policy anew in each iteration."""
    return ALGORITHMS[config["algorithm"]].choose_examples is not None


def _at_equal(a: dict, b: dict, x: str, y: str, levels: list[float] = LEVELS) -> float | None:
    """The mean, over the levels of x that both runs reach, of y of the first run - y of the second. None: no such level."""
    values = (at_levels(column(run, x), column(run, y), levels) for run in (a, b))
    gaps = [mine - other for mine, other in zip(*values, strict=True) if mine is not None and other is not None]
    return statistics.mean(gaps) if gaps else None


def _known(task: str, what: str, unit: str, gaps: list, part: str = "", scale: float = 1.0) -> list[Finding]:
    """One finding from the seeds whose number is known, or none."""
    known = [scale * gap for gap in gaps if gap is not None]
    return [Finding(task, what, unit, known, part, len(gaps))] if known else []


def generalization(runs: list[dict]) -> list[Finding]:
    """Claim 3: at equal accuracy on few training problems, VinePPO's test accuracy is higher."""
    found = []
    for name in ("ppo", "grpo"):
        for task, pairs in _pairs(runs, "K = 1", name, **FEW_PROBLEMS):
            gaps = [_at_equal(a, b, "train", "test") for a, b in pairs]
            found += _known(task, f"VinePPO - {NAMES[name]}, test accuracy at equal training accuracy", "points", gaps, scale=100)
    return found


def kl(runs: list[dict]) -> list[Finding]:
    """Claim 4: at equal test accuracy, VinePPO's KL to the start policy is lower."""
    found = []
    for version, name in product(VERSIONS, ("ppo", "grpo")):
        for task, pairs in _pairs(runs, version, name):
            gaps = [_at_equal(b, a, "test", "kl") for a, b in pairs]
            found += _known(task, f"{NAMES[name]} - VinePPO, KL at equal accuracy", "nats a token", gaps, version)
    return found


def rollouts(runs: list[dict]) -> list[Finding]:
    """Claim 6: the paper's VinePPO learns more from as many episodes with a higher K."""
    found = []
    for task in TASKS:
        by_k = {k: runs_of(runs, task, PAPERS[task] | dict(k=k)) for k in (1, 3, 9)}
        for more, fewer in ((3, 1), (9, 3)):
            pairs = paired(by_k[more], by_k[fewer])
            gaps = [_at_equal(a, b, "episodes", "test", column(a, "episodes")[1:]) for a, b in pairs]
            found += _known(task, f"K = {more} - K = {fewer}, test accuracy at equal episodes", "points", gaps, scale=100)
    return found


def temperature(runs: list[dict]) -> list[Finding]:
    """Claim 7: VinePPO keeps a larger share of its test accuracy at high sampling temperatures than PPO and GRPO.

    The accuracy of a run is the mean at 90 and 100 % of the seconds that all runs have.
    """
    found = []
    for hot, name, task in product(HOT, ("ppo", "grpo"), TASKS):
        settings = [SETTINGS[task][n] | change for n in ("vineppo", name) for change in ({}, {"temperature": hot})]
        same = paired(*(runs_of(runs, task, c) for c in settings))
        end = min((column(run, "seconds")[-1] for of in same for run in of), default=0.0)
        logs = [[math.log(max(accuracy_at(run, "seconds", end), 0.001)) for run in of] for of in same]
        kept = [(mine_hot - mine) - (other_hot - other) for mine, mine_hot, other, other_hot in logs]
        found += _known(task, f"share of accuracy kept, VinePPO's / {NAMES[name]}'s", "times", kept, f"temperature {hot}")
    return found


def values(runs: list[dict]) -> list[Finding]:
    """Claim 5: the critic errs more than nine rollouts, and more so late in a response; nine rollouts err less there. The critic
    finds the best of several next steps less often than they do: it is nearer to chance.
    """
    found = []
    for task in TASKS:
        mine = sorted((r for r in runs if r["task"] == task), key=lambda r: r["seed"])
        for stage in range(min((len(r["reports"]) for r in mine), default=0)):
            reports = [r["reports"][stage] for r in mine]
            when = f"iteration {statistics.mean(r['iteration'] for r in reports):.0f}"
            gaps = [r["errors"]["critic"]["error"][0] - r["errors"]["K = 9"]["error"][0] for r in reports]
            found.append(Finding(task, f"critic - K = 9, mean absolute error, {when}", "of a value", gaps, "error"))
            for name, sign in (("critic", 1), ("K = 9", -1)):
                places = [[error for error in r["by_place"][name] if error is not None] for r in reports]
                what = f"{name}, mean absolute error, {('first - last', 'last - first')[sign > 0]} sixth of the states, {when}"
                gaps = [sign * (of[-1] - of[0]) for of in places]
                found.append(Finding(task, what, "of a value", gaps, "along a response"))
            both = [r["agreement"] for r in reports if r["agreement"]]
            for what, gaps in {
                "K = 9 - critic": [of["K = 9"]["top"][0] - of["critic"]["top"][0] for of in both],
                "middle of chance and K = 9 - critic": [
                    (of["critic"]["chance"][0] + of["K = 9"]["top"][0]) / 2 - of["critic"]["top"][0] for of in both
                ],
            }.items():
                found += _known(task, f"{what}, best next step found, {when}", "points", gaps, "best next step", 100)
    return found


MEASURES = {f.__name__: f for f in (accuracy, efficiency, generalization, kl, values, rollouts, temperature)}
