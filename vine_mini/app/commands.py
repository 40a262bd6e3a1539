"""The commands that train and measure a policy. Each of them takes its config and returns an exit code."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini import models, tasks
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app import checkpoint
from vine_mini.app.config import EvaluateConfig, SampleConfig, SFTConfig, TrainConfig
from vine_mini.app.cost import STATES, check_cost
from vine_mini.app.files import file_to_write, free_name, locked, new_folder, whole, write_text
from vine_mini.app.flags import read_preset
from vine_mini.app.loop import train_run
from vine_mini.app.memory import check_memory, format_memory, memory_estimate
from vine_mini.app.runs import Run
from vine_mini.app.setup import build_trainer, find_policy, policy_name, task_name
from vine_mini.app.sft import imitate, model_card
from vine_mini.app.tables import verdict, visible
from vine_mini.evaluate import evaluate, table
from vine_mini.sampling import sample as sample_responses
from vine_mini.sampling import way
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
    print(f"{machine(trainer.device)}; {len(trainer.prompts)} training and {len(trainer.test_prompts)} test problems")
    if both := len({p.question for p in trainer.train_problems} & {p.question for p in trainer.test_problems}):
        print(f"{both} test problems are training problems too: accuracy on them says nothing about new problems")
    estimate = memory_estimate(trainer)
    print(format_memory(estimate), flush=True)
    check_memory(estimate, trainer.device, config.yes)
    print(f"sampling: {way(trainer.sampler())}")
    check_cost(config, trainer.policy.num_parameters(), *_responses(config, len(trainer.test_prompts)))
    if not config.resume:
        checkpoint.keep_start(config.model, folder)
        before = trainer.evaluate(with_kl=False)
        if before["truncated"][0] > 0.5:
            print(f"{before['truncated'][0]:.0%} of the responses are cut by the limit and get reward 0: raise --max_new_tokens")
        folder = new_folder(config.out, name)  # another run may have taken the first meanwhile
        Run.start(folder, config, before)
    with locked(folder):
        if config.resume:
            if saved := checkpoint.newest(folder):
                checkpoint.check_settings(trainer, folder, saved)
                checkpoint.resume(trainer, folder, saved)
            print(_goes_on(trainer, folder))
        run = Run(folder, config, trainer.iteration)
        finished = train_run(trainer, run)
        columns = {f"iteration {row['iteration']}": row["eval"] for row in (run.rows[0], run.rows[-1]) if "eval" in row}
        if finished and "eval" not in run.rows[-1]:  # resumed with no iteration left
            columns[f"iteration {trainer.iteration}"] = trainer.evaluate()
        if finished and (best := run.best()):
            columns |= evaluate_best(trainer, folder, best["iteration"])
    print(table(columns))
    print(f"{trainer.iteration} iterations: " + ", ".join(f"{name} {s:.1f} s" for name, s in trainer.seconds.items()))
    print(f"{'' if finished else 'interrupted; '}everything is in {folder}")
    return 0 if finished else INTERRUPTED


def _goes_on(trainer: Trainer, folder: Path) -> str:
    """What is said of a resumed run. One that has ended is only measured again, and completed where it was killed at its end."""
    iterations, most, spent = trainer.config.iterations, trainer.config.max_seconds, sum(trainer.seconds.values())
    if 0 < most <= spent and most != read_preset(f"{folder}/config.yaml").get("max_seconds"):  # it would get the smaller number
        raise UserError(f"{folder} has trained for {spent:.2f} seconds already: raise --max_seconds, or leave it out")
    if not trainer.done:
        return f"going on after iteration {trainer.iteration}"
    if trainer.iteration < iterations:
        return f"{folder} has trained for its {most:g} seconds already: raise --max_seconds to go on"
    says = f"{folder} has its {trainer.iteration} iterations already: raise --iterations to go on"
    if trainer.iteration > iterations:  # config.yaml would get the smaller number
        raise UserError(says)
    return says


def _responses(config: TrainConfig, tests: int) -> tuple[float, float]:
    """The responses of a training run, and those in memory at the same time. One iteration, where seconds limit the run.

    An update counts as three responses for each of its own, because a backward pass takes twice the time of a forward pass.
    """
    iterations, algorithm = 1 if config.max_seconds else config.iterations, ALGORITHMS[config.algorithm]
    rollouts = STATES * config.k if algorithm.needs_rollouts else 0
    episodes, an_evaluation = config.prompts * config.group, tests * config.eval_samples
    sampled = episodes * (1 + rollouts)
    evaluations = 2 + (iterations // config.eval_every if config.eval_every else 0)
    responses = iterations * (sampled + 3 * config.epochs * episodes) + evaluations * an_evaluation
    if algorithm.choose_examples and config.eval_every:  # they choose the best epoch by the validation problems
        responses += iterations * config.epochs * config.validation * config.eval_samples
    return responses, max(sampled, an_evaluation)


def evaluate_best(trainer: Trainer, folder: Path, iteration: int) -> dict:
    """Measures RUN/best, the policy of an iteration, on the test problems. -> {name: evaluation}, also in its evaluation.json"""
    policy, _ = models.load_policy(str((folder / "best").absolute()), trainer.device)  # never a name of the Hub
    trainer.policy.load_state_dict(policy.state_dict())
    del policy  # a second model in the memory of the device
    tested = {f"best, iteration {iteration}": trainer.evaluate()}
    write_text(folder / "best" / "evaluation.json", json.dumps(tested, indent=1))
    print(f"best on {len(trainer.validation_problems)} validation problems: iteration {iteration}, {folder / 'best'}")
    return tested


def sft(config: SFTConfig) -> int:
    """The `sft` command."""
    folder = new_folder(config.out, f"sft-{task_name(config)}")
    model, tokenizer, loss, lr = imitate(config, folder)
    if folder.exists() and any(folder.iterdir()):
        folder = free_name(folder)  # another command has taken the name meanwhile
    with whole(folder) as fresh:  # before the evaluation, in which the policy could be lost
        models.save_policy(model, tokenizer, fresh)
        write_text(fresh / "README.md", model_card(replace(config, lr=lr), loss, "(not evaluated)"))
    print(f"policy: {folder} ({model.num_parameters():,} parameters)")
    result = _evaluate(config, model, tokenizer, config.eval_temperature, config.eval_problems, config.eval_samples)
    measured = table({f"temperature {config.eval_temperature:g}": result})
    print(measured)
    write_text(folder / "README.md", model_card(replace(config, lr=lr), loss, measured))
    return 0


def evaluate_policy(config: EvaluateConfig) -> int:
    """The `evaluate` command."""
    out = file_to_write(Path(config.out)) if config.out else None
    model, tokenizer = _load(config)
    reference, vocabulary = (
        models.load_policy(find_policy(config.reference), model.device) if config.reference else (None, tokenizer)
    )
    if vocabulary.get_vocab() != tokenizer.get_vocab():
        raise UserError("--reference has another tokenizer than the policy (their vocabularies differ): no KL")
    result = _evaluate(config, model, tokenizer, config.temperature, config.problems, config.n, config.top_p, reference)
    print(table({f"{visible(Path(policy_name(config)).name)}, temperature {config.temperature:g}": result}))
    if out:
        settings = {"temperature": config.temperature, "top_p": config.top_p, "n": config.n}
        write_text(out, json.dumps(result | settings, indent=1))
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
    prompts, sampling = _prompts_and_sampling(config, model, tokenizer, problems, temperature, top_p)
    check_cost(config, model.num_parameters(), len(prompts) * (n + 1), len(prompts) * n)
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
    check_cost(config, model.num_parameters(), config.n, config.n)
    responses = sample_responses(model, prompts * config.n, sampling, seed=config.seed)
    print(visible(asked.question) + (f"   (answer: {visible(problem.answer)})" if problem else ""))
    for i, t in enumerate(responses):
        reward = None if problem is None else tasks.grade(tasks.get(config.task), problem, t, tokenizer)
        print(f"\n--- {i + 1}: {verdict(reward, t.finished)}, {len(t.response_ids)} tokens, log-prob {sum(t.logprobs):.2f}")
        print(visible(tokenizer.decode(t.response_ids, skip_special_tokens=True)))
    return 0


def machine(device) -> str:
    """What the run takes place on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return f"{name}, threads: {torch.get_num_threads()}, torch {torch.__version__}"
