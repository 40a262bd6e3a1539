"""The page of the `credit` command: what it shows, and how that becomes one HTML file that loads nothing and runs nothing.

All text that a model wrote is escaped, and characters that would not be seen, or would move others, are shown by number.
"""

import html
import unicodedata
from dataclasses import dataclass
from math import hypot
from pathlib import Path

NAMES = {"vineppo": "VinePPO", "ppo": "PPO's critic", "grpo": "GRPO", "truth": "truth"}
STRONG = 0.5  # an advantage whose colour is full


@dataclass
class Rollout:
    """A completion from before a step, and the reward of the response that it makes with what came before."""

    text: str
    reward: float
    finished: bool


@dataclass
class Credit:
    """What one method says of each of n steps.

    Attributes:
        name: one of NAMES.
        advantages: [n], as the algorithm computes them before it whitens a batch.
        values: [n] V of the state before each step; None for a method that has none.
        errors: [n] standard errors of the values; None where they are not estimates from samples.
    """

    name: str
    advantages: list[float]
    values: list[float] | None = None
    errors: list[float] | None = None

    @property
    def advantage_errors(self) -> list[float]:
        """[n] standard errors of the differences of values; the last one's reward is known exactly."""
        return [hypot(before, after) for before, after in zip(self.errors, [*self.errors[1:], 0.0], strict=True)]


@dataclass
class Page:
    """One response cut into n steps, what each method says of them, and what was sampled to find out."""

    question: str
    answer: str
    made: str  # policy, problem and settings, in a line
    critic: str  # where PPO's critic comes from; "" for none
    gamma: float  # of GAE
    lam: float
    finished: bool
    group_rewards: list[float]  # [G]
    response: int  # which of the G is shown
    steps: list[str]  # [n] texts
    rollouts: list[list[Rollout]]  # [n][k], from before each step
    truth: int  # rollouts a state behind the truth; 0: there is none
    credits: list[Credit]  # vineppo is the first

    @property
    def reward(self) -> float:
        """R of the response that is shown."""
        return self.group_rewards[self.response]

    @property
    def verdict(self) -> str:
        """Whether it is right, and how it ended."""
        return _verdict(self.reward, self.finished)


def visible(text: str) -> str:
    """The text with control, format and unassigned characters as ⟨U+0000⟩; line ends and tabs stay."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in hidden and c not in "\n\t" else c for c in text)


def signed(x: float) -> str:
    """+0.42, −0.42, 0.00"""
    return f"{x:+.2f}".replace("-", "−") if abs(x) >= 0.005 else "0.00"


def finding(page: Page) -> str:
    """Where VinePPO saw the value move most, and whether that is more than noise."""
    vine, n = page.credits[0], len(page.steps)
    at = max(range(n), key=lambda i: abs(vine.advantages[i]))
    if not vine.advantages[at]:
        return "VinePPO's value moves nowhere."
    values, errors = [*vine.values, page.reward], [*vine.errors, 0.0]
    after = "the reward" if at == n - 1 else f"{values[at + 1]:.2f} ± {errors[at + 1]:.2f}"
    says = f"VinePPO's value moves most at step {at + 1} of {n}: from {values[at]:.2f} ± {errors[at]:.2f} to {after}."
    if abs(vine.advantages[at]) < 2 * vine.advantage_errors[at]:
        says += " That is less than two standard errors of the difference: it may be noise."
    return says


def summary(page: Page) -> str:
    """The table of advantages as text, for the terminal."""
    head = [NAMES[credit.name] for credit in page.credits]
    lines = [f"{visible(page.question.strip())}   ({page.verdict})", "".join(f"{name:>14}" for name in head)]
    for i, text in enumerate(page.steps):
        lines.append("".join(f"{signed(c.advantages[i]):>14}" for c in page.credits) + f"   {visible(' '.join(text.split()))}")
    return "\n".join(lines)


def render(page: Page) -> str:
    """The whole HTML file as text. It may be opened from anywhere, without a network."""
    right = sum(page.group_rewards)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Credit for a {"right" if page.reward else "wrong"} response</title>
<style>
{Path(__file__).with_name("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<h1>Credit for a {"right" if page.reward else "wrong"} response</h1>
<p class="question" dir="auto">{_text(page.question)}</p>
<dl>
<div><dt>Right answer</dt><dd dir="auto">{_text(page.answer)}</dd></div>
<div><dt>This response</dt><dd>{page.verdict}, reward {page.reward:g}</dd></div>
<div><dt>Its group</dt><dd>{_pips(page.group_rewards, page.response)}
{right:g} of {len(page.group_rewards)} right; this is number {page.response}</dd></div>
</dl>
<p class="finding">{finding(page)}</p>
{_table(page)}
<h2>How to read it</h2>
<ul>
{"".join(f"<li>{line}</li>{chr(10)}" for line in _explanations(page))}</ul>
<p class="made">{_text(page.made)}</p>
</main>
</body>
</html>
"""


def _table(page: Page) -> str:
    """The steps, one a row."""
    groups, measures = [], []
    for credit in page.credits:
        name, wide = NAMES[credit.name], 1 if credit.values is None else 2
        groups.append(f'<th colspan="{wide}" scope="colgroup">{name[0].upper() + name[1:]}</th>')
        measures += ['<th scope="col">value before</th>'] * (wide == 2) + [
            f'<th scope="col">advantage{" (σ)" if wide == 1 else ""}</th>'
        ]
    ends = "".join(_end(credit, page.reward) for credit in page.credits)
    return f"""<p class="caption"><span id="caption">Each step of the response, coloured by VinePPO's advantage, and what every
method says of it.</span> <span class="legend" aria-hidden="true">−½ blame<span class="scale"></span>praise +½</span></p>
<div class="scroll" role="region" aria-labelledby="caption" tabindex="0">
<table aria-labelledby="caption">
<thead>
<tr><th rowspan="2" scope="col">Step</th><th rowspan="2" scope="col">What the policy wrote</th>{"".join(groups)}</tr>
<tr>{"".join(measures)}</tr>
</thead>
<tbody>
{"".join(_row(page, i) for i in range(len(page.steps)))}</tbody>
<tfoot>
<tr><th scope="row">End</th><td>The reward is {page.reward:g}.
Where a sum stands, it is the reward less the first value.</td>{ends}</tr>
</tfoot>
</table>
</div>"""


