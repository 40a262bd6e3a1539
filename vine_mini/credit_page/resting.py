"""What the `credit` command measures: a policy that rests, and groups of responses, its own or the user's.

Deviation from training: the token ids of a user's own response are the tokenizer's. The policy might have cut the text otherwise.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from tqdm import tqdm

from vine_mini import models, tasks
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app import checkpoint
from vine_mini.app.config import Common, TrainConfig
from vine_mini.app.flags import config_of_run
from vine_mini.app.setup import policy_name
from vine_mini.credit_page.config import CreditConfig
from vine_mini.credit_page.measure import Resting
from vine_mini.sampling import sample
from vine_mini.tasks.gsm8k import read_jsonl, text_field
from vine_mini.tasks.jsonl import with_text_answer
from vine_mini.types import Episodes, Problem, Trajectory, UserError, derive_seed

CRITIC_RESPONSES = 128  # in an iteration, each to another problem


@dataclass
class Own:
    """A user's own question, and the responses to it; the policy samples them where there are none."""

    problem: Problem
    responses: list[tuple[str, bool, str]]  # text, whether it ended by itself, the line of the file


def read_own(path: Path, task) -> list[Own]:
    """Questions and responses from JSON lines, one response a line. Equal questions are one group. Raises UserError."""
    found: dict[str, Own] = {}
    for where, question, answer, response, finished in read_jsonl(path, _fields):
        marked = f"{task.ANSWER_MARK or ''} {answer}"  # the answer may stand alone, or end a solution
        right = task.extract_answer(answer) or task.extract_answer(marked) or " ".join(answer.split())
        problem = Problem(question, answer, right)
        own = found.setdefault(question, Own(problem, []))
        if own.problem != problem:
            raise UserError(f"{where}: the same question has another answer above")
        if response is not None:
            own.responses.append((response, finished, where))
    if not found:
        raise UserError(f"{path} holds no questions: each line is a JSON object with question, answer and response")
    return list(found.values())


def _fields(row, where: str) -> tuple[str, str, str, str | None, bool]:
    """where, question, answer, response (None: to be sampled), finished"""
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object with question, answer and response")
    row = with_text_answer(row, where)
    question, answer = text_field(row, "question", where), text_field(row, "answer", where)
    response = None if row.get("response") is None else text_field(row, "response", where)
    if not isinstance(row.get("finished", True), bool):
        raise UserError(f"{where}: 'finished' says whether the response ended by itself, so it is true or false")
    return where, question, answer, response, row.get("finished", True)


def group_of(trainer: Resting, config: CreditConfig, number: int, own: list[Own]) -> Episodes:
    """The responses to one problem: the user's own, or `config.group` sampled ones. Seeded by the problem's number."""
    problem, prompt, start = trainer.test_problems[number], trainer.test_prompts[number], trainer.clock()
    if own and own[number].responses:
        group = [_trajectory(trainer, prompt, *response) for response in own[number].responses]
    else:
        seed = derive_seed(config.seed, "group", number)
        group = sample(trainer.sampler(), [prompt] * config.group, trainer.sampling, seed=seed)
        trainer.spend("responses", start, sum(len(t.response_ids) for t in group))
    return trainer.as_episodes([problem], group)


def _trajectory(trainer: Resting, prompt: list[int], text: str, finished: bool, where: str) -> Trajectory:
    ids = trainer.tokenizer(text, add_special_tokens=False)["input_ids"] + [trainer.sampling.eos_token_id[0]] * finished
    if len(ids) > (most := trainer.sampling.max_new_tokens):
        raise UserError(f"{where}: the response has {len(ids)} tokens, and max_new_tokens is {most}: raise --max_new_tokens")
    return Trajectory(prompt, ids, [0.0] * len(ids), finished)  # no log-prob of a response is used


def resting_trainer(config: CreditConfig, own: list[Own], model: str | None = None) -> Resting:
    """A trainer whose policy, `model` or the config's, does not change.

    Its test problems are the user's own ones, if there are any. Its critic is new, or comes from the run if that has trained one.
    """
    saved = config_of_run(config.run) if config.run else TrainConfig()
    with_critic = config.critic_iterations > 0 and config.problems is None and model is None
    problems = [each.problem for each in own]
    train, test = (problems, problems) if own and not with_critic else tasks.load_problems(config)
    name = policy_name(replace(config, model=model, run=None) if model else config)
    policy, tokenizer = models.load_policy(name, models.pick_device(config.device))
    prompts = min(CRITIC_RESPONSES, len(train))
    settings = {field.name: getattr(config, field.name) for field in fields(Common)}
    settings |= {name: getattr(config, name) for name in ("temperature", "step_tokens")}
    settings |= {name: getattr(saved, name) for name in ("lam", "gamma", "top_p", "adam_8bit")}
    settings |= dict(lr=0.0, critic_lr=10 * models.default_lr(policy), kl_coef=0.0, iterations=max(1, config.critic_iterations))
    settings |= dict(eval_temperature=1.0)  # nothing is evaluated
    settings |= dict(prompts=prompts, group=1, minibatch_size=prompts // 2 if prompts % 2 == 0 else prompts)
    algorithm = "ppo" if with_critic else "reinforce"
    trainer = Resting(TrainConfig(algorithm=algorithm, **settings), policy, tokenizer, train, problems or test)
    if with_critic and ALGORITHMS[saved.algorithm].needs_critic:
        checkpoint.resume(trainer, Path(config.run))
    return trainer


def train_critic(trainer: Resting, iterations: int) -> str:
    """Trains the critic, if there is one and it does not come from the run. -> the critic's origin, for the page"""
    if not trainer.critic:
        return ""
    if trainer.iteration:
        return f"The network is the run's own, after {trainer.iteration} iterations."
    start, lengths = trainer.clock(), []
    for metrics, _, _ in tqdm(trainer.train(), total=iterations, desc="critic", dynamic_ncols=True):
        lengths.append(metrics["length"])
    responses = metrics["episodes"]
    trainer.spend("critic", start, sum(lengths) / len(lengths) * responses)
    return f"The network was trained on {responses:,} responses of this policy, which did not change meanwhile."


def other_trainer(config: CreditConfig, own: list[Own], trainer: Resting) -> Resting | None:
    """The trainer of `config.other`, which judges the same token ids. Raises UserError where it has another tokenizer."""
    if config.other is None:
        return None
    other = resting_trainer(config, own, config.other)
    if other.tokenizer.get_vocab() != trainer.tokenizer.get_vocab():
        raise UserError("--other has another tokenizer than the policy, so it cannot judge the same responses")
    return other
