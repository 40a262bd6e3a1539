"""The folder of a training run.

config.yaml     all settings; `--preset RUN/config.yaml` starts the same run again.
metrics.jsonl   one line for each iteration; "eval" holds test problems (iteration 0 and the last), "validation" those set aside.
samples.jsonl   a few responses of each iteration, cut into steps, each step with its advantage.
curves.png      reward, length, KL and seconds, against episodes.
checkpoints/    the newest checkpoint, and those that `keep_every` keeps; see `checkpoint.py`.
policy          a link to the newest checkpoint, which is a Hugging Face folder; `train --resume RUN` continues from it.
best            the policy with the highest pass@1 on the validation problems, if some were set aside.
"""

import json
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from vine_mini.app import checkpoint
from vine_mini.app.flags import to_yaml
from vine_mini.app.plots import plot_run
from vine_mini.app.setup import task_name
from vine_mini.models import save_policy
from vine_mini.types import UserError

SAMPLES_AN_ITERATION = 2


def new_folder(out: str | None, name: str) -> Path:
    """The folder that `--out` names, which must be empty or absent, or else a new name under runs/. Nothing is created yet.

    Raises UserError where the folder cannot be written, before hours of training.
    """
    tries = (Path("runs") / (name if n == 1 else f"{name}-{n}") for n in count(1))
    path = next(path for path in tries if not path.exists()) if out is None else Path(out)
    if out is not None and not out.strip():
        raise UserError("--out is empty: name a folder, or leave it out")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already holds something: choose another --out, or remove it")
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """Raises UserError where `path` cannot be created: its nearest existing parent is no folder, or may not be written to."""
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{path} cannot be written: {parent} is not a folder that may be written to")


class Run:
    """The folder of one training run. It is made when the run is ready to start, so that a failed start leaves nothing."""

    def __init__(self, folder: Path, config, iteration: int = 0, before: dict | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "config.yaml", to_yaml(config))
        self.folder, self.config = folder, config
        for path in (folder / "metrics.jsonl", folder / "samples.jsonl"):
            if path.exists():  # a resumed run drops what came after its checkpoint
                _write(path, "".join(_line(row) for row in _read(path) if row["iteration"] <= iteration))
        self.rows = _read(folder / "metrics.jsonl")
        if before:  # the evaluation of a new run's first policy
            self.log({"iteration": 0, "episodes": 0, "seconds": 0.0, "eval": before})

    def log(self, metrics: dict) -> None:
        """Appends one line to metrics.jsonl."""
        self.rows.append(metrics)
        _append(self.folder / "metrics.jsonl", metrics)

    def log_samples(self, episodes, advantages) -> None:
        """Appends the first response to each of the iteration's first problems, as steps with advantages before whitening."""
        group = episodes.rewards.shape[1]
        for row in range(0, min(SAMPLES_AN_ITERATION * group, len(episodes.trajectories)), group):
            trajectory, cuts, problem = episodes.trajectories[row], episodes.cuts[row], episodes.problems[row]
            credit = advantages[row][episodes.tokens.response_mask[row].bool()].tolist()
            texts = step_texts(trajectory.response_ids, cuts, episodes.tokenizer)
            sample = {
                "iteration": self.rows[-1]["iteration"],
                "question": problem.question,
                "answer": problem.answer,
                "reward": episodes.rewards.flatten()[row].item(),
                "finished": trajectory.finished,
                "steps": [{"text": text, "advantage": round(credit[cut], 4)} for text, cut in zip(texts, cuts, strict=True)],
            }
            _append(self.folder / "samples.jsonl", sample)

    def best(self) -> dict | None:
        """The line of the iteration whose policy was best on the validation problems; the first of equally good ones."""
        measured = [row for row in self.rows if "validation" in row]
        return max(measured, key=lambda row: row["validation"]["pass@1"][0], default=None)

    def save_best(self, trainer) -> None:
        """Writes the policy as the best one so far."""
        save_policy(trainer.policy, trainer.tokenizer, self.folder / "best")

    def save(self, trainer) -> None:
        """Writes a checkpoint and the curves so far."""
        checkpoint.save(trainer, self.folder)
        plot_run(self.rows, self.folder / "curves.png", f"{self.config.algorithm} on {task_name(self.config)}")


def step_texts(token_ids: list[int], cuts: list[int], tokenizer) -> list[str]:
    """The text of each step, special tokens included."""
    return [tokenizer.decode(token_ids[a:b]) for a, b in zip(cuts, [*cuts[1:], len(token_ids)], strict=True)]


def _write(path: Path, text: str) -> None:
    """Writes a text file. A process that is killed meanwhile leaves the old file."""
    fresh = path.with_name(f"{path.name}.partial")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _read(path: Path) -> list[dict]:
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        with suppress(json.JSONDecodeError):  # the end of the file, or a line that a crash has cut
            rows.append(json.loads(line))
    return rows


def _append(path: Path, row: dict) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
