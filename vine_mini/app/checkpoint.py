"""Saving and resuming a training run.

    RUN/checkpoints/40/        a Hugging Face folder of the policy, with `training_state.safetensors` beside the weights:
                               AdamW's moments, the critic and the counters
    RUN/checkpoints/best-20/   a Hugging Face folder of the policy that was best on the validation problems
    RUN/policy, RUN/best       links to the newest checkpoint and to the best policy

A new folder is written beside the old one. One atomic operation then points the link to the new folder, and only then the old
folder is removed. A process that is killed at any moment therefore leaves a whole checkpoint behind the link.
Seeds follow from the iteration, so a resumed run continues exactly as the uninterrupted run would have.
"""

import hashlib
import json
import math
import os
import re
import shlex
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vine_mini import tasks
from vine_mini.app.files import discard, whole, write_text
from vine_mini.app.flags import kept_fields
from vine_mini.app.setup import policy_name
from vine_mini.models import load_policy, save_policy
from vine_mini.types import UserError

STATE = "training_state.safetensors"
COUNTERS = ("iteration", "updates")
STARTED = "start_of.txt"  # in a checkpoint that is the start policy of another run, and its reference
OWN = re.compile(r"(best-)?\d+(\.partial)?")  # names in RUN/checkpoints; a user may keep copies of other names there


def save(trainer, run: Path) -> None:
    """Writes a checkpoint of the trainer into the run folder and points RUN/policy to it. Raises UserError, as on a full disk."""
    link, target = run / "policy", run / "checkpoints" / str(trainer.iteration)
    if not link.is_symlink() or link.resolve() != target.resolve():  # else this iteration is saved already
        _write(trainer, target)
        point(link, target)
    every, linked = trainer.config.keep_every, {target.name, (run / "best").resolve().name}
    for other in list(target.parent.iterdir()):  # older checkpoints, and what an interrupted save has left
        keep = (every and other.name.isdecimal() and int(other.name) % every == 0) or (other / STARTED).exists()
        if OWN.fullmatch(other.name) and other.name not in linked and not keep:
            discard(other)


def keep_start(model: str | None, run: Path) -> None:
    """Marks a start policy that is another run's checkpoint, so that the other run does not remove it when it goes on."""
    path = Path(model or "")
    if OWN.fullmatch(path.name) and path.is_dir() and (path.parent.parent / "config.yaml").is_file():
        with suppress(UserError):  # the folder may be read-only
            write_text(path / STARTED, f"{run.absolute()}\n")


def _write(trainer, target: Path) -> None:
    tensors = {f"critic.{name}": x for name, x in trainer.critic.state_dict().items()} if trainer.critic else {}
    for number, parameter in enumerate(_parameters(trainer)):
        for name, x in trainer.optimizer.state.get(parameter, {}).items():
            x = x.clone() if name.startswith("qmap") else torch.as_tensor(x)  # one table serves all parameters in 8 bits
            tensors[f"optimizer.{number}.{name}"] = x
    counters = {name: getattr(trainer, name) for name in COUNTERS} | {"seconds": trainer.seconds, "tensors": len(tensors)}
    counters |= {"problems": _digest(trainer), "model": _digest_of_reference(trainer), "task": _digest_of_task(trainer)}
    counters["settings"] = {name: x for name, x in kept_fields(trainer.config).items() if name != "out"}  # it may be renamed
    discard(target)  # of an interrupted run; no link leads to it
    with whole(target) as fresh:
        save_policy(trainer.policy, trainer.tokenizer, fresh)
        save_file(tensors, fresh / STATE, {"counters": json.dumps(counters)})


def _digest(trainer) -> str:
    """A checksum of the problems that the run learns from, and of those that choose RUN/best."""
    every = trainer.train_problems, trainer.validation_problems
    return hashlib.sha256(repr([[(p.question, p.solution, p.answer) for p in of] for of in every]).encode()).hexdigest()


