"""The settings of `analyze values`."""

from dataclasses import dataclass, field
from typing import Annotated

from vine_mini.app.config import Count, Range, Seed, check_ranges, knob
from vine_mini.types import UserError


@dataclass
class ValuesConfig:
    """Measure the errors of a run's critic and of Monte Carlo values, at each checkpoint that the run kept (--keep_every)."""

    run: str | None = knob(None, "The run folder. The values are those of its policy and, if it trained one, its critic.")
    problems: Annotated[int, Range(2)] = knob(16, "Test problems.")
    responses: Annotated[int, Range(1)] = knob(2, "Responses to each of them, whose states are measured.")
    truth: Annotated[int, Range(2)] = knob(256, "Rollouts whose mean reward is the truth of a state (paper: 256).")
    ks: list[int] = field(default_factory=lambda: [1, 3, 9], metadata={"help": "Numbers of rollouts to measure (paper: 9)."})
    states: Count = knob(32, "States at which the best of several next steps is looked for.")
    choices: Annotated[int, Range(2)] = knob(5, "Distinct next steps at each of them (paper: 5).")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, ...")
    seed: Seed = knob(0, "Seed of everything random.")
    out: str | None = knob(None, "Folder for the pictures, the table and the JSON; a new one under runs/ when left out.")

    def __post_init__(self):
        check_ranges(self)
        if self.run is None:
            raise UserError("--run is missing: name the folder of a run that `train` made")
        if min(self.ks) < 1:
            raise UserError("ks: each K must be at least 1")
