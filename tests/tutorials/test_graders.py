"""Tests of the graders: stubs count as not implemented, the package's own functions pass, and wrong answers are named."""

import ast
import re
import subprocess
import sys
import textwrap
from math import inf
from pathlib import Path

import pytest
import torch
import transformers
from answers import ANSWERS
from conftest import slow
from grading import EXERCISES, board, engine, grade, grade_file, load
from grading.responses import Pieces

from vine_mini.cli import main

ROOT = Path(__file__).parents[2]
WRONG = [(exercise, wrong) for exercise in EXERCISES for wrong in exercise.wrong]
BY_NUMBER = {exercise.file[:4]: exercise for exercise in EXERCISES}


def message(exercise, function) -> str:
    with pytest.raises(AssertionError) as raised:
        grade(exercise, function)
    return str(raised.value)


def test_every_file_has_a_grader_and_no_two_share_a_number():
    assert len(EXERCISES) >= 12
    assert [e.file for e in EXERCISES] == sorted(p.stem for p in engine.FOLDER.glob("ex*.py"))
    assert [e.file[:4] for e in EXERCISES] == [f"ex{n:02}" for n in range(1, len(EXERCISES) + 1)]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.file)
def test_a_stub_is_not_implemented(exercise):
    text = exercise.path.read_text(encoding="utf-8")
    if "raise NotImplementedError" not in text:
        pytest.skip("somebody has worked on it")
    function = load(exercise)
    assert "Example:" in function.__doc__ and "Returns:" in function.__doc__
    with pytest.raises(NotImplementedError, match=exercise.file[:4]):
        grade(exercise, function)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.file)
def test_the_packages_own_function_passes(exercise):
    grade(exercise, exercise.reference)


FIRST = [next(n for n, (e, _) in enumerate(WRONG) if e is exercise) for exercise in EXERCISES]  # one wrong answer of each


@pytest.mark.parametrize(
    ("exercise", "wrong"),
    [case if n in FIRST else slow(*case) for n, case in enumerate(WRONG)],
    ids=[f"{e.file[:4]}-{w.__name__}" for e, w in WRONG],
)
def test_a_wrong_answer_runs_cleanly_is_rejected_and_recognised(exercise, wrong):
    for arguments in exercise.cases().values():
        assert not engine._run(exercise, wrong, arguments).error
    said = message(exercise, wrong)
    assert " ".join(wrong.__doc__.split()) in said
    assert "expected" in said or "the loss is right" in said


@pytest.mark.parametrize(("number", "text", "changes"), ANSWERS, ids=[number for number, _, _ in ANSWERS])
def test_right_answers_of_other_styles_are_accepted(number, text, changes):
    grade(BY_NUMBER[number], written(number, text))


CHANGED = [(number, text, i, change) for number, text, changes in ANSWERS for i, change in enumerate(changes)]


@pytest.mark.parametrize(
    ("number", "text", "change"),
    [(n, text, c) if i == 0 else slow(n, text, c) for n, text, i, c in CHANGED],
    ids=[f"{n}-{i}" for n, _, i, _ in CHANGED],
)
def test_what_people_write_instead_is_rejected_with_the_right_name(number, text, change):
    old, new, *name = change
    assert old in text
    said = message(BY_NUMBER[number], written(number, text.replace(old, new)))
    assert [w.__name__ for w in BY_NUMBER[number].wrong if " ".join(w.__doc__.split()) in said] == name
    assert ("comes out if" in said) == bool(name)


def written(number, text):
    """The function of a learner's text."""
    names = dict(torch=torch, DynamicCache=transformers.DynamicCache, EPS=1e-8, ONE=0, IS_BOS=1, POSITION=2)
    exec(text, names)
    return names[BY_NUMBER[number].function]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.file)
def test_there_are_at_least_four_wrong_answers(exercise):
    assert len(exercise.wrong) >= 4


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.file)
def test_the_first_case_alone_is_not_enough(exercise):
    """An answer that returns the result of the first case for every input must fail."""
    first = next(iter(exercise.cases().values()))
    known = engine._run(exercise, exercise.reference, first).outcome
    cases = {name: engine._run(exercise, exercise.reference, a).outcome for name, a in exercise.cases().items()}
    assert any(engine._difference(known, other, "") for other in cases.values())


