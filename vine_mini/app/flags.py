"""Reads a command line and YAML presets into the dataclasses of `config`. A later source wins: defaults, preset, flags."""

import sys
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from vine_mini.app.config import Common, TrainConfig
from vine_mini.app.tables import one_line
from vine_mini.types import UserError

PRESETS = Path(__file__).parent / "presets"
PRESET_NAMES = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
# What a resumed run may change: its length, its machine and, in `kept_fields`, its evaluation.
MAY_CHANGE = set(
    "resume yes iterations max_seconds save_every keep_every device data gradient_checkpointing vllm sample_batch_size "
    "micro_batch_tokens".split()
)
OF_A_CALL = ("out", "resume", "yes")  # no preset may choose where a run writes


def read_preset(name: str) -> dict:
    """The fields that a preset sets: a name from `presets/` or the path of a YAML file. Raises UserError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no preset {name!r}: choose from {PRESET_NAMES}, or give a .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
        for number, event in enumerate(yaml.parse(text)):  # it stops before what takes long: deep nesting, anchors of anchors
            if getattr(event, "anchor", None):
                raise UserError(f"{path}: write the values out; anchors (&) and aliases (*) are not read")
            if isinstance(event, yaml.SequenceStartEvent) or (number > 2 and isinstance(event, yaml.MappingStartEvent)):
                raise UserError(f"{path} is not YAML of lines 'field: value', with one value each")
        values, lines = yaml.safe_load(text), getattr(yaml.compose(text), "value", [])
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, a number of 5000 digits
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of the form 'field: value'")
    names = [key.value for key, _ in lines]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has {twice[0]!r} twice: remove one of the lines")
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    for (name, x), (_, node) in zip(values.items(), lines, strict=True):
        if name in OF_A_CALL:
            raise UserError(f"{path}: remove {name!r}; only the command line may give --{name}")
        if name not in defaults:
            raise UserError(f"{path}: unknown field {name!r}")
        if x is None and defaults[name] is not None:
            raise UserError(f"{path}: {name} has no value: give it one, or remove the line")
        if (type(x) is int and str(x) != node.value) or (type(x) is float and ":" in node.value):
            raise UserError(f"{path}: {name} = {node.value} is {x} in YAML: write a plain decimal number")
    return values


def parse(config_class, prog: str, argv: list[str]):
    """Reads a command line. -> an instance of `config_class`

    The fields that --preset, --resume or --run bring act as flags that stand before the user's flags. A task file that only a
    preset names does not run. `--help` prints all flags and exits. Raises UserError.
    """
    names = {f.name for f in fields(config_class)}
    values, path, source = _source(config_class, argv)
    flags = [f"--{name}={value}" for name, value in values.items()]
    parser = _Parser(config_class, prog=prog, description=config_class.__doc__, allow_abbrev=False)
    if issubclass(config_class, Common):
        only = "" if issubclass(config_class, TrainConfig) else " Only the fields that all commands share are taken."
        parser.add_argument("--preset", help=f"Start from these fields: {PRESET_NAMES}, or a YAML file.{only}")

    def read(argv: list[str]):
        given = vars(parser.parse_args(argv))
        for name, value in given.items():
            if isinstance(value, str) and not value.strip():
                raise UserError(f"--{name} is empty: give it a value, or leave it out")
            if "\0" in str(value) or str(value).encode(errors="ignore").decode() != str(value):
                raise UserError(f"{name} = {value}: not UTF-8 text")  # paths too, because libraries that save refuse others
        return config_class(**{name: given[name] for name in names})

    if str(values.get("task")).endswith(".py"):
        _check_task_file(values["task"], path, argv)
    try:
        config = read([*flags, *argv])
    except UserError as error:
        if path and _fails_alike(read, flags, error):  # the user's own flags are right
            raise UserError(f"{path}: {error}") from error
        raise
    if source != "resume":
        return config
    saved = read(flags)
    if bool(config.eval_every) != bool(saved.eval_every):
        raise UserError("--resume cannot begin or end evaluations (eval_every): validation problems would be trained on")
    for name, old in kept_fields(saved).items():
        if getattr(config, name) != old:
            raise UserError(f"--resume goes on with {name} = {old}; it cannot change to {getattr(config, name)}")
    return config


def _fails_alike(read, flags: list[str], error: UserError) -> bool:
    try:
        read([flag for flag in flags if not flag.startswith("--task=")])  # a file that only a preset names does not run
    except UserError as other:
        return str(other) == str(error)
    return False


def config_of_run(run: str) -> TrainConfig:
    """The configuration with which a run was started, from RUN/config.yaml. Raises UserError."""
    return parse(TrainConfig, "train", [f"--preset={run}/config.yaml"])


def _source(config_class, argv: list[str]) -> tuple[dict, str, str]:
    """What --preset, --resume or --run brings. -> the fields that the command takes, their file, the flag; empty without one

    Presets are written for training, so the other commands take only the fields of `Common` from a preset. `--resume RUN` and
    `--run RUN` bring RUN/config.yaml. Raises UserError.
    """
    names, trains = {f.name for f in fields(config_class)}, issubclass(config_class, TrainConfig)
    finder = _Parser(add_help=False, allow_abbrev=False)
    for name in ("preset", *({"resume", "run"} & names)):
        finder.add_argument(f"--{name}")
    given = {flag: value for flag, value in vars(finder.parse_known_args(argv)[0]).items() if value is not None}
    if len(given) > 1:
        raise UserError("--preset, --resume and --run each bring a whole configuration: give one of them")
    if not given:
        return {}, "", ""
    [(flag, value)] = given.items()
    if not value.strip():
        raise UserError(f"--{flag} is empty: give it {'a preset' if flag == 'preset' else 'the folder of a run'}")
    path = value if flag == "preset" else f"{value}/config.yaml"
    if flag == "preset" and not trains:
        names &= {f.name for f in fields(Common)}
    elif flag == "run":  # these commands load RUN/policy, and `credit` has its own group
        names -= {"model"} if trains else {"model", "group"}
    if flag != "preset" and not Path(path).is_file():
        raise UserError(f"there is no {path}: --{flag} needs the folder of a run")
    values = read_preset(path)
    if flag != "preset" and (missing := {"task", "algorithm", "lr"} - {*values}):
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: put the lines back")
    return {name: x for name, x in values.items() if name in names and x is not None}, path, flag


def _check_task_file(task: str, path: str, argv: list[str]) -> None:
    """A preset of somebody else may name a file that then runs. Raises UserError, unless the command line names the file too.

    Of the config.yaml of a run, which is the user's own, one line tells of the file.
    """
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--task")
    given = finder.parse_known_args(argv)[0].task
    if given is not None and Path(given).absolute() == Path(task).absolute():
        return
    if given is None and Path(path).name == "config.yaml":
        print(f"running the task file {one_line(task)}, which {one_line(path)} names", file=sys.stderr)
    elif given is None:
        raise UserError(f"{path} names the task file {task}, which would run: add --task {task} if you trust it")


def kept_fields(config) -> dict:
    """The fields that a resumed run cannot change. RUN/best compares evaluations, so these keep their temperature."""
    free = {"eval_problems", "eval_samples", "eval_every"} | ({"eval_temperature"} if not config.eval_every else set())
    return {name: x for name, x in vars(config).items() if name not in MAY_CHANGE | free}


def to_yaml(config) -> str:
    """A config as YAML for `--preset`, without the run's folder, because the preset will start a run in another folder."""
    values = {name: value for name, value in asdict(config).items() if name not in OF_A_CALL}
    return yaml.safe_dump(values, sort_keys=False)


class _Parser(HfArgumentParser):
    def error(self, message):
        """argparse calls this method with a message of one line."""
        if message.startswith("unrecognized arguments: -"):
            flag = message.split()[2].partition("=")[0].strip("-")
            near = get_close_matches(flag, [known.strip("-") for known in self._option_string_actions], n=1, cutoff=0.7)
            message += f" (did you mean --{near[0]}?)" if near else " (--help lists all flags)"
        raise UserError(message)
