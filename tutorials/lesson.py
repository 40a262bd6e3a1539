"""What every tutorial starts with: the package on the path, the shipped policy with problems for it, and a place for pictures."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a script runs from any folder without being installed

import torch  # noqa: E402

from vine_mini.app.config import TrainConfig  # noqa: E402
from vine_mini.app.flags import read_preset  # noqa: E402
from vine_mini.app.plots import save_figure  # noqa: E402
from vine_mini.trainer import Trainer  # noqa: E402

QUICK = "--quick" in sys.argv  # smaller numbers, so that tests can run every tutorial; the curves are too rough to learn from
PICTURES = ROOT / "runs" / ("tutorials-quick" if QUICK else "tutorials")

torch.set_num_threads(1)  # models this small gain little from a second one, and lose much if the machine is busy


def start(**changes) -> Trainer:
    """The demo's setting: arithmetic in six steps and the shipped policy of 130 thousand parameters, right 29 % of the time.

    `changes` are fields of `TrainConfig`. The trainer holds what a tutorial plays with: `policy`, `tokenizer`, `eos`,
    `config`, `train_problems` with their token ids `prompts`, and `test_problems` with `test_prompts`.
    """
    return Trainer(TrainConfig(**read_preset("arithmetic") | {"device": "cpu"} | changes))


def show(figure, name: str) -> None:
    """Saves a figure to runs/tutorials (runs/tutorials-quick in the quick mode), and shows it where this is a notebook."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    save_figure(figure, path)
    print(f"picture: {path.relative_to(ROOT)}")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(path))
