"""The `credit` command: the advantages that VinePPO, PPO and GRPO give to the steps of one response, beside the truth if asked.

The functions that train compute everything: `sampling.rollouts`, `advantages`, the trainer's critic. This module only chooses
the response. Deviation from training: the advantages are shown before they are whitened over a batch.
"""

from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini import models, tasks
from vine_mini.advantages import group_relative, step_advantages
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app import checkpoint
from vine_mini.app.config import Common, CreditConfig, TrainConfig
from vine_mini.app.flags import parse
from vine_mini.app.runs import new_folder
from vine_mini.app.setup import policy_name, task_name
from vine_mini.credit_page.page import Credit, Page, Rollout, finding, render, summary
from vine_mini.credit_page.picture import plot_credit
from vine_mini.evaluate import grade
from vine_mini.sampling import rollouts, sample
from vine_mini.steps import cut_steps, step_texts
from vine_mini.trainer import Trainer
from vine_mini.types import Episodes, Trajectory, UserError, collate, derive_seed
from vine_mini.values import monte_carlo_values, standard_errors


def credit(config: CreditConfig) -> int:
    """The `credit` command."""
    new_folder(config.out, "credit")  # refuses before anything is computed
    page = explain(config)
    html = render(page)
    folder = new_folder(config.out, "credit")  # another run may have taken the first meanwhile
    folder.mkdir(parents=True, exist_ok=True)
    plot_credit(page, folder / "credit.png")
    (folder / "credit.html").write_text(html, encoding="utf-8")
    print(f"{summary(page)}\n{finding(page)}\npage: {folder / 'credit.html'}\npicture: {folder / 'credit.png'}")
    return 0


def explain(config: CreditConfig) -> Page:
    """Samples the responses, picks one, and has every method say what its steps are worth. Raises UserError."""
    trainer = _resting_trainer(config)
    if config.problem >= len(trainer.test_problems):
        raise UserError(f"problem = {config.problem}: there are {len(trainer.test_problems)} test problems, counted from 0")
    critic = _train_critic(trainer, config)
    problem, prompt = trainer.test_problems[config.problem], trainer.test_prompts[config.problem]
    model, tokenizer, task = trainer.sampler(), trainer.tokenizer, trainer.task
    group = sample(model, [prompt] * config.group, trainer.sampling, seed=derive_seed(config.seed, "group"))
    rewards = [grade(task, problem, t, tokenizer) for t in group]
    first_wrong = next((i for i, R in enumerate(rewards) if not R), 0)
    chosen = first_wrong if config.response is None else config.response
    trajectory, R = group[chosen], rewards[chosen]
    ids = trajectory.response_ids
    cuts = cut_steps(ids, tokenizer, every=config.step_tokens, answer_mark=task.ANSWER_MARK)

    def monte_carlo(name: str, k: int) -> tuple[list[list[Rollout]], Credit]:
        with tqdm(total=k * len(cuts), desc=name, dynamic_ncols=True) as bar:
            seed = derive_seed(config.seed, name)
            [states] = rollouts(model, [trajectory], [cuts], trainer.sampling, k=k, seed=seed, progress=bar.update)
        shown = [  # [n][k]
            [_graded(task, problem, ids[:cut], rollout, tokenizer) for rollout in state]
            for cut, state in zip(cuts, states, strict=True)
        ]
        rewards = [[r.reward for r in state] for state in shown]
        values = monte_carlo_values(rewards)
        return shown, Credit(name, step_advantages(values, R), values, standard_errors(rewards))

    shown, vineppo = monte_carlo("vineppo", config.k)
    credits = [vineppo]
    if critic:
        credits.append(_critics_credit(trainer, trajectory, cuts, R))
    credits.append(Credit("grpo", [group_relative(torch.tensor([rewards]))[0, chosen].item()] * len(cuts)))
    if config.truth:
        credits.append(monte_carlo("truth", config.truth)[1])
    return Page(
        question=problem.question,
        answer=problem.answer,
        made=_settings(config, chosen),
        critic=critic,
        gamma=trainer.config.gamma,
        lam=trainer.config.lam,
        finished=trajectory.finished,
        group_rewards=rewards,
        response=chosen,
        steps=step_texts(ids, cuts, tokenizer),
        rollouts=shown,
        truth=config.truth,
        credits=credits,
    )


