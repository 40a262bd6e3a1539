"""The settings of the `lengthgen` commands: one dataclass for each, as in `vine_mini.app.config`."""

from dataclasses import dataclass, field
from typing import Annotated

from vine_mini.app.fields import Amount, Count, Positive, PositiveShare, Range, check_ranges, knob
from vine_mini.decoder.model import DecoderConfig
from vine_mini.decoder.table import ENCODINGS, PAPER
from vine_mini.lengthgen.own import check_causal, find_encoding, find_task, load_own, short
from vine_mini.lengthgen.paper import COLUMNS
from vine_mini.lengthgen.scratchpad import STEPS, WITHOUT_VARIABLE, parts_of
from vine_mini.lengthgen.tasks import TASKS
from vine_mini.lengthgen.vocabulary import EOS, PAD, VOCABULARY
from vine_mini.types import UserError


def _list(default, why: str):
    return field(default_factory=lambda: list(default), metadata={"help": why})


@dataclass
class LengthgenConfig:
    """Train small decoders with several position encodings on short sequences and test them on longer ones."""

    task: str = knob("copy", f"One of {', '.join(TASKS)}; or the path of a .py file with your own task, see lengthgen/own.py.")
    encodings: list[str] = _list(
        PAPER,
        f"Position encodings: {', '.join(ENCODINGS)}; or the path of a .py file with your own, see vine_mini/lengthgen/own.py. "
        "coupled is for --task addition-reversed, abacus for a task of your own whose numbers all begin with their lowest digit.",
    )
    seeds: list[int] = _list((0, 1, 2), "One run of each encoding for each seed.")
    scratchpad: str = knob(
        "none",
        "Steps before the answer: none, full, minimal, or some of the letters icovr in this order: "
        f"input, computation, output, variable, remaining input. For {', '.join(STEPS)}.",
    )
    train_lengths: list[int] | None = knob(None, "Shortest and longest length in training. Left out: the task's own.")
    test_lengths: list[int] | None = knob(None, "Shortest and longest length in the test. Left out: up to about twice as long.")
    by_example: bool = knob(
        False, "scan, addition: draw training lengths by their number of examples in the paper. Left out: all equally often."
    )
    updates: Count | None = knob(None, "Updates in a run. Left out: the task's own.")
    lr: Positive | None = knob(None, "Peak learning rate of AdamW. Left out: the task's own.")
    encoding_lr: PositiveShare = knob(0.1, "Learning rate of T5's table, as a share of --lr (paper: 1).")
    batch_size: Count = knob(32, "Examples in an update, all of one length.")
    weight_decay: Amount = knob(0.05, "AdamW's weight decay (paper: 0.05).")
    layers: Annotated[int, Range(1, 1000)] = knob(3, "Layers of the decoder.")
    hidden: Annotated[int, Range(1, 65_536)] = knob(64, "Hidden size of the decoder.")
    heads: Count = knob(4, "Attention heads.")
    head_dim: Annotated[int, Range(1, 65_536)] = knob(64, "Dimensions of a head (paper: 64, of which rope25 turns eight pairs).")
    nope_every: Annotated[int, Range(2)] = knob(3, "hybrid, hybrid-window: every n-th layer has no position encoding.")
    max_positions: Annotated[int, Range(1, 10**6)] = knob(
        256, "learned, coupled, abacus: positions in the table. ...-random: positions to draw from."
    )
    examples: Count = knob(200, "Examples of each length in the evaluation.")
    processes: Count | None = knob(None, "Runs at the same time, one thread each. Left out: one for each core; 1 on a GPU.")
    device: str = knob("cpu", "auto, cpu, cuda, cuda:1, ...")
    yes: bool = knob(False, "Go on although the estimate says more than a week, or far more memory than there is.")
    out: str | None = knob(None, "Folder for results, picture and models; a new one under runs/ when left out.")

    def __post_init__(self):
        find_task(self.task)
        for name in self.encodings:
            find_encoding(name)
        if not self.encodings or len(set(self.encodings)) < len(self.encodings):
            raise UserError("encodings: name at least one, and each of them once")
        if "coupled" in self.encodings and self.task != "addition-reversed" and not self.task.endswith(".py"):
            raise UserError("coupled is for answers that begin with their lowest digit: give --task addition-reversed")
        if "abacus" in self.encodings and not self.task.endswith(".py"):
            raise UserError("abacus is for numbers that all begin with their lowest digit: give a task of your own, see own.py")
        check_seeds(self.seeds)
        if len({short(name) for name in self.encodings}) < len(self.encodings):
            raise UserError("two encodings have the same file name: rename one of the files")
        try:
            parts_of(self.scratchpad)
        except ValueError as error:
            raise UserError(str(error)) from error
        if self.scratchpad != "none" and self.task not in STEPS:
            raise UserError(f"the paper gives {self.task} no scratchpad: choose a task from {', '.join(STEPS)}")
        if self.scratchpad == "v" and self.task in WITHOUT_VARIABLE:
            raise UserError(f"the scratchpad of {self.task} keeps no variable: v alone would write nothing")
        check_ranges(self)
        for name in self.encodings:
            if (every := _nope_every(self, name)) > self.layers:
                raise UserError(f"{name} with nope_every = {every} needs as many layers; there are {self.layers}")
            if ENCODINGS[name].ids and self.scratchpad != "none":
                raise UserError(f"{name} computes position ids from whole sequences: it cannot write a scratchpad")
            try:
                shape = decoder_config(self, name)
                if name.endswith(".py"):
                    check_causal(shape)
            except Exception as error:
                if not isinstance(error, ValueError) and not name.endswith(".py"):
                    raise  # a user's function may fail in any way, ours may not
                says = " ".join(str(error).split())
                sizes = f"hidden = {self.hidden}, heads = {self.heads}, head_dim = {self.head_dim}"
                raise UserError(f"{name}, {sizes}: {says}") from error
        self._fill_in()

    def _fill_in(self):
        task = TASKS[self.task]
        self.updates, self.lr = self.updates or task.updates, self.lr or task.lr
        if self.train_lengths is None:
            self.train_lengths = list(task.train)
        _check_range("train_lengths", self.train_lengths)
        if self.by_example and len({task.weight(length) for length in task.lengths(*self.train_lengths)}) == 1:
            raise UserError(f"by_example: the lengths of {self.task} have equally many examples, so leave it out")
        if self.test_lengths is None:
            longest = self.train_lengths[1]
            self.test_lengths = list(task.test) if longest == task.train[1] else [longest + 1, min(2 * longest, task.longest)]
            if longest >= task.longest:
                raise UserError(f"train_lengths end at {longest}: {self.task} ends at {task.longest}, which leaves none to test")
        _check_range("test_lengths", self.test_lengths)
        if self.test_lengths[0] <= self.train_lengths[1]:
            raise UserError(
                f"test_lengths start at {self.test_lengths[0]}: must be above the longest train length, {self.train_lengths[1]}"
            )
        if self.test_lengths[1] > task.longest:
            raise UserError(f"test_lengths end at {self.test_lengths[1]}: {self.task} ends at {task.longest}")
        for name in ("train_lengths", "test_lengths"):
            if not task.lengths(*getattr(self, name)):
                raise UserError(f"{name} = {getattr(self, name)}: {self.task} has no example of such a length")

    def lengths(self) -> list[int]:
        """All lengths of the evaluation: the lengths of training, then the lengths of the test."""
        task = TASKS[self.task]
        return [*task.lengths(*self.train_lengths), *task.lengths(*self.test_lengths)]

    def seen(self, length: int) -> bool:
        """Whether training had this length."""
        return length <= self.train_lengths[1]


