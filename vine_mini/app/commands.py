"""The commands that train and measure a policy. Each of them takes its config and returns an exit code."""

import json
import platform
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini import models, tasks
from vine_mini.app import checkpoint
from vine_mini.app.config import EvaluateConfig, SampleConfig, SFTConfig, TrainConfig
from vine_mini.app.memory import format_memory, memory_estimate
from vine_mini.app.runs import Run, check_writable, new_folder
from vine_mini.app.setup import build_trainer, policy_name, task_name
from vine_mini.app.sft import imitate, model_card
from vine_mini.evaluate import evaluate, table, verdict
from vine_mini.sampling import sample as sample_responses
from vine_mini.trainer import Trainer
from vine_mini.types import Problem, Sampling, UserError

INTERRUPTED = 130  # the shell's exit code for Ctrl-C


def train(config: TrainConfig) -> int:
    """The `train` command."""
    name = f"{task_name(config)}-{config.algorithm}"
    folder = Path(config.resume) if config.resume else new_folder(config.out, name)
    trainer = build_trainer(config)
    if config.lr is None:
        config = trainer.config
        print(f"lr = {config.lr:g}, the default for a policy of {trainer.policy.num_parameters():,} parameters")
    if config.resume:
        checkpoint.resume(trainer, folder)
        print(f"going on after iteration {trainer.iteration}")
    print(f"{machine(trainer.device)}; {len(trainer.prompts)} training and {len(trainer.test_prompts)} test problems")
    print(format_memory(memory_estimate(trainer)))
    if config.resume:
        run = Run(folder, config, trainer.iteration)
    else:
        before = trainer.evaluate(with_kl=False)
        if before["truncated"][0] > 0.5:
            print(f"{before['truncated'][0]:.0%} of the responses are cut by the limit and get reward 0: raise --max_new_tokens")
        folder = new_folder(config.out, name)  # another run may have taken the first meanwhile
        run = Run(folder, config, before=before)
    finished = train_run(trainer, run)
    columns = {f"iteration {row['iteration']}": row["eval"] for row in (run.rows[0], run.rows[-1]) if "eval" in row}
    if finished and (best := run.best()):
        policy, _ = models.load_policy(str(folder / "best"), trainer.device)
        trainer.policy.load_state_dict(policy.state_dict())
        tested = {f"best, iteration {best['iteration']}": trainer.evaluate()}
        (folder / "best" / "evaluation.json").write_text(json.dumps(tested, indent=1), encoding="utf-8")
        columns |= tested
        count = len(trainer.validation_problems)
        print(f"best on {count} validation problems: iteration {best['iteration']}, {folder / 'best'}")
    print(table(columns))
    print(f"{trainer.iteration} iterations: " + ", ".join(f"{name} {s:.1f} s" for name, s in trainer.seconds.items()))
    print(f"{'' if finished else 'interrupted; '}everything is in {folder}")
    return 0 if finished else INTERRUPTED


def train_run(trainer: Trainer, run: Run) -> bool:
    """The loop with its logging and saving. It evaluates after the last iteration. -> False if Ctrl-C ended the loop"""
    config = trainer.config
    total = config.max_seconds or config.iterations

    def done() -> float:
        return min(total, sum(trainer.seconds.values()) if config.max_seconds else trainer.iteration)

    style = dict(dynamic_ncols=True, bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}")
    with tqdm(total=total, initial=done(), desc=config.algorithm, **style) as bar, _interrupts_wait() as interrupted:
        for metrics, episodes, advantages in trainer.train():
            evaluates = config.eval_every and trainer.iteration % config.eval_every == 0 and not interrupted
            if trainer.validation_problems and (evaluates or trainer.done):
                metrics["validation"] = trainer.evaluate(trainer.validation_problems)
            if trainer.done or (evaluates and not trainer.validation_problems):
                metrics["eval"] = trainer.evaluate()
            run.log(metrics)
            if run.best() is metrics:
                run.save_best(trainer)
            run.log_samples(episodes, advantages)
            kept = config.keep_every and trainer.iteration % config.keep_every == 0
            if trainer.done or interrupted or kept or trainer.iteration % config.save_every == 0:
                run.save(trainer)
            bar.set_postfix(iteration=trainer.iteration, **{name: f"{metrics[name]:.2f}" for name in ("reward", "truncated")})
            bar.update(done() - bar.n)
            if interrupted:
                break
    return trainer.done


