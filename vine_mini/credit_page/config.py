"""The settings of the `credit` command."""

import re
from dataclasses import dataclass

from vine_mini.app.config import Common, take_policy_of_run
from vine_mini.app.fields import Count, Several, Warm, Whole, knob
from vine_mini.types import UserError


@dataclass
class CreditConfig(Common):
    """Show on a page which advantages VinePPO, PPO and GRPO give to the steps of responses, or where many responses fail."""

    run: str | None = knob(None, "A run folder: its policy, the fields of its config.yaml and, if it trained one, its critic.")
    problem: Whole = knob(0, "Number of the test problem.")
    problems: str | None = knob(None, "Many of them, as 0:200: where failed responses take their largest fall, on one page.")
    responses: str | None = knob(
        None, "JSON lines with question, answer and, if not sampled, response: instead of test problems."
    )
    group: Several = knob(8, "Responses to a problem, which grpo compares. A small group is often all wrong.")
    response: Whole | None = knob(None, "Number of the response shown first. Left out: the first wrong one, or else the first.")
    k: Count = knob(9, "vineppo: Monte Carlo rollouts for each state (paper: 9).")
    fresh: Count = knob(64, "Fresh rollouts from before and from after a largest fall or rise, which measure its size.")
    truth: Whole = knob(0, "Rollouts for each state of a column to compare with, such as 256; 0: no such column.")
    other: str | None = knob(
        None, "Another policy, such as a later checkpoint: its values of the same states beside the first's."
    )
    temperature: Warm = knob(1.0, "Of responses and rollouts.")
    step_tokens: Count | None = knob(None, "Cut a step every so many tokens instead of at newlines.")
    critic_iterations: Whole = knob(20, "ppo: iterations for a critic while the policy rests (a ppo run has one); 0: no column.")
    out: str | None = knob(None, "Folder for what the command writes; a new one under runs/ when left out.")

    def __post_init__(self):
        super().__post_init__()
        if self.response is not None and self.responses is None and self.response >= self.group:
            raise UserError(f"response = {self.response}: there are {self.group} responses in the group, counted from 0")
        if self.problems is not None and not re.fullmatch(r"\d{1,9}:(\d{1,9})?", self.problems, re.ASCII):
            raise UserError(
                f"problems = {self.problems}: write the first number and the one after the last, as 0:200, or 0: for all"
            )
        if self.problems is not None and (self.response is not None or self.truth):
            raise UserError("--problems looks at failed responses alone: leave out --response and --truth, or give --problem")
        take_policy_of_run(self)
