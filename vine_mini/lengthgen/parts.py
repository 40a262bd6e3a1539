"""The runs of `lengthgen study`: for each part, the folders of its sweeps and their settings.

Deviations from the paper: scratchpads are trained on shorter inputs than plain answers. A full one makes sequences up to ten
times as long. The format `none` then has these lengths too. Formats that lack one part are trained with three encodings only.
Only SCAN draws training lengths by their number of examples. `train.py` and `tasks.py` name the other deviations.

`rates` trains each of 14 tasks, with two encodings and one seed, at the rate (1e-3 or 2e-3) that the task does not use. `rates`
and `narrow` have copy and reverse on half the lengths, like `short`. `later` has coupled ids on addition-reversed only, and no
abacus: these need numbers that begin with their lowest digit. It has no head scales either: their paper fits them on a trained
NoPE, and where they learn with all other weights they express nothing new.
"""

from vine_mini.decoder.table import ENCODINGS
from vine_mini.lengthgen import paper
from vine_mini.lengthgen.config import LengthgenConfig, LengthgenStudyConfig
from vine_mini.lengthgen.tasks import COPIES, TASKS

LAST = ("lego", "polynomial", "sort-numbers", "addition", "pcfg")  # the first runs did not learn these
ROWS = [*(task for task in paper.ACCURACY if task not in LAST), *LAST]
MAIN = ["nope", "t5", "alibi", "rope25", "rope", "sinusoidal"]
SIX = ["copy", "copy-v2", "copy-v3", "reverse", "sort", "scan"]
FEWER = ["nope", "t5", "rope25"]  # for scratchpads without one part; the other formats have all encodings
LATER = [name for name in ENCODINGS if name not in (*MAIN, "coupled", "abacus", "head-scale")]
RATES = (1e-3, 2e-3)  # learning rates
RATED = [task for task in ROWS if task not in ("copy-2x", "copy-v3", "reverse")]  # these have 99 % on 2 to 10 items at 2e-3
SHORT = {task: dict(train_lengths=[2, 10], test_lengths=[11, 20]) for task in COPIES}
# Training and test lengths, and updates.
SCRATCHPADS = {
    "addition": dict(train_lengths=[1, 4], test_lengths=[5, 8], updates=3000, examples=100),
    "sum": dict(train_lengths=[2, 6], test_lengths=[7, 12], updates=3000, examples=100),
    "parity": dict(train_lengths=[2, 6], test_lengths=[7, 12], updates=3000, examples=100),
}
QUICK = dict(updates=2, hidden=16, heads=2, head_dim=8, examples=2, batch_size=4)


def sweeps(part: str, config: LengthgenStudyConfig) -> list[tuple[str, LengthgenConfig]]:
    """The sweeps of a part: folder, settings. The first seed has all its sweeps before the second one."""
    seeds = config.seeds[:1] if part == "rates" else config.seeds
    return [(folder, _config(config, task, seed, more)) for seed in seeds for folder, task, more in _tasks(part)]


def folders(part: str) -> dict[str, str]:
    """The folders of a part, inside the study's: folder -> task"""
    return {folder: task for folder, task, _ in _tasks(part)}


def _tasks(part: str) -> list[tuple[str, str, dict]]:
    if part == "rates":
        others = [(task, lr) for task in RATED for lr in RATES if lr != TASKS[task].lr]
        return [
            (f"rates/{task}-{lr:g}", task, dict(encodings=["nope", "t5"], lr=lr) | SHORT.get(task, {})) for task, lr in others
        ]
    if part == "rows":
        return [(task, task, dict(encodings=MAIN)) for task in ROWS]
    if part == "narrow":
        return [(f"narrow/{task}", task, dict(encodings=MAIN, head_dim=16) | SHORT.get(task, {})) for task in ROWS]
    if part == "short":
        return [(f"short/{task}", task, dict(encodings=MAIN) | lengths) for task, lengths in SHORT.items()]
    if part == "more-updates":
        return [(f"{part}/{task}", task, dict(encodings=[*paper.COLUMNS], updates=4 * TASKS[task].updates)) for task in ROWS]
    if part == "later":
        coupled = dict(encodings=[*MAIN, "learned", "fire", "coupled"], max_positions=128)
        return [
            *((f"later/{task}", task, dict(encodings=LATER)) for task in SIX),
            ("later/addition-reversed", "addition-reversed", coupled),
        ]
    return [
        (f"scratchpad/{task}-{pad}", task, dict(encodings=FEWER if pad in paper.WITHOUT_ONE else MAIN, scratchpad=pad) | size)
        for pad in sorted(paper.FORMATS, key=lambda pad: pad in paper.WITHOUT_ONE)  # none, full and minimal come first
        for task, size in SCRATCHPADS.items()
    ]


def _config(config: LengthgenStudyConfig, task: str, seed: int, more: dict) -> LengthgenConfig:
    # SCAN's data have few short commands, as the paper's training data have.
    shared = dict(task=task, seeds=[seed], processes=config.processes, by_example=task == "scan")
    if config.quick:
        (train, _), (test, _) = more.get("train_lengths", TASKS[task].train), more.get("test_lengths", TASKS[task].test)
        more = more | QUICK | dict(train_lengths=[train, train + 1], test_lengths=[test, test])
    return LengthgenConfig(**shared | more)
