"""Saving and resuming a training run.

    RUN/checkpoints/40/   a Hugging Face folder of the policy, with `training_state.safetensors` beside the weights: AdamW's
                          moments, the critic and the counters
    RUN/policy            a link to the newest checkpoint

A new checkpoint is written beside the old one. One atomic operation then points the link to the new checkpoint, and only then
the old checkpoint is removed. A process that is killed at any moment therefore leaves a whole checkpoint behind the link.
Seeds follow from the iteration, so a resumed run continues exactly as the uninterrupted run would have.
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
    _point(link, target)
    for other in target.parent.iterdir():  # older checkpoints, and what an interrupted save has left
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def _point(link: Path, target: Path) -> None:
    """Makes `link` a link to `target`. A reader of the link finds the old target or the new one at every moment."""
    fresh = link.with_name(f"{link.name}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.relative_to(link.parent), target_is_directory=True)
    if link.is_dir() and not link.is_symlink():  # the run was copied by a program that follows links
        link.rename(target.with_name("copied"))
    os.replace(fresh, link)


def resume(trainer, run: Path) -> None:
    """Puts a new trainer into the state that `save` wrote into the run folder. Raises UserError where that is impossible."""
    folder = run / "policy"
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} holds no {STATE}: nothing was saved there to resume from")
    policy, _ = load_policy(str(folder), trainer.device)
    tensors, counters = _read(folder / STATE, str(trainer.device))
    try:
        trainer.policy.load_state_dict(policy.state_dict())
        _put_back(trainer, tensors)
    except (RuntimeError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{folder / STATE} belongs to another model than this run's") from error
    trainer.iteration, trainer.updates, trainer.warmup = (counters[name] for name in ("iteration", "updates", "warmup"))
    trainer.seconds.update(counters["seconds"])


def _read(path: Path, device: str) -> tuple[dict, dict]:
    """-> tensors by name; the counters"""
    try:
        with safe_open(path, "pt", device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            counters = json.loads(file.metadata()["counters"])
            counters = {"seconds": {phase: float(s) for phase, s in counters["seconds"].items()}} | {
                name: int(counters[name]) for name in ("iteration", "updates", "warmup")
            }
    except (SafetensorError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())})") from error
    return tensors, counters


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