@pytest.mark.parametrize("exercise", [e for e in EXERCISES if "mask" in next(iter(e.cases().values()))], ids=lambda e: e.file)
def test_padding_matters_in_some_case(exercise):
    assert any((arguments["mask"] == 0).any() for arguments in exercise.cases().values())


def test_an_input_that_is_changed_in_place_is_noticed():
    def in_place(rewards, values, mask, *, gamma=1.0, lam=1.0):
        values *= mask
        return BY_NUMBER["ex08"].reference(rewards, values, mask, gamma=gamma, lam=lam)

    assert "changed its input values in place" in message(BY_NUMBER["ex08"], in_place)


def test_rewards_that_are_sorted_in_place_are_noticed():
    exercise = BY_NUMBER["ex05"]

    def sorts(rewards):
        for row in rewards:
            row.sort()
        return exercise.reference(rewards)

    assert "changed its input rewards in place" in message(exercise, sorts)


def test_the_example_of_ex03_is_right():
    pieces = Pieces("1+2", "=3", "\n", "3*4", "=12", "##", " 12")
    assert BY_NUMBER["ex03"].reference([0, 1, 2, 3, 4, 2, 5, 5, 6, 7], pieces, answer_mark="####") == [0, 3]


def test_float32_is_refused():
    def low(logprobs, ref_logprobs, *, kind):
        return BY_NUMBER["ex11"].reference(logprobs, ref_logprobs, kind=kind).float()

    assert "dtype is torch.float32" in message(BY_NUMBER["ex11"], low)


def test_an_error_in_the_seventh_digit_is_noticed():
    exercise = BY_NUMBER["ex06"]
    said = message(exercise, lambda values, reward: [a + 1e-7 for a in exercise.reference(values, reward)])
    assert "at [0]: 0.2500001 instead of 0.25" in said


def test_not_a_number_is_never_right():
    exercise = BY_NUMBER["ex09"]
    assert "nan instead of" in message(exercise, lambda x, mask: exercise.reference(x, mask) * float("nan"))


def test_a_loss_without_a_gradient_is_noticed():
    exercise = BY_NUMBER["ex10"]
    said = message(exercise, lambda *a, **k: exercise.reference(*a, **k).detach())
    assert "no gradient flows" in said


def test_an_answer_without_a_graph_is_right_where_the_gradient_is_zero():
    """On "ratio 2, a good token" the clip has stopped the gradient, so a loss without a graph has the right gradient."""
    exercise = BY_NUMBER["ex10"]

    def zero_gradients_cut(*arguments, clip=0.2, **more):
        loss = exercise.reference(*arguments, clip=clip, **more)
        [gradient] = torch.autograd.grad(loss, more["logprobs"], retain_graph=True)
        return loss if gradient.any() else loss.detach()

    grade(exercise, zero_gradients_cut)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda values, reward: None, "is there a `return`?"),
        (lambda values, reward: torch.tensor([0.25, 0.25]), "this must be a list, not Tensor"),
        (lambda values, reward: [0.25], "there are 1 entries, not 2"),
        (lambda values, reward: ["0.25", "0.25"], "at [0]: this must be a number, not str"),
        (lambda values: [], "TypeError"),
    ],
)
def test_a_wrong_kind_of_result_is_named(answer, expected):
    assert expected in message(BY_NUMBER["ex06"], answer)


def test_a_wrong_shape_is_named():
    exercise = BY_NUMBER["ex08"]
    said = message(exercise, lambda *a, **k: tuple(x[:, :-1] for x in exercise.reference(*a, **k)))
    assert "at [0]: the shape is [1, 2], not [1, 3]" in said


@pytest.fixture
def learner(monkeypatch, tmp_path):
    """Writes a learner's file and returns the grader's message, as `pytest tutorials/exercises` would print it."""
    monkeypatch.setattr(engine, "FOLDER", tmp_path)

    def write(number: str, text: str):
        exercise = BY_NUMBER[number]
        exercise.path.write_text(textwrap.dedent(text), encoding="utf-8")
        with pytest.raises(AssertionError) as raised:
            grade(exercise, load(exercise))
        return str(raised.value)

    return write


