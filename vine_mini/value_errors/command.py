"""The `analyze values` command: how wrong are a run's critic and Monte Carlo values of few rollouts? (VinePPO, section 7)

The truth of a state is the mean reward of many rollouts. The estimates use other rollouts. All states are on responses to test
problems, sampled by the run's policy as in training.
"""

import copy
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini import tasks
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app import checkpoint
from vine_mini.app.config import TrainConfig
from vine_mini.app.cost import STATES, check_cost
from vine_mini.app.files import new_folder, write_text
from vine_mini.app.flags import config_of_run
from vine_mini.app.setup import build_trainer
from vine_mini.app.tables import columns
from vine_mini.evaluate import percent
from vine_mini.sampling import sample
from vine_mini.trainer import BAR, Trainer
from vine_mini.types import Episodes, Trajectory, UserError, collate, derive_seed
from vine_mini.value_errors.config import ValuesConfig
from vine_mini.value_errors.measures import CONSTANT, Choice, State, agreement, error_by_place, errors, with_constant
from vine_mini.value_errors.picture import plot_trend, plot_values
from vine_mini.values import monte_carlo_values

PLACES = 6
SIMPLEST = "reinforce"  # no critic and no group: all that is used of the trainer of such a run is its policy
CANDIDATES, TRIES = 4, 24  # states tried for each wanted one, and rollouts for each wanted next step: most are equal


@dataclass(frozen=True)
class CheckpointErrors:
    """What was measured at one checkpoint."""

    iteration: int
    names: list[str]  # of the estimators
    states: list[State]
    choices: list[Choice]
    errors: dict[str, dict[str, tuple[float, float | None]]]  # see measures.errors
    by_place: dict[str, list[float | None]]
    agreement: dict[str, dict[str, tuple[float, float | None]]]  # see measures.agreement; {} without clear choices


def analyze_values(config: ValuesConfig) -> int:
    """The `analyze values` command."""
    new_folder(config.out, "values")  # refuses before anything is computed
    saved = config_of_run(config.run)
    names = checkpoint.kept(Path(config.run))
    for name in names:
        if not (Path(config.run) / name).is_dir():
            raise UserError(f"there is no folder {config.run}/{name}: nothing was saved there yet")
    if not ALGORITHMS[saved.algorithm].needs_critic:
        print(f"{config.run} trained no critic ({saved.algorithm}): only Monte Carlo values are measured")
    reports: list[CheckpointErrors] = []
    for name in tqdm(names, desc="checkpoints", dynamic_ncols=True):
        trainer = load(config, saved, name)
        if not reports:  # no input was refused; from now on another call takes another name
            folder = new_folder(config.out, "values")
            folder.mkdir(parents=True, exist_ok=True)
        reports.append(measure(trainer, config))
        write(reports, config.run, folder)  # after each of them, because the next one may take long
        del trainer  # before the next one needs its memory
    if not all(report.agreement for report in reports):
        print(f"at some checkpoint no state has {config.choices} distinct next steps with a clear best one: lower --choices")
    print(f"{table(reports)}\n\npictures, table and JSON: {folder}")
    return 0


def write(reports: list[CheckpointErrors], run: str, folder: Path) -> None:
    """Writes table, JSON and pictures."""
    write_text(folder / "values.json", json.dumps(reports, default=asdict, indent=1))
    write_text(folder / "values.md", table(reports) + "\n")
    plot_values(reports[-1], run, folder / "values.png")
    if len(reports) > 1:
        plot_trend(reports, folder / "trend.png")


