"""Saving and resuming a training run.

    RUN/checkpoints/40/   a Hugging Face folder of the policy, with `training_state.safetensors` beside the weights: AdamW's
                          moments, the critic and the counters
    RUN/policy            a link to the newest checkpoint

A new checkpoint is written beside the old one. One atomic operation then points the link to the new checkpoint, and only then
the old checkpoint is removed. A process that is killed at any moment therefore leaves a whole checkpoint behind the link.
Seeds follow from the iteration, so a resumed run continues exactly as the uninterrupted run would have.
"""

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vine_mini.models import load_policy, save_policy
from vine_mini.types import UserError

STATE = "training_state.safetensors"
COUNTERS = ("iteration", "updates")


def save(trainer, run: Path) -> None:
    """Writes a checkpoint of the trainer into the run folder and points RUN/policy to it."""
    link, target = run / "policy", run / "checkpoints" / str(trainer.iteration)
    if link.is_symlink() and link.resolve() == target.resolve():
        return  # this iteration is saved already
    tensors = {f"critic.{name}": x for name, x in trainer.critic.state_dict().items()} if trainer.critic else {}
    for number, moments in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": x for name, x in moments.items()}
    counters = {name: getattr(trainer, name) for name in COUNTERS} | {"seconds": trainer.seconds}
    save_policy(trainer.policy, trainer.tokenizer, target)
    save_file(tensors, target / STATE, {"counters": json.dumps(counters)})
    fresh = run / "policy.partial"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.relative_to(run), target_is_directory=True)
    if link.is_dir() and not link.is_symlink():  # the run was copied by a program that follows links
        link.rename(target.with_name("copied"))
    fresh.replace(link)  # a reader of the link finds the old checkpoint or the new one at every moment
    every = trainer.config.keep_every
    for other in target.parent.iterdir():  # older checkpoints, and what an interrupted save has left
        if other != target and not (every and other.name.isdecimal() and int(other.name) % every == 0):
            shutil.rmtree(other, ignore_errors=True)


def kept(run: Path) -> list[str]:
    """The checkpoints of a run, from the oldest to the newest, as names for `resume`."""
    numbers = sorted(int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal())
    return [f"checkpoints/{number}" for number in numbers] or ["policy"]  # a copied run may hold the policy alone


def resume(trainer, run: Path, name: str = "policy") -> None:
    """Puts a new trainer into the state of a checkpoint of the run folder. Raises UserError where that is impossible."""
    path = run / name / STATE
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {STATE}: nothing was saved there to resume from")
    policy, _ = load_policy(str(path.parent), trainer.device)
    try:
        with safe_open(path, "pt", str(trainer.device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            counters = json.loads(file.metadata()["counters"])
            numbers, seconds = {name: counters[name] for name in COUNTERS}, counters["seconds"]
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())})") from error
    state = trainer.optimizer.state_dict()
    try:
        for key, x in tensors.items():
            kind, number, name = key.split(".", 2)
            if kind == "optimizer":
                state["state"].setdefault(int(number), {})[name] = x
        trainer.policy.load_state_dict(policy.state_dict())
        trainer.optimizer.load_state_dict(state)
        if trainer.critic:
            critic = {key.removeprefix("critic."): x for key, x in tensors.items() if key.startswith("critic.")}
            trainer.critic.load_state_dict(critic)
    except (RuntimeError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path} belongs to another model than this run's") from error
    vars(trainer).update(numbers)
    trainer.seconds.update(seconds)
