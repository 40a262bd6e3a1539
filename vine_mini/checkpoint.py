"""Saving and resuming a training run: the policy as a Hugging Face folder, and in it what only training needs.

`training_state.safetensors` holds AdamW's moments, the critic, and the counters. Sampling is seeded by the iteration, so a
resumed run goes on exactly as the uninterrupted one would have.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vine_mini.models import load_policy, save_policy
from vine_mini.types import UserError

STATE = "training_state.safetensors"


def save(trainer, folder: Path) -> None:
    """Writes policy and training state, replacing an older checkpoint only once the new one is whole."""
    tensors = {f"critic.{name}": x for name, x in trainer.critic.state_dict().items()} if trainer.critic else {}
    for i, optimizer in enumerate(trainer.optimizers):
        for j, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{name}": x for name, x in slots.items()}
    counters = {"iteration": trainer.iteration, "updates": trainer.schedules[0].last_epoch, "seconds": dict(trainer.seconds)}

    def write_state(fresh: Path):
        save_file(tensors, fresh / STATE, {"counters": json.dumps(counters)})

    save_policy(trainer.policy, trainer.tokenizer, folder, write_state)


def resume(trainer, folder: Path) -> None:
    """Puts a new trainer into the state that `save` wrote. Raises UserError where there is none."""
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} holds no {STATE}: nothing was saved there to resume from")
    trainer.policy.load_state_dict(load_policy(str(folder), trainer.device)[0].state_dict())
    try:
        with safe_open(folder / STATE, "pt", str(trainer.device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            counters = json.loads(file.metadata()["counters"])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{folder / STATE} is damaged ({' '.join(str(error).split())})") from error
    try:
        _put_back(trainer, tensors)
    except (RuntimeError, IndexError) as error:
        raise UserError(f"{folder / STATE} belongs to another model than the policy beside it") from error
    for optimizer, schedule in zip(trainer.optimizers, trainer.schedules, strict=True):
        schedule.last_epoch = counters["updates"]
        [group], [base], [factor] = optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas
        group["lr"] = base * factor(counters["updates"])
    trainer.iteration = counters["iteration"]
    trainer.seconds.update(counters["seconds"])


def _put_back(trainer, tensors: dict) -> None:
    """Optimizer moments and critic."""
    for i, optimizer in enumerate(trainer.optimizers):
        state = optimizer.state_dict()
        for name, x in tensors.items():
            kind, *place = name.split(".", 3)
            if kind == "optimizer" and int(place[0]) == i:
                state["state"].setdefault(int(place[1]), {})[place[2]] = x
        optimizer.load_state_dict(state)
    if trainer.critic:
        trainer.critic.load_state_dict({name[7:]: x for name, x in tensors.items() if name.startswith("critic.")})
