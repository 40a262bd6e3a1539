"""The chat template of a tokenizer: a program that comes with a model, and that may hang, fail or leave the question out."""

import re
from datetime import date

from vine_mini.loading import time_limit
from vine_mini.types import UserError

TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")  # how a template asks for today's date, with a literal format
SECONDS = 10.0  # in which a template must write one turn; the usual ones take less than a thousandth of a second


def user_turns(texts: list[str], tokenizer, day: str) -> list[str]:
    """Each text as a user's turn, followed by the start of the assistant's turn.

    A template that thinks by default is asked not to: `enable_thinking` is False, which other templates ignore. `day` is the
    date of the run's start, as YYYY-MM-DD. It replaces today's date, so that a resumed run has the prompts of its start.
    """
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template; leave out --chat")
    turns = [[{"role": "user", "content": text}] for text in texts]
    settings = dict(add_generation_prompt=True, tokenize=False, enable_thinking=False)
    try:
        # Transformers lets no function into a template, so the date replaces the calls in the template's text.
        template = TODAY.sub(lambda call: repr(date.fromisoformat(day).strftime(call[2])), tokenizer.get_chat_template())
        prompts: list[str] = []
        if "strftime_now(" not in template:
            with time_limit(SECONDS):
                tokenizer.apply_chat_template(turns[:1], chat_template=template, **settings)
            prompts = tokenizer.apply_chat_template(turns, chat_template=template, **settings)
    except Exception as error:  # a template is a program: it may not parse, may use what is not defined, or refuse these turns
        raise UserError(f"this tokenizer's chat template fails ({error}); correct it, or leave out --chat") from error
    if not prompts:
        raise UserError("this tokenizer's chat template contains today's date in a form that cannot be fixed; leave out --chat")
    if any(text.strip() not in prompt for text, prompt in zip(texts, prompts, strict=True)):
        raise UserError("this tokenizer's chat template leaves the question out; correct it, or leave out --chat")
    return prompts
