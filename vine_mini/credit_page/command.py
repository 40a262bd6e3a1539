"""The `credit` command: the advantages that VinePPO, PPO and GRPO give to the steps of one response.

The functions that train also compute every number on the page. This module chooses the response.
Deviations from training: the page shows advantages before whitening. VinePPO's advantages are the paper's, V(after) - V(before),
from rollouts alone. Training may average values along the response (mc_lam, mc_mu). Training counts the group in V(s_0).
"""

from dataclasses import fields
from functools import partial
from pathlib import Path

from tqdm import tqdm

from vine_mini import models, tasks
from vine_mini.advantages import step_advantages
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app import checkpoint
from vine_mini.app.config import Common, CreditConfig, TrainConfig
from vine_mini.app.cost import STATES, check_cost
from vine_mini.app.files import write_text
from vine_mini.app.flags import parse
from vine_mini.app.runs import new_folder, step_texts
from vine_mini.app.setup import policy_name, task_name
from vine_mini.credit_page.page import Credit, Page, Rollout, finding, render, summary
from vine_mini.credit_page.picture import plot_credit
from vine_mini.evaluate import mean_of_steps, standard_errors
from vine_mini.sampling import sample
from vine_mini.trainer import Trainer
from vine_mini.types import Episodes, UserError, derive_seed
from vine_mini.values import monte_carlo_values


def credit(config: CreditConfig) -> int:
    """The `credit` command."""
    new_folder(config.out, "credit")  # refuses before anything is computed
    page = explain(config)
    html = render(page)
    folder = new_folder(config.out, "credit")  # another run may have taken the first meanwhile
    plot_credit(page, folder / "credit.png")
    write_text(folder / "credit.html", html)
    print(f"{summary(page)}\n{finding(page)}\npage: {folder / 'credit.html'}\npicture: {folder / 'credit.png'}")
    return 0


def explain(config: CreditConfig) -> Page:
    """Samples a group of responses, picks one, and computes the advantages of its steps by each method. Raises UserError."""
    trainer = _resting_trainer(config)
    if config.problem >= len(trainer.test_problems):
        raise UserError(f"problem = {config.problem}: there are {len(trainer.test_problems)} test problems, counted from 0")
    rolled_out = STATES * (config.k + config.truth)
    responses = rolled_out + config.group * (1 + config.critic_iterations * trainer.config.prompts)
    check_cost(config, trainer.policy.num_parameters(), responses, max(config.group, rolled_out))
    problem, prompts = trainer.test_problems[config.problem], [trainer.test_prompts[config.problem]] * config.group
    group = sample(trainer.sampler(), prompts, trainer.sampling, seed=derive_seed(config.seed, "group"))
    episodes = trainer.as_episodes([problem] * config.group, group)
    rewards = episodes.rewards[0].tolist()
    first_wrong = next((i for i, R in enumerate(rewards) if R < 1), 0)
    chosen = first_wrong if config.response is None else config.response

    rollouts, vineppo = _monte_carlo(trainer, episodes, chosen, "vineppo", config.k)
    truth = [_monte_carlo(trainer, episodes, chosen, "truth", config.truth)[1]] if config.truth else []
    critic = _train_critic(trainer, config)
    ppo = [_whole_group(trainer, episodes, chosen, "ppo", trainer.score(episodes)[0]["values"])] if critic else []
    grpo = _whole_group(trainer, episodes, chosen, "grpo")
    policy = f"Policy {config.model}" if config.model else "The shipped policy"  # no path that the user did not name
    cut = f", a step every {config.step_tokens} tokens" if config.step_tokens else ""
    made = f"{policy}, test problem {config.problem} of {task_name(config)}, response {chosen} of 0 to {config.group - 1}, "
    made += f"temperature {config.temperature:g}, at most {config.max_new_tokens} tokens, seed {config.seed}{cut}."
    return Page(
        question=problem.question,
        answer=problem.answer,
        made=made,
        critic=critic,
        gamma=trainer.config.gamma,
        lam=trainer.config.lam,
        finished=group[chosen].finished,
        group_rewards=rewards,
        response=chosen,
        steps=step_texts(group[chosen].response_ids, episodes.cuts[chosen], trainer.tokenizer),
        rollouts=rollouts,
        truth=config.truth,
        credits=[vineppo, *ppo, grpo, *truth],
    )


