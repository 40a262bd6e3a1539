"""The `credit-cost` command: the noise of each credit, its seconds on this machine, and what follows for learning.

The functions that train also sample, roll out and update here, with learning rate 0. `noise.py` holds the mathematics.
The interval of a way is for this way alone: it is not corrected for choosing the cheapest of several ways.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from vine_mini import tasks
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app import checkpoint
from vine_mini.app.commands import machine
from vine_mini.app.config import TrainConfig
from vine_mini.app.cost import STATES, check_cost
from vine_mini.app.files import new_folder, write_text
from vine_mini.app.intervals import t_quantile
from vine_mini.app.setup import build_trainer, task_name
from vine_mini.credit_cost import noise
from vine_mini.credit_cost.config import CreditCostConfig
from vine_mini.credit_cost.noise import Pool, mean_and_error
from vine_mini.credit_cost.picture import plot_cost
from vine_mini.evaluate import mean_of_steps
from vine_mini.logprobs import hidden_before, logits_of, rows_of_logits
from vine_mini.models import autocast
from vine_mini.trainer import Trainer
from vine_mini.types import Episodes, Tokens, UserError

EXPONENT = 0.5  # seconds to the same learning grow with (noise + signal) to this power; see results/credit
BASE, PLACES = "grpo", 10
LONG_SECONDS = 10  # a phase that takes longer is not timed again


@dataclass(frozen=True)
class Way:
    """One way to give credit, and what was measured of it."""

    name: str
    noise: float  # summed over the steps of a response
    error: float  # the standard error of the noise, over problems
    in_gradient: float  # the noise, each step weighted by the freedom that the policy has there
    by_problem: list[float]  # the share of each problem in it
    seconds: dict[str, float]  # of an iteration, by phase
    relative: float = 1.0  # seconds to the same learning, GRPO's = 1; by `compare`
    interval: tuple[float, float] = (1.0, 1.0)  # its 95 % interval over problems; the seconds count as exact


@dataclass
class CostReport:
    """What the command measured."""

    made: str  # policy, problems and settings
    ways: list[Way]  # the first is whole-response credit
    signal: tuple[float, float]  # and its standard error; summed over the steps of a response
    success: tuple[float, float]  # mean reward of the responses, and its error
    largest: tuple[float, float] | None  # see noise.largest_step
    places: list[float]  # [PLACES] share of the signal by place in the response
    advice: str


def credit_cost(config: CreditCostConfig) -> int:
    """The `credit-cost` command."""
    name = f"credit-cost-{task_name(config)}"
    new_folder(config.out, name)  # refuses before anything is computed
    report = measure(config)
    folder = new_folder(config.out, name)
    text = table(report)
    print(text, flush=True)  # first, since a full disk would lose the whole measurement
    write_text(folder / "credit_cost.json", json.dumps(asdict(report), indent=1))
    write_text(folder / "credit_cost.md", text + "\n")
    plot_cost(report, folder / "credit_cost.png")
    print(f"\npicture, table and JSON: {folder}")
    return 0


def measure(config: CreditCostConfig) -> CostReport:
    """Samples responses and a pool of rollouts, times the phases of an iteration, and compares the ways to give credit."""
    settings = {field.name: getattr(config, field.name) for field in fields(TrainConfig)}
    settings |= dict(lr=0.0, critic_lr=0.0, eval_every=0, iterations=10**9, max_seconds=0)  # the policy stays as it is
    trainer = build_trainer(TrainConfig(**settings | {"algorithm": BASE}))
    if config.problems > len(trainer.prompts):
        raise UserError(f"problems = {config.problems}, but there are only {len(trainer.prompts)} training problems")
    responses = config.problems * config.group * (1 + STATES * config.pool)
    check_cost(config, trainer.policy.num_parameters(), responses, responses)
    ppo = _trained_critic(config, settings, trainer)
    shared = seconds_of_training(trainer)
    most = max(2, config.k, *config.ks)
    rollouts = {k: seconds_of_rollouts(trainer, k) for k in (1, most)}  # other K lie between these two
    pools, batches = sample_pools(trainer, config.problems, config.pool)
    check(pools)
    signal = way("signal", pools, [noise.signal(p) for p in pools], {})
    ways = [way("GRPO, RLOO", pools, [noise.noise(p, k=0, group=config.group, lam=1.0, mu=1.0) for p in pools], shared)]
    if ppo:
        credits = [row for episodes in batches for row in credit_of_steps(ppo, episodes)]
        of_steps = [noise.critic_noise(p, row) for p, row in zip(pools, credits, strict=False)]
        ways.append(way("PPO", pools, of_steps, seconds_of_training(ppo)))
    dials = {k: [(0.0, 0.0), noise.best_dials(pools, k=k, group=config.group)] for k in config.ks}
    dials.setdefault(config.k, []).append((config.mc_lam, config.mc_mu))  # the user's own
    for k, of_k in sorted(dials.items()):
        seconds = shared | {"rollouts": rollouts[1] + (k - 1) / (most - 1) * max(0.0, rollouts[most] - rollouts[1])}
        for lam, mu in dict.fromkeys(of_k):
            of_steps = [noise.noise(p, k=k, group=config.group, lam=lam, mu=mu) for p in pools]
            name = f"VinePPO, K = {k}" + (f", mc_lam {lam:g}, mc_mu {mu:g}" if lam or mu else "")
            ways.append(way(name, pools, of_steps, seconds))
    if signal.noise <= 0 or min(w.in_gradient for w in ways) + signal.in_gradient <= 0:
        raise UserError(
            "the advantages are too small to tell from 0: raise --problems or --pool, or take problems of another length"
        )
    ways = compare(ways, signal)
    places = [0.0] * PLACES
    for p in pools:
        for place, x in zip(p.places, noise.signal(p).tolist(), strict=True):
            places[int(PLACES * place)] += x / signal.noise / len(pools)
    success = mean_and_error(pools, [p.reward for p in pools])
    policy = f"the policy of {config.run}" if config.run else config.model or "the shipped policy"
    size = f"{config.group} responses to each of {config.problems} problems, {config.pool} rollouts a state"
    made = f"{policy} on {task_name(config)}, {size}, seed {config.seed}, on {machine(trainer.device)}"
    return CostReport(made, ways, (signal.noise, signal.error), success, noise.largest_step(pools), places, advice(ways))


def _trained_critic(config: CreditCostConfig, settings: dict, trainer: Trainer) -> Trainer | None:
    """A trainer with the same policy and with the critic of `config.run`, if that run has trained one."""
    if not config.run or not ALGORITHMS[config.algorithm].needs_critic:
        return None
    ppo = Trainer(TrainConfig(**settings), trainer.policy, trainer.tokenizer, trainer.train_problems, trainer.test_problems)
    checkpoint.resume(ppo, Path(config.run))
    return ppo


def way(name: str, pools: list[Pool], of_steps: list, seconds: dict[str, float]) -> Way:
    """The mean over responses of a noise of steps [n]. Where the policy is sure of its tokens, noise moves no weight."""
    total = sum(float(p.freedom.mean()) for p in pools) or 1.0  # so that the weights have mean 1
    by_problem = [0.0] * (1 + max(p.problem for p in pools))
    for p, row in zip(pools, of_steps, strict=True):
        by_problem[p.problem] += float(p.freedom @ row) / total
    return Way(name, *mean_and_error(pools, [float(row.sum()) for row in of_steps]), sum(by_problem), by_problem, seconds)


def compare(ways: list[Way], signal: Way) -> list[Way]:
    """The ways with their seconds to the same learning, as a multiple of the first one's.

    The interval is Student's t over problems, for the logarithm of the ratio. By the delta method, a problem moves this logarithm
    by its share in the way's sum minus its share in the first way's sum.
    """
    base, n, compared = ways[0], len(signal.by_problem), []
    if n < 2:  # two draws of one problem
        raise UserError("all responses belong to one problem, so no error can be told: raise --problems")
    theirs = [a + b for a, b in zip(base.by_problem, signal.by_problem, strict=True)]
    for w in ways:
        mine = [a + b for a, b in zip(w.by_problem, signal.by_problem, strict=True)]
        relative = sum(w.seconds.values()) / sum(base.seconds.values()) * (sum(mine) / sum(theirs)) ** EXPONENT
        moves = [EXPONENT * (a / sum(mine) - b / sum(theirs)) for a, b in zip(mine, theirs, strict=True)]
        half = t_quantile(0.975, n - 1) * math.sqrt(n / (n - 1) * sum(move * move for move in moves))
        interval = relative * math.exp(-half), relative * math.exp(min(half, 700.0))
        compared.append(replace(w, relative=relative, interval=interval))
    return compared


def seconds_of_training(trainer: Trainer) -> dict[str, float]:
    """Seconds of an iteration without rollouts, by phase."""
    phases: dict[str, list[float]] = {"sample": [], "score": [], "update": []}
    for _, (metrics, _, _) in zip(_repeats(), trainer.train(), strict=False):
        for phase, seconds in phases.items():
            seconds.append(metrics[f"seconds_{phase}"])
    trainer.iteration = 0  # so that the pools do not depend on the number of repeats
    return {phase: min(seconds) for phase, seconds in phases.items()}


def seconds_of_rollouts(trainer: Trainer, k: int) -> float:
    """Seconds of VinePPO's credit for one iteration, grading included."""
    episodes, config, seconds = trainer.sample_episodes(), replace(trainer.config, k=k), []
    for _ in _repeats():
        start = trainer.clock()
        ALGORITHMS["vineppo"].credit(episodes, None, trainer.roll_out, config)
        seconds.append(trainer.clock() - start)
    return min(seconds)


