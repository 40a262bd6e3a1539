"""Evaluation: how often a policy is right, sampled and greedy, with standard errors that respect problems.

Samples of one problem are not independent. Every measure is therefore averaged over the samples of a problem first, and the
standard error is the error of a mean over problems.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from tqdm import tqdm

from vine_mini import tasks
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import kl_penalty, masked_mean
from vine_mini.sampling import sample
from vine_mini.types import Trajectory, collate


def evaluate(
    model, tokenizer, task, problems, prompts, sampling, *, n, greedy=True, seed=0, reference=None, sampler=None, progress=None
) -> dict[str, tuple[float, float | None]]:
    """Samples n responses to each problem, and with `greedy` one more that takes the most likely token each time. Grades all.

    Args:
        task: the task module that grades the responses.
        problems, prompts: the problems and the token ids of each prompt, [P].
        sampling, n: of the n responses to each problem. At temperature 0 all n are equal.
        reference: adds the KL to this model, in nats a token of the samples (k3), at their temperature; none at temperature 0.
        sampler: the copy of the model that samples, if it is not the model itself.
    Returns:
        name -> (mean, standard error; None for a single problem). `pass@1` is the mean reward of the n samples, `greedy` the
        mean reward of the greedy response, `maj@n` the reward of the most frequent answer (of equally frequent ones: the
        one seen first), `pass@n` the largest reward of the n samples. `length` is in tokens. `truncated` is the share of
        samples that the limit truncated.
    """
    sampler = model if sampler is None else sampler
    graded = partial(tqdm, desc="grade", leave=False, position=2, dynamic_ncols=True, delay=2)  # progress, after two seconds
    flat = sample(sampler, [p for p in prompts for _ in range(n)], sampling, seed=seed, progress=progress)
    groups = [flat[i : i + n] for i in range(0, len(flat), n)]  # [P][n]
    rewards = [[tasks.grade(task, p, t, tokenizer) for t in group] for p, group in zip(problems, graded(groups), strict=True)]
    result = {
        "pass@1": _mean([sum(row) / n for row in rewards]),
        f"maj@{n}": _mean([_majority_reward(task, *pair, tokenizer) for pair in zip(groups, rewards, strict=True)]),
        f"pass@{n}": _mean([max(row) for row in rewards]),
        "length": _mean([sum(len(t.response_ids) for t in group) / n for group in groups]),
        "truncated": _mean([sum(not t.finished for t in group) / n for group in groups]),
    }
    if greedy:
        responses = sample(sampler, prompts, replace(sampling, temperature=0.0), seed=seed, progress=progress)
        result["greedy"] = _mean([tasks.grade(task, *pair, tokenizer) for pair in zip(problems, graded(responses), strict=True)])
    if reference is not None and sampling.temperature > 0:
        kl = kl_to_reference(model, reference, flat, sampling.temperature)
        result["kl"] = _mean([sum(kl[i : i + n]) / n for i in range(0, len(kl), n)])
    return result


def mean_of_steps(advantages, cuts: list[int]) -> list[float]:
    """The mean advantage of the tokens of each step. advantages: [length] -> [step]"""
    return [step.mean().item() for step in advantages.tensor_split(cuts[1:])]


def standard_errors(rewards: list[list[float]]) -> list[float]:
    """The standard error of each Monte Carlo value. rewards: [state][K] -> [state].

    It is the deviation of the rewards / sqrt(K). Half a reward of 0 and half a reward of 1 are added to the K rewards. Without
    them, K equal rewards would have error 0. For rewards of 0 and 1 it is sqrt(p (1 - p) / K), p = (V K + 1/2) / (K + 1).
    """
    errors = []
    for row in rewards:
        k = len(row)
        mean, squares = (sum(row) + 0.5) / (k + 1), (sum(x * x for x in row) + 0.5) / (k + 1)
        errors.append(math.sqrt((squares - mean**2) / k))
    return errors


@torch.no_grad()
def kl_to_reference(model, reference, trajectories, temperature: float, rows: int = 16) -> list[float]:
    """Mean k3 estimate of KL(model || reference) a token, for each trajectory, in nats."""
    out = []
    for start in range(0, len(trajectories), rows):
        b = collate(trajectories[start : start + rows], model.device)
        inputs = b.input_ids, b.attention_mask, b.response_mask
        kl = kl_penalty(*(response_logprobs(m, *inputs, temperature=temperature) for m in (model, reference)))  # [B, T]
        out += [masked_mean(kl[i], b.response_mask[i]).item() for i in range(len(b))]
    return out


def table(columns: dict[str, dict[str, tuple[float, float | None]]]) -> str:
    """Evaluations side by side, as text: a row for each measure, a column for each evaluation."""
    measures = list(dict.fromkeys(name for result in columns.values() for name in result))
    width = max(18, *(len(name) + 2 for name in columns))
    lines = [" " * 12 + "".join(name.rjust(width) for name in columns)]
    for measure in measures:
        cells = [_cell(measure, *result[measure]) if measure in result else "" for result in columns.values()]
        lines.append(measure.ljust(12) + "".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)


def _cell(measure: str, mean: float, error: float | None) -> str:
    if form := {"length": ".1f", "kl": ".2g"}.get(measure):
        return f"{mean:{form}} ± {'?' if error is None else format(error, form)}"
    return percent(mean, error, 1)


def percent(mean: float, error: float | None, digits: int = 0) -> str:
    """A share with its standard error, such as "25.0 ± 1.2 %"; "?" where the error is not known."""
    return f"{100 * mean:.{digits}f} ± {'?' if error is None else format(100 * error, f'.{digits}f')} %"


def clustered_mean(numbers: list[float], problems: Sequence[int]) -> tuple[float, float | None]:
    """The mean, and its standard error from the differences between problems: numbers of one problem are not independent.

    The error is None where there is one problem only.
    """
    mean = sum(numbers) / len(numbers)
    off: dict[int, float] = {}  # of each problem, the sum of its deviations
    for x, problem in zip(numbers, problems, strict=True):
        off[problem] = off.get(problem, 0.0) + x - mean
    if len(off) == 1:
        return mean, None
    return mean, (sum(x * x for x in off.values()) * len(off) / (len(off) - 1)) ** 0.5 / len(numbers)


def _mean(per_problem: list[float]) -> tuple[float, float | None]:
    return clustered_mean(per_problem, range(len(per_problem)))


def _majority_reward(task, group: list[Trajectory], rewards: list[float], tokenizer) -> float:
    """The reward of the first response that gives the most frequent answer; 0 where no response answers."""
    texts = [tokenizer.decode(t.response_ids, skip_special_tokens=True) for t in group]
    answers = [task.extract_answer(text) if t.finished else None for t, text in zip(group, texts, strict=True)]
    votes = Counter(a for a in answers if a is not None).most_common(1)
    return rewards[answers.index(votes[0][0])] if votes else 0.0
