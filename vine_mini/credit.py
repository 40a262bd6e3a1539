"""The `credit` command: how VinePPO, PPO and GRPO, and ground truth on request, give credit to the steps of one response.

Everything is computed by what trains: `vines`, `advantages`, the trainer's critic. Only the choice of the response is new.
Deviation from training: advantages are shown before they are whitened over a batch.
"""

import random
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini import checkpoint, tasks, vines
from vine_mini.advantages import gae, group_relative, step_advantages
from vine_mini.config import Common, CreditConfig, TrainConfig
from vine_mini.evaluate import grade
from vine_mini.flags import parse
from vine_mini.page import Credit, Page, Rollout, finding, render, summary
from vine_mini.plots import plot_credit
from vine_mini.runs import new_folder
from vine_mini.sampling import sample
from vine_mini.steps import cut_steps, step_texts
from vine_mini.trainer import Trainer
from vine_mini.types import Trajectory, UserError, collate, on_response
from vine_mini.values import standard_error

CRITIC_LR = {"arithmetic": 1e-3, "gsm8k": 1e-5}  # for a policy from scratch, and for a pretrained one


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
    model, tokenizer, settings = trainer.sampler(), trainer.tokenizer, _sampling(trainer)
    group = sample(model, [prompt] * config.group, seed=_seed(config, "group"), **settings)
    rewards = [grade(problem, t, tokenizer) for t in group]
    first_wrong = next((i for i, R in enumerate(rewards) if not R), 0)
    chosen = first_wrong if config.response is None else config.response
    trajectory, R = group[chosen], rewards[chosen]
    ids, cuts = trajectory.response_ids, cut_steps(trajectory.response_ids, tokenizer, every=config.step_tokens)

    def monte_carlo(name: str, k: int) -> tuple[list[list[Rollout]], Credit]:
        with tqdm(total=k * len(cuts), desc=name, dynamic_ncols=True) as bar:
            seed = _seed(config, name)
            [grown] = vines.rollouts(model, [trajectory], [cuts], k=k, seed=seed, progress=bar.update, **settings)
        rollouts = [  # [n][k]
            [_graded(problem, ids[:cut], completion, tokenizer) for completion in completions]
            for cut, completions in zip(cuts, grown, strict=True)
        ]
        values = [sum(r.reward for r in state) / k for state in rollouts]
        return rollouts, Credit(name, step_advantages(values, R), values, [standard_error(v, k) for v in values])

    rollouts, vineppo = monte_carlo("vineppo", config.k)
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
        rollouts=rollouts,
        truth=config.truth,
        credits=credits,
    )


def _graded(problem, ids_before: list[int], completion: Trajectory, tokenizer) -> Rollout:
    """A completion as text, with the reward of the response that it makes with what came before."""
    text = tokenizer.decode(completion.response_ids, skip_special_tokens=True)
    response = [*ids_before, *completion.response_ids]
    return Rollout(text, tasks.reward(problem, response, completion.finished, tokenizer), completion.finished)


def _settings(config: CreditConfig, chosen: int) -> str:
    """What was looked at, in a line; without a path of this machine, unless the user named one."""
    policy = f"Policy {config.model}" if config.model else "The shipped policy"
    cut = f", a step every {config.step_tokens} tokens" if config.step_tokens else ""
    return (
        f"{policy}, test problem {config.problem} of {config.task}, response {chosen} of 0 to {config.group - 1}, "
        f"temperature {config.temperature:g}, at most {config.max_new_tokens} tokens, seed {config.seed}{cut}."
    )


def _resting_trainer(config: CreditConfig) -> Trainer:
    """A trainer whose policy stays as it is, with a new critic or, if the run trained one, with the run's."""
    saved = parse(TrainConfig, "train", ["--preset", f"{config.run}/config.yaml"]) if config.run else TrainConfig()
    has_critic = saved.algorithm == "ppo" and config.critic_iterations > 0
    settings = {field.name: getattr(config, field.name) for field in fields(Common)} | {
        "algorithm": "ppo" if config.critic_iterations else "reinforce",
        "lr": 0.0,
        "critic_lr": CRITIC_LR[config.task],
        "kl_coef": 0.0,
        "lam": saved.lam,
        "gamma": saved.gamma,
        "top_p": saved.top_p,
        "temperature": config.temperature,
        "iterations": max(1, config.critic_iterations),
        "eval_problems": 0,  # all: `problem` may be any of them
    }
    n = 1 if has_critic or not config.critic_iterations else min(32, len(tasks.load_problems(config)[0]))
    trainer = Trainer(TrainConfig(**settings, prompts=n, group=4, minibatch_size=2 * n))
    if has_critic:
        checkpoint.resume(trainer, Path(config.run) / "policy")
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
    """GAE over the critic's values: of each step the value before it, and the mean advantage of its tokens."""
    batch = collate([trajectory], trainer.device)
    trainer.score(batch, [trajectory])
    mask, T = batch.response_mask, len(trajectory.response_ids)
    rewards = on_response([[0.0] * (T - 1) + [reward]], mask)
    advantages, _ = gae(rewards, batch.values, mask, gamma=trainer.config.gamma, lam=trainer.config.lam)
    values, advantages = batch.values[mask.bool()], advantages[mask.bool()]  # of the response's tokens
    return Credit("ppo", [part.mean().item() for part in advantages.tensor_split(cuts[1:])], values[cuts].tolist())


def _sampling(trainer: Trainer) -> dict:
    """How responses and rollouts alike are sampled."""
    config = trainer.config
    return dict(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        eos_token_id=trainer.eos,
        batch_size=config.sample_batch_size,
    )


def _seed(config: CreditConfig, name: str) -> int:
    return random.Random(f"{config.seed} {name}").getrandbits(32)  # PyTorch's generator looks at 32 bits only
