"""The words after `python -m vine_mini lengthgen`: a command, or flags."""

from collections.abc import Callable
from dataclasses import fields

from vine_mini.lengthgen import commands, config
from vine_mini.lengthgen.study import study
from vine_mini.types import UserError

COMMANDS: dict[str, tuple[Callable, type]] = {
    "lengthgen": (commands.train, config.LengthgenConfig),
    "lengthgen study": (study, config.LengthgenStudyConfig),
    "lengthgen rank": (commands.rank, config.RankConfig),
    "lengthgen attention": (commands.attention, config.AttentionConfig),
    "lengthgen probe": (commands.probe, config.ProbeConfig),
    "lengthgen theory": (commands.theory, config.TheoryConfig),
    "lengthgen full-size": (commands.full_size, config.FullSizeConfig),
}


def words(argv: list[str]) -> tuple[str, list[str]]:
    """Splits the words after `lengthgen` into a command and flags. Raises UserError for an unknown command.

    `rank A B --out C` -> ("lengthgen rank", --results A B --out C)
    """
    if not argv or argv[0].startswith("-"):
        return "lengthgen", argv
    name, rest = f"lengthgen {argv[0]}", argv[1:]
    if name not in COMMANDS:
        raise UserError(f"unknown command {argv[0]!r}: choose from {', '.join(c.split()[1] for c in COMMANDS if ' ' in c)}")
    if "results" not in {f.name for f in fields(COMMANDS[name][1])}:
        return name, rest
    if rest and not rest[0].startswith("-"):
        return name, ["--results", *rest]
    if rest and not any(word.startswith(("--results", "-h", "--help")) for word in rest):
        raise UserError(f"name the folder of the runs first: {name} FOLDER {rest[0]} ...")
    return name, rest
