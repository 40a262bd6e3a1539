"""The protocol of tasks: what a task module holds, and how the rest of the package asks it for problems, prompts and rewards.

A task is a Python module with these names. Built in are `arithmetic`, `decisive`, `gsm8k`, `jsonl` and `math`. `--task
path/to/my_task.py` loads a user's own file. No module outside this folder knows how a task grades or what its answers look like.

    TEMPLATE: str                                   the prompt, with {question} in it
    ANSWER_MARK: str | None                         what an answer line begins with; None where there is no such line
    DEFAULTS: dict                                  of config fields: max_new_tokens, eval_temperature, steps
    problems(config) -> (train, test)               two lists of Problem
    extract_answer(text) -> str | None              the answer of a response; equal answers have equal text (for majority votes)
    reward(problem, text) -> float                  from 0 to 1, for the text of a response that ended by itself
    demonstration(problem, error_rate, rng) -> str  optional: what supervised fine-tuning imitates, instead of problem.solution
    step_starts(text) -> list[int]                  optional: character offsets, ascending from 0, of steps that are not lines
"""

from collections.abc import Sequence
from numbers import Real

from vine_mini.tasks.loading import BUILT_IN, get, load_problems
from vine_mini.tasks.prompts import check_prompts, demonstration, prompt_ids
from vine_mini.types import Problem, Trajectory, UserError

__all__ = ["BUILT_IN", "check_prompts", "demonstration", "get", "grade", "grade_rollouts", "load_problems", "prompt_ids"]


def grade(task, problem: Problem, response: Trajectory, tokenizer, so_far: Sequence[int] = (), known=None) -> float:
    """The reward of a response, from 0 to 1; of a rollout, with the tokens `so_far` before it. 0 if it was truncated.

    known: rewards of earlier responses. Among many rollouts some are equal. Each distinct one is decoded and graded once.
    """
    if not response.finished:
        return 0.0
    known, ids = {} if known is None else known, (*so_far, *response.response_ids)
    if (problem, ids) not in known:
        text = getattr(tokenizer, "backend_tokenizer", tokenizer).decode(ids, skip_special_tokens=True)  # in half the time
        reward = known[problem, ids] = task.reward(problem, text)
        if not isinstance(reward, Real) or not 0 <= reward <= 1:  # type: ignore[operator]  # a NaN fails the comparison
            raise UserError(f"the task's reward() must return a number from 0 to 1, not {reward!r}")
    return float(known[problem, ids])


def grade_rollouts(task, problem, response: Trajectory, cuts, rollouts, tokenizer, known) -> list[list[float]]:
    """The rewards of the rollouts from the states of a response. rollouts: [cut][K] -> [cut][K]. `known` as above."""
    states = zip(cuts, rollouts, strict=True)
    return [[grade(task, problem, r, tokenizer, response.response_ids[:cut], known) for r in state] for cut, state in states]