def _monte_carlo(trainer: Trainer, episodes: Episodes, chosen: int, name: str, k: int) -> tuple[list[list[Rollout]], Credit]:
    """VinePPO's credit of one response, and the k rollouts from before each of its steps, [n][k]."""
    trajectory, cuts, R = episodes.trajectories[chosen], episodes.cuts[chosen], episodes.rewards[0, chosen].item()
    [states] = trainer.roll_out([trajectory], [cuts], k, name)
    problem, decode = episodes.problems[chosen], partial(trainer.tokenizer.decode, skip_special_tokens=True)
    rewards = [
        [tasks.grade(episodes.task, problem, r, trainer.tokenizer, trajectory.response_ids[:cut]) for r in state]
        for cut, state in zip(cuts, states, strict=True)
    ]  # [n][k]
    rollouts = [
        [Rollout(decode(r.response_ids), reward, r.finished) for r, reward in zip(*pair, strict=True)]
        for pair in zip(states, rewards, strict=True)
    ]
    values = monte_carlo_values(rewards)
    return rollouts, Credit(name, step_advantages(values, R), values, standard_errors(rewards))


def _whole_group(trainer: Trainer, episodes: Episodes, chosen: int, name: str, values=None) -> Credit:
    """The credit of an algorithm without rollouts. A step has the mean advantage of its tokens, and the value before it.

    values: [G, T] of the critic, if the algorithm has one.
    """
    advantages, _, _ = ALGORITHMS[name].credit(episodes, values, None, trainer.config)  # [G, T]
    mask, cuts = episodes.tokens.response_mask[chosen].bool(), episodes.cuts[chosen]
    of_steps = None if values is None else values[chosen][mask][cuts].tolist()
    return Credit(name, mean_of_steps(advantages[chosen][mask], cuts), of_steps)


def _resting_trainer(config: CreditConfig) -> Trainer:
    """A trainer whose policy does not change. Its critic is new, or comes from the run if the run has trained one."""
    saved = parse(TrainConfig, "train", ["--preset", f"{config.run}/config.yaml"]) if config.run else TrainConfig()
    problems = tasks.load_problems(config)
    policy, tokenizer = models.load_policy(policy_name(config), models.pick_device(config.device))
    prompts = min(2 * max(1, 64 // config.group), len(problems[0]))  # about 128 responses in an iteration of the critic
    responses = prompts * config.group
    settings = {field.name: getattr(config, field.name) for field in fields(Common)}
    settings |= {name: getattr(config, name) for name in ("temperature", "step_tokens", "group")}
    settings |= {name: getattr(saved, name) for name in ("lam", "gamma", "top_p")}
    settings |= dict(lr=0.0, critic_lr=10 * models.default_lr(policy), kl_coef=0.0, iterations=max(1, config.critic_iterations))
    settings |= dict(prompts=prompts, minibatch_size=responses // 2 if responses % 2 == 0 else responses)
    algorithm = "ppo" if config.critic_iterations else "reinforce"
    trainer = Trainer(TrainConfig(algorithm=algorithm, **settings), policy, tokenizer, *problems)
    if config.critic_iterations and ALGORITHMS[saved.algorithm].needs_critic:
        checkpoint.resume(trainer, Path(config.run))
    return trainer


def _train_critic(trainer: Trainer, config: CreditConfig) -> str:
    """Trains the critic, if there is one and it does not come from the run. -> the critic's origin, for the page"""
    if not trainer.critic:
        return ""
    if trainer.iteration:
        return f"The network is the run's own, after {trainer.iteration} iterations."
    for metrics, _, _ in tqdm(trainer.train(), total=config.critic_iterations, desc="critic", dynamic_ncols=True):
        responses = metrics["episodes"]
    return f"The network was trained on {responses:,} responses of this policy, which did not change meanwhile."
