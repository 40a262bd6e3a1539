"""The settings of each command: one dataclass for each, and one line of explanation for each field. `flags` reads them."""

import datetime
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vine_mini import tasks
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.fields import (
    COLDEST,
    WEEK,
    Amount,
    Count,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
    Warm,
    Whole,
    check_ranges,
    knob,
    one_of,
)
from vine_mini.divisors import DIVISORS
from vine_mini.types import UserError

SHIPPED = Path(__file__).parent / "policies"  # made by `python -m vine_mini sft`
POLICIES = {path.name: path for path in SHIPPED.iterdir() if path.is_dir()}


@dataclass
class Common:
    """What every command needs to know: the problems, the policy and the machine."""

    task: str = knob(next(iter(tasks.BUILT_IN)), f"Problems: {', '.join(tasks.BUILT_IN)}, or the path of your own task file.")
    data: str | None = knob(
        None, "Folder or file of the problems, for tasks that read them. Left out: the task's data set on the Hub."
    )
    steps: Annotated[int, Range(1, 200)] | None = knob(None, "Generated tasks: operations. Left out: the task's own number.")
    min_steps: Count | None = knob(None, "Generated tasks: fewest operations, if problems of several lengths are wanted.")
    max_number: Annotated[int, Range(3, 10**9)] = knob(20, "Generated tasks: no number in a solution is larger.")
    prompt: str | None = knob(None, "Prompt with {question} in it. Left out: the task's own.")
    chat: bool = knob(False, "Put the prompt into the tokenizer's chat template, for instruction-tuned models.")
    date: str | None = knob(None, "The date that chat templates see, as 2025-01-31. Left out: the day on which the run starts.")
    model: str | None = knob(
        None, "Policy: Hub name, folder, or shipped (arithmetic-12). Left out: the task's.", aliases=["--policy"]
    )
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, ..., or mps (an Apple GPU; auto never takes it).")
    bf16: bool = knob(False, "Sample and compute in bfloat16; the weights that are updated stay float32.")
    seed: Seed = knob(0, "Seed of everything random.")
    sample_batch_size: Count = knob(512, "Responses decoded at once; bounds the memory of the KV cache.")
    max_new_tokens: Count | None = knob(None, "Most tokens of a response; a truncated one is wrong. Left out: the task's own.")
    yes: bool = knob(
        False, "Go on although the estimate says more than a week or far more memory than there is, or the task file has changed."
    )

    def __post_init__(self):
        if self.task.endswith(".py"):
            self.task = str(Path(self.task).absolute())  # a run can then be resumed from any folder
        defaults = tasks.get(self.task).DEFAULTS
        for name, value in (*defaults.items(), ("temperature", defaults.get("eval_temperature"))):  # evaluate: --temperature
            if getattr(self, name, 0) is None:
                setattr(self, name, value)
        for name in ("max_new_tokens", "eval_temperature", "temperature"):
            if getattr(self, name, 0) is None:
                raise UserError(f"{name}: the task has no default, so give --{name}")
        check_ranges(self)
        for name in ("temperature", "eval_temperature"):
            if 0 < getattr(self, name, 0) < COLDEST:
                raise UserError(f"{name} = {getattr(self, name)}: must be 0, which is greedy, or at least {COLDEST}")
        if self.prompt is not None and "{question}" not in self.prompt:
            raise UserError("--prompt must contain {question}")
        if re.search(r"\\n(?![a-z])", self.prompt or ""):
            raise UserError(r"--prompt holds a backslash and an n: write a line break, in bash $'{question}\n'")
        if self.chat and self.date is None:
            self.date = datetime.date.today().isoformat()
        try:
            datetime.date.fromisoformat(self.date or "2025-01-31")
        except ValueError as error:
            raise UserError(f"date = {self.date}: write it as 2025-01-31") from error


def take_policy_of_run(config) -> None:
    """Sets `model` to the policy of `config.run`, if there is one. Raises UserError."""
    if config.run is not None:
        policy = str(Path(config.run, "policy").absolute())
        if config.model is not None and Path(config.model).resolve() != Path(policy).resolve():
            raise UserError("--run and --policy: a run brings its own policy, so leave out one of them")
        config.model = policy
        if not Path(config.model).is_dir():
            raise UserError(f"there is no folder {config.model}: nothing was saved there yet")


