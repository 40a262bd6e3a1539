"""`python -m vine_mini.integrations.trl`: VinePPO on TRL with the fields of `train`, in one process or under a launcher.

    python -m vine_mini.integrations.trl --preset arithmetic --steps 3
    torchrun --nproc_per_node 8 -m vine_mini.integrations.trl --preset gsm8k-rho1b --kl_per_response False --eval_every 0

The run folder has the files that `train` writes (see `app.runs`), and TRL's checkpoints. `evaluate` measures it afterwards.
"""

import json
import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from vine_mini import models, tasks
from vine_mini.app.checkpoint import point
from vine_mini.app.config import TrainConfig
from vine_mini.app.fields import knob
from vine_mini.app.files import discard, locked, new_folder, write_text
from vine_mini.app.flags import parse
from vine_mini.app.plots import plot_run
from vine_mini.app.runs import Run
from vine_mini.app.setup import policy_name, task_name
from vine_mini.integrations.trl import VinePPOTrainer, check_trl
from vine_mini.integrations.trl.lost import RANK, RANKS, lost, wait_for, watch
from vine_mini.integrations.trl.plan import plan
from vine_mini.types import UserError

ABSENT = "algorithm max_seconds with_replacement divisor kl_per_response max_ratio eval_every keep_every adam_8bit"
SAVE_SECONDS = 120.0  # of training, at most, between two checkpoints of a single process

LOGS = {name: name for name in ("reward", "kl", "entropy", "loss", "grad_norm")} | {  # our name -> TRL's
    "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "clip_frac": "clip_ratio/region_mean",
    "sampler_gap": "sampling/sampling_logp_difference/mean",
    "lr": "learning_rate",
}


@dataclass
class TrlConfig(TrainConfig):
    """Train a policy by VinePPO on TRL's engine.

    Nothing is evaluated, so `validation` and the fields of evaluations have no effect. `yes` has none, because nothing is
    estimated. With vLLM, `sample_batch_size` has none either.
    """

    vllm: str | None = knob(None, "Sample with vLLM: colocate, or the address of a server. Left out: Hugging Face generation.")
    plan: bool = knob(False, "Print tokens, seconds and memory of an iteration on 1 to 64 GPUs, and train nothing.")

    def __post_init__(self):
        if self.eval_temperature is None and "eval_temperature" not in tasks.get(self.task).DEFAULTS:
            self.eval_temperature = 1.0  # not used
        super().__post_init__()
        self.vllm = self.vllm and self.vllm.rstrip("/")  # vLLM does not know //health
        for field in fields(self):
            if field.name in ABSENT.split() and getattr(self, field.name) != field.default:
                raise UserError(
                    f"{field.name} does not exist on TRL: set it to {field.default}, or use `python -m vine_mini train`"
                )
        if self.group < 2:
            raise UserError("group = 1: on TRL, a group has at least 2 responses")
        if self.device not in ("auto", "cpu"):
            raise UserError(f"device = {self.device}: on TRL it is auto or cpu; the launcher gives each process its GPU")
        if self.importance_cap and not self.vllm:
            raise UserError("importance_cap needs --vllm: Hugging Face generation samples with the trainer's own weights")
        if self.vllm and self.vllm != "colocate" and not self.vllm.startswith(("http://", "https://")):
            raise UserError(f"vllm = {self.vllm}: give colocate, or the address of a server that begins with http://")


