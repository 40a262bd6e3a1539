"""The settings of `study`, and the learning runs that each claim needs."""

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated

from vine_mini.app.fields import Range, Seconds, check_ranges, knob, one_of
from vine_mini.types import UserError

TASKS: dict[str, dict] = {
    "decisive": dict(task="decisive", steps=12, max_new_tokens=140),
    "chains": dict(task="arithmetic", steps=12, max_new_tokens=140, model="arithmetic-12"),
}
SHARED = dict(prompts=32, group=4, sample_batch_size=1024, warmup=0, kl_coef=1e-4, eval_temperature=1.0, eval_samples=2)
PLAIN = dict(k=9, mc_lam=0.0, mc_mu=0.0)
FEW = dict(k=1, mc_lam=0.7, mc_mu=0.8)  # by `credit-cost`
MANY = dict(prompts=64, group=16, minibatch_size=64)  # for RestEM and DPO+
# Any eval_every sets problems aside, which stop the epochs. The study makes its own checks.
MANY |= dict(validation=100, eval_every=100_000)
# Each algorithm at its best setting of the grid in results/credit, for 60 seconds.
SETTINGS: dict[str, dict[str, dict]] = {
    "decisive": {
        "vineppo": dict(algorithm="vineppo", lr=2e-4, epochs=1, minibatch_size=128, **FEW),
        "ppo": dict(algorithm="ppo", lr=2e-4, epochs=2, minibatch_size=64),
        "grpo": dict(algorithm="grpo", lr=1e-4, epochs=2, minibatch_size=64),
        "rloo": dict(algorithm="rloo", lr=2e-4, epochs=1, minibatch_size=128),
        "restem": dict(algorithm="restem", lr=4e-4, epochs=6, **MANY),
        "dpo": dict(algorithm="dpo", lr=1e-4, epochs=3, dpo_beta=0.3, examples=64, **MANY),
    },
    "chains": {
        "vineppo": dict(algorithm="vineppo", lr=1e-4, epochs=2, minibatch_size=64, **FEW),
        "ppo": dict(algorithm="ppo", lr=2e-4, epochs=2, minibatch_size=64),
        "grpo": dict(algorithm="grpo", lr=1e-4, epochs=2, minibatch_size=64),
        "rloo": dict(algorithm="rloo", lr=1e-4, epochs=2, minibatch_size=64),
        "restem": dict(algorithm="restem", lr=2e-4, epochs=6, **MANY),
        "dpo": dict(algorithm="dpo", lr=2e-4, epochs=3, dpo_beta=0.3, examples=64, **MANY),
    },
}
PAPERS: dict[str, dict] = {  # the paper's VinePPO, for equal episodes
    "decisive": dict(algorithm="vineppo", lr=2e-4, epochs=2, minibatch_size=64, **PLAIN),
    "chains": dict(algorithm="vineppo", lr=1e-4, epochs=2, minibatch_size=64, **PLAIN),
}
# Where the grid's best setting after 2,048 to 2,560 episodes is another one than above: that one.
BY_EPISODES: dict[str, dict[str, dict]] = {
    "decisive": {
        "ppo": dict(algorithm="ppo", lr=1e-4, epochs=2, minibatch_size=64),
        "grpo": dict(algorithm="grpo", lr=2e-4, epochs=2, minibatch_size=64),
        "rloo": dict(algorithm="rloo", lr=1e-4, epochs=2, minibatch_size=64),
        "restem": dict(algorithm="restem", lr=2e-4, epochs=6, **MANY),
    },
    "chains": {"restem": dict(algorithm="restem", lr=1e-4, epochs=6, **MANY)},
}
FEW_PROBLEMS = dict(train_size=128)  # for generalization
HOT = (1.1, 1.3)  # high sampling temperatures; the usual one is 1
NAMES = {"vineppo": "VinePPO", "ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO", "restem": "RestEM", "dpo": "DPO+"}
CLAIMS = ("accuracy", "efficiency", "generalization", "kl", "values", "rollouts", "temperature")


@dataclass
class StudyConfig:
    """Measure claims of the VinePPO paper; goes on where it stopped."""

    claims: list[str] = field(
        default_factory=lambda: list(CLAIMS), metadata={"help": f"Which claims: {', '.join(CLAIMS)}. The flag may be left out."}
    )
    seeds: Annotated[int, Range(2, 1000)] | None = knob(
        None, "Learning runs of each setting, with the seeds 0, 1, ... Left out: 5, for values 8."
    )
    seconds: Seconds = knob(60.0, "Seconds of training in a run, by the prices that are measured first.")
    workers: Annotated[int, Range(1, 1000)] = knob(2, "Runs side by side, one thread each.")
    quick: bool = knob(False, "Two seeds of two seconds: shows that everything runs, and nothing else.")
    out: str | None = knob(None, "Folder of the runs, tables and pictures. Left out: runs/claims, or runs/claims-quick.")

    def __post_init__(self):
        check_ranges(self)
        for name in self.claims:
            one_of("claim", name, CLAIMS)
        if self.quick:
            if (self.seeds, self.seconds) != (None, 60.0):
                raise UserError("quick has two seeds of two seconds: leave --seeds and --seconds out")
            self.seeds, self.seconds = 2, 2.0
        self.out = self.out or ("runs/claims-quick" if self.quick else "runs/claims")


def seeds_of(claim: str, config: StudyConfig) -> int:
    """How many seeds each setting of a claim is run with. The critics of two runs differ more than other numbers do."""
    return config.seeds or (8 if claim == "values" else 5)


def episodes_of(config: StudyConfig) -> int:
    """The length of the runs that end after a number of episodes: an iteration of 128 for every three seconds."""
    return 128 * math.ceil(config.seconds / 3)


def jobs(claim: str, config: StudyConfig) -> list[dict]:
    """The learning runs that a claim needs. Claims share runs: equal jobs are made once."""
    size = dict(evaluations=2 if config.quick else 8, problems=20 if config.quick else 200)
    seconds, episodes = dict(seconds=config.seconds), dict(episodes=episodes_of(config))
    found = []
    for seed, task in product(range(seeds_of(claim, config)), TASKS):
        job = size | dict(task=task, seed=seed, shared=SHARED | TASKS[task])
        found += [job | dict(config=of, limits=seconds) for of in at_equal_seconds(claim, task)]
        found += [job | dict(config=of, limits=episodes) for of in at_equal_episodes(claim, task)]
        if claim == "accuracy" and not config.quick:
            found += [job | dict(config=of, limits=episodes) for of in BY_EPISODES[task].values()]
    return found


def at_equal_seconds(claim: str, task: str) -> list[dict]:
    """The settings whose runs end after a number of seconds."""
    of = SETTINGS[task]
    if claim == "rollouts":
        return []
    if claim == "values":
        return [of["ppo"]]
    names = of if claim == "accuracy" else ["vineppo", "ppo", "grpo"]
    changes: dict[str, list[dict]] = {"generalization": [FEW_PROBLEMS], "temperature": [{}, *({"temperature": t} for t in HOT)]}
    return [of[name] | change for change in changes.get(claim, [{}]) for name in names]


def at_equal_episodes(claim: str, task: str) -> list[dict]:
    """The settings of the paper's VinePPO. Their runs end after a number of episodes, whatever the rollouts cost."""
    ks = {"rollouts": (1, 3, 9), "accuracy": (9,), "efficiency": (9,), "kl": (9,)}
    return [PAPERS[task] | dict(k=k) for k in ks.get(claim, ())]
