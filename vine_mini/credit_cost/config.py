"""The settings of the `credit-cost` command."""

from dataclasses import dataclass, field
from typing import Annotated

from vine_mini.app.config import TrainConfig, take_policy_of_run
from vine_mini.app.fields import Range, Several, knob
from vine_mini.types import UserError


@dataclass
class CreditCostConfig(TrainConfig):
    """Measure what Monte Carlo credit costs and what it is worth, for your policy and your settings of `train`."""

    run: str | None = knob(None, "A run folder: its policy, the fields of its config.yaml and, if it trained one, its critic.")
    problems: Several = knob(24, "Training problems, each with `group` responses, whose states are rolled out.")
    pool: Annotated[int, Range(4, 10**9)] = knob(32, "Rollouts for each state, from which the noise of every K follows.")
    ks: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 9], metadata={"help": "vineppo: the K to judge."})

    def __post_init__(self):
        super().__post_init__()
        if self.resume:
            raise UserError("credit-cost resumes nothing: give the folder as --run")
        if self.max_states is not None:
            raise UserError("credit-cost measures all states of a response: leave out --max_states")
        if self.group < 2:
            raise UserError("grpo, with which vineppo is compared, needs a group of at least 2")
        for k in self.ks:
            if not 1 <= k <= self.pool:
                raise UserError(f"ks: K = {k} must be at least 1 and at most pool = {self.pool}: raise --pool or leave it out")
        take_policy_of_run(self)
