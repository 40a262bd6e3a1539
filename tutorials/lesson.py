"""What every tutorial starts with: the package on the path, a trainer with the shipped policy, and a folder for pictures."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a script runs from any folder without being installed

import torch  # noqa: E402

from vine_mini import tasks  # noqa: E402
from vine_mini.app.config import TrainConfig  # noqa: E402
from vine_mini.app.flags import read_preset  # noqa: E402
from vine_mini.app.plots import save_figure  # noqa: E402
from vine_mini.app.setup import build_trainer  # noqa: E402
from vine_mini.sampling import rollouts  # noqa: E402
from vine_mini.trainer import Trainer  # noqa: E402

QUICK = "--quick" in sys.argv  # smaller numbers, so that tests can run every tutorial; the results are too noisy to learn from
PICTURES = ROOT / "runs" / ("tutorials-quick" if QUICK else "tutorials")

torch.set_num_threads(1)  # a second thread gains little with models this small, and loses much on a busy machine


def start(**changes) -> Trainer:
    """A trainer in the tutorials' setting: arithmetic chains of six operations and the shipped policy of 130 thousand parameters.

    The tutorials use its parts: `policy`, `tokenizer`, `task`, `sampling` and `config`, and the problems with their prompts
    (`train_problems` and `prompts`, `test_problems` and `test_prompts`).

    Args:
        changes: fields of `TrainConfig` that differ from the preset `arithmetic`.
    """
    return build_trainer(TrainConfig(**read_preset("arithmetic") | {"device": "cpu"} | changes))


def rewards_of_rollouts(trainer, problems, trajectories, cuts, *, k: int, seed: int) -> list:
    """The rewards of k rollouts from each state, [response][state][k]. Tutorial 3 does the same by hand.

    Args:
        problems, trajectories: the problems and one response to each of them.
        cuts: for each response the token indices of its states.
    """
    done = rollouts(trainer.policy, trajectories, cuts, trainer.sampling, k=k, seed=seed)  # [response][state][k]

    def graded(problem, so_far, group):
        return [tasks.grade(trainer.task, problem, r, trainer.tokenizer, so_far) for r in group]

    return [
        [graded(problem, t.response_ids[:cut], group) for cut, group in zip(row, groups, strict=True)]
        for problem, t, row, groups in zip(problems, trajectories, cuts, done, strict=True)
    ]


def mean_and_error(groups) -> tuple[float, float]:
    """The mean of all numbers and its standard error.

    Samples of one problem are not independent. The error is therefore computed from the differences between problems.

    Args:
        groups: one list of numbers for each of at least two problems. The lists may have different lengths.
    """
    sums, counts = [float(sum(group)) for group in groups], [len(group) for group in groups]
    n, problems = sum(counts), len(counts)
    mean = sum(sums) / n
    squares = sum((s - mean * count) ** 2 for s, count in zip(sums, counts, strict=True))
    return mean, (squares * problems / (problems - 1)) ** 0.5 / n


def correlation_and_error(rows, truth) -> tuple[float, float]:
    """The correlation of two sets of numbers and its standard error.

    Numbers of one response are not independent. The correlation is therefore computed again without each response, and the spread
    of these results gives the error (the jackknife).

    Args:
        rows, truth: one list of numbers for each response.
    """

    def correlation(kept):
        pairs = [pair for n in kept for pair in zip(rows[n], truth[n], strict=True)]
        return torch.corrcoef(torch.tensor(pairs).T)[0, 1]

    every = range(len(rows))
    without = torch.stack([correlation([n for n in every if n != left_out]) for left_out in every])
    return correlation(every).item(), ((len(rows) - 1) * without.var(correction=0)).sqrt().item()


def show(figure, name: str) -> None:
    """Saves a figure to runs/tutorials (runs/tutorials-quick in quick mode). A notebook also shows it."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    save_figure(figure, path)
    print(f"picture: {path.relative_to(ROOT)}")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(path))