def test_a_syntax_error_is_one_line_with_its_place(learner):
    said = learner("ex06", "def step_advantages(values, reward):\n    return [\n\nx = = 2\n")
    assert said.startswith("ex06_step_advantages.py, line ") and "\n" not in said and "Python cannot read it" in said


def test_a_file_without_the_function_says_so(learner):
    assert learner("ex06", "def advantages(values, reward): pass") == ("ex06_step_advantages.py has no function step_advantages")


def test_an_import_that_fails_names_the_learners_line(learner):
    said = learner("ex06", "import torhc\n")
    assert "failed: ModuleNotFoundError" in said and "(ex06_step_advantages.py, line 1: import torhc)" in said


def test_a_crash_names_the_learners_line_and_nothing_else(learner):
    said = learner(
        "ex06",
        """
        def step_advantages(values, reward):
            return [values[i + 1] - values[i] for i in range(len(values))]
        """,
    )
    assert "\n  IndexError: list index out of range (ex06_step_advantages.py, line 3: return [values[i + 1] - values[i]" in said
    assert "engine.py" not in said and "Traceback" not in said


def test_sys_exit_and_endless_loops_do_not_end_the_grader(learner, monkeypatch):
    assert "SystemExit" in learner("ex06", "raise SystemExit(0)")
    monkeypatch.setattr(engine, "SECONDS", 0.3)
    said = learner("ex06", "def step_advantages(values, reward):\n    while True: pass\n")
    assert "did not return within 0.3 s" in said
    assert "did not return within 0.3 s" in learner("ex06", "while True: pass")


def test_the_printed_example_of_each_docstring_is_right():
    """The numbers of the examples in the stubs' docstrings, copied by hand."""
    run = {number: exercise.reference for number, exercise in BY_NUMBER.items()}
    assert run["ex05"]([[1, 0, 0, 1], [1, 1, 0, 1]]) == [0.5, 0.75]
    assert run["ex06"]([0.5, 0.75], 1.0) == [0.25, 0.25]
    assert run["ex07"]([0.25, -0.5], [0, 2], 5) == [0.25, 0.25, -0.5, -0.5, -0.5]
    a, r = run["ex08"](torch.tensor([[0, 0, 1.0]]), torch.tensor([[0.5, 0.75, 0.25]]), torch.ones(1, 3), lam=0.5)
    assert a.tolist() == [[0.1875, -0.125, 0.75]] and r.tolist() == [[0.6875, 0.625, 1.0]]
    whitened = run["ex09"](torch.tensor([[1.0, 2, 6, 9]]), torch.tensor([[1.0, 1, 1, 0]]))
    assert torch.allclose(whitened, torch.tensor([[-0.75593, -0.37796, 1.13389, 0]]), atol=1e-5)
    p, q = torch.tensor([-1.0]), torch.tensor([-1.2])
    for kind, value in (("k1", 0.2), ("k2", 0.02), ("k3", 0.01873)):
        assert abs(run["ex11"](p, q, kind=kind).item() - value) < 1e-5
    grpo, rloo = run["ex12"](torch.tensor([[1.0, 0, 0, 0]]))
    assert torch.allclose(grpo, torch.tensor([[1.5, -0.5, -0.5, -0.5]])) and abs(rloo[0, 1] + 1 / 3) < 1e-6
    x, m = torch.tensor([[1.0, 2, 3], [4, 9, 9]]), torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    assert [y.item() for y in run["ex13"](x, m, 1)] == [1.5, 1.0]
    assert run["ex14"](torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[1]])).flatten().tolist() == pytest.approx(
        [0.5403, 0.84147], abs=1e-5
    )
    assert run["ex15"](torch.tensor([[[1, 0]]]), 2).flatten().tolist() == [-0.0625, 0, -0.00390625, 0]
    logprobs = torch.tensor([[-0.5, -2.0]], requires_grad=True)
    loss = run["ex19"](logprobs, torch.tensor([[1.0, -0.5]]), torch.ones(1, 2))
    assert loss.item() == -0.25 and torch.autograd.grad(loss, logprobs)[0].tolist() == [[-0.5, 0.25]]
    zeros = torch.zeros(1, 5, 4)
    assert run["ex17"](zeros, torch.tensor([[-100, 2, 1, -100, -100]])).item() == pytest.approx(1.38629, abs=1e-5)
    assert run["ex20"]([0.5, 0.75], 1.0, lam=0.5, mu=0.5) == [0.375, 0.375]
    pair = (torch.tensor([x]) for x in (-2.1, -2.0, -2.0, -1.5))
    assert run["ex21"](*pair, beta=1.0, penalty=2.0).item() == pytest.approx(0.59814, abs=1e-5)
    found = run["ex22"](torch.tensor([[[-1.0, -2.0, -3.0]]]))
    assert found.tolist() == [[[[0, -inf, -inf], [-2, 0, -inf], [-5, -3, 0]]]]
    assert run["ex18"](torch.tensor([[5, 6, 7, 2, 2, 2]]), [2], 2).tolist() == [[0, 0, 1, 1, 0, 0]]


