"""Makes the parts of a run from its config: the problems, the policy and the `Trainer`."""

from pathlib import Path

from vine_mini import models, tasks
from vine_mini.app.config import Common, TrainConfig
from vine_mini.trainer import Trainer
from vine_mini.types import UserError

SHIPPED = Path(__file__).parent / "policies"  # one folder for each task, made by `python -m vine_mini sft`


def task_name(config: Common) -> str:
    """The name of the task. For a task file it is the file's name without its folder and `.py`."""
    return Path(config.task).stem


def policy_name(config: Common) -> str:
    """`config.model`, or the folder of the policy that ships for the task. Raises UserError if no policy ships for the task."""
    if config.model is not None:
        return config.model
    if not (SHIPPED / config.task).is_dir():
        raise UserError(f"no policy ships for {task_name(config)}: give one with --model (a Hub name or a folder)")
    return str(SHIPPED / config.task)


def build_trainer(config: TrainConfig) -> Trainer:
    """Loads the problems and the policy that the config names, and makes a trainer. Raises UserError if that is impossible."""
    device = models.pick_device(config.device)
    train_problems, test_problems = tasks.load_problems(config)
    policy, tokenizer = models.load_policy(policy_name(config), device)
    return Trainer(config, policy, tokenizer, train_problems, test_problems[: config.eval_problems or None])
