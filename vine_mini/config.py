"""Every knob once: a dataclass for each command, each field with one line of why. How they are set is told in `flags`."""

from dataclasses import dataclass, field
from pathlib import Path

from vine_mini.types import UserError

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
    model: str | None = knob(
        None, "Policy: a Hub name or a folder. Left out: the tiny policy shipped for arithmetic.", aliases=["--policy"]
    )
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, ...")
    bf16: bool = knob(False, "Sample and compute in bfloat16; the weights that are updated stay float32.")
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
    k_first: int | None = knob(None, "vineppo: roll a state out so often first, k times only if these disagree. Slightly biased.")
    bisect: bool = knob(False, "vineppo: look for where the value moves instead of measuring every state. Biased.")
    step_tokens: int | None = knob(None, "vineppo: cut a step every so many tokens instead of at newlines.")
    temperature: float = knob(1.0, "Of trajectories and rollouts; log-probs are taken at it too.")
    top_p: float = knob(1.0, "Nucleus sampling. Below 1 the ratio is biased: log-probs are those of the whole distribution.")
    epochs: int = knob(2, "Passes over an iteration's episodes.")
    minibatch_size: int = knob(64, "Episodes in an optimizer step.")
    micro_batch_tokens: int = knob(8192, "Tokens in a forward pass, padding included; fewer: less memory, same gradients.")
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
        at_least(
            self,
            1,
            "iterations",
            "prompts",
            "group",
            "k",
            "k_first",
            "step_tokens",
            "epochs",
            "minibatch_size",
            "micro_batch_tokens",
        )
        at_least(self, 1, "eval_samples", "save_every", "max_ratio")
        at_least(self, 0, "lr", "critic_lr", "weight_decay", "max_seconds", "kl_coef", "eval_every", "eval_problems")
        at_least(self, 0, "clip", "value_clip", "eval_temperature")
        _above_zero(self, "temperature", "top_p", "max_grad_norm")
        _between(self, 0, 1, "top_p", "warmup", "gamma", "lam")
        if self.algorithm in ("grpo", "rloo") and self.group < 2:
            raise UserError(f"{self.algorithm} compares the responses to one problem: group must be at least 2")
        if self.k_first is not None and self.k_first >= self.k:
            raise UserError(f"k_first = {self.k_first}: must be below k = {self.k}")
        if (self.prompts * self.group) % self.minibatch_size:
            episodes = self.prompts * self.group
            raise UserError(f"minibatch_size = {self.minibatch_size} does not divide prompts x group = {episodes}")


@dataclass
class SFTConfig(Common):
    """Make a starting policy by imitating solutions; from scratch when no --model is given."""

    out: str | None = knob(None, "Folder for the policy, which must not exist; a new one under runs/ when left out.")
    updates: int = knob(3000, "Optimizer steps; 0 writes the untrained model.")
    batch_size: int = knob(64, "Demonstrations in an optimizer step.")
    micro_batch_tokens: int = knob(8192, "Tokens in a forward pass, padding included; fewer: less memory, same gradients.")
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
        at_least(self, 1, "batch_size", "micro_batch_tokens", "layers", "eval_samples")
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
class CreditConfig(Common):
    """Show on one page how VinePPO, PPO and GRPO give credit to the steps of one response."""

    run: str | None = knob(None, "A run folder: its policy, the fields of its config.yaml and, if it trained ppo, its critic.")
    problem: int = knob(0, "Number of the test problem.")
    group: int = knob(8, "Responses sampled to it: grpo compares them. Of few, all are often equally wrong, and it says nothing.")
    response: int | None = knob(None, "Number of the response in the group. Left out: the first wrong one, or else the first.")
    k: int = knob(9, "vineppo: Monte Carlo rollouts for each state (paper: 9).")
    truth: int = knob(0, "Rollouts for each state of a column to compare with, such as 256; 0: no such column.")
    temperature: float = knob(1.0, "Of responses and rollouts.")
    step_tokens: int | None = knob(None, "Cut a step every so many tokens instead of at newlines.")
    critic_iterations: int = knob(
        20, "ppo: so many iterations a critic learns while the policy rests (a ppo run brings its own); 0: no column for ppo."
    )
    out: str | None = knob(None, "Folder for the page and the picture; a new one under runs/ when left out.")

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 0, "problem", "response", "truth", "critic_iterations")
        at_least(self, 1, "k", "step_tokens")
        _above_zero(self, "temperature")
        if self.group < 2:
            raise UserError(f"group = {self.group}: grpo compares the responses to one problem, so it must be at least 2")
        if self.response is not None and self.response >= self.group:
            raise UserError(f"response = {self.response}: there are {self.group} responses in the group, counted from 0")
        if self.run is not None:
            if self.model not in (None, f"{self.run}/policy"):
                raise UserError("--run and --policy: a run brings its own policy, so leave out one of them")
            self.model = f"{self.run}/policy"
            if not Path(self.model).is_dir():
                raise UserError(f"there is no folder {self.model}: nothing was saved there yet")


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


@dataclass
class ExercisesConfig:
    """Show which exercises of the tutorials are done, and the next one to do."""


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
