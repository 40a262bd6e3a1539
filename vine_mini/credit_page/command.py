"""The `credit` command: the advantages that VinePPO, PPO and GRPO give to the steps of responses, and where many responses fail.

The functions that train also compute every number on the pages. This module chooses the responses.
Deviations from training: the page shows advantages before whitening. VinePPO's advantages are the paper's, V(after) - V(before),
from rollouts alone. Training may average values along the response (mc_lam, mc_mu). Training counts the group in V(s_0).
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tqdm import tqdm

from vine_mini import tasks
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.cost import STATES, check_cost
from vine_mini.app.files import new_folder, whole, write_text
from vine_mini.app.runs import step_texts
from vine_mini.app.setup import task_name
from vine_mini.credit_page import page
from vine_mini.credit_page.config import CreditConfig
from vine_mini.credit_page.falls import Fall, kind_of, table
from vine_mini.credit_page.measure import Change, Credit, Resting, largest_change, measure_again, monte_carlo
from vine_mini.credit_page.page import FallsReport, Page
from vine_mini.credit_page.picture import plot_credit
from vine_mini.credit_page.resting import group_of, other_trainer, read_own, resting_trainer, train_critic
from vine_mini.evaluate import clustered_mean, mean_of_steps
from vine_mini.types import Episodes, UserError

to_json = partial(json.dumps, default=asdict, ensure_ascii=False, indent=1)


def credit(config: CreditConfig) -> int:
    """The `credit` command."""
    new_folder(config.out, "credit")  # refuses before anything is computed
    if config.problems is not None:
        report = find_falls(config)
        files, said = {"falls.html": page.render_falls(report), "falls.json": to_json(report)}, page.summary_of_falls(report)
    else:
        first, *others = pages = list(explain(config))
        files = {each.file: page.render(each) for each in pages} | {"credit.json": to_json(pages)}
        said = f"{page.summary(first)}\n{page.finding(first)}\n{page.spending(first.spent)}"
    print(said)
    folder = new_folder(config.out, "credit")  # another run may have taken the first meanwhile
    with whole(folder) as fresh:
        for name, text in files.items():
            write_text(fresh / name, text)
        if config.problems is None:
            plot_credit(first, fresh / "credit.png")
    print(f"page: {folder / next(iter(files))}")
    if config.problems is None:
        print(f"picture: {folder / 'credit.png'}" + (f"\nthe other responses: {others[0].file}, ..." if others else ""))
    return 0


def explain(config: CreditConfig) -> Iterator[Page]:
    """Yields the page of the chosen response, then a page for each other response in its group. Raises UserError."""
    trainer, other, own = _parts(config)
    [number] = _numbers(f"{config.problem}:{config.problem + 1}", len(trainer.test_problems), "problem", config.problem)
    group = len(own[number].responses) or config.group if own else config.group
    states = STATES * (config.k * (1 + (other is not None)) + config.truth) + 4 * config.fresh
    _check_cost(config, trainer, group * (1 + states) + config.critic_iterations * trainer.config.prompts, states)
    episodes = group_of(trainer, config, number, own)
    rewards = episodes.rewards[0].tolist()
    if config.response is not None and config.response >= len(rewards):
        raise UserError(f"response = {config.response}: there are {len(rewards)} responses to this question, counted from 0")
    first_wrong = next((i for i, R in enumerate(rewards) if R < 1), 0)
    chosen = first_wrong if config.response is None else config.response
    critic = train_critic(trainer, config.critic_iterations)
    trainer.iteration = 0  # seeds the rollouts, which so do not depend on the critic
    whole = {"grpo": None} if len(rewards) > 1 else {}  # GRPO compares two responses or more
    whole = {"ppo": trainer.score(episodes)[0]["values"]} | whole if critic else whole
    for row in sorted(range(len(rewards)), key=lambda row: row != chosen):
        rollouts, vineppo = _credit(trainer, episodes, row, config.k, "vineppo", number)
        truth = [_credit(trainer, episodes, row, config.truth, "truth", number)[1]] if config.truth else []
        others = [_credit(other, episodes, row, config.k, "other", number)[1]] if other else []
        yield Page(
            problem=number,
            question=episodes.problems[row].question,
            answer=episodes.problems[row].answer,
            made=_made(config, f"problem {number} of {_origin(config)}"),
            critic=critic,
            gamma=trainer.config.gamma,
            lam=trainer.config.lam,
            finished=episodes.trajectories[row].finished,
            group_rewards=rewards,
            response=row,
            files=["credit.html" if i == chosen else f"response-{i}.html" for i in range(len(rewards))],
            steps=step_texts(episodes.trajectories[row].response_ids, episodes.cuts[row], trainer.tokenizer),
            rollouts=rollouts,
            fresh=config.fresh,
            fall=_change(trainer, episodes, row, vineppo, config.fresh, "fall", number),
            rise=_change(trainer, episodes, row, vineppo, config.fresh, "rise", number),
            truth=config.truth,
            credits=[vineppo, *others, *(_whole_group(trainer, episodes, row, *each) for each in whole.items()), *truth],
            spent=[each.spent for each in (trainer, other) if each],  # they count on until the last page is made
        )


def find_falls(config: CreditConfig) -> FallsReport:
    """Samples or reads responses to many problems, and finds the step at which each failed one falls most. Raises UserError."""
    trainer, other, own = _parts(config)
    numbers = _numbers(config.problems, len(trainer.test_problems), "problems", config.problems)
    policies = 1 + (other is not None)
    of_one = config.group * (STATES * config.k + 2 * config.fresh * policies)
    _check_cost(config, trainer, len(numbers) * (config.group + of_one), of_one)
    falls, by_step, by_kind, rewards, failed = [], Counter(), Counter(), [], 0
    for number in tqdm(numbers, desc="problems", dynamic_ncols=True):
        episodes = group_of(trainer, config, number, own)
        R = episodes.rewards[0].tolist()
        rewards += [(number, r) for r in R]
        wrong = [row for row, r in enumerate(R) if r < 1]
        failed += len(wrong)
        chosen = monte_carlo(trainer, episodes, wrong, [episodes.cuts[row] for row in wrong], config.k, "choice", number)
        texts = {row: step_texts(episodes.trajectories[row].response_ids, episodes.cuts[row], trainer.tokenizer) for row in wrong}
        by_step.update(f"step {i + 1}" for row in wrong for i in range(len(texts[row])))
        by_kind.update(kind_of(text) for row in wrong for text in texts[row])
        largest = {row: (credit, largest_change(credit, fall=True)) for row, (_, credit) in zip(wrong, chosen, strict=True)}
        steps = {row: step for row, (_, step) in largest.items() if step is not None}
        again = episodes, [*steps], [*steps.values()], config.fresh
        fresh = measure_again(trainer, *again, "fresh", number)
        judged = measure_again(other, *again, "other", number) if other else [None] * len(fresh)
        for row, change, by_other in zip(steps, fresh, judged, strict=True):
            where = number, row, episodes.problems[row].question, change.step, len(texts[row]), texts[row][change.step]
            falls.append(Fall(*where, largest[row][0].advantages[change.step], change, by_other))
    if not failed:
        raise UserError(f"all {len(rewards)} responses are right, so none has a fall: take more problems, or harder ones")
    return FallsReport(
        made=_made(config, f"problems {numbers.start} to {numbers.stop - 1} of {_origin(config)}"),
        responses=len(rewards),
        failed=failed,
        problems=len(numbers),
        success=clustered_mean([r for _, r in rewards], [number for number, _ in rewards]),
        k=config.k,
        fresh=config.fresh,
        other=config.other or "",
        by_kind=table(falls, Counter(dict(by_kind.most_common())), lambda fall: fall.kind),
        by_step=table(falls, by_step, lambda fall: f"step {fall.step + 1}"),
        falls=sorted(falls, key=lambda fall: fall.size),
        spent=[each.spent for each in (trainer, other) if each],
    )


def _parts(config: CreditConfig):
    """-> the policy's trainer, the other policy's trainer or None, the user's own questions"""
    own = read_own(Path(config.responses), tasks.get(config.task)) if config.responses is not None else []
    trainer = resting_trainer(config, own)
    return trainer, other_trainer(config, own, trainer), own