def _repeats():
    """Three times, or fewer where the first ones took long. The first time includes what is only done once."""
    start = time.perf_counter()
    for i in range(3):
        if i and time.perf_counter() - start > LONG_SECONDS:
            return
        yield i


def sample_pools(trainer: Trainer, problems: int, m: int):
    """m rollouts from each state of a group of responses to each problem. -> the pools, the episodes that they belong to"""
    group, pools, batches, known, numbers = trainer.config.group, [], [], {}, {}
    wanted = problems * group
    while len(pools) < wanted:
        episodes = trainer.sample_episodes()
        rows = range(min(len(episodes.trajectories), wanted - len(pools)))
        trajectories, cuts = [episodes.trajectories[i] for i in rows], [episodes.cuts[i] for i in rows]
        squares = squared_gradients(trainer, episodes.tokens.rows(torch.arange(len(rows))))
        for i, states in enumerate(trainer.roll_out(trajectories, cuts, m, "pool")):
            of = episodes.problems[i], trajectories[i], cuts[i], states
            rewards = tasks.grade_rollouts(episodes.task, *of, trainer.tokenizer, known)  # [n][m]
            places = [cut / len(trajectories[i].response_ids) for cut in cuts[i]]
            R = episodes.rewards.flatten()[i].item()
            problem = numbers.setdefault(episodes.problems[i].question, len(numbers))  # a second epoch repeats problems
            freedom = torch.stack([part.sum() for part in squares[i].tensor_split(cuts[i][1:])])  # [n]
            pools.append(Pool(torch.tensor(rewards, dtype=torch.float64), R, problem, places, freedom))
        batches.append(episodes)
        trainer.iteration += 1
    return pools, batches