@dataclass
class FullSizeConfig(LengthgenConfig):
    """Train the paper's full-size models on one GPU: `lengthgen` with the shape and the settings of T5 base.

    The memory and the time of a run are printed first. The paper's 107M parameters are 85M in the layers, as here, and the
    embeddings of T5's vocabulary, which is not used here. Dropout is missing, and the learning rate ends at 5 % of its peak.
    """

    encodings: list[str] = _list(COLUMNS, f"Position encodings: {', '.join(ENCODINGS)}.")
    updates: Count | None = knob(40_000, "Updates in a run (paper: 40,000; PCFG SET: 100,000).")
    lr: Positive | None = knob(3e-5, "Peak learning rate of AdamW (paper: 3e-5).")
    encoding_lr: PositiveShare = knob(1.0, "Learning rate of T5's table, as a share of --lr (paper: 1).")
    batch_size: Count = knob(64, "Examples in an update, all of one length (paper: 64, of mixed lengths).")
    layers: Annotated[int, Range(1, 1000)] = knob(12, "Layers of the decoder.")
    hidden: Annotated[int, Range(1, 65_536)] = knob(768, "Hidden size of the decoder.")
    heads: Count = knob(12, "Attention heads.")
    examples: Count = knob(1000, "Examples of each length in the evaluation.")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, ...")


def decoder_config(config: LengthgenConfig, encoding: str) -> DecoderConfig:
    """The configuration of the decoder for one encoding. Raises ValueError where the encoding does not fit the decoder's size."""
    find_encoding(encoding)
    entry = ENCODINGS[encoding]
    return DecoderConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        head_dim=config.head_dim,
        encoding=encoding,
        nope_every=_nope_every(config, encoding),
        max_position_embeddings=config.max_positions if entry.table else None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def _nope_every(config: LengthgenConfig, encoding: str) -> int:
    """A file's encoding has its own number. The settings choose it for an encoding of the table; 0: it has no NoPE layers."""
    every = ENCODINGS[encoding].nope_every
    return config.nope_every if every and not encoding.endswith(".py") else every


