"""Prompts as a user's turn in a tokenizer's chat template, with the same tokens on every day."""

import re
from datetime import date

from vine_mini.types import UserError

TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")  # how a template asks for today's date, with a literal format


def user_turns(texts: list[str], tokenizer, day: str) -> list[str]:
    """Each text as a user's turn, followed by the start of the assistant's turn.

    A template that thinks by default is asked not to: `enable_thinking` is False, which other templates ignore.

    Args:
        day: the date of the run's start, as YYYY-MM-DD. The template gets it in place of today's date, since a resumed run
            must have the prompts that it started with.
    Raises:
        UserError: there is no chat template, or it asks for today's date in a way that cannot be replaced.
    """
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template; leave out --chat")
    # Transformers lets no function into a template, so the date replaces the calls in the template's text.
    template = TODAY.sub(lambda call: repr(date.fromisoformat(day).strftime(call[2])), tokenizer.get_chat_template())
    if "strftime_now(" in template:
        raise UserError("this tokenizer's chat template contains today's date in a form that cannot be fixed; leave out --chat")
    turns = [[{"role": "user", "content": text}] for text in texts]
    return tokenizer.apply_chat_template(
        turns, chat_template=template, add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
