"""Makes the parts of a run from its config: the problems, the policy and the `Trainer`."""

from pathlib import Path

from vine_mini import models, tasks
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.config import POLICIES, Common, TrainConfig
from vine_mini.self_training import SelfTrainer
from vine_mini.trainer import Trainer
from vine_mini.types import UserError


def task_name(config: Common) -> str:
    """The name of the task. For a task file it is the file's name without its folder and `.py`."""
    return Path(config.task).stem


def policy_name(config: Common) -> str:
    """`config.model`, or the folder of the policy that ships under this name, or else under the task's name.

    Raises UserError if no policy ships for the task, or if a folder has the name of a shipped policy.
    """
    if config.model is not None:
        return find_policy(config.model)
    if config.task not in POLICIES:
        raise UserError(f"no policy ships for {task_name(config)}: give one with --model (a Hub name or a folder)")
    return str(POLICIES[config.task])


def find_policy(name: str) -> str:
    """The folder of the policy that ships under this name, or else the name. Raises UserError if it is a folder here as well."""
    if name in POLICIES and Path(name).exists():
        raise UserError(f"{name} is a shipped policy and a folder here: write ./{name} for the folder, or rename it")
    return str(POLICIES.get(name, name))


def build_trainer(config: TrainConfig) -> Trainer:
    """Loads the problems and the policy that the config names, and makes a trainer. Raises UserError if that is impossible.

    Where the run evaluates, `config.validation` training problems are set aside, at equal distances in their order. They are
    no more than a tenth of all, and the same ones for every seed.
    """
    device = models.pick_device(config.device)
    train_problems, test_problems = tasks.load_problems(config)
    count = min(config.validation, len(train_problems) // 10) if config.eval_every else 0
    aside = {(2 * i + 1) * len(train_problems) // (2 * count) for i in range(count)}
    validation = [train_problems[i] for i in sorted(aside)]
    train_problems = [problem for i, problem in enumerate(train_problems) if i not in aside]
    policy, tokenizer = models.load_policy(policy_name(config), device)
    kind = SelfTrainer if ALGORITHMS[config.algorithm].choose_examples else Trainer
    return kind(config, policy, tokenizer, train_problems, test_problems[: config.eval_problems or None], validation)
