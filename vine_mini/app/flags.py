"""Reads the command line and YAML presets into the dataclasses of `config`, with `transformers.HfArgumentParser`.

A later source wins: the defaults in `config`, then `--preset`, then the flags.
"""

from dataclasses import asdict, fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from vine_mini.app.config import Common, TrainConfig
from vine_mini.types import UserError

PRESETS = Path(__file__).parent / "presets"


def read_preset(name: str) -> dict:
    """The fields that a preset sets: a name from `presets/` or the path of a YAML file. Raises UserError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"no preset {name!r}: choose from {known}, or give a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of the form 'field: value'")
    unknown = [key for key in values if key not in {f.name for f in fields(TrainConfig)}]
    if unknown:
        raise UserError(f"{path}: unknown field {unknown[0]!r}")
    return values


def parse(config_class, prog: str, argv: list[str]):
    """A command line -> config. Fields of `--preset`, or of the run in `--resume` or `--run`, count as flags before the others.

    Presets are written for training: the other commands take only what is common to all from them. `--run` takes all that it can.

    Raises UserError with one line for anything that is wrong. `--help` prints the fields and exits.
    """
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset")
    finder.add_argument("--resume")
    finder.add_argument("--run")
    found, _ = finder.parse_known_args(argv)
    names = {f.name for f in fields(config_class)}
    preset = found.preset
    if (preset is not None) + (found.resume is not None and "resume" in names) + (found.run is not None and "run" in names) > 1:
        raise UserError("--preset, --resume and --run each bring a whole configuration: give one of them")
    usable = names if config_class is TrainConfig else {f.name for f in fields(Common)} & names
    for name, folder in (("resume", found.resume), ("run", found.run)):
        if folder is not None and name in names:
            preset = f"{folder}/config.yaml"
            usable = names if name == "resume" else names - {"model", "group"}  # the run's own policy; its group may be of one
            if not Path(preset).is_file():
                raise UserError(f"there is no {preset}: --{name} needs the folder of a run")
    values = read_preset(preset) if preset is not None else {}
    flags = [flag for key, value in values.items() if key in usable and value is not None for flag in (f"--{key}", str(value))]
    parser = _Parser(config_class, prog=prog, description=config_class.__doc__, allow_abbrev=False)
    if issubclass(config_class, Common):
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        only = "" if config_class is TrainConfig else " Only the fields that all commands share are taken."
        parser.add_argument("--preset", help=f"Start from these fields: {known}, or a YAML file.{only}")
    namespace = vars(parser.parse_args([*flags, *argv]))
    config = config_class(**{name: namespace[name] for name in names})
    if found.resume is not None and "resume" in names:
        _check_resumed(config, TrainConfig(**values))
    return config


def _check_resumed(config, saved):
    """A resumed run is the same run: only how long, how it is measured and how it fits the machine may change."""
    may_change = (
        "resume device data iterations max_seconds save_every gradient_checkpointing sample_batch_size micro_batch_tokens"
    )
    for name, old in vars(saved).items():
        new = getattr(config, name)
        if new != old and name not in may_change.split() and not name.startswith("eval_"):
            raise UserError(f"--resume goes on with {name} = {old}; it cannot change to {new}")


def to_yaml(config) -> str:
    """A config as YAML, which `--preset` reads back; without the folder, so that it can start a run in another."""
    values = {name: value for name, value in asdict(config).items() if name not in ("out", "resume")}
    return yaml.safe_dump(values, sort_keys=False)


class _Parser(HfArgumentParser):
    def error(self, message):
        """Called by argparse with one line."""
        raise UserError(message)
