"""The `exercises` command. The exercises, their graders and their progress board are files of the repository's tutorials/."""

import importlib
import sys
from pathlib import Path

from vine_mini.types import UserError


def exercises(config) -> int:
    """Shows the progress board of the clone around the working folder or this package. Raises UserError outside a clone."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).parents[2]):
        place = folder / "tutorials" / "exercises"
        if (place / "grading" / "board.py").is_file():
            sys.path.insert(0, str(place))
            return importlib.import_module("grading.board").show()
    raise UserError("the exercises are part of the repository: clone the repository and run this command inside the clone")