def _numbers(text: str, count: int, name: str, given) -> range:
    """A:B -> range(A, B); A: -> range(A, count). Raises UserError where one is not there, or where none is named."""
    start, _, stop = text.partition(":")
    found = range(int(start), int(stop) if stop else count)
    if max(found.start + 1, found.stop) > count:
        raise UserError(f"{name} = {given}: there are {count} problems, counted from 0")
    if not found:
        raise UserError(f"{name} = {given}: the range is empty; write the first number and the one after the last, as 0:200")
    return found


def _check_cost(config: CreditConfig, trainer: Resting, responses: int, at_once: int) -> None:
    check_cost(config, trainer.policy.num_parameters(), responses, max(config.group, at_once))


def _origin(config: CreditConfig) -> str:
    return Path(config.responses).name if config.responses else f"the test problems of {task_name(config)}"


def _made(config: CreditConfig, what: str) -> str:
    """Policy, problems and settings in one line, without a path that the user did not name."""
    policy = f"Policy {config.model}" if config.model else "The shipped policy"
    if config.run:
        policy = f"The policy of {config.run}"
    cut = f", a step every {config.step_tokens} tokens" if config.step_tokens else ""
    other = f", other policy {config.other}" if config.other else ""
    made = f"{policy}, {what}{other}, temperature {config.temperature:g}, at most {config.max_new_tokens} tokens"
    return f"{made}, seed {config.seed}{cut}."


def _credit(trainer: Resting, episodes: Episodes, row: int, k: int, name: str, number: int):
    """-> the rollouts from before each step [n][k], the credit of all steps"""
    [found] = monte_carlo(trainer, episodes, [row], [episodes.cuts[row]], k, name, number)
    return found


def _change(trainer: Resting, episodes: Episodes, row: int, credit: Credit, k: int, name: str, number: int) -> Change | None:
    step = largest_change(credit, fall=name == "fall")
    return None if step is None else measure_again(trainer, episodes, [row], [step], k, name, number)[0]


def _whole_group(trainer: Resting, episodes: Episodes, row: int, name: str, values=None) -> Credit:
    """The credit of an algorithm without rollouts. A step has the mean advantage of its tokens, and the value before it.

    values: [G, T] of the critic, if the algorithm has one.
    """
    advantages, _, _ = ALGORITHMS[name].credit(episodes, values, None, trainer.config)  # [G, T]
    mask, cuts = episodes.tokens.response_mask[row].bool(), episodes.cuts[row]
    of_steps = None if values is None else values[row][mask][cuts].tolist()
    return Credit(name, mean_of_steps(advantages[row][mask], cuts), of_steps)