@dataclass
class TrainConfig(Common):
    """Train a policy by reinforcement learning."""

    algorithm: str = knob("vineppo", f"{', '.join(ALGORITHMS)}; see the first lines of algorithms.py.")
    out: str | None = knob(None, "Run folder, empty or new; one under runs/ when left out.")
    resume: str | None = knob(None, "Go on with this run folder, with the fields of its config.yaml.")
    iterations: Count = knob(60, "Rounds of sampling, credit and updates.")
    max_seconds: Annotated[float, Range(0, WEEK)] = knob(
        0, "Stop after so many seconds of training; 0: no limit. Evaluations do not count, except those that choose an epoch."
    )
    prompts: Count = knob(32, "Different problems in an iteration.")
    with_replacement: bool = knob(False, "Draw problems independently, as the official code does, instead of in epochs.")
    group: Count = knob(4, "Responses to each problem.")
    k: Count = knob(3, "vineppo: Monte Carlo rollouts for each state (paper: 9).")
    mc_lam: Share = knob(0.5, "vineppo: GAE's lambda over the Monte Carlo values after a step (paper: 0).")
    mc_mu: Share = knob(0.5, "vineppo: the same over the values before the step, for the baseline (paper: 0).")
    max_states: Count | None = knob(None, "vineppo: estimate at most so many values of a response (official code: 26).")
    step_tokens: Count | None = knob(None, "vineppo: cut a step every so many tokens instead of at newlines.")
    scale_by_std: bool = knob(True, "grpo: whether to divide by the standard deviation of the group (Dr. GRPO: no).")
    divisor: str = knob("tokens", "Of the policy loss: tokens, sequences (GRPO) or constant (Dr. GRPO); see divisors.py.")
    temperature: Warm = knob(1.0, "Of responses and rollouts; log-probs are taken at it too.")
    top_p: PositiveShare = knob(1.0, "Nucleus sampling. Below 1 the gradient is biased: log-probs are of the whole distribution.")
    importance_cap: Amount = knob(0.0, "bf16: weigh a token by policy / sampler, at most this (2 is usual); 0: all weigh 1.")
    epochs: Annotated[int, Range(1, 10_000)] = knob(2, "Passes over an iteration's episodes.")
    minibatch_size: Count = knob(64, "Episodes in an update.")
    micro_batch_tokens: Count = knob(8192, "Tokens in a forward pass, padding included; fewer: less memory, same gradients.")
    lr: Amount | None = knob(None, "AdamW's learning rate. Left out: 1e-6, or 1e-4 for less than ten million parameters.")
    critic_lr: Amount | None = knob(None, "ppo: the critic's learning rate. Left out: the policy's.")
    warmup: Whole | None = knob(None, "Updates over which the learning rate rises. Left out: 20, or 0 for restem and dpo.")
    weight_decay: Amount = knob(0.0, "AdamW's weight decay.")
    adam_8bit: bool = knob(False, "Keep AdamW's moments in 8 bits, a quarter of their memory; needs bitsandbytes.")
    max_grad_norm: Positive = knob(1.0, "Gradients are scaled down to this norm.")
    clip: Amount = knob(0.2, "A token has no gradient where its ratio is further than this from 1, in its favoured direction.")
    value_clip: Amount = knob(0.2, "ppo: how far a value may move from the old one.")
    gamma: Share = knob(1.0, "ppo: discount.")
    lam: Share = knob(1.0, "ppo: GAE's lambda (paper: 1.0).")
    examples: Count = knob(10, "restem, dpo: most examples from a problem (paper: 10 and 64). A response with reward 1 is right.")
    dpo_beta: Positive = knob(0.3, "dpo: how strongly the policy is kept near the reference (paper: 0.3 for GSM8K).")
    dpo_penalty: Amount = knob(50.0, "dpo: weight of a right response's lost log-prob (paper: 50); 0: plain DPO.")
    kl_coef: Amount = knob(0.1, "Weight of the KL to the reference in the loss (paper: 1e-4). restem and dpo have no such term.")
    kl_per_response: bool = knob(False, "Sum the KL over a response, as the official code does, instead of a mean over tokens.")
    max_ratio: Annotated[float, Range(1)] = knob(10.0, "A minibatch whose mean ratio is above this is skipped.")
    gradient_checkpointing: bool = knob(False, "Compute activations again in the backward pass: slower, less memory.")
    eval_every: Whole = knob(0, "Evaluate every so many iterations; 0: on test problems before and after only.")
    validation: Whole = knob(
        200, "With eval_every: training problems set aside to choose RUN/best, at most a tenth; 0: evaluate on test problems."
    )
    eval_problems: Whole = knob(200, "Test problems in an evaluation; 0: all.")
    eval_samples: Count = knob(4, "Samples for each problem in an evaluation.")
    eval_temperature: Amount | None = knob(None, "Of those samples. Left out: the task's own.")
    save_every: Count = knob(40, "Save the policy every so many iterations, at the end, and at least every two minutes.")
    keep_every: Whole = knob(0, "Also keep the checkpoint of every so many iterations; 0: only the newest one.")

    def __post_init__(self):
        super().__post_init__()
        if self.data and os.path.exists(self.data):  # of a user's own task it may be any text
            self.data = str(Path(self.data).absolute())  # a run can be resumed from any folder
        if self.model and Path(self.model).is_dir() and self.model not in POLICIES:
            self.model = str(Path(self.model).resolve())  # from any folder, and also when RUN/policy leads elsewhere
        one_of("algorithm", self.algorithm, ALGORITHMS)
        one_of("divisor", self.divisor, DIVISORS)
        for name in ("divisor", "importance_cap", "max_ratio") if ALGORITHMS[self.algorithm].choose_examples else ():
            if getattr(self, name) != (default := getattr(TrainConfig, name)):
                raise UserError(f"{self.algorithm} does not use {name}: set it to {default}, or leave it out")
        if self.warmup is None:  # each iteration of restem and dpo trains anew, often with few updates
            self.warmup = 0 if ALGORITHMS[self.algorithm].choose_examples else 20
        if self.importance_cap > 0 and not (self.bf16 or getattr(self, "vllm", None)):  # vLLM samples in bfloat16 by itself
            raise UserError("importance_cap corrects for a sampler in bfloat16: add --bf16 or leave it out")
        if ALGORITHMS[self.algorithm].needs_group and self.group < 2:
            raise UserError(f"{self.algorithm} compares the responses to one problem: group must be at least 2")
        if ALGORITHMS[self.algorithm].choose_examples is None and (episodes := self.prompts * self.group) % self.minibatch_size:
            raise UserError(f"minibatch_size = {self.minibatch_size} does not divide prompts x group = {episodes}")


