"""Each claim as a comparison of learning runs, paired by seed: differences with intervals, and a verdict."""

import math
import statistics
from dataclasses import dataclass, replace

from vine_mini.study.config import ALGORITHMS, FEW_PROBLEMS, HOT, NAMES, PLAIN, TASKS
from vine_mini.study.statistics import at_levels, first_at, interval, verdict

LEVELS = [round(0.05 * i, 2) for i in range(1, 20)]  # accuracies at which runs are compared
PAPER = {
    "accuracy": "VinePPO 53.4 %, PPO 50.1 %, DPO+ 46.4 %, RestEM 42.8 % (GSM8K, RhoMath 1.1B); GRPO and RLOO below VinePPO",
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
    comparisons: int = 1  # of this claim: all its intervals hold together at 95 %

    @property
    def interval(self) -> tuple[float, float, float]:
        """The mean and its interval: mean, low, high."""
        return interval(self.values, self.comparisons)

    @property
    def verdict(self) -> str:
        """Whether the claim holds."""
        return verdict(self.interval)

    @property
    def text(self) -> list[str]:
        """The mean with its unit, and the interval."""
        mean, low, high = self.interval
        if self.unit == "times":
            return [f"{math.exp(mean):.2f} times", f"{math.exp(low):.2f} to {math.exp(min(high, 700)):.2f}"]
        return [f"{mean:+.3g} {self.unit}".strip(), f"{low:+.3g} to {high:+.3g}"]


def judge(claim: str, runs: list[dict]) -> list[Finding]:
    """The findings of a claim. Their intervals are corrected for their number."""
    found = MEASURES[claim](runs)
    return [replace(f, comparisons=len(found)) for f in found]


def overall(findings: list[Finding]) -> str:
    """The verdict of a claim: it holds if each of its comparisons does, and it does not if one of them does not."""
    verdicts = {f.verdict for f in findings}
    return "holds" if verdicts == {"holds"} else "does not hold" if "does not hold" in verdicts else "not shown"


def runs_of(runs: list[dict], task: str, config: dict) -> list[dict]:
    """The runs of one setting, in the order of their seeds."""
    return sorted((r for r in runs if r["task"] == task and r["config"] == config), key=lambda r: r["seed"])


def column(run: dict, name: str) -> list[float]:
    """One number of all checks of a run."""
    return [check[name] for check in run["checks"]]


def final(run: dict) -> float:
    """Test accuracy at the end: the mean of the last two checks."""
    return statistics.mean(column(run, "test")[-2:])


def _pairs(runs, name: str, **changes):
    """Yields (task, runs of VinePPO, runs of another algorithm) for each task where both have run."""
    for task in TASKS:
        mine, other = (runs_of(runs, task, ALGORITHMS[task][n] | changes) for n in ("vineppo", name))
        count = min(len(mine), len(other))
        if count:
            yield task, mine[:count], other[:count]


def accuracy(runs: list[dict]) -> list[Finding]:
    """Claim 1: VinePPO's test accuracy after equal seconds is above that of each other algorithm."""
    others = [name for name in ALGORITHMS["decisive"] if name != "vineppo"]
    found = []
    for name in others:
        for task, mine, other in _pairs(runs, name):
            gaps = [100 * (final(a) - final(b)) for a, b in zip(mine, other, strict=True)]
            found.append(Finding(task, f"VinePPO - {NAMES[name]}, test accuracy", "points", gaps))
    return found


def efficiency(runs: list[dict]) -> list[Finding]:
    """Claim 2: VinePPO is at PPO's best accuracy after fewer updates and seconds. A run that never is counts as twice its end."""
    found = []
    for task, mine, ppo in _pairs(runs, "ppo"):
        for unit in ("updates", "seconds"):
            ratios = []
            for a, b in zip(mine, ppo, strict=True):
                peak = max(column(b, "test"))
                needed = first_at(column(b, unit), column(b, "test"), peak)
                reached = first_at(column(a, unit), column(a, "test"), peak) or 2 * column(a, unit)[-1]
                ratios.append(math.log(needed / reached) if needed else 0.0)
            found.append(Finding(task, f"PPO's {unit} to its peak / VinePPO's", "times", ratios))
    return found


def _at_equal(a: dict, b: dict, x: str, y: str, levels: list[float] = LEVELS) -> float | None:
    """The mean, over the levels of x that both runs reach, of y of the first run - y of the second. None: no such level."""
    values = (at_levels(column(run, x), column(run, y), levels) for run in (a, b))
    gaps = [mine - other for mine, other in zip(*values, strict=True) if mine is not None and other is not None]
    return statistics.mean(gaps) if gaps else None


def _known(task: str, what: str, unit: str, gaps: list, scale: float = 1.0) -> list[Finding]:
    """One finding from the seeds whose number is known, or none."""
    known = [scale * gap for gap in gaps if gap is not None]
    return [Finding(task, what, unit, known)] if known else []


def generalization(runs: list[dict]) -> list[Finding]:
    """Claim 3: at equal accuracy on few training problems, VinePPO's test accuracy is higher."""
    found = []
    for name in ("ppo", "grpo"):
        for task, mine, other in _pairs(runs, name, **FEW_PROBLEMS):
            gaps = [_at_equal(a, b, "train", "test") for a, b in zip(mine, other, strict=True)]
            found += _known(task, f"VinePPO - {NAMES[name]}, test accuracy at equal training accuracy", "points", gaps, 100)
    return found


def kl(runs: list[dict]) -> list[Finding]:
    """Claim 4: at equal test accuracy, VinePPO's KL to the start policy is lower."""
    found = []
    for name in ("ppo", "grpo"):
        for task, mine, other in _pairs(runs, name):
            gaps = [_at_equal(b, a, "test", "kl") for a, b in zip(mine, other, strict=True)]
            found += _known(task, f"{NAMES[name]} - VinePPO, KL at equal accuracy", "nats a token", gaps)
    return found


def rollouts(runs: list[dict]) -> list[Finding]:
    """Claim 6: plain VinePPO learns more from as many episodes with a higher K."""
    found = []
    for task in TASKS:
        by_k = {k: runs_of(runs, task, ALGORITHMS[task]["vineppo"] | PLAIN | dict(k=k)) for k in (1, 3, 9)}
        for more, fewer in ((3, 1), (9, 3)):
            pairs = zip(by_k[more], by_k[fewer], strict=False)
            gaps = [_at_equal(a, b, "episodes", "test", column(a, "episodes")) for a, b in pairs]
            found += _known(task, f"K = {more} - K = {fewer}, test accuracy at equal episodes", "points", gaps, 100)
    return found


def temperature(runs: list[dict]) -> list[Finding]:
    """Claim 7: a high sampling temperature costs VinePPO less test accuracy than PPO and GRPO."""
    found = []
    for name in ("ppo", "grpo"):
        for task in TASKS:
            loss = {}
            for n in ("vineppo", name):
                at = [runs_of(runs, task, ALGORITHMS[task][n] | change) for change in ({}, dict(temperature=HOT))]
                loss[n] = [final(low) - final(high) for low, high in zip(*at, strict=False)]
            gaps = [b - a for a, b in zip(loss["vineppo"], loss[name], strict=False)]
            found += _known(task, f"loss of {NAMES[name]} - loss of VinePPO, from temperature 1 to {HOT}", "points", gaps, 100)
    return found


def values(runs: list[dict]) -> list[Finding]:
    """Claim 5: the critic has a larger error than nine rollouts, and it finds the best next step less often."""
    found = []
    for task in TASKS:
        mine = sorted((r for r in runs if r["task"] == task), key=lambda r: r["seed"])
        for stage in range(min((len(r["reports"]) for r in mine), default=0)):
            reports = [r["reports"][stage] for r in mine]
            iteration = statistics.mean(r["iteration"] for r in reports)
            errors = [r["errors"]["critic"]["error"][0] - r["errors"]["K = 9"]["error"][0] for r in reports]
            what = f"critic - K = 9, mean absolute error at iteration {iteration:.0f}"
            found.append(Finding(task, what, "of a value", errors))
            both = [r["agreement"] for r in reports if r["agreement"]]
            tops = [of["K = 9"]["top"][0] - of["critic"]["top"][0] for of in both]
            found += _known(task, f"K = 9 - critic, best next step found at iteration {iteration:.0f}", "points", tops, 100)
    return found


MEASURES = {
    "accuracy": accuracy,
    "efficiency": efficiency,
    "generalization": generalization,
    "kl": kl,
    "values": values,
    "rollouts": rollouts,
    "temperature": temperature,
}