def test_the_gradient_of_ex19_is_that_of_the_mean_reward_by_enumeration():
    """Responses of two tokens, each of three, from a policy whose second token depends on the first: all nine are counted."""
    first, second = (
        torch.randn(3, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 3, dtype=torch.float64).requires_grad_(),
    )
    reward, mask = torch.rand(3, 3, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    p, q = first.log_softmax(dim=0), second.log_softmax(dim=1)
    together = (p[:, None] + q).exp()  # [3, 3], the probability of each response
    value = (q.exp() * reward).sum(dim=1).detach()  # V of the state after the first token
    start = (together * reward).sum().detach()
    total = 0.0
    for a, b in ((a, b) for a in range(3) for b in range(3)):
        advantages = torch.stack([value[a] - start, reward[a, b] - value[a]])[None]
        loss = BY_NUMBER["ex19"].reference(torch.stack([p[a], q[a, b]])[None], advantages, mask)
        total = total + together[a, b].detach() * 2 * loss  # the loss is a mean over two tokens
    found = torch.autograd.grad(-total, [first, second], retain_graph=True)
    exact = torch.autograd.grad((together * reward).sum(), [first, second])
    for x, y in zip(found, exact, strict=True):
        torch.testing.assert_close(x, y)


def test_stubs_import_nothing_that_gives_the_answer_away():
    for exercise in EXERCISES:
        for node in ast.walk(ast.parse(exercise.path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert exercise.function not in [alias.name for alias in node.names]


@pytest.mark.slow
def test_the_command_of_the_readme_grades_one_exercise():
    command = [sys.executable, "-m", "pytest", "tutorials/exercises", "-k", "ex06", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if "raise NotImplementedError" in BY_NUMBER["ex06"].path.read_text(encoding="utf-8"):
        assert done.returncode == 1 and "not implemented yet: ex06" in done.stdout
    assert re.search(r"1 (failed|passed), 21 deselected", done.stdout)
    assert "Traceback" not in done.stdout and "engine.py" not in done.stdout


def shown(capsys) -> str:
    assert main(["exercises"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_board_shows_what_is_done_failing_and_next(learner, capsys):
    for exercise in EXERCISES:
        exercise.path.write_text(f"def {exercise.function}(*a, **k):\n    raise NotImplementedError('{exercise.file[:4]}')\n")
    said = shown(capsys)
    assert "0 of 22 done" in said and "ex01_choose.py" in said.split("next: ")[1]
    text = "def step_advantages(values, reward):\n    return [b - a for a, b in zip(values, [*values[1:], LAST])]\n"
    BY_NUMBER["ex06"].path.write_text(text.replace("LAST", "0.0"))
    said = shown(capsys)
    assert re.search(r"✗ ex06_step_advantages +failing +as if the reward is left out", said) and "ex06" in said.split("fix: ")[1]
    BY_NUMBER["ex06"].path.write_text(text.replace("LAST", "reward"))
    said = shown(capsys)
    assert re.search(r"✓ ex06_step_advantages +done", said) and "1 of 22 done" in said
    BY_NUMBER["ex01"].path.write_text("def choose(:\n")
    assert "✗ ex01_choose" in shown(capsys)


def test_each_line_of_the_board_appears_when_its_exercise_is_graded(capsys, monkeypatch):
    """With slow answers, nothing was to be seen for 16 seconds."""
    seen = []
    monkeypatch.setattr("grading.board.verdict", lambda _: (seen.append(capsys.readouterr().out), ("done", ""))[1])
    shown(capsys)
    assert "✓ ex01_choose" in seen[1] and "✓ ex02_kv_cache" in seen[2]


def test_an_answer_that_ends_or_keeps_its_process_is_one_line_of_the_board(learner, capsys, monkeypatch):
    """os._exit ended the board without a word; a loop that swallows every exception kept it busy for ever."""
    monkeypatch.setattr("grading.EXERCISES", EXERCISES[4:7])
    monkeypatch.setattr("grading.board.SECONDS", 1)
    head = "def {}(*a, **k):\n    "
    for exercise, body in zip(
        EXERCISES[4:7], ("import os; os._exit(0)", SWALLOWS, "raise NotImplementedError('ex07')"), strict=True
    ):
        exercise.path.write_text(head.format(exercise.function) + body)
    said = shown(capsys)
    assert re.search(r"✗ ex05_\w+ +failing +your code ends the process", said)
    assert re.search(r"✗ ex06_\w+ +failing +no answer within 1 s", said)
    assert re.search(r"· ex07_\w+ +untouched", said)


SWALLOWS = "while True:\n        try:\n            while True: pass\n        except BaseException: pass"


def test_a_file_cannot_switch_off_the_gradients_or_the_dtype_of_the_others(learner):
    """With gradients switched off, the reference would have no gradient either, and nothing would be compared."""
    learner("ex06", "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float16)\n")
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    with torch.no_grad():
        grade(BY_NUMBER["ex10"], BY_NUMBER["ex10"].reference)
        assert "no gradient flows" in message(BY_NUMBER["ex10"], lambda *a, **k: BY_NUMBER["ex10"].reference(*a, **k).detach())


def test_only_the_stubs_own_error_means_untouched(learner):
    said = learner("ex06", "def step_advantages(values, reward):\n    raise NotImplementedError('for Long')\n")
    assert "line 2" in said and "for Long" in said


def test_a_result_in_float32_gets_a_hint():
    def low(x, positions):
        return BY_NUMBER["ex14"].reference(x.float(), positions).double()

    assert "float32" in message(BY_NUMBER["ex14"], low)


def test_a_coincidence_on_one_input_is_called_one():
    exercise = BY_NUMBER["ex06"]
    said = message(exercise, lambda values, reward: [reward - v for v in values] if len(values) < 4 else [0.0] * len(values))
    assert "On this input, but not on all, this is what comes out if" in said


def test_async_and_generate_are_refused_kindly(learner):
    assert "remove this word" in learner("ex06", "async def step_advantages(values, reward):\n    return []\n")
    said = message(BY_NUMBER["ex02"], lambda model, prompt, n: model.generate(torch.tensor([prompt]), max_new_tokens=n))
    assert "write the loop yourself" in said


def test_other_kinds_of_integers_are_right_too():
    exercise = BY_NUMBER["ex01"]

    def int32(*a, **k):
        token, logprob = exercise.reference(*a, **k)
        return token.int(), logprob

    grade(exercise, int32)


def test_a_name_that_fits_fewer_than_half_of_the_wrong_cases_is_not_given():
    exercise = BY_NUMBER["ex06"]

    def on_some(values, reward):
        return [reward - v for v in values] if len(values) == 2 or 0.0 in values[:2] else [7.0] * len(values)

    assert "comes out if" in message(exercise, on_some)  # 4 of 8 cases
    said = message(
        exercise, lambda values, reward: [reward - v for v in values] if values == [0.5, 0.75] and reward == 1 else [7.0]
    )
    assert "comes out if" not in said


def test_of_a_large_case_the_row_that_fails_is_shown():
    exercise = BY_NUMBER["ex01"]

    def wrong(logits, uniform, temperature, top_p):
        token, logprob = exercise.reference(logits, uniform, temperature, top_p)
        logprob[7:] += 1
        return token, logprob

    said = message(exercise, wrong)
    assert re.search(r"logits +=.* at \[7\], of shape \[64, 9\]", said) and re.search(r"uniform +=.* 0.111 at \[7\]|0.111", said)


CALLS = "def gae(*a, **k):\n    return theirs(*a, **k)\n"
IN_A_THREAD = """
from concurrent.futures import ThreadPoolExecutor

def gae(*a, **k):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(gae_, *a, **k).result()
"""


def test_the_packages_own_function_is_not_counted_as_done(learner, capsys, monkeypatch):
    exercise = BY_NUMBER["ex08"]
    monkeypatch.setattr("grading.EXERCISES", [exercise])
    monkeypatch.syspath_prepend(exercise.path.parent)
    (exercise.path.parent / "helper_of_a_learner.py").write_text("from vine_mini.advantages import gae as theirs\n" + CALLS)
    for text in (
        "from vine_mini.advantages import gae",
        "from vine_mini import advantages\ngae = lambda *a, **k: advantages.gae(*a, **k)",
        "from grading.estimates import EXERCISES\ngae = EXERCISES[0].reference",
        "from helper_of_a_learner import gae",
        "import torch\nfrom vine_mini import advantages\ngae = torch.no_grad()(advantages.gae)",
        "from functools import partial\nfrom vine_mini import advantages\ngae = partial(advantages.gae)",
        f"from vine_mini.advantages import gae as gae_\n{IN_A_THREAD}",
    ):
        exercise.path.write_text(text)
        with pytest.raises(AssertionError, match="right, but this is the package's own gae: write it yourself"):
            grade_file(exercise)
    assert "0 of 1 done" in shown(capsys)
    exercise.path.write_text(f"import torch\n{dict((n, t) for n, t, _ in ANSWERS)['ex08']}")
    assert "1 of 1 done" in shown(capsys)


@pytest.mark.parametrize("number", ["ex02", "ex03", "ex04", "ex16"])
def test_what_an_exercise_hands_over_may_be_called(learner, number):
    """The model, the tokenizer and the constants of the stub belong to the package as well."""
    start = "import torch\nfrom transformers import DynamicCache\nfrom vine_mini.lengthgen.theory import IS_BOS, ONE, POSITION\n"
    BY_NUMBER[number].path.write_text(start + {n: t for n, t, _ in ANSWERS}[number])
    grade_file(BY_NUMBER[number])


def test_a_part_of_the_model_may_be_called_and_the_package_imported(learner):
    """The grader's own hook counts the passes through this part. An import runs functions of the package as well."""
    text = """
import torch

def response_logprobs(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    import vine_mini.app.plots
    hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    logp = (model.lm_head(hidden) / temperature).log_softmax(-1)[:, :-1].gather(2, input_ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logp, (1, 0)) * response_mask
"""
    BY_NUMBER["ex04"].path.write_text(text)
    grade_file(BY_NUMBER["ex04"])


PATCHES = """
import builtins, torch
torch.isclose = lambda *a, **k: torch.ones((), dtype=torch.bool)
torch.Tensor.any = lambda *a, **k: False
builtins.abs = lambda x: 0

def whiten(x, mask):
    torch.isclose = lambda *a, **k: torch.ones((), dtype=torch.bool)
    return x
"""


def test_grading_survives_a_patched_torch(learner):
    assert "expected" in learner("ex09", PATCHES) and abs(-1) == 1


def test_a_float_that_equals_everything_is_a_number():
    class Anything(float):
        __eq__ = __le__ = lambda self, other: True
        __sub__ = __rsub__ = lambda self, other: 0.0
        __hash__ = float.__hash__

    assert "7 instead of 0.25" in message(BY_NUMBER["ex06"], lambda values, reward: [Anything(7.0)] * len(values))


def test_each_exercise_states_its_effort_and_has_two_hints():
    assert all(board.effort(exercise) for exercise in EXERCISES)
    hints = board.hints()
    assert list(hints) == list(BY_NUMBER) and all(len(two) == 2 for two in hints.values())


def test_the_hints_of_the_command(capsys):
    first, second = board.hints()["ex07"]
    assert main(["exercises", "--hint", "7"]) == 0
    said = capsys.readouterr().out
    assert first in said and second not in said and "--second" in said
    assert main(["exercises", "--hint", "7", "--second"]) == 0
    assert second in capsys.readouterr().out
    for words in (["--hint", "23"], ["--hint", "0"], ["--second"]):
        assert main(["exercises", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
