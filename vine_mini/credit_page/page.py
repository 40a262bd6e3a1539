"""The pages of the `credit` command: their data, and HTML files that load nothing and run nothing.

All text that a model wrote is escaped. Characters that are invisible, or that move other characters, are shown by number.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from vine_mini.app.tables import columns, one_line, verdict, visible
from vine_mini.credit_page.falls import FALSE_ALARMS, Fall, Row, next_steps, share_of
from vine_mini.credit_page.measure import Change, Credit, Rollout
from vine_mini.evaluate import percent

NAMES = {"vineppo": "VinePPO", "ppo": "PPO's critic", "grpo": "GRPO", "truth": "truth", "other": "other policy"}
STRONG = 0.5  # an advantage of this size has the full colour, and half of the longest bar
STRONG_SIGMA = 1.5  # the same for GRPO, whose advantages are in units of the group's standard deviation
PALE = 0.3  # share of the colour for a difference within two standard errors
SHOWN = 200  # falls on the page; the JSON file has all
PARTS = {"vineppo": "rollouts", "choice": "rollouts that choose", "fresh": "fresh rollouts", "other": "other policy"}
PARTS |= {"fall": "fresh rollouts at the fall", "rise": "fresh rollouts at the rise"}


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
    problem: int = 0
    files: list[str] = field(default_factory=list)  # [G] the pages of the group
    fresh: int = 0  # rollouts from before and from after the largest fall and rise
    fall: Change | None = None  # None: no step lowers VinePPO's value
    rise: Change | None = None
    spent: list[dict] = field(default_factory=list)  # of each policy, {"responses": {"tokens": ..., "seconds": ...}, ...}

    @property
    def reward(self) -> float:
        """R of the shown response."""
        return self.group_rewards[self.response]

    @property
    def file(self) -> str:
        """The name of this page."""
        return self.files[self.response]

    @property
    def title(self) -> str:
        """What the page is about."""
        return f"Credit: problem {self.problem}, response {self.response}, {_grade(self.reward)}"

    @property
    def partial_credit(self) -> bool:
        """Whether some reward lies between 0 and 1."""
        return not {*self.group_rewards, *(r.reward for state in self.rollouts for r in state)} <= {0, 1}


@dataclass
class FallsReport:
    """Where the failed responses to many problems take their largest fall."""

    made: str
    responses: int
    failed: int  # responses with a reward below 1
    problems: int
    success: tuple[float, float | None]  # mean reward, and its standard error over problems; None for one problem
    k: int  # rollouts for each state, which choose the step
    fresh: int  # rollouts from before and from after the chosen step
    other: str  # another policy that judges the same steps; "" for none
    by_kind: list[Row]
    by_step: list[Row]
    falls: list[Fall]  # the largest first
    spent: list[dict]

    @property
    def significant(self) -> list[Fall]:
        """The falls beyond two standard errors, the largest first."""
        return [fall for fall in self.falls if fall.significant]


def signed(x: float) -> str:
    """+0.42, −0.42, 0.00"""
    return f"{x:+.2f}".replace("-", "−") if abs(x) >= 0.005 else "0.00"


def finding(page: Page) -> str:
    """The largest fall and the largest rise of VinePPO's value, each with its error by fresh rollouts."""
    if not (page.fall or page.rise):
        return "VinePPO's value does not change at any step."
    found = []
    for name, change, sign in (("fall", page.fall, -1), ("rise", page.rise, 1)):
        if change is None:
            found.append(f"No step is a {name}.")
            continue
        of = "" if page.fall and change is page.rise else " of VinePPO's value"
        what = f"The largest {name}{of} is at step {change.step + 1} of {len(page.steps)}"
        judged = "beyond two standard errors" if change.measured.sure(0) else "not beyond two standard errors, so it may be noise"
        judged = judged if sign * change.size > 0 else f"so it is not shown to be a {name}"
        found.append(f"{what}: {signed(change.size)} ± {change.error:.2f} by {page.fresh} fresh rollouts, {judged}.")
    return " ".join(found)


def summary(page: Page) -> str:
    """The table of advantages as text, for the terminal."""
    lines = [f"{visible(page.question.strip())}   ({verdict(page.reward, page.finished)})"]
    lines.append("".join(f"{NAMES[credit.name]:>14}" for credit in page.credits))
    for i, text in enumerate(page.steps):
        lines.append("".join(f"{signed(c.advantages[i]):>14}" for c in page.credits) + f"   {visible(' '.join(text.split()))}")
    return "\n".join(lines)


def finding_of_falls(report: FallsReport) -> str:
    """How many failed responses have a significant fall, and at which kind of line most of these are."""
    those = report.significant
    found = (
        f"{len(those)} of {report.failed} failed responses have a step at which the value falls by more than two standard errors."
    )
    if not those:
        return found
    [(kind, _)] = Counter(fall.kind for fall in those).most_common(1)
    lines = sum(row.lines for row in report.by_kind)
    of_lines = next(row.lines for row in report.by_kind if row.name == kind) / lines
    share = percent(*share_of(those, kind))
    found += f" {share} of these falls are at lines with {kind}, which are {100 * of_lines:.0f} % of the lines."
    return f"{found} This kind has the most of them, so its share is on average too large."