def _row(page: Page, i: int) -> str:
    rollouts = page.rollouts[i]
    right = sum(r.reward for r in rollouts)
    listed = "".join(
        f'<li><span class="verdict">{_verdict(r.reward, r.finished)}</span>'
        f'<div class="text" dir="auto">{_text(r.text)}</div></li>\n'
        for r in rollouts
    )
    cells = "".join(_cells(credit, i) for credit in page.credits)
    colour = _colour(page.credits[0].advantages[i])
    return f"""<tr class="step"><th scope="row">{i + 1}</th>
<td {colour}><div class="text" dir="auto">{_text(page.steps[i])}</div>
<details><summary>{len(rollouts)} rollouts from before this step: {right:g} right {_pips([r.reward for r in rollouts])}</summary>
<ol>
{listed}</ol></details></td>{cells}</tr>
"""


def _cells(credit: Credit, i: int) -> str:
    advantage = credit.advantages[i]
    length = 50 * min(1.0, abs(advantage))  # % of the bar, from its middle
    start = 50 - length * (advantage < 0)
    bar = f'<span class="bar" aria-hidden="true"><i style="left:{start:.1f}%;width:{length:.1f}%"></i></span>'
    noise = f" ± {credit.advantage_errors[i]:.2f}" if credit.errors else ""
    shown = f"<td {_colour(advantage, 'number')}>{signed(advantage)}{noise}{bar}</td>"
    if credit.values is None:
        return shown
    error = credit.errors[i] if credit.errors else 0.0
    return _value(credit.values[i], error, known=credit.errors is None) + shown


def _value(value: float, error: float = 0.0, known: bool = True) -> str:
    """A cell with the value, and a mark for it on a line from 0 to 1, with one standard error on either side."""
    low, middle, high = (100 * min(1.0, max(0.0, x)) for x in (value - error, value, value + error))
    span = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
    text = f"{value:.2f}".replace("-", "−") + ("" if known else f" ± {error:.2f}")
    return f'<td class="number">{text}<span class="line" aria-hidden="true">{span}<b style="left:{middle:.1f}%"></b></span></td>'


def _end(credit: Credit, reward: float) -> str:
    """The last row: the reward, and the sum of the advantages where they telescope."""
    if credit.values is None:
        return "<td></td>"
    total = signed(sum(credit.advantages)) if credit.errors else ""
    return f'{_value(reward)}<td class="number">{total}</td>'


def _explanations(page: Page) -> list[str]:
    """What one sees, a few sentences for each method."""
    k, G = len(page.rollouts[0]), len(page.group_rewards)
    lines = [
        f"<b>VinePPO</b> (section 4 of the paper) finishes the response {k} times from before each step. The share that is right "
        "is the value V. A step's advantage is <code>V(after) − V(before)</code>; after the last step the reward takes the place "
        "of the value.",
        "± is one standard error: of a value of K rollouts √(p(1 − p)/K), with p = (V K + ½)/(K + 1): p = V would give 0 "
        "where none or all of K are right, which is too small.",
    ]
    if page.critic:
        how = f"It is GAE's, with γ = {page.gamma:g} and λ = {page.lam:g}"
        if page.gamma == page.lam == 1:
            how = "With γ = λ = 1 a token's advantage is the reward less the guess before it"
        lines.append(
            f"<b>PPO's critic</b> (section 3) is a value network, which guesses. {how}. "
            f"The mean over the step's tokens is shown; an error of the guess is an error of the credit. {_text(page.critic)}"
        )
    tie = " All are equally right here, so it says nothing." if len(set(page.group_rewards)) == 1 else ""
    lines.append(
        f"<b>GRPO</b> (arXiv 2402.03300) compares the reward with the {G} of the group, in units of their standard deviation σ, "
        f"and gives every step the same.{tie}"
    )
    if page.truth:
        lines.append(f"<b>Truth</b> is the same as VinePPO with {page.truth} other rollouts a state, so it has a ± too.")
    lines.append(
        "Advantages are shown before whitening: VinePPO and PPO then shift and scale them over all tokens of a batch. Blue is "
        "above 0 and orange below; colour is full at ½, the bar at 1."
    )
    return lines


def _text(text: str) -> str:
    return html.escape(visible(text.strip("\n"))) or "(nothing)"


def _verdict(reward: float, finished: bool) -> str:
    return ("right" if reward else "wrong") + (", ended by itself" if finished else ", cut by the limit")


def _pips(rewards: list[float], marked: int | None = None) -> str:
    """A disc for each response: full for right, hollow for wrong, one of them marked."""
    discs = "".join(
        "<b>●</b>" if i == marked and R else "<b>○</b>" if i == marked else "●" if R else "○" for i, R in enumerate(rewards)
    )
    return f'<span class="pips" aria-hidden="true">{discs}</span>'


def _colour(advantage: float, name: str = "step-text") -> str:
    """Attributes of a cell: its colour's sign, and its strength from 0 to 1."""
    sign = "plus" if signed(advantage)[0] == "+" else "minus" if signed(advantage)[0] == "−" else "zero"
    return f'class="{name} {sign}" style="--strength:{min(1.0, abs(advantage) / STRONG):.2f}"'
