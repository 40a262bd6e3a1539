"""Every knob once: a dataclass for each command, each field with one line of why.

The command line and YAML presets are both read through `transformers.HfArgumentParser`. A later source wins:
the defaults here, then `--preset`, then the flags.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from vine_mini.types import UserError

PRESETS = Path(__file__).parent / "presets"
TASK_NAMES = ("arithmetic", "gsm8k")
ALGORITHM_NAMES = ("vineppo", "ppo", "grpo", "rloo", "reinforce")


def knob(default, why: str, **more):
    """A dataclass field whose one line of why is also its `--help`."""
    return field(default=default, metadata={"help": why, **more})


@dataclass
class Common:
    """What every command needs to know: the problems, the policy and the machine."""

    task: str = knob("arithmetic", "Problems: arithmetic (generated) or gsm8k.")
    data: str | None = knob(None, "Folder with train.jsonl and test.jsonl for gsm8k; from the Hub when left out.")
    steps: int = knob(6, "arithmetic: operations in a problem.")
    min_steps: int | None = knob(None, "arithmetic: fewest operations, if problems of several lengths are wanted.")
    max_number: int = knob(20, "arithmetic: no number in a solution is larger.")
    prompt: str | None = knob(None, "Prompt with {question} in it; each task has its own when left out.")
    chat: bool = knob(False, "Put the prompt into the tokenizer's chat template, for instruction-tuned models.")
    model: str | None = knob(None, "Policy: a Hub name or a folder. Left out: the tiny policy shipped for arithmetic.")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, ...")
    bf16: bool = knob(False, "Compute in bfloat16; the weights that are updated stay float32.")
    seed: int = knob(0, "Seed of everything random.")
    sample_batch_size: int = knob(512, "Responses decoded at once; bounds the memory of the KV cache.")
    max_new_tokens: int | None = knob(
        None, "Length limit of a response; one that it cuts counts as wrong. Left out: 64 tokens for arithmetic, 512 for gsm8k."
    )

    def __post_init__(self):
        one_of(self, "task", TASK_NAMES)
        if self.max_new_tokens is None:
            self.max_new_tokens = {"gsm8k": 512}.get(self.task, 64)
        at_least(self, 1, "steps", "min_steps", "sample_batch_size", "max_new_tokens")
        at_least(self, 3, "max_number")
        _between(self, 0, 2**31, "seed")
        if self.data is not None and self.task != "gsm8k":
            raise UserError("--data is for --task gsm8k; arithmetic makes its own problems")
        if self.prompt is not None and "{question}" not in self.prompt:
            raise UserError("--prompt must contain {question}")


@dataclass
class TrainConfig(Common):
    """Train a policy by reinforcement learning."""

    algorithm: str = knob("vineppo", "vineppo, ppo, grpo, rloo or reinforce: they differ only in how credit is given.")
    out: str | None = knob(None, "Run folder, which must not hold another run; a new one under runs/ when left out.")
    resume: str | None = knob(None, "Go on with this run folder, with the fields of its config.yaml.")
    iterations: int = knob(60, "Rounds of sample, credit, update.")
    max_seconds: float = knob(0, "Stop after so many seconds of training, evaluations not counted; 0: no limit.")
    prompts: int = knob(32, "Different problems in an iteration.")
    group: int = knob(4, "Responses to each problem.")
    k: int = knob(9, "vineppo: Monte Carlo rollouts for each state (paper: 9).")
    step_tokens: int | None = knob(None, "vineppo: cut a step every so many tokens instead of at newlines.")
    temperature: float = knob(1.0, "Of trajectories and rollouts; log-probs are taken at it too.")
    top_p: float = knob(1.0, "Nucleus sampling. Below 1 the ratio is biased: log-probs are those of the whole distribution.")
    epochs: int = knob(2, "Passes over an iteration's episodes.")
    minibatch_size: int = knob(64, "Episodes in an optimizer step.")
    micro_batch_size: int = knob(64, "Episodes in a forward pass; less memory, same gradients.")
    lr: float = knob(1e-4, "AdamW's learning rate for the policy.")
    critic_lr: float | None = knob(None, "ppo: the critic's learning rate; left out: the policy's.")
    warmup: float = knob(0.03, "Share of all optimizer steps over which the learning rate rises; constant afterwards.")
    weight_decay: float = knob(0.0, "AdamW's weight decay.")
    max_grad_norm: float = knob(1.0, "Gradients are scaled down to this norm.")
    clip: float = knob(0.2, "How far a token's probability ratio may move.")
    value_clip: float = knob(0.2, "ppo: how far a value may move from the old one.")
    gamma: float = knob(1.0, "ppo: discount.")
    lam: float = knob(1.0, "ppo: GAE's lambda (paper: 1.0).")
    kl_coef: float = knob(1e-4, "Weight of the KL to the reference in the loss; 0: no reference is kept.")
    kl_kind: str = knob("k3", "KL estimator: k1, k2 or k3.")
    max_ratio: float = knob(10.0, "A minibatch whose mean ratio is above this is skipped.")
    gradient_checkpointing: bool = knob(False, "Compute activations again in the backward pass: slower, less memory.")
    eval_every: int = knob(0, "Evaluate every so many iterations; 0: only before and after.")
    eval_problems: int = knob(200, "Test problems in an evaluation; 0: all.")
    eval_samples: int = knob(4, "Samples for each test problem in an evaluation.")
    eval_temperature: float | None = knob(None, "Of those samples. Left out: 1 for arithmetic, 0.35 for gsm8k (as in the paper).")
    save_every: int = knob(40, "Save the policy every so many iterations; it is saved at the end in any case.")

    def __post_init__(self):
        super().__post_init__()
        if self.eval_temperature is None:
            self.eval_temperature = {"gsm8k": 0.35}.get(self.task, 1.0)
        one_of(self, "algorithm", ALGORITHM_NAMES)
        one_of(self, "kl_kind", ("k1", "k2", "k3"))
        at_least(self, 1, "iterations", "prompts", "group", "k", "step_tokens", "epochs", "minibatch_size", "micro_batch_size")
        at_least(self, 1, "eval_samples", "save_every", "max_ratio")
        at_least(self, 0, "lr", "critic_lr", "weight_decay", "max_seconds", "kl_coef", "eval_every", "eval_problems")
        at_least(self, 0, "clip", "value_clip", "eval_temperature")
        _above_zero(self, "temperature", "top_p", "max_grad_norm")
        _between(self, 0, 1, "top_p", "warmup", "gamma", "lam")
        if self.algorithm in ("grpo", "rloo") and self.group < 2:
            raise UserError(f"{self.algorithm} compares the responses to one problem: group must be at least 2")
        if (self.prompts * self.group) % self.minibatch_size:
            episodes = self.prompts * self.group
            raise UserError(f"minibatch_size = {self.minibatch_size} does not divide prompts x group = {episodes}")


@dataclass
class SFTConfig(Common):
    """Make a starting policy by imitating solutions; from scratch when no --model is given."""

    out: str | None = knob(None, "Folder for the policy, which must not exist; a new one under runs/ when left out.")
    updates: int = knob(3000, "Optimizer steps; 0 writes the untrained model.")
    batch_size: int = knob(64, "Demonstrations in an optimizer step.")
    micro_batch_size: int = knob(64, "Demonstrations in a forward pass; less memory, same gradients.")
    lr: float = knob(3e-3, "Peak learning rate of a one-cycle schedule (for a Hub model, about 1e-5).")
    weight_decay: float = knob(0.0, "AdamW's weight decay.")
    max_grad_norm: float = knob(1.0, "Gradients are scaled down to this norm.")
    error_rate: float = knob(0.0, "arithmetic: probability that a demonstrated step's result is a random number.")
    hidden: int = knob(64, "New model: hidden size, a multiple of 16.")
    layers: int = knob(3, "New model: layers.")
    vocab_size: int = knob(400, "New model: tokens of its byte-level BPE, at least 258.")
    eval_problems: int = knob(200, "Test problems in the evaluation at the end; 0: all.")
    eval_samples: int = knob(4, "Samples for each of them.")
    eval_temperature: float = knob(1.0, "Of those samples.")

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 0, "updates", "lr", "weight_decay", "eval_problems", "eval_temperature")
        at_least(self, 1, "batch_size", "micro_batch_size", "layers", "eval_samples")
        at_least(self, 258, "vocab_size")
        _above_zero(self, "max_grad_norm")
        _between(self, 0, 1, "error_rate")
        if self.hidden < 16 or self.hidden % 16:
            raise UserError(f"hidden = {self.hidden}: must be a multiple of 16, the size of a head")


@dataclass
class EvaluateConfig(Common):
    """Measure a policy on test problems: pass@1, greedy, majority vote, any-hit, length, truncation, KL."""

    n: int = knob(16, "Samples for each problem (paper: 16).")
    temperature: float = knob(0.35, "Of those samples (paper: 0.35).")
    top_p: float = knob(1.0, "Nucleus sampling (paper: 0.9).")
    problems: int = knob(0, "Test problems; 0: all.")
    reference: str | None = knob(None, "Also measure the KL to this policy (a Hub name or a folder).")
    out: str | None = knob(None, "Also write the numbers to this JSON file.")

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "n")
        at_least(self, 0, "temperature", "problems")
        _above_zero(self, "top_p")
        _between(self, 0, 1, "top_p")


@dataclass
class SampleConfig(Common):
    """Print responses of a policy, to your question or to a test problem."""

    question: str | None = knob(None, "Your own question; left out: a test problem, and its responses are graded.")
    problem: int = knob(0, "Number of the test problem.")
    n: int = knob(4, "Responses.")
    temperature: float = knob(1.0, "0 gives the one most likely response.")
    top_p: float = knob(1.0, "Nucleus sampling.")

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "n")
        at_least(self, 0, "temperature", "problem")
        _above_zero(self, "top_p")
        _between(self, 0, 1, "top_p")
        if self.question is not None and not self.question.strip():
            raise UserError("--question is empty")


@dataclass
class DemoConfig:
    """Train VinePPO, PPO and GRPO from the shipped policy for the same time each, and compare them."""

    seconds: float = knob(45, "Training time of each algorithm.")
    algorithms: list[str] = field(
        default_factory=lambda: ["vineppo", "ppo", "grpo"], metadata={"help": "Which algorithms, and in which order."}
    )
    problems: int = knob(200, "Test problems in each evaluation.")
    out: str | None = knob(None, "Folder for the picture and the runs; a new one under runs/ when left out.")
    device: str = knob("cpu", "The shipped policy is so small that a GPU would not be faster.")
    seed: int = knob(0, "Seed of everything random.")

    def __post_init__(self):
        _above_zero(self, "seconds", "problems")
        if len(set(self.algorithms)) < len(self.algorithms):
            raise UserError("algorithms: name each of them once")
        _between(self, 0, 2**31, "seed")
        for name in self.algorithms:
            if name not in ALGORITHM_NAMES:
                raise UserError(f"unknown algorithm {name!r}: choose from {', '.join(ALGORITHM_NAMES)}")


def one_of(config, name: str, choices) -> None:
    """Raises UserError for a field that is none of the choices."""
    if getattr(config, name) not in choices:
        raise UserError(f"unknown {name} {getattr(config, name)!r}: choose from {', '.join(choices)}")


def at_least(config, least: float, *names: str) -> None:
    """Raises UserError for a field below `least`, or infinite, or not a number; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value < float("inf"):  # written so that NaN fails too
            raise UserError(f"{name} = {value}: must be at least {least}")


