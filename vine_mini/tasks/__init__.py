"""Tasks: where problems come from, how they become prompts, and what counts as right.

A task module has `load(config) -> (train problems, test problems)`, a `TEMPLATE` for its prompts and
`demonstration(problem, error_rate, rng)` for supervised fine-tuning.
"""

from vine_mini.tasks import arithmetic, gsm8k
from vine_mini.types import Problem, UserError

TASKS = {"arithmetic": arithmetic, "gsm8k": gsm8k}


def load_problems(config) -> tuple[list[Problem], list[Problem]]:
    """(train, test) problems of `config.task`. Raises UserError where there are none."""
    train, test = TASKS[config.task].load(config)
    for split, problems in (("train", train), ("test", test)):
        if not problems:
            raise UserError(f"the {split} split of {config.task} is empty")
    return train, test


def prompt_ids(problems: list[Problem], tokenizer, config) -> list[list[int]]:
    """The tokens of each s_0: the question in the prompt template, or that as a user's turn of the chat template."""
    template = config.prompt or TASKS[config.task].TEMPLATE
    texts = [template.replace("{question}", problem.question) for problem in problems]
    if config.chat:
        if tokenizer.chat_template is None:
            raise UserError("this tokenizer has no chat template; leave out --chat")
        turns = [[{"role": "user", "content": text}] for text in texts]
        texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    try:
        return tokenizer(texts, add_special_tokens=not config.chat)["input_ids"]
    except Exception as error:  # the tokenizers library raises nothing more special
        raise UserError(f"this tokenizer has no tokens for the prompt {texts[0][:60]!r}...: {error}; see --prompt") from error


def check_prompts(prompts: list[list[int]], context: int | None, max_new_tokens: int) -> None:
    """Raises UserError where a prompt and its response might not fit into the model's context."""
    longest = max(map(len, prompts))
    if not all(prompts):
        raise UserError("a prompt without tokens: there is nothing to respond to")
    if context is not None and longest + max_new_tokens > context:
        raise UserError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but the model sees only {context}: "
            f"{'lower --max_new_tokens' if longest < context else 'use a model with a longer context'}"
        )


def reward(problem: Problem, response_ids: list[int], finished: bool, tokenizer) -> float:
    """1.0 for a response that ended by itself with the right answer, else 0.0: cut by the limit is a failure."""
    text = tokenizer.decode(response_ids, skip_special_tokens=True)
    return float(finished and gsm8k.is_correct(text, problem.answer))
