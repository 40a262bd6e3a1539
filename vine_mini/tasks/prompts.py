"""From problems to what a policy reads and imitates: the token ids of prompts, the same on every day, and demonstrations."""

from vine_mini.tasks.chat import user_turns
from vine_mini.tasks.loading import get
from vine_mini.types import Problem, UserError


def prompt_ids(problems: list[Problem], tokenizer, config) -> list[list[int]]:
    """The token ids of each problem's prompt, which is the first state s_0 of its episodes.

    The question stands in `config.prompt`, or in the task's TEMPLATE where that is None. With `config.chat`, the result is
    the user's turn in the tokenizer's chat template.
    """
    template = config.prompt or get(config.task).TEMPLATE
    texts = [template.replace("{question}", problem.question) for problem in problems]
    if config.chat:
        texts = user_turns(texts, tokenizer, config.date)
    try:
        ids = tokenizer(texts, add_special_tokens=not config.chat)["input_ids"]  # a chat template has its own special tokens
    except Exception as error:  # the tokenizers library raises nothing more special
        raise UserError(f"this tokenizer has no tokens for the prompt {texts[0][:60]!r}...: {error}; see --prompt") from error
    if not config.chat and any(row and row[-1] == tokenizer.eos_token_id for row in ids):
        raise UserError("this tokenizer ends a prompt with its end-of-sequence token: set add_eos_token to false in its files")
    return ids


def check_prompts(prompts: list[list[int]], context: int | None, max_new_tokens: int) -> None:
    """Raises UserError where a prompt is empty, or where a prompt and its response might not fit into the model's context."""
    longest = max(map(len, prompts))
    if not all(prompts):
        raise UserError("a prompt without tokens: there is nothing to respond to")
    if context is not None and longest + max_new_tokens > context:
        raise UserError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but the model sees only {context}: "
            f"{'lower --max_new_tokens' if longest < context else 'use a model with a longer context'}"
        )


def demonstration(task, problem: Problem, error_rate: float, rng) -> str:
    """The text that supervised fine-tuning imitates. Raises UserError for an `error_rate` in a task that makes no errors."""
    if hasattr(task, "demonstration"):
        return task.demonstration(problem, error_rate, rng)
    if error_rate:
        raise UserError("only a task with its own demonstration() makes errors: this one needs --error_rate 0")
    return problem.solution
