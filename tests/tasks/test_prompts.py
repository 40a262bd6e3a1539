"""Prompts: the template of the task or of the user, and the chat template, which must not change from day to day."""

import copy
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from vine_mini import tasks
from vine_mini.types import Problem, UserError

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
QUESTION = Problem("Mia has 7 pens. How many pens now?", "", "")


def config(**fields):
    return SimpleNamespace(**{"task": "arithmetic", "prompt": None, "chat": False, "date": "2025-03-09"} | fields)


def chat(tokenizer, template, question=QUESTION, **fields):
    """The text of the one prompt under a chat template."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    [ids] = tasks.prompt_ids([question], own, config(chat=True, **fields))
    return own.decode(ids)


def test_prompts(tokenizer):
    [ids] = tasks.prompt_ids([QUESTION], tokenizer, config())
    assert tokenizer.decode(ids) == "Mia has 7 pens. How many pens now?\n"
    [ids] = tasks.prompt_ids([QUESTION], tokenizer, config(prompt="Q: {question} A:"))
    assert tokenizer.decode(ids) == "Q: Mia has 7 pens. How many pens now? A:"
    with pytest.raises(UserError, match="no chat template"):
        tasks.prompt_ids([Problem("q", "", "")], tokenizer, config(chat=True))


def test_prompts_that_do_not_fit():
    tasks.check_prompts([[1] * 10], 20, 10)
    with pytest.raises(UserError, match="longest prompt has 10 tokens and max_new_tokens is 11, but the model sees only 20"):
        tasks.check_prompts([[1] * 10], 20, 11)
    with pytest.raises(UserError, match="a prompt without tokens"):
        tasks.check_prompts([[1], []], 20, 11)


def test_a_chat_template_gets_the_question_as_the_users_turn(tokenizer):
    assert chat(tokenizer, PLAIN) == f"<user>{QUESTION.question}\n<assistant>"
    assert chat(tokenizer, {"default": PLAIN, "tool_use": "x"}) == f"<user>{QUESTION.question}\n<assistant>"


@pytest.mark.parametrize(
    "call, text",
    [
        ("strftime_now('%Y-%m-%d')", "2025-03-09"),
        ('strftime_now("%d %b %Y")', "09 Mar 2025"),
        ("strftime_now( '%A' )", "Sunday"),
        ('strftime_now("it\'s %Y")', "it's 2025"),
    ],
)
def test_a_chat_template_gets_the_date_of_the_run(tokenizer, call, text):
    """With today's date in the prompt, a run that is resumed on another day would have other prompts."""
    template = (
        "{% if strftime_now is defined %}{% set day = "
        + call
        + " %}{% else %}{% set day = 'none' %}{% endif %}{{ day }}\n"
        + PLAIN
    )
    assert chat(tokenizer, template).startswith(text + "\n<user>")
    assert chat(tokenizer, template, date="2031-01-01") != chat(tokenizer, template)


def test_a_question_about_the_date_is_left_alone(tokenizer):
    asked = Problem("What is strftime_now('%Y')?", "", "")
    assert chat(tokenizer, PLAIN, asked) == "<user>What is strftime_now('%Y')?\n<assistant>"


def test_a_date_that_cannot_be_fixed_is_refused(tokenizer):
    with pytest.raises(UserError, match="contains today's date in a form that cannot be fixed"):
        chat(tokenizer, "{% set f = '%Y' %}{{ strftime_now(f) }}" + PLAIN)


@pytest.mark.parametrize(
    "template",
    ["{% for m in %}", "{{ 1 / 0 }}", "{{ raise_exception('no system turn') }}", "{{ message.content }}", "{{ day() }}", "{{", 7],
)
def test_a_chat_template_that_fails_is_refused(tokenizer, template):
    with pytest.raises(UserError, match="chat template fails"):
        chat(tokenizer, template)


def test_a_chat_template_that_does_not_end_is_refused(tokenizer, monkeypatch):
    """Two nested loops had not ended after eight seconds."""
    monkeypatch.setattr("vine_mini.tasks.chat.SECONDS", 0.3)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError, match=r"chat template fails \(it takes more than 0.3 seconds\)"):
        chat(tokenizer, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert chat(tokenizer, PLAIN)


def test_outside_the_main_thread_a_chat_template_works(tokenizer):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(chat, tokenizer, PLAIN).result() == chat(tokenizer, PLAIN)


@pytest.mark.parametrize("template", ["Hello.", "{{ question }}", "{% for m in messages %}{{ m.text }}{% endfor %}"])
def test_a_chat_template_without_the_question_is_refused(tokenizer, template):
    """Jinja writes nothing for a name that is not defined, so all prompts were equal."""
    with pytest.raises(UserError, match="leaves the question out"):
        chat(tokenizer, template)


def test_no_thinking_where_the_template_knows_it(tokenizer):
    knows = PLAIN + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    assert chat(tokenizer, knows).endswith("<assistant><think></think>")
    assert "think" not in chat(tokenizer, PLAIN)


def test_a_tokenizer_that_ends_every_prompt_is_refused(tokenizer):
    class Ending:
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [[*row, self.eos_token_id] for row in tokenizer(texts)["input_ids"]]}

    with pytest.raises(UserError, match="set add_eos_token to false"):
        tasks.prompt_ids([QUESTION], Ending(), config())