def _check_range(name: str, ends: list[int]):
    if len(ends) != 2:
        raise UserError(f"{name} takes two numbers, the shortest and the longest length")
    if not 1 <= ends[0] <= ends[1]:
        raise UserError(f"{name} = {ends[0]} {ends[1]}: the shortest must be at least 1 and not above the longest")


@dataclass
class RankConfig:
    """Rank encodings over several tasks by their mean reciprocal rank, the paper's five beside the paper's ranks."""

    results: list[str] = _list((), "Folders that `lengthgen` wrote, and the .py files of your own that they name.")
    encodings: list[str] | None = knob(None, "Which encodings to rank. Left out: the paper's five.")
    out: str | None = knob(None, "Folder for rank.md and rank.png; when left out, the table is only printed.")

    def __post_init__(self):
        self.results = load_own(self.results)
        if not self.results:
            raise UserError("name at least one folder that `lengthgen` wrote, for example: lengthgen rank runs/lengthgen-copy")


@dataclass
class AttentionConfig:
    """Measure the distance of each encoding's attention from NoPE's, for the models of a `lengthgen` folder."""

    results: list[str] = _list((), "The folder, with NoPE and at least two seeds, and the .py files of your own that it names.")
    examples: Count = knob(10, "Sequences of each length (paper: 10).")

    def __post_init__(self):
        check_ranges(self)
        _one_folder(self, "attention")


@dataclass
class ProbeConfig:
    """Look for positions in the trained NoPE models of a `lengthgen` folder, with a linear probe at each place of the network."""

    results: list[str] = _list((), "The folder, with NoPE, and the .py files of your own that it names.")
    examples: Annotated[int, Range(2)] = knob(50, "Sequences of each length to fit, and as many others to test.")

    def __post_init__(self):
        check_ranges(self)
        _one_folder(self, "probe")


@dataclass
class TheoryConfig:
    """Build NoPE models that count (Theorem 1) and attend by distance (Theorem 2) from explicit weights, then break them."""

    length: Annotated[int, Range(2, 511)] = knob(63, "The weights are built for so many positions after <bos>.")
    out: str | None = knob(None, "Folder for theory.png; a new one under runs/ when left out.")

    def __post_init__(self):
        check_ranges(self)


PARTS = {
    "rates": "14 tasks (copy and reverse on half the lengths) with NoPE, T5, one seed and another learning rate; accuracy on "
    "seen lengths chooses each task's rate",
    "rows": "17 tasks with NoPE, T5, ALiBi, RoPE (a quarter of each head, and the whole head) and sinusoids; then distances of "
    "attention (sort, SCAN) and the positions that NoPE's first layer writes (copy, copy-v3, sort)",
    "scratchpad": "three tasks with eight formats of the scratchpad",
    "short": "copy and reverse on half the lengths",
    "narrow": "17 tasks (copy and reverse on half the lengths) with four heads of 16 dimensions, of which RoPE's quarter turns "
    "two pairs",
    "more-updates": "17 tasks with four times the updates and the paper's five encodings",
    "later": "six tasks with learned positions and the encodings that came after the paper; reversed addition with coupled ids",
}


@dataclass
class LengthgenStudyConfig:
    """Make all runs that the paper's claims need, and judge the claims; goes on where it stopped."""

    parts: list[str] = _list(PARTS, "Made in this order. " + "; ".join(f"{name}: {what}" for name, what in PARTS.items()) + ".")
    seeds: list[int] = _list((0, 1, 2), "All runs of a part are made with the first seed, then all with the next one.")
    processes: Count = knob(2, "Runs at the same time, one thread each.")
    quick: bool = knob(False, "Tiny runs with the first two seeds: shows that everything runs, and nothing else.")
    out: str | None = knob(None, "Folder of all results. Left out: runs/lengthgen-study, or runs/lengthgen-study-quick.")

    def __post_init__(self):
        check_ranges(self)
        if not self.parts or not set(self.parts) <= {*PARTS} or len(set(self.parts)) < len(self.parts):
            raise UserError(f"parts = {', '.join(self.parts)}: choose from {', '.join(PARTS)}, each of them once")
        check_seeds(self.seeds)
        if self.quick:
            self.seeds = self.seeds[:2]
        if self.out is None:
            self.out = "runs/lengthgen-study-quick" if self.quick else "runs/lengthgen-study"


def check_seeds(seeds: list[int]) -> None:
    """Raises UserError unless there is a seed, each is there once, and PyTorch takes all of them."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("seeds: name at least one, and each of them once")
    if any(not 0 <= seed < 2**31 for seed in seeds):
        raise UserError(f"seeds = {seeds}: each must be between 0 and {2**31 - 1}")


def _one_folder(config, command: str):
    config.results = load_own(config.results)
    if len(config.results) != 1:
        raise UserError(f"name one folder that `lengthgen` wrote, for example: lengthgen {command} runs/lengthgen-copy")