def grpo_arguments(config, ranks: int, longest_prompt: int) -> dict[str, Any]:
    """The arguments of a GRPOConfig with the meaning of a TrainConfig. Raises UserError where work cannot be divided equally.

    An update takes `minibatch_size` responses, of which each of the ranks has an equal part, in micro-batches of equal size.
    """
    for name in ("prompts", "minibatch_size"):
        if getattr(config, name) % ranks:
            raise UserError(f"{name} = {getattr(config, name)} cannot be divided equally among {ranks} processes")
    part, most = config.minibatch_size // ranks, config.micro_batch_tokens // (longest_prompt + config.max_new_tokens)
    rows = max(n for n in range(1, part + 1) if part % n == 0 and n <= max(most, 1))
    updates = config.epochs * config.prompts * config.group // config.minibatch_size  # of an iteration
    vllm: dict[str, Any] = {}
    if config.vllm:  # importance weights as in `train`: at most the cap; without a cap all are 1, and the gap is still measured
        cap = config.importance_cap
        vllm = dict(use_vllm=True, vllm_mode="colocate", vllm_importance_sampling_mode="token_truncate")
        low, high = (None, cap) if cap else (1.0, 1.0 + 1e-6)  # TRL wants two different bounds
        vllm |= dict(vllm_importance_sampling_clip_min=low, vllm_importance_sampling_clip_max=high)
        if config.vllm == "colocate":  # reserve no memory for a longer context
            vllm |= dict(vllm_max_model_length=longest_prompt + config.max_new_tokens)
        else:
            vllm |= dict(vllm_mode="server", vllm_server_base_url=config.vllm)
    return vllm | dict(
        per_device_train_batch_size=rows, gradient_accumulation_steps=part // rows, num_iterations=config.epochs,
        steps_per_generation=config.prompts * config.group // (ranks * rows), num_generations=config.group,
        max_steps=config.iterations * updates, logging_steps=updates, save_steps=config.save_every * updates, save_total_limit=2,
        learning_rate=config.lr, lr_scheduler_type="constant_with_warmup", warmup_steps=config.warmup, loss_type="dapo",
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm, epsilon=config.clip, beta=config.kl_coef,
        use_bias_correction_kl=False, temperature=config.temperature, top_p=config.top_p,
        max_completion_length=config.max_new_tokens, gradient_checkpointing=config.gradient_checkpointing, bf16=config.bf16,
        use_cpu=config.device == "cpu", seed=config.seed % 2**32, report_to="none", disable_tqdm=RANK > 0,
    )  # fmt: skip


class Folder(TrainerCallback):
    """Writes the run folder from the logs and checkpoints of `trainer`."""

    trainer: Any = None

    def __init__(self, run: Run, updates: int):
        self.run, self.updates, self.start = run, updates, time.monotonic()
        self.saved, self.stop = time.monotonic(), False
        self.before = run.rows[-1]["seconds"] if run.rows else 0.0  # of the run that is resumed

    def on_log(self, args, state, control, logs, **_):
        """One line for each iteration, with the names of `train`."""
        if "reward" in logs and "loss" in logs:  # the summary at the end has no loss
            iteration, config = state.global_step // self.updates, self.run.config
            row = {"iteration": iteration, "episodes": iteration * config.prompts * config.group}
            row |= {"seconds": self.before + time.monotonic() - self.start}
            row |= {ours: logs[theirs] for ours, theirs in LOGS.items() if theirs in logs} | self.trainer.stats
            self.run.log(row, self.trainer.episodes, self.trainer.advantages)

    def on_step_end(self, args, state, control, **_):
        """A single process saves after a stop and every two minutes. Several processes could not agree on a moment."""
        if RANKS == 1 and state.global_step % self.updates == 0:
            control.should_training_stop |= self.stop
            control.should_save |= self.stop or time.monotonic() - self.saved > SAVE_SECONDS

    def on_save(self, args, state, control, **_):
        """Points RUN/policy to the new checkpoint. The old one is still there."""
        self.saved = time.monotonic()
        point(self.run.folder / "policy", self.run.folder / "checkpoints" / f"checkpoint-{state.global_step}")
        plot_run(self.run.rows, self.run.folder / "curves.png", f"VinePPO on {task_name(self.run.config)}, on TRL")


