"""The folder of a training run.

config.yaml     all settings; `--preset RUN/config.yaml` starts the same run again.
metrics.jsonl   one line for each iteration; "eval" holds test problems (iteration 0 and the last), "validation" those set aside.
samples.jsonl   a few responses of each iteration, cut into steps, each step with its advantage.
curves.png      reward, length, KL and seconds, against episodes; drawn again while the run goes on.
tensorboard/    the numbers of metrics.jsonl for TensorBoard, where it is installed.
checkpoints/    the newest checkpoint, those that `keep_every` keeps, and the starts of other runs; see `checkpoint.py`.
policy          a link to the newest checkpoint, which is a Hugging Face folder; `train --resume RUN` continues from it.
best            a link to the policy with the highest pass@1 on the validation problems, if some were set aside.
diverged.json   what is known of a number that was not finite, if one has ended the run.
lock            names the process that writes into the folder at present.
"""

import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from vine_mini.app import checkpoint
from vine_mini.app.files import append_row, read_rows, whole, write_rows, write_text
from vine_mini.app.flags import to_yaml
from vine_mini.app.plots import plot_run
from vine_mini.app.setup import task_name
from vine_mini.evaluate import mean_of_steps
from vine_mini.types import UserError

SAMPLES_AN_ITERATION = 2
DRAW_SECONDS = 20.0  # between two drawings of the curves, of which each takes about a second


class Run:
    """The folder of one training run. Lines of its logs that come after `iteration` are dropped."""

    def __init__(self, folder: Path, config, iteration: int = 0):
        self.folder, self.config, self.drawn = folder, config, time.monotonic()
        logs = {path: _rows(path) for path in (folder / "metrics.jsonl", folder / "samples.jsonl")}
        self.rows = [row for row in logs[folder / "metrics.jsonl"] if row["iteration"] <= iteration]
        if iteration and (not self.rows or self.rows[-1]["iteration"] < iteration):
            last = f"ends with iteration {self.rows[-1]['iteration']}" if self.rows else "is gone or empty"
            last = f"{folder / 'metrics.jsonl'} {last}, and the checkpoint is of iteration {iteration}"
            raise UserError(f"{last}: put the rest back, or start a new run with --model {folder}/policy")
        write_text(folder / "config.yaml", to_yaml(config))
        for path, rows in logs.items():
            if path.exists():
                write_rows(path, [row for row in rows if row["iteration"] <= iteration])
        if best := self.best():
            checkpoint.restore_best(folder, best["iteration"])

    @classmethod
    def start(cls, folder: Path, config, before: dict) -> "Run":
        """A new run with the evaluation of its first policy. The folder appears whole, so that a failed start leaves nothing."""
        with whole(folder) as fresh:
            fresh.mkdir()
            write_text(fresh / "config.yaml", to_yaml(config))
            write_rows(fresh / "metrics.jsonl", [{"iteration": 0, "episodes": 0, "seconds": 0.0, "eval": before}])
        return cls(folder, config)

    def log(self, metrics: dict, episodes, advantages) -> None:
        """Appends a few responses of an iteration to samples.jsonl, one line to metrics.jsonl, and now and then draws."""
        for sample in samples_of(episodes, advantages):
            append_row(self.folder / "samples.jsonl", {"iteration": metrics["iteration"]} | sample)
        append_row(self.folder / "metrics.jsonl", metrics)
        self.rows.append(metrics)
        if self.board:
            show(self.board, metrics)
        if time.monotonic() - self.drawn >= DRAW_SECONDS:
            self.draw()

    @cached_property
    def board(self):
        """A writer for TensorBoard, with the lines before this iteration; None where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        board = SummaryWriter(str(self.folder.absolute() / "tensorboard"), flush_secs=10, purge_step=0)
        for row in self.rows[:-1]:
            show(board, row)
        return board

    def best(self, *more: dict) -> dict | None:
        """The line of the iteration whose policy was best on the validation problems; the first of equally good ones.

        `more` are lines that are not logged yet.
        """
        measured = [row for row in (*self.rows, *more) if "validation" in row]
        return max(measured, key=lambda row: row["validation"]["pass@1"][0], default=None)

    def save(self, trainer) -> None:
        """Writes a checkpoint and the curves so far."""
        checkpoint.save(trainer, self.folder)
        self.draw()

    def draw(self) -> None:
        """Draws the curves so far."""
        plot_run(self.rows, self.folder / "curves.png", f"{self.config.algorithm} on {task_name(self.config)}")
        self.drawn = time.monotonic()


def show(board, row: dict) -> None:
    """Gives the numbers of a line of metrics.jsonl to TensorBoard."""
    measured = {f"{name}/{of}": x for name in ("eval", "validation") for of, (x, _) in row.get(name, {}).items()}
    for name, x in (row | measured).items():
        if isinstance(x, (int, float)):
            board.add_scalar(name, x, row["iteration"])


def _rows(path: Path) -> list[dict]:
    """The rows of a file that a run wrote. Raises UserError for a line of which no table or picture could be made.

    The metrics have one line for each iteration. `train` begins with iteration 0, and TRL with 1.
    """
    for number, row in enumerate(rows := read_rows(path), 1):
        if not _is_line(row):
            raise UserError(f"{path}, line {number}: not a line of a run; mend the line to go on")
        due = rows[0]["iteration"] + number - 1
        if path.name == "metrics.jsonl" and row["iteration"] != due:
            raise UserError(f"{path}, line {number}: iteration {row['iteration']}, not {due}; lines are missing or doubled")
    return rows


def _is_line(row: dict) -> bool:
    """Whether tables and pictures can be made of a line: of the numbers to plot, and of each measure's mean and error."""
    trained = "reward" in row and "steps" not in row  # else the start of a run, or one of the samples
    plotted = [x for name, x in row.items() if name in ("kl", "approx_kl") or name.startswith("seconds")]
    try:
        plotted += [row[name] for name in (("episodes", "reward", "length") if trained else ())]
        for tested in (row[name] for name in ("eval", "validation") if name in row):
            for mean, error in tested.values():
                plotted += [mean, 0 if error is None else error]
            plotted += [row["episodes"], *(tested["pass@1"][:1] if tested else [])]
        return type(row["iteration"]) is int and all(type(x) in (int, float) for x in plotted)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def samples_of(episodes, advantages) -> Iterator[dict]:
    """The first response to each of the iteration's first problems, as steps with advantages before whitening."""
    group = episodes.rewards.shape[1]
    for row in range(0, min(SAMPLES_AN_ITERATION * group, len(episodes.trajectories)), group):
        trajectory, cuts, problem = episodes.trajectories[row], episodes.cuts[row], episodes.problems[row]
        credit = mean_of_steps(advantages[row][episodes.tokens.response_mask[row].bool()], cuts)
        texts = step_texts(trajectory.response_ids, cuts, episodes.tokenizer)
        yield {
            "question": problem.question,
            "answer": problem.answer,
            "reward": episodes.rewards.flatten()[row].item(),
            "finished": trajectory.finished,
            "steps": [{"text": text, "advantage": round(A, 4)} for text, A in zip(texts, credit, strict=True)],
        }


def step_texts(token_ids: list[int], cuts: list[int], tokenizer) -> list[str]:
    """The text of each step, special tokens included."""
    return [tokenizer.decode(token_ids[a:b]) for a, b in zip(cuts, [*cuts[1:], len(token_ids)], strict=True)]
