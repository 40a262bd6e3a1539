"""The page of the `credit` command: its data, and one HTML file that loads nothing and runs nothing.

All text that a model wrote is escaped. Characters that are invisible, or that move other characters, are shown by number.
"""

from dataclasses import dataclass
from math import hypot
from pathlib import Path

from jinja2 import Environment

from vine_mini.app.tables import visible
from vine_mini.evaluate import verdict

NAMES = {"vineppo": "VinePPO", "ppo": "PPO's critic", "grpo": "GRPO", "truth": "truth"}
STRONG = 0.5  # an advantage of this size has the full colour


@dataclass
class Rollout:
    """A rollout from before a step, and the reward of the response that it completes."""

    text: str
    reward: float
    finished: bool


@dataclass
class Credit:
    """The advantages that one method gives to n steps."""

    name: str  # one of NAMES
    advantages: list[float]  # [n] before whitening
    values: list[float] | None = None  # [n] V of the state before each step; None for a method without values
    errors: list[float] | None = None  # [n] standard errors of the values; None where the values are not means of samples

    @property
    def title(self) -> str:
        """The head of the column."""
        return NAMES[self.name][0].upper() + NAMES[self.name][1:]

    @property
    def advantage_errors(self) -> list[float]:
        """[n] standard errors of the differences of values. The reward after the last step has no error."""
        return [hypot(before, after) for before, after in zip(self.errors, [*self.errors[1:], 0.0], strict=True)]


@dataclass
class Page:
    """One response, cut into n steps, with the advantages by each method and the rollouts behind them."""

    question: str
    answer: str
    made: str  # policy, problem and settings, in one line
    critic: str  # the origin of PPO's critic; "" for none
    gamma: float  # of GAE
    lam: float
    finished: bool
    group_rewards: list[float]  # [G]
    response: int  # the number of the shown response
    steps: list[str]  # [n] texts
    rollouts: list[list[Rollout]]  # [n][k] from before each step
    truth: int  # rollouts for each state in the column of the truth; 0: no such column
    credits: list[Credit]  # VinePPO's is the first

    @property
    def reward(self) -> float:
        """R of the shown response."""
        return self.group_rewards[self.response]

    @property
    def partial_credit(self) -> bool:
        """Whether some reward lies between 0 and 1."""
        return not {*self.group_rewards, *(r.reward for state in self.rollouts for r in state)} <= {0, 1}


def signed(x: float) -> str:
    """+0.42, −0.42, 0.00"""
    return f"{x:+.2f}".replace("-", "−") if abs(x) >= 0.005 else "0.00"


def finding(page: Page) -> str:
    """The step with VinePPO's largest advantage, and whether this advantage may be noise."""
    vine, n = page.credits[0], len(page.steps)
    at = max(range(n), key=lambda i: abs(vine.advantages[i]))
    if signed(vine.advantages[at]) == "0.00":
        return "VinePPO's value does not change at any step."
    values, errors = [*vine.values, page.reward], [*vine.errors, 0.0]
    after = "the reward" if at == n - 1 else f"{values[at + 1]:.2f} ± {errors[at + 1]:.2f}"
    found = f"VinePPO's value changes most at step {at + 1} of {n}: from {values[at]:.2f} ± {errors[at]:.2f} to {after}."
    if abs(vine.advantages[at]) < 2 * vine.advantage_errors[at]:
        found += " The change is less than two standard errors of the difference, so it may be noise."
    return found


def summary(page: Page) -> str:
    """The table of advantages as text, for the terminal."""
    lines = [f"{visible(page.question.strip())}   ({verdict(page.reward, page.finished)})"]
    lines.append("".join(f"{NAMES[credit.name]:>14}" for credit in page.credits))
    for i, text in enumerate(page.steps):
        lines.append("".join(f"{signed(c.advantages[i]):>14}" for c in page.credits) + f"   {visible(' '.join(text.split()))}")
    return "\n".join(lines)


def render(page: Page) -> str:
    """The whole HTML file as text. It can be opened in any place, without a network."""
    here = Path(__file__).parent
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": _shown, "signed": signed, "share": _share, "verdict": verdict, "percent": _percent}
    template = environment.from_string((here / "page.html").read_text(encoding="utf-8"))
    kind = {1.0: "a right response", 0.0: "a wrong response"}.get(page.reward, f"a response with reward {page.reward:g}")
    css = (here / "page.css").read_text(encoding="utf-8")
    return template.render(page=page, kind=kind, finding=finding(page), css=css, strong=STRONG).lstrip()


def _shown(text: str) -> str:
    return visible(text.strip("\n")) or "(nothing)"


def _percent(x: float) -> float:
    """A place on a line from 0 to 1, in % of its width."""
    return round(100 * min(1.0, max(0.0, x)), 1)


def _share(rewards: list[float], of: str = "") -> str:
    """How many of the responses are right; their mean reward where a reward lies between 0 and 1."""
    total = sum(rewards)
    return f"{total:g}{of} right" if {*rewards} <= {0, 1} else f"mean reward {total / len(rewards):.2f}"