def _digest_of_reference(trainer) -> str | None:
    """A checksum of about a thousand numbers of each tensor of the start model; None where nothing is compared with it."""
    if trainer.reference is None:
        return None
    few = [x.detach().flatten()[:: 1 + x.numel() // 1000].float().cpu() for x in trainer.reference.parameters()]
    return hashlib.sha256(torch.cat(few).numpy().tobytes()).hexdigest()


def _digest_of_task(trainer) -> str | None:
    """The checksum of the user's own file that grades; None for a built-in task."""
    return getattr(tasks.get(trainer.config.task), "__digest__", None)


def _parameters(trainer) -> list:
    """What the optimizer updates. The place in the list is the number in the names of the moments."""
    return [p for group in trainer.optimizer.param_groups for p in group["params"]]


def save_best(trainer, run: Path) -> None:
    """Writes the policy into the run folder and points RUN/best to it. The older one stays until the next checkpoint."""
    target = run / "checkpoints" / f"best-{trainer.iteration}"
    discard(target)
    with whole(target) as fresh:
        save_policy(trainer.policy, trainer.tokenizer, fresh)
    point(run / "best", target)


def restore_best(run: Path, iteration: int) -> None:
    """Points RUN/best to the policy of an iteration: a run that was killed may have found a better one after its checkpoint."""
    if (target := run / "checkpoints" / f"best-{iteration}").is_dir():
        point(run / "best", target)


def point(link: Path, target: Path) -> None:
    """Makes `link` lead to the folder `target`, which lies in the run folder too."""
    if not link.is_symlink():  # the run was copied by a program that follows links
        discard(link)
    with whole(link) as fresh:  # a reader of the link finds the old folder or the new one at every moment
        fresh.symlink_to(target.relative_to(link.parent), target_is_directory=True)


def kept(run: Path) -> list[str]:
    """The checkpoints of a run, from the oldest to the newest, as names for `resume`."""
    numbers = sorted(int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal())
    return [f"checkpoints/{number}" for number in numbers] or ["policy"]  # a copied run may hold the policy alone


def newest(run: Path) -> str | None:
    """The checkpoint from which a run goes on, as a name for `resume`; None if the run was killed before it had saved one."""
    if (run / "policy").exists() or (run / "policy").is_symlink():
        return "policy"
    last = kept(run)[-1]  # "policy" where nothing is kept
    return None if last == "policy" else last  # it was killed before the link was made


def check_settings(trainer, run: Path, name: str) -> None:
    """Raises UserError where the checkpoint has other problems, another start model or task file, or another fixed setting.

    `--yes` accepts another task file, in which a mistake may have been mended. Files and folders may have moved to another place.
    A checkpoint of an older version holds no settings and passes.
    """
    try:
        with safe_open(run / name / STATE, "pt") as file:
            counters = json.loads(file.metadata()["counters"])
        saved, problems, model, task = (counters.get(name) for name in ("settings", "problems", "model", "task"))
        changed = [(field, saved[field], now) for field, now in kept_fields(trainer.config).items() if field in (saved or {})]
    except (OSError, SafetensorError, TypeError, KeyError, ValueError, AttributeError, RecursionError):
        return  # `resume` tells what is wrong with the file
    for field, old, now in changed:
        moved = isinstance(old, str) and os.path.isabs(old) and Path(old).name == Path(str(now)).name
        if now != old and not moved:
            raise UserError(f"{run}/config.yaml has {field} = {now}; the run was trained with {old}: change it back")
    if problems not in (None, _digest(trainer)):
        says = "put the data back, or give the random numbers of problems() a seed"
        raise UserError(f"{run}: the problems are not those with which the run was trained; {says}")
    if model not in (None, _digest_of_reference(trainer)):
        name = policy_name(trainer.config)
        raise UserError(f"{name} is not the model with which the run started: give the old one back")
    if task not in (None, _digest_of_task(trainer)) and not trainer.config.yes:
        says = "is not the file with which the run was trained: change it back, or add --yes to go on with it"
        raise UserError(f"{trainer.config.task} {says}")


def _way_out(run: Path, damaged: Path) -> str:
    """What to do without a checkpoint: the command that takes the newest older one whose file is whole, if there is one."""
    number = damaged.resolve().parent.name
    for name in reversed(kept(run)) if (run / "policy").is_symlink() else ():
        with suppress(OSError, ValueError, SafetensorError), safe_open(run / name / STATE, "pt"):
            if int(Path(name).name) < int(number):
                return f"take another checkpoint, by `ln -sfn {name} {shlex.quote(str(run / 'policy'))}`"
    return f"start a new run, perhaps with --model {run / 'policy'}"


def resume(trainer, run: Path, name: str = "policy") -> None:
    """Puts a new trainer into the state of a checkpoint of the run folder. Raises UserError where that is impossible."""
    path = run / name / STATE
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {STATE}: nothing was saved there to resume from; {_way_out(run, path)}")
    try:
        policy, _ = load_policy(str(path.parent), trainer.device)
    except UserError as error:
        raise UserError(f"{error}; {_way_out(run, path)}") from error
    try:
        with safe_open(path, "pt", str(trainer.device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            counters = json.loads(file.metadata()["counters"])
            numbers, seconds = {name: counters[name] for name in COUNTERS}, dict(counters["seconds"])
            if len(tensors) != counters["tensors"]:
                raise ValueError("tensors are missing")
            counted = all(type(x) is int and x >= 0 for x in numbers.values())
            if not counted or not all(type(x) in (int, float) and 0 <= x < math.inf for x in seconds.values()):
                raise ValueError(f"its counters are {counters}")
    except (SafetensorError, TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {_way_out(run, path)}") from error
    if not trainer.critic and any(key.startswith("critic.") for key in tensors):
        raise UserError(f"{path.parent} holds a critic, and {trainer.config.algorithm} has none: another algorithm trained it")
    state, parameters, eight_bits = defaultdict(dict), _parameters(trainer), trainer.config.adam_8bit
    names = ("state1", "state2") if eight_bits else ("exp_avg", "exp_avg_sq")
    of_bytes = {"qmap1", "qmap2", "absmax1", "absmax2"}  # beside moments that take a byte
    try:
        for key, x in tensors.items():
            kind, number, name = key.split(".", 2)
            if kind == "optimizer":
                state[parameters[int(number)]][name] = int(x) if name == "step" and eight_bits else x
        for parameter, moments in state.items():
            if moments.keys() != {"step", *names} | (of_bytes if moments[names[0]].dtype == torch.uint8 else set()):
                raise ValueError("moments are missing")
            if any(moments[name].shape != parameter.shape for name in names):
                raise ValueError("moments have another shape")
        trainer.policy.load_state_dict(policy.state_dict())
        trainer.optimizer.state.update(state)
        if trainer.critic:
            critic = {key.removeprefix("critic."): x for key, x in tensors.items() if key.startswith("critic.")}
            trainer.critic.load_state_dict(critic)
    except (RuntimeError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path} belongs to another model than this run's") from error
    vars(trainer).update(numbers)
    trainer.seconds.update(seconds)