def load(config: ValuesConfig, saved: TrainConfig, name: str) -> Trainer:
    """A trainer in the state of a checkpoint of the run."""
    of_run: dict = vars(saved) | dict(device=config.device, seed=config.seed, eval_every=0, eval_problems=0, yes=config.yes)
    of_run |= dict(prompts=1, group=config.responses, minibatch_size=1, with_replacement=False, model=f"{config.run}/{name}")
    of_run |= dict(kl_coef=0.0)  # no copy of the policy as a reference, which nothing here reads
    if not ALGORITHMS[saved.algorithm].needs_critic:
        of_run["algorithm"] = SIMPLEST
    trainer = build_trainer(TrainConfig(**of_run))
    checkpoint.resume(trainer, Path(config.run), name)
    if config.problems > len(trainer.test_prompts):
        raise UserError(f"problems = {config.problems}, but there are only {len(trainer.test_prompts)} test problems")
    n_states = STATES * config.problems * config.responses + config.choices * config.states  # with known truth
    tried = n_states * (config.truth + max(config.ks)) + CANDIDATES * TRIES * config.choices * config.states
    check_cost(trainer.config, trainer.policy.num_parameters(), tried, tried)
    return trainer


def measure(trainer: Trainer, config: ValuesConfig) -> CheckpointErrors:
    """Samples responses to test problems with the policy, and measures the values of their states and of next steps."""
    iteration, trainer = trainer.iteration, copy.copy(trainer)  # the trainer itself stays as it is
    trainer.iteration = 0  # seeds the rollouts, so that checkpoints differ in their policies only
    seed = trainer.config.seed
    order = torch.Generator().manual_seed(derive_seed(seed, "problems", 0))
    chosen = torch.randperm(len(trainer.test_problems), generator=order)[: config.problems].tolist()
    prompts = [trainer.test_prompts[i] for i in chosen for _ in range(config.responses)]
    with tqdm(total=len(prompts), desc="sample", **BAR) as bar:
        settings = dict(seed=derive_seed(seed, 0, "responses"), progress=bar.update)
        trajectories = sample(trainer.sampler(), prompts, trainer.sampling, **settings)
    episodes = trainer.as_episodes([trainer.test_problems[i] for i in chosen], trajectories)
    return report_of(iteration, values_of_states(trainer, episodes, config), values_of_next_steps(trainer, episodes, config))


def report_of(iteration: int, states: list[State], choices: list[Choice]) -> CheckpointErrors:
    """What the values of the states and of the next steps say."""
    names = list(states[0].values)
    return CheckpointErrors(
        iteration=iteration,
        names=names,
        states=states,
        choices=choices,
        errors={name: errors(states, name) for name in names},
        by_place={name: error_by_place(states, name, PLACES) for name in names},
        agreement={name: agreement(choices, name) for name in names if name != CONSTANT and any(c.clear for c in choices)},
    )