def train(config: TrlConfig, folder: Path) -> None:
    """Trains. The first process writes the run folder. Raises UserError."""
    from trl import GRPOConfig

    problems, _ = tasks.load_problems(config)
    policy, tokenizer = models.load_policy(policy_name(config), "cpu")
    config.lr = models.default_lr(policy) if config.lr is None else config.lr
    if config.prompts > len(problems):
        raise UserError(f"prompts = {config.prompts}, but there are only {len(problems)} training problems")
    prompts = tasks.prompt_ids(problems, tokenizer, config)
    tasks.check_prompts(prompts, models.context_length(policy), config.max_new_tokens)
    arguments = grpo_arguments(config, RANKS, max(map(len, prompts)))
    saved = (folder / "policy").resolve() if config.resume else None
    try:
        done = int(json.loads((saved / "trainer_state.json").read_text())["global_step"]) if saved else 0
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder} has no checkpoint of TRL to go on from") from error
    updates = arguments["logging_steps"]  # of an iteration
    if done >= arguments["max_steps"]:
        raise UserError(f"{folder} has its {done // updates} iterations already: raise --iterations to go on")
    args = GRPOConfig(output_dir=str(folder / "checkpoints"), **arguments)  # this connects the processes
    args.distributed_state.wait_for_everyone()  # each of them has looked at the folder before the first one writes
    if RANK == 0:
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if RANK == 0 else nullcontext():
        callbacks = []
        if RANK == 0:
            plain = TrainConfig(**{f.name: getattr(config, f.name) for f in fields(TrainConfig)})
            callbacks = [Folder(Run(folder, plain, done // updates), updates)]
            write_text(folder / "vllm.txt", f"{config.vllm or 'none'}\n")
        try:
            trainer = VinePPOTrainer(config, policy, tokenizer, problems, args, callbacks=callbacks)
            for callback in callbacks:
                callback.trainer = trainer
            with _stopping(callbacks):
                trainer.train(resume_from_checkpoint=str(saved) if saved else None)
        finally:
            if RANK == 0 and not config.resume and not callbacks[0].run.rows:  # the first iteration has failed
                discard(folder)
        trainer.accelerator.wait_for_everyone()  # a process that leaves early breaks the connections of the others
        if config.vllm != "colocate":  # vLLM in this process closes the connections itself, and needs them for that
            trainer.accelerator.end_training()


@contextmanager
def _stopping(callbacks: list[Folder]):
    """In a single process, Ctrl-C and SIGTERM end the iteration and save it. A second one ends at once."""

    def stop(number, _):
        if callbacks[0].stop:
            raise KeyboardInterrupt
        callbacks[0].stop = True
        print("\nending this iteration, then saving", file=sys.stderr)

    signals = (signal.SIGINT, signal.SIGTERM) if RANKS == 1 else ()
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if RANKS == 1 and callbacks[0].stop:
        print(f"saved; --resume {callbacks[0].run.folder} goes on", file=sys.stderr)
        raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Trains or plans. -> exit code: 0, 1 where another process or the server was lost, 2 for a mistake, 130 after Ctrl-C"""
    try:
        config = parse(TrlConfig, "python -m vine_mini.integrations.trl", sys.argv[1:] if argv is None else argv)
        if config.plan:
            print(plan(config))
            return 0
        check_trl()
        if config.resume and config.vllm is None and (Path(config.resume) / "vllm.txt").is_file():
            config.vllm = (Path(config.resume) / "vllm.txt").read_text(encoding="utf-8").strip()
            config.vllm = None if config.vllm == "none" else config.vllm
        if config.vllm and find_spec("vllm") is None:
            raise UserError(f"vllm = {config.vllm} needs vLLM in this environment: pip install vllm")
        folder = Path(config.resume) if config.resume else new_folder(config.out, f"{task_name(config)}-trl")
        with lost(folder) as end:
            if (config.vllm or "").startswith("http") and RANK == 0:
                wait_for(config.vllm)
                watch(config.vllm, end)
            train(config, folder)
        return 0
    except (UserError, OSError) as error:
        if RANK == 0 or torch.distributed.is_initialized():  # before that, all processes find the same mistake
            print(f"vine_mini.integrations.trl: {' '.join(str(error).split())[:600]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