@torch.no_grad()
def squared_gradients(trainer: Trainer, tokens: Tokens) -> list[torch.Tensor]:
    """1 - 2 q_y + sum of q^2 = |e_y - q|^2 of each response token y, where q are the policy's probabilities. -> [B][tokens]

    This is the squared gradient of the token's log-prob in the logits. Noise of its advantage moves them in proportion to it.
    """
    policy, config, found = trainer.policy, trainer.config, {}
    for rows in tokens.micro_batches(torch.arange(len(tokens)), config.micro_batch_tokens):
        part, pieces = tokens.rows(rows), []
        mask = part.response_mask.bool()
        with autocast(trainer.device, config.bf16):
            hidden = hidden_before(policy.base_model, part.input_ids, part.attention_mask, part.response_mask)  # [n, D]
        size = rows_of_logits(policy)
        for h, y in zip(hidden.split(size), part.input_ids[mask].split(size), strict=True):
            q = logits_of(policy, h).div(config.temperature or 1.0).softmax(dim=-1).double()  # [n, V]
            pieces.append(1 - 2 * q.gather(1, y[:, None])[:, 0] + q.square().sum(dim=-1))
        of_rows = torch.cat(pieces).cpu().split(mask.sum(dim=1).tolist())
        found |= dict(zip(rows.tolist(), of_rows, strict=True))
    return [found[row] for row in range(len(tokens))]