def _graded(task, problem, ids_before: list[int], rollout: Trajectory, tokenizer) -> Rollout:
    """A rollout as text, with the reward of the whole response: the tokens before the state and the rollout."""
    text = tokenizer.decode(rollout.response_ids, skip_special_tokens=True)
    response = [*ids_before, *rollout.response_ids]
    return Rollout(text, tasks.grade(task, problem, response, rollout.finished, tokenizer), rollout.finished)


def _settings(config: CreditConfig, chosen: int) -> str:
    """What was looked at, in a line; without a path of this machine, unless the user named one."""
    policy = f"Policy {config.model}" if config.model else "The shipped policy"
    cut = f", a step every {config.step_tokens} tokens" if config.step_tokens else ""
    return (
        f"{policy}, test problem {config.problem} of {task_name(config)}, response {chosen} of 0 to {config.group - 1}, "
        f"temperature {config.temperature:g}, at most {config.max_new_tokens} tokens, seed {config.seed}{cut}."
    )


def _resting_trainer(config: CreditConfig) -> Trainer:
    """A trainer whose policy does not change, with a new critic or, if the run trained one, with the run's."""
    saved = parse(TrainConfig, "train", ["--preset", f"{config.run}/config.yaml"]) if config.run else TrainConfig()
    has_critic = ALGORITHMS[saved.algorithm].needs_critic and config.critic_iterations > 0
    settings = {field.name: getattr(config, field.name) for field in fields(Common)} | {
        "algorithm": "ppo" if config.critic_iterations else "reinforce",
        "lr": 0.0,
        "kl_coef": 0.0,
        "lam": saved.lam,
        "gamma": saved.gamma,
        "top_p": saved.top_p,
        "temperature": config.temperature,
        "iterations": max(1, config.critic_iterations),
        "eval_problems": 0,  # all: `problem` may be any of them
    }
    problems = tasks.load_problems(config)
    policy = models.load_policy(policy_name(config), models.pick_device(config.device))
    n = 1 if has_critic or not config.critic_iterations else min(32, len(problems[0]))
    settings |= {"critic_lr": 10 * models.default_lr(policy[0]), "prompts": n, "group": 4, "minibatch_size": 2 * n}
    trainer = Trainer(TrainConfig(**settings), *policy, *problems)
    if has_critic:
        checkpoint.resume(trainer, Path(config.run))
    return trainer


def _train_critic(trainer: Trainer, config: CreditConfig) -> str:
    """Trains the critic unless there is none, or it comes trained from its run. -> where it comes from, for the page"""
    if not trainer.critic:
        return ""
    if trainer.iteration:
        return f"The network is the run's own, after {trainer.iteration} iterations."
    with tqdm(total=config.critic_iterations, desc="critic", dynamic_ncols=True) as bar:
        for metrics, _, _ in trainer.train():
            episodes = metrics["episodes"]
            bar.update()
    return f"The network was trained on {episodes:,} responses of this policy, while the policy rested."


def _critics_credit(trainer: Trainer, trajectory, cuts: list[int], reward: float) -> Credit:
    """GAE over the critic's values: the value before each step, and the mean advantage of its tokens."""
    tokens = collate([trajectory], trainer.device)
    episodes = Episodes([], [trajectory], torch.tensor([[reward]]), [cuts], tokens, trainer.task, trainer.tokenizer)
    values = trainer.score(episodes)[0]["values"]  # [1, T]
    advantages, _, _ = trainer.algorithm.credit(episodes, values, trainer.roll_out, trainer.config)
    mask = tokens.response_mask.bool()
    means = [part.mean().item() for part in advantages[mask].tensor_split(cuts[1:])]
    return Credit("ppo", means, values[mask][cuts].tolist())
