"""Monte Carlo credit of responses that are there already: the values of their states, with standard errors.

The functions that train also cut, roll out, grade and subtract here.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from math import hypot

import torch

from vine_mini import tasks
from vine_mini.advantages import step_advantages
from vine_mini.evaluate import standard_errors
from vine_mini.trainer import Trainer
from vine_mini.types import Episodes
from vine_mini.values import monte_carlo_values


@dataclass
class Rollout:
    """A rollout from before a step, and the reward of the response that it completes."""

    text: str
    reward: float
    finished: bool
    step: str = ""  # the text of the first step that it takes


@dataclass
class Credit:
    """The advantages that one method gives to n steps."""

    name: str  # one of page.NAMES
    advantages: list[float]  # [n] before whitening
    values: list[float] | None = None  # [n] V of the state before each step; None for a method without values
    errors: list[float] | None = None  # [n] standard errors of the values; None where the values are not means of samples
    advantage_errors: list[float] | None = field(init=False, default=None)  # [n] standard errors of the advantages

    def __post_init__(self):
        if self.errors is not None:  # of a difference of two independent means; the reward after the last step has no error
            self.advantage_errors = [hypot(*pair) for pair in zip(self.errors, [*self.errors[1:], 0.0], strict=True)]

    def sure(self, i: int) -> bool:
        """Whether the advantage of step i is beyond two standard errors. True where no error is known."""
        return self.errors is None or abs(self.advantages[i]) > 2 * self.advantage_errors[i]


@dataclass
class Change:
    """The step at which some rollouts show the largest fall or rise of the value, and its size by fresh rollouts.

    The largest of n noisy differences is on average too large. The size by rollouts that did not choose the step is unbiased.
    """

    step: int  # from 0
    measured: Credit  # by fresh rollouts: of this step, and of the state after it
    rollouts: list[Rollout]  # the fresh ones from before the step

    @property
    def size(self) -> float:
        """The value after the step minus the value before it."""
        return self.measured.advantages[0]

    @property
    def error(self) -> float:
        """The standard error of the size."""
        return self.measured.advantage_errors[0]


class Resting(Trainer):
    """A trainer whose policy does not change. `spent` counts the tokens and the seconds of what it samples."""

    def __init__(self, *parts) -> None:
        super().__init__(*parts)
        self.policy.requires_grad_(False)  # only a critic, which is a copy, has gradients and moments
        self.algorithm = replace(self.algorithm, loss=_no_loss)
        self.spent: dict[str, dict[str, float]] = {}

    def spend(self, what: str, start: float, tokens: float) -> None:
        """Adds the tokens, and the seconds since `start`, to what was spent."""
        so_far = self.spent.setdefault(what, {"tokens": 0, "seconds": 0.0})
        so_far["tokens"] += round(tokens)
        so_far["seconds"] += self.clock() - start


def _no_loss(logprobs, batch, config, denominator):
    share = (batch.response_mask.sum() / denominator).item()  # statistics of micro-batches add up, to a ratio of 1
    return torch.zeros((), requires_grad=True), {"ratio": share, "approx_kl": 0.0}


def monte_carlo(trainer: Resting, episodes: Episodes, rows: list[int], cuts: list[list[int]], k: int, name: str, problem: int):
    """VinePPO's credit of responses, by k rollouts from each of the given cuts. -> (rollouts [cut][k], Credit) of each row

    The name and the number of the problem seed the rollouts, so that two names share no random numbers.
    """
    start, trajectories = trainer.clock(), [episodes.trajectories[row] for row in rows]
    states = trainer.roll_out(trajectories, cuts, k, f"{name}, problem {problem}")
    trainer.spend(name, start, sum(len(r.response_ids) for of_row in states for state in of_row for r in state))
    decode, graded, found = partial(trainer.tokenizer.decode, skip_special_tokens=True), {}, []
    for row, trajectory, of_row, of_cuts in zip(rows, trajectories, states, cuts, strict=True):
        rollouts = []
        for cut, state in zip(of_cuts, of_row, strict=True):
            so_far, of_state = trajectory.response_ids[:cut], []
            for r in state:
                R = tasks.grade(episodes.task, episodes.problems[row], r, trainer.tokenizer, so_far, graded)
                ids = [*so_far, *r.response_ids]
                end = next((c for c in trainer.cut(ids) if c > cut), len(ids))
                of_state.append(Rollout(decode(r.response_ids), R, r.finished, decode(ids[cut:end])))
            rollouts.append(of_state)
        rewards = [[r.reward for r in state] for state in rollouts]
        values = monte_carlo_values(rewards)
        advantages = step_advantages(values, episodes.rewards.flatten()[row].item())
        found.append((rollouts, Credit(name, advantages, values, standard_errors(rewards))))
    return found


def largest_change(credit: Credit, *, fall: bool) -> int | None:
    """The step with the largest fall, or rise, of the value; None where no step has one."""
    size = [-a if fall else a for a in credit.advantages]
    at = max(range(len(size)), key=size.__getitem__)
    return at if size[at] > 1e-9 else None


def measure_again(trainer: Resting, episodes: Episodes, rows: list[int], steps: list[int], k: int, name: str, problem: int):
    """The change of the value at one step of each row, by k fresh rollouts from before it and k from after it. -> [row] Change"""
    cuts = [episodes.cuts[row][step : step + 2] for row, step in zip(rows, steps, strict=True)]
    found = monte_carlo(trainer, episodes, rows, cuts, k, name, problem)
    return [Change(step, credit, rollouts[0]) for step, (rollouts, credit) in zip(steps, found, strict=True)]