def credit_of_steps(trainer: Trainer, episodes: Episodes) -> list[list[float]]:
    """The mean advantage of each step's tokens, for an algorithm that gives credit to tokens. -> [B][step]

    What differs within a step does not count as noise, so the noise of PPO is at least the one that is shown.
    """
    values = trainer.score(episodes)[0]["values"]
    advantages, _, _ = trainer.algorithm.credit(episodes, values, None, trainer.config)  # [B, T]
    rows = zip(advantages, episodes.tokens.response_mask.bool(), episodes.cuts, strict=True)
    return [mean_of_steps(row[mask], cuts) for row, mask, cuts in rows]


def check(pools: list[Pool]) -> None:
    """Raises UserError where no credit can be measured."""
    rewards = torch.cat([p.rewards.flatten() for p in pools])
    if rewards.min() == rewards.max():
        change = "easier problems or a better policy" if rewards.max() == 0 else "harder problems"
        found = f"all {len(rewards):,} rollouts have reward {rewards.max():g}"
        raise UserError(f"{found}, so there is no credit to measure: take {change}")
    if max(len(p.rewards) for p in pools) < 2:
        raise UserError("each response is a single step, so all methods give the same credit: cut steps with --step_tokens")


def advice(ways: list[Way]) -> str:
    """One sentence: the cheapest way and what it saves."""
    base, best = ways[0], min(ways, key=lambda way: way.relative)
    rival = min(ways[1:], key=lambda way: way.relative) if best is base else best
    low, high = rival.interval
    says = f"{rival.relative:.2f} [{low:.2f}, {high:.2f}] times"
    if low <= 1 <= high:
        return f"{rival.name} needs {says} the seconds of {base.name} for the same learning: no difference is shown."
    if best is base:
        return f"Take {base.name}: {rival.name} comes next and needs {says} its seconds for the same learning."
    return f"Take {best.name}: it needs {says} the seconds of {base.name} for the same learning."


def table(report: CostReport) -> str:
    """What was measured, as text."""
    lines = [report.made, ""]
    lines.append("success {:.3f} ± {:.3f}, signal {:.3f} ± {:.3f} a response".format(*report.success, *report.signal))
    if report.largest:  # some response was right
        largest, average = report.largest
        lines += [f"right responses gain {largest:.0%} of their value in their largest step, {average:.0%} in an average step"]
    lines += ["", f"{'credit':36} {'noise':>15} {'s/iteration':>12} {'of it rollouts':>15}   time to the same learning [95 %]"]
    for w in report.ways:
        cells = f"{w.noise:8.3f} ± {w.error:.3f} {sum(w.seconds.values()):12.2f} {w.seconds.get('rollouts', 0.0):15.2f}"
        lines.append(f"{w.name:36} {cells} {w.relative:12.2f} [{w.interval[0]:.2f}, {w.interval[1]:.2f}]")
    alone = "[95 %]: of each way alone, not corrected for choosing the cheapest of several ways"
    return "\n".join([*lines, alone, "", report.advice])