@contextmanager
def _interrupts_wait():
    """The first Ctrl-C only fills the yielded list, so that the iteration can end. The second Ctrl-C stops at once."""
    pressed: list[int] = []

    def first(number, _):
        pressed.append(number)
        signal.signal(signal.SIGINT, before)
        print("\nstopping after this iteration; Ctrl-C again stops at once and loses it", file=sys.stderr)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def sft(config: SFTConfig) -> int:
    """The `sft` command."""
    folder = new_folder(config.out, f"sft-{task_name(config)}")
    model, tokenizer, loss, lr = imitate(config)
    result = _evaluate(config, model, tokenizer, config.eval_temperature, config.eval_problems, config.eval_samples)
    measured = table({f"temperature {config.eval_temperature:g}": result})
    print(measured)
    models.save_policy(model, tokenizer, folder)
    (folder / "README.md").write_text(model_card(replace(config, lr=lr), loss, measured), encoding="utf-8")
    print(f"policy: {folder} ({model.num_parameters():,} parameters)")
    return 0


def evaluate_policy(config: EvaluateConfig) -> int:
    """The `evaluate` command."""
    out = Path(config.out) if config.out else None
    if out:
        check_writable(out)
        if out.is_dir():
            raise UserError(f"--out {out} is a folder; name a JSON file")
    model, tokenizer = _load(config)
    reference = models.load_policy(config.reference, model.device)[0] if config.reference else None
    result = _evaluate(config, model, tokenizer, config.temperature, config.problems, config.n, config.top_p, reference)
    print(table({Path(policy_name(config)).name: result}))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


def _load(config):
    """The policy and its tokenizer."""
    model, tokenizer = models.load_policy(policy_name(config), models.pick_device(config.device))
    return models.bfloat16_copy(model) if config.bf16 else model, tokenizer


def _prompts_and_sampling(config, model, tokenizer, problems, temperature: float, top_p: float):
    prompts = tasks.prompt_ids(problems, tokenizer, config)
    tasks.check_prompts(prompts, models.context_length(model), config.max_new_tokens)
    eos = tuple(models.eos_ids(model, tokenizer))
    return prompts, Sampling(config.max_new_tokens, eos, temperature, top_p, config.sample_batch_size)


def _evaluate(config, model, tokenizer, temperature: float, limit: int, n: int, top_p: float = 1.0, reference=None):
    problems = tasks.load_problems(config)[1][: limit or None]
    if reference is not None and reference.config.vocab_size != model.config.vocab_size:
        raise UserError(f"--reference has {reference.config.vocab_size} tokens, the policy {model.config.vocab_size}: no KL")
    prompts, sampling = _prompts_and_sampling(config, model, tokenizer, problems, temperature, top_p)
    parts = model, tokenizer, tasks.get(config.task), problems, prompts, sampling
    with tqdm(total=len(prompts) * (n + 1), desc="evaluate", dynamic_ncols=True) as bar:
        return evaluate(*parts, n=n, seed=config.seed, reference=reference, progress=bar.update)


def sample(config: SampleConfig) -> int:
    """The `sample` command."""
    model, tokenizer = _load(config)
    problem = None
    if config.question is None:
        _, problems = tasks.load_problems(config)
        if config.problem >= len(problems):
            raise UserError(f"problem = {config.problem}: there are {len(problems)} test problems, counted from 0")
        problem = problems[config.problem]
    asked = problem or Problem(config.question, "", "")
    prompts, sampling = _prompts_and_sampling(config, model, tokenizer, [asked], config.temperature, config.top_p)
    responses = sample_responses(model, prompts * config.n, sampling, seed=config.seed)
    print(asked.question + (f"   (answer: {problem.answer})" if problem else ""))
    for i, t in enumerate(responses):
        reward = None if problem is None else tasks.grade(tasks.get(config.task), problem, t, tokenizer)
        print(f"\n--- {i + 1}: {verdict(reward, t.finished)}, {len(t.response_ids)} tokens, log-prob {sum(t.logprobs):.2f}")
        print(tokenizer.decode(t.response_ids, skip_special_tokens=True))
    return 0


def machine(device) -> str:
    """What the run takes place on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
