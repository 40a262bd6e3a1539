"""Saving and resuming a training run.

    RUN/checkpoints/40/     a Hugging Face folder of the policy, with `training_state.safetensors`: AdamW's moments, the critic
                            and the counters
    RUN/policy              a link to the newest whole checkpoint

A new checkpoint is written beside the old one. Then the link is replaced, which is one atomic operation, and then the old
checkpoint is removed. A process that is killed at any moment therefore leaves a whole checkpoint behind RUN/policy. Seeds follow
from the iteration, so a resumed run goes on exactly as the uninterrupted run would have.
"""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vine_mini.models import load_policy, save_policy
from vine_mini.types import UserError

STATE = "training_state.safetensors"


def save(trainer, run: Path) -> None:
    """Writes a checkpoint of the trainer into the run folder and points RUN/policy to it."""
    link, target = run / "policy", run / "checkpoints" / str(trainer.iteration)
    if link.is_symlink() and link.resolve() == target.resolve():
        return  # this iteration is saved already
    tensors = {f"critic.{name}": x for name, x in trainer.critic.state_dict().items()} if trainer.critic else {}
    for number, moments in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": x for name, x in moments.items()}
    counters = {name: getattr(trainer, name) for name in ("iteration", "updates", "warmup")} | {"seconds": dict(trainer.seconds)}

    def write_state(fresh: Path):
        save_file(tensors, fresh / STATE, {"counters": json.dumps(counters)})

    save_policy(trainer.policy, trainer.tokenizer, target, write_state)
    fresh_link = run / "policy.partial"
    fresh_link.unlink(missing_ok=True)
    fresh_link.symlink_to(target.relative_to(run), target_is_directory=True)
    os.replace(fresh_link, link)
    for other in target.parent.iterdir():
        if other != target:
            shutil.rmtree(other)


def resume(trainer, run: Path) -> None:
    """Puts a new trainer into the state that `save` wrote into the run folder. Raises UserError where there is none."""
    folder = run / "policy"
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} holds no {STATE}: nothing was saved there to resume from")
    trainer.policy.load_state_dict(load_policy(str(folder), trainer.device)[0].state_dict())
    try:
        with safe_open(folder / STATE, "pt", str(trainer.device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            counters = json.loads(file.metadata()["counters"])
            iteration, updates, warmup = (int(counters[name]) for name in ("iteration", "updates", "warmup"))
            seconds = {phase: float(s) for phase, s in counters["seconds"].items()}
    except (SafetensorError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / STATE} is damaged ({' '.join(str(error).split())})") from error
    try:
        _put_back(trainer, tensors)
    except (RuntimeError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{folder / STATE} belongs to another model than the policy beside it") from error
    trainer.iteration, trainer.updates, trainer.warmup = iteration, updates, warmup
    trainer.seconds.update(seconds)


def _put_back(trainer, tensors: dict) -> None:
    """AdamW's moments and the critic's weights."""
    state = trainer.optimizer.state_dict()
    for key, x in tensors.items():
        kind, number, name = key.split(".", 2)
        if kind == "optimizer":
            state["state"].setdefault(int(number), {})[name] = x
    trainer.optimizer.load_state_dict(state)
    if trainer.critic:
        trainer.critic.load_state_dict({name[7:]: x for name, x in tensors.items() if name.startswith("critic.")})