def _above_zero(config, *names: str):
    for name in names:
        if not 0 < getattr(config, name) < float("inf"):
            raise UserError(f"{name} = {getattr(config, name)}: must be above 0")


def _between(config, low: float, high: float, *names: str):
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise UserError(f"{name} = {getattr(config, name)}: must be between {low} and {high}")


def read_preset(name: str) -> dict:
    """The fields that a preset sets: a name from `presets/` or the path of a YAML file. Raises UserError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"no preset {name!r}: choose from {known}, or give a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of the form 'field: value'")
    unknown = [key for key in values if key not in {f.name for f in fields(TrainConfig)}]
    if unknown:
        raise UserError(f"{path}: unknown field {unknown[0]!r}")
    return values


def parse(config_class, prog: str, argv: list[str]):
    """A command line -> config. Fields of `--preset`, or of the run in `--resume`, count as flags before the others.

    Presets are written for training: the other commands take only what is common to all from them.

    Raises UserError with one line for anything that is wrong. `--help` prints the fields and exits.
    """
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset")
    finder.add_argument("--resume")
    found, _ = finder.parse_known_args(argv)
    names = {f.name for f in fields(config_class)}
    preset = found.preset
    if found.resume is not None and "resume" in names:
        preset = f"{found.resume}/config.yaml"
        if not Path(preset).is_file():
            raise UserError(f"there is no {preset}: --resume needs the folder of a run")
    values = read_preset(preset) if preset is not None else {}
    usable = names if config_class is TrainConfig else {f.name for f in fields(Common)} & names
    flags = [flag for key, value in values.items() if key in usable and value is not None for flag in (f"--{key}", str(value))]
    parser = _Parser(config_class, prog=prog, description=config_class.__doc__, allow_abbrev=False)
    if issubclass(config_class, Common):
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        only = "" if config_class is TrainConfig else " Only the fields that all commands share are taken."
        parser.add_argument("--preset", help=f"Start from these fields: {known}, or a YAML file.{only}")
    namespace = vars(parser.parse_args([*flags, *argv]))
    config = config_class(**{name: namespace[name] for name in names})
    if found.resume is not None and "resume" in names:
        _check_resumed(config, TrainConfig(**values))
    return config


def _check_resumed(config, saved):
    """A resumed run is the same run: only how long, how it is measured and how it fits the machine may change."""
    may_change = "resume device data iterations max_seconds save_every gradient_checkpointing sample_batch_size micro_batch_size"
    for name, old in vars(saved).items():
        new = getattr(config, name)
        if new != old and name not in may_change.split() and not name.startswith("eval_"):
            raise UserError(f"--resume goes on with {name} = {old}; it cannot change to {new}")


def to_yaml(config) -> str:
    """A config as YAML, which `--preset` reads back; without the folder, so that it can start a run in another."""
    values = {name: value for name, value in asdict(config).items() if name not in ("out", "resume")}
    return yaml.safe_dump(values, sort_keys=False)


class _Parser(HfArgumentParser):
    def error(self, message):
        """Called by argparse with one line."""
        raise UserError(message)