def summary_of_falls(report: FallsReport) -> str:
    """The counts by kind of line, and the largest falls, as text for the terminal."""
    head = ["kind of line", "lines", "largest falls", "significant", "mean size"]
    rows = [[row.name, str(row.lines), str(row.falls), str(row.significant), mean_error(row.size)] for row in report.by_kind]
    if report.other:
        head, rows = [*head, "other policy"], [[*r, mean_error(row.other)] for r, row in zip(rows, report.by_kind, strict=True)]
    lines = [finding_of_falls(report), columns([head, *rows]), "The largest falls:"]
    for fall in report.significant[:5]:
        where = f"problem {fall.problem}, response {fall.response}, step {fall.step + 1} of {fall.steps}"
        lines.append(f"  {signed(fall.size)} ± {fall.error:.2f}  {one_line(fall.text, 60)}   ({where})")
    return "\n".join([*lines, spending(report.spent)])


def mean_error(found: tuple[float, float | None] | None) -> str:
    """A mean and its standard error; nothing for no mean."""
    if found is None:
        return ""
    mean, error = found
    return signed(mean) + ("" if error is None else f" ± {error:.2f}")


def spending(spent: list[dict]) -> str:
    """Tokens and seconds by purpose, in one line."""
    every = [(PARTS.get(name, name), part) for of_policy in spent for name, part in of_policy.items()]
    parts = [f"{name} {part['tokens']:,} in {part['seconds']:.1f} s" for name, part in every]
    tokens, seconds = (sum(part[of] for _, part in every) for of in ("tokens", "seconds"))
    return f"Sampled {tokens:,} tokens in {seconds:.1f} s: {', '.join(parts)}."


def render(page: Page) -> str:
    """The HTML file of one response as text. It can be opened in any place, without a network."""
    return _render("page.html", page=page, finding=finding(page), title=page.title)


def render_falls(report: FallsReport) -> str:
    """The HTML file of the largest falls as text."""
    title = f"Where {report.failed} failed responses fall"
    more = dict(shown=report.significant[:SHOWN], false_alarms=FALSE_ALARMS * len(report.falls))
    return _render("falls.html", report=report, finding=finding_of_falls(report), title=title, **more)


def _render(name: str, **parts) -> str:
    here = Path(__file__).parent
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FileSystemLoader(here))
    environment.filters |= {"shown": _shown, "signed": signed, "share": _share, "verdict": verdict, "percent": _percent}
    environment.filters |= {"grouped": grouped, "flat": flat, "grade": _grade, "mean_error": mean_error, "title_of": _title_of}
    environment.globals |= {"strength": strength, "scale": scale, "next_steps": next_steps}
    css = (here / "page.css").read_text(encoding="utf-8")
    spent = spending((parts.get("page") or parts["report"]).spent)
    return environment.get_template(name).render(css=css, spent=spent, **parts).lstrip()


def scale(credit: Credit) -> float:
    """The size of an advantage that has the full colour."""
    return STRONG_SIGMA if credit.name == "grpo" else STRONG


def strength(credit: Credit, i: int) -> float:
    """How strong the colour of step i is, from 0 to 1."""
    return min(1.0, abs(credit.advantages[i]) / scale(credit)) * (1 if credit.sure(i) else PALE)


def grouped(rollouts: list[Rollout]) -> list[tuple[int, Rollout]]:
    """Equal rollouts once, with their number, the most frequent first."""
    counts = Counter((r.text, r.reward, r.finished) for r in rollouts)
    return [(count, Rollout(*parts)) for parts, count in sorted(counts.items(), key=lambda x: (-x[1], x[0]))]


def flat(text: str) -> str:
    """The text on one line. A line end is shown as ⏎."""
    return visible(" ⏎ ".join(line for line in text.strip().split("\n") if line.strip())) or "(nothing)"


def _shown(text: str) -> str:
    return visible(text.strip("\n")) or "(nothing)"


def _grade(reward: float) -> str:
    return {1.0: "right", 0.0: "wrong"}.get(reward, f"reward {reward:g}")


def _title_of(credit: Credit) -> str:
    return NAMES[credit.name][0].upper() + NAMES[credit.name][1:]


def _percent(x: float) -> float:
    """A place on a line from 0 to 1, in % of its width."""
    return round(100 * min(1.0, max(0.0, x)), 1)


def _share(rewards: list[float], of: str = "") -> str:
    """How many of the responses are right; their mean reward where a reward lies between 0 and 1."""
    total = sum(rewards)
    return f"{total:g}{of} right" if {*rewards} <= {0, 1} else f"mean reward {total / len(rewards):.2f}"
