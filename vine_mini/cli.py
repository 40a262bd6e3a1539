"""The command line: `python -m vine_mini [command]`, `--help` after each command."""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from vine_mini.app import commands, config
from vine_mini.app.exercises import ExercisesConfig, exercises
from vine_mini.app.flags import parse
from vine_mini.app.tables import one_line
from vine_mini.credit_cost.command import credit_cost
from vine_mini.credit_cost.config import CreditCostConfig
from vine_mini.credit_page.command import credit
from vine_mini.credit_page.config import CreditConfig
from vine_mini.demo import DemoConfig, demo
from vine_mini.doctor.command import DoctorConfig, doctor
from vine_mini.lengthgen import words as lengthgen
from vine_mini.sampling.fast.graphs import GraphError
from vine_mini.study.command import study
from vine_mini.study.config import StudyConfig
from vine_mini.types import UserError
from vine_mini.value_errors.command import analyze_values
from vine_mini.value_errors.config import ValuesConfig


def main(argv: list[str] | None = None) -> int:
    """Runs one command. -> exit code: 0, 2 for a mistake that the user can correct, 130 after Ctrl-C"""
    argv = sys.argv[1:] if argv is None else argv
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("demo", argv)
    try:
        if argv and argv[0] in ("-h", "--help"):
            lines = [f"  {name:21} {config_class.__doc__.splitlines()[0]}" for name, (_, config_class) in COMMANDS.items()]
            print("usage: python -m vine_mini [command] [--help]\n", *lines, "\nWithout a command: demo.", sep="\n")
            return 0
        if (here := str(Path.cwd())).encode(errors="ignore").decode() != here:
            raise UserError(f"the path of this folder, {here}, is not UTF-8 text: libraries cannot write there")
        if name == "analyze" and rest and not rest[0].startswith("-"):
            name, rest = f"analyze {rest[0]}", rest[1:]
        if name == "study" and rest and not rest[0].startswith("-"):
            rest = ["--claims", *rest]
        if name == "lengthgen":
            name, rest = lengthgen.words(rest)
        if name == "analyze":
            raise UserError("write `analyze values`")
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}: choose from {', '.join(COMMANDS)}")
        command, config_class = COMMANDS[name]
        return command(parse(config_class, f"python -m vine_mini {name}", rest)) or 0
    except BrokenPipeError:
        raise  # `__main__` ends quietly
    except Exception as error:
        says = str(error)  # of an OSError: a full disk, a folder that vanished
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in says:
            says = f"not enough memory: lower --sample_batch_size or --micro_batch_tokens, or other sizes ({says.strip()})"
        elif not isinstance(error, (UserError, OSError, GraphError)):
            raise
        with suppress(OSError):  # whoever read the lines, such as `head`, may be gone
            print(one_line(f"vine_mini {name}: {says}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with suppress(OSError):
            print("\ninterrupted", file=sys.stderr)
        return commands.INTERRUPTED


COMMANDS: dict[str, tuple[Callable, type]] = {
    "demo": (demo, DemoConfig),
    "sft": (commands.sft, config.SFTConfig),
    "train": (commands.train, config.TrainConfig),
    "evaluate": (commands.evaluate_policy, config.EvaluateConfig),
    "sample": (commands.sample, config.SampleConfig),
    "credit": (credit, CreditConfig),
    "credit-cost": (credit_cost, CreditCostConfig),
    "analyze values": (analyze_values, ValuesConfig),
    "study": (study, StudyConfig),
    "doctor": (doctor, DoctorConfig),
    "exercises": (exercises, ExercisesConfig),
    **lengthgen.COMMANDS,
}