def values_of_states(trainer: Trainer, episodes: Episodes, config: ValuesConfig) -> list[State]:
    """The states before the steps of all responses, with their values."""
    truth, by_k = monte_carlo(trainer, episodes.problems, episodes.trajectories, episodes.cuts, config)
    critic = critic_values(trainer, episodes.trajectories, episodes.cuts)
    states = []
    for row, cuts in enumerate(episodes.cuts):
        for step in range(len(cuts)):
            values = {name: of_states[row][step] for name, of_states in (critic | by_k).items()}
            states.append(State(row // config.responses, step, len(cuts), truth[row][step], values))
    return with_constant(states)


def values_of_next_steps(trainer: Trainer, episodes: Episodes, config: ValuesConfig) -> list[Choice]:
    """Several distinct next steps from states spread over all responses, with the values after them."""
    places = [(row, i) for row, cuts in enumerate(episodes.cuts) for i in range(len(cuts) - 1)]
    picked = spread(places, CANDIDATES * config.states)
    chosen = [episodes.trajectories[row] for row, _ in picked]
    starts = [[episodes.cuts[row][i]] for row, i in picked]
    tried = trainer.roll_out(chosen, starts, TRIES * config.choices, "next steps")
    enough: list[tuple[int, list[Trajectory]]] = []  # the row and the next steps, of each state with enough distinct ones
    for (row, _), t, [cut], [sampled] in zip(picked, chosen, starts, tried, strict=True):
        responses = [t.response_ids[:cut] + r.response_ids for r in sampled]
        ends = [[c for c in trainer.cut(ids) if c > cut] for ids in responses]
        distinct = list(dict.fromkeys(tuple(ids[: of[0]]) for ids, of in zip(responses, ends, strict=True) if of))
        if len(distinct) >= config.choices:
            steps = [Trajectory(t.prompt_ids, list(ids), [0.0] * len(ids), False) for ids in distinct[: config.choices]]
            enough.append((row, steps))
    enough = spread(enough, config.states)
    flat = [t for _, steps in enough for t in steps]
    if not flat:
        return []
    ends_of = [[len(t.response_ids)] for t in flat]
    problems = [episodes.problems[row] for row, steps in enough for _ in steps]
    truth, by_k = monte_carlo(trainer, problems, flat, ends_of, config)
    by_name = critic_values(trainer, flat, ends_of) | by_k
    found = []
    for n, (row, _) in enumerate(enough):
        part = slice(n * config.choices, (n + 1) * config.choices)
        values = {name: [x for [x] in of_rows[part]] for name, of_rows in by_name.items()}
        found.append(Choice(row // config.responses, [x for [x] in truth[part]], values, config.truth))
    return found


def spread(items: list, count: int) -> list:
    """At most so many of the items, equally far apart."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def monte_carlo(trainer: Trainer, problems, trajectories, cuts, config: ValuesConfig):
    """-> the truth [row][cut], and for each K the mean of K other rollouts: name -> [row][cut]"""
    most, known = max(config.ks), {}
    done = trainer.roll_out(trajectories, cuts, config.truth + most, "truth")
    rows = zip(problems, trajectories, cuts, done, strict=True)
    rewards = [tasks.grade_rollouts(trainer.task, *row, trainer.tokenizer, known) for row in rows]  # [row][cut][truth + most]

    def mean(part):
        return [monte_carlo_values([state[part] for state in row]) for row in rewards]

    return mean(slice(most, None)), {f"K = {k}": mean(slice(0, k)) for k in config.ks}


@torch.no_grad()
def critic_values(trainer: Trainer, trajectories, cuts) -> dict[str, list[list[float]]]:
    """The critic's values of the states: {"critic": [row][cut]}, or {} without a critic."""
    if trainer.critic is None:
        return {}
    end = trainer.sampling.eos_token_id[0]  # a token after the state, because the value before a token is read at that token
    longer = [
        replace(t, response_ids=[*t.response_ids, end], logprobs=[*t.logprobs, 0.0]) if of_row[-1] == len(t.response_ids) else t
        for t, of_row in zip(trajectories, cuts, strict=True)
    ]
    tokens, found = collate(longer, trainer.device), [[0.0]] * len(longer)
    for rows in tokens.micro_batches(torch.arange(len(longer)), trainer.config.micro_batch_tokens):
        part = tokens.rows(rows)
        values = trainer.forward(trainer.critic, part)  # [b, T]
        for row, of_row, mask in zip(rows.tolist(), values, part.response_mask.bool(), strict=True):
            found[row] = of_row[mask][cuts[row]].tolist()
    return {"critic": found}


def table(reports: list[CheckpointErrors]) -> str:
    """The errors and agreements of all checkpoints."""
    rows = [["iteration", "value", "mean absolute error", "bias", "best of several", "chance", "better of two"]]
    for report in reports:
        for name in report.names:
            of, agree = report.errors[name], report.agreement.get(name)
            off = [(*of["error"], ".3f"), (*of["bias"], "+.3f")]
            cells = [f"{mean:{form}} ± {'?' if error is None else format(error, '.3f')}" for mean, error, form in off]
            cells += [percent(*agree[x]) if agree else "-" for x in ("top", "chance", "pairs")]
            rows.append([str(report.iteration), name, *cells])
    return columns(rows)
