"""The settings of `analyze values`."""

from dataclasses import dataclass, field

from vine_mini.app.fields import Count, Seed, Several, check_ranges, knob
from vine_mini.types import UserError


@dataclass
class ValuesConfig:
    """Measure the errors of a run's critic and of Monte Carlo values, at each checkpoint that the run kept (--keep_every)."""

    run: str | None = knob(None, "The run folder. The values are those of its policy and, if it trained one, its critic.")
    problems: Several = knob(16, "Test problems.")
    responses: Count = knob(2, "Responses to each of them, whose states are measured.")
    truth: Several = knob(256, "Rollouts whose mean reward is the truth of a state (paper: 256).")
    ks: list[int] = field(default_factory=lambda: [1, 3, 9], metadata={"help": "Numbers of rollouts to measure (paper: 9)."})
    states: Count = knob(32, "States at which the best of several next steps is looked for.")
    choices: Several = knob(5, "Distinct next steps at each of them (paper: 5).")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, ...")
    seed: Seed = knob(0, "Seed of everything random.")
    yes: bool = knob(False, "Go on although the estimate says more than a week, or far more memory than there is.")
    out: str | None = knob(None, "Folder for the pictures, the table and the JSON; a new one under runs/ when left out.")

    def __post_init__(self):
        check_ranges(self)
        if self.run is None:
            raise UserError("--run is missing: name the folder of a run that `train` made")
        if not all(1 <= k <= 10**9 for k in self.ks):
            raise UserError("ks: each K must be at least 1 and at most 10^9")