@dataclass
class SFTConfig(Common):
    """Make a starting policy by imitating solutions; from scratch when no --model is given."""

    out: str | None = knob(None, "Folder for the policy, empty or new; one under runs/ when left out.")
    updates: Whole = knob(3000, "Updates of the weights; 0 writes the untrained model.")
    batch_size: Count = knob(64, "Demonstrations in an update.")
    micro_batch_tokens: Count = knob(8192, "Tokens in a forward pass, padding included; fewer: less memory, same gradients.")
    lr: Amount | None = knob(None, "Peak of a one-cycle schedule. Left out: 3e-3 for a new model, or 10 times that of `train`.")
    error_rate: Share = knob(
        0.0, "Generated tasks: probability that a demonstrated step's result is random (`decisive`: a product)."
    )
    hidden: Annotated[int, Range(16, 4096)] = knob(64, "New model: hidden size, a multiple of 16.")
    layers: Annotated[int, Range(1, 100)] = knob(3, "New model: layers.")
    vocab_size: Annotated[int, Range(258, 10**6)] = knob(400, "New model: tokens of its byte-level BPE.")
    eval_problems: Whole = knob(200, "Test problems in the evaluation at the end; 0: all.")
    eval_samples: Count = knob(4, "Samples for each of them.")
    eval_temperature: Amount | None = knob(None, "Of those samples. Left out: the task's own.")

    def __post_init__(self):
        super().__post_init__()
        if self.hidden % 16:
            raise UserError(f"hidden = {self.hidden}: must be a multiple of 16, the size of a head")


@dataclass
class EvaluateConfig(Common):
    """Measure a policy on test problems: pass@1, pass@n, greedy, majority vote, length, truncation, KL."""

    n: Count = knob(16, "Samples for each problem (paper: 16).")
    temperature: Amount | None = knob(None, "Of those samples. Left out: the task's own (GSM8K and MATH: 0.35, the paper's).")
    top_p: PositiveShare = knob(1.0, "Nucleus sampling (paper: 0.9).")
    problems: Whole = knob(0, "Test problems; 0: all.")
    reference: str | None = knob(None, "Also measure the KL to this policy (a Hub name or a folder).")
    out: str | None = knob(None, "Also write the numbers to this JSON file.")

    def __post_init__(self):
        super().__post_init__()
        if self.reference and self.temperature == 0:
            raise UserError("--reference needs samples, so a --temperature above 0")


@dataclass
class SampleConfig(Common):
    """Print responses of a policy, to your question or to a test problem."""

    question: str | None = knob(None, "Your own question; left out: a test problem, and its responses are graded.")
    problem: Whole = knob(0, "Number of the test problem.")
    n: Count = knob(4, "Responses.")
    temperature: Amount = knob(1.0, "0: greedy, the most likely token each time.")
    top_p: PositiveShare = knob(1.0, "Nucleus sampling.")

    def __post_init__(self):
        super().__post_init__()
        if self.question is not None and self.problem:
            raise UserError("--question and --problem: give one of them")
