"""Evaluation: how often a policy is right, sampled and greedy, with standard errors over problems."""

from collections import Counter

import torch

from vine_mini import tasks
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import kl_penalty, masked_mean
from vine_mini.sampling import sample
from vine_mini.tasks.gsm8k import extract_answer, is_correct
from vine_mini.types import Problem, Trajectory, collate


def evaluate(
    model,
    tokenizer,
    problems: list[Problem],
    prompts,
    config,
    *,
    eos,
    n,
    temperature,
    top_p=1.0,
    seed=0,
    reference=None,
    sampler=None,
    progress=None,
):
    """Samples n responses a problem and one greedy response, and grades them.

    Args:
        problems, prompts: the problems and their prompt token ids, [P].
        config: for `max_new_tokens` and `sample_batch_size`.
        n: samples a problem. temperature, top_p: of those samples; at temperature 0 all n would be equal.
        reference: with it, also the KL to it on the samples, in nats a response token (k3), of the distributions at
            `temperature`; none at temperature 0.
        sampler: the copy of the model that samples, if another one does.
    Returns:
        name -> (mean, standard error). `pass@1` is the mean over the n samples, `greedy` that of the most likely
        response, `maj@n` the share of problems whose most frequent answer is right (ties: the one seen first), `any@n`
        that with at least one right sample; `length` is in tokens, `truncated` the share of samples cut by the limit.
        The standard error is that of a mean over problems; samples of one problem are not independent of each other.
    """
    common = dict(max_new_tokens=config.max_new_tokens, eos_token_id=eos, batch_size=config.sample_batch_size, progress=progress)
    sampler = model if sampler is None else sampler
    repeated = [p for p in prompts for _ in range(n)]
    flat = sample(sampler, repeated, temperature=temperature, top_p=top_p, seed=seed, **common)
    greedy = sample(sampler, prompts, temperature=0, seed=seed, **common)
    groups = [flat[i : i + n] for i in range(0, len(flat), n)]  # [P][n]
    right = [[grade(p, t, tokenizer) for t in group] for p, group in zip(problems, groups, strict=True)]
    result = {
        "pass@1": _mean([sum(row) / n for row in right]),
        "greedy": _mean([grade(p, t, tokenizer) for p, t in zip(problems, greedy, strict=True)]),
        f"maj@{n}": _mean([_majority_is_right(p, group, tokenizer) for p, group in zip(problems, groups, strict=True)]),
        f"any@{n}": _mean([max(row) for row in right]),
        "length": _mean([sum(len(t.response_ids) for t in group) / n for group in groups]),
        "truncated": _mean([sum(not t.finished for t in group) / n for group in groups]),
    }
    if reference is not None and temperature > 0:
        result["kl"] = _mean(kl_to_reference(model, reference, flat, temperature))
    return result


def grade(problem: Problem, trajectory: Trajectory, tokenizer) -> float:
    """The reward of a whole response: 1.0 or 0.0."""
    return tasks.reward(problem, trajectory.response_ids, trajectory.finished, tokenizer)


@torch.no_grad()
def kl_to_reference(model, reference, trajectories, temperature: float, rows: int = 16) -> list[float]:
    """Mean k3 estimate of KL(model || reference) a token, for each trajectory, in nats."""
    out = []
    for start in range(0, len(trajectories), rows):
        b = collate(trajectories[start : start + rows], model.device)
        ours, theirs = (
            response_logprobs(m, b.input_ids, b.attention_mask, b.response_mask, temperature=temperature)
            for m in (model, reference)
        )
        kl = kl_penalty(ours, theirs)  # [B, T]
        out += [masked_mean(kl[i], b.response_mask[i]).item() for i in range(len(b))]
    return out


def table(columns: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Evaluations side by side, as text: a row for each measure, a column for each evaluation."""
    measures = list(dict.fromkeys(name for result in columns.values() for name in result))
    width = max(18, *(len(name) + 2 for name in columns))
    lines = [" " * 12 + "".join(name.rjust(width) for name in columns)]
    for measure in measures:
        cells = [_cell(measure, *result[measure]) if measure in result else "" for result in columns.values()]
        lines.append(measure.ljust(12) + "".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)


def _cell(measure: str, mean: float, error: float | None) -> str:
    if measure in ("length", "kl"):
        return f"{mean:.3g} ± {'?' if error is None else format(error, '.1g')}"
    return f"{100 * mean:.1f} ± {'?' if error is None else format(100 * error, '.1f')} %"


def _mean(per_problem: list[float]) -> tuple[float, float | None]:
    x = torch.tensor(per_problem, dtype=torch.float64)
    error = x.std().item() / len(x) ** 0.5 if len(x) > 1 else None  # one problem tells nothing of the spread
    return x.mean().item(), error


def _majority_is_right(problem: Problem, group: list[Trajectory], tokenizer) -> float:
    answers = [extract_answer(tokenizer.decode(t.response_ids, skip_special_tokens=True)) for t in group if t.finished]
    votes = Counter(a for a in answers if a is not None).most_common(1)
    return float(bool(votes) and is_correct(f"#### {votes[0][0]}", problem.answer))
