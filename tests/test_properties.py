"""Properties of what meets text and numbers from outside, tried on cases that hypothesis makes up.

200 cases a property. PROPERTY_CASES=20000 is the long form, which is random; the short one always has the same cases.
"""

import json
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import shipped_tokenizer
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from vine_mini import models, tasks
from vine_mini.advantages import gae, group_relative, leave_one_out, spread_to_tokens, step_advantages, whiten
from vine_mini.app.files import read_rows, write_rows
from vine_mini.app.runs import step_texts
from vine_mini.steps import cut_steps
from vine_mini.tasks import arithmetic, gsm8k, jsonl, math
from vine_mini.types import Problem, Trajectory, UserError, collate, on_response

pytest.importorskip("hypothesis", reason="pip install hypothesis")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("PROPERTY_CASES", "200"))
try_all = settings(
    max_examples=CASES, deadline=None, derandomize=CASES <= 200, database=None, suppress_health_check=list(HealthCheck)
)

# What a policy might write: words of the format in any order, numbers in all spellings, and anything else.
NUMBERS = st.one_of(
    st.integers(-(10**7), 10**7).map(str),
    st.integers(0, 10**7).map("{:,}".format),
    st.decimals(-1000, 1000, places=2).map(str),
    st.fractions(-9, 9, max_denominator=9).map(str),
)
WORDS = st.sampled_from([*"#$%.,/-+=*()<>{}\\ \n\t", "####", "#### ", "\n#### ", "<<", ">>", "<<3+4=7>>", "\\boxed{", "\\frac", "\u2028", "\u0663", "½", "\N{MINUS SIGN}", " or ", "k", "eggs", "Step ", "The answer is ", "answer", "</s>"])  # fmt: skip
WRITTEN = st.lists(st.one_of(NUMBERS, WORDS, st.text(max_size=5)), max_size=14).map("".join)


def canonical(number) -> str:
    return str(Fraction(number.replace(",", "")))


@try_all
@given(WRITTEN, NUMBERS)
def test_whatever_is_written_is_right_or_wrong(text, number):
    """A reward is 1 exactly where the extracted answer is the problem's, so a majority vote and a reward agree."""
    answer = canonical(number)
    found = gsm8k.extract_answer(text)
    assert gsm8k.reward(Problem("q", "", answer), text) == float(found == answer)
    if found is not None:
        assert gsm8k.extract_answer(f"#### {found}") == found == canonical(found)
        assert gsm8k.reward(Problem("q", "", found), text) == 1.0 and "####" in text


@try_all
@given(NUMBERS, st.text("abc =+*0123456789\n", max_size=30))
def test_a_number_is_read_in_each_spelling_whatever_stands_before(number, before):
    for line in (number, f"${number}", f" {number} ", f"{number}.", f"{number} eggs", f"**{number}**"):
        assert gsm8k.extract_answer(f"{before}\n#### {line}\n") == canonical(number), line


@try_all
@given(NUMBERS, NUMBERS, WRITTEN)
def test_a_second_guess_is_never_right(first, second, between):
    first, second = first.replace(",", ""), second.replace(",", "")
    assume(canonical(first) != canonical(second))
    assert gsm8k.extract_answer(f"#### {first}\n{between}\n#### {second}") is None
    assert gsm8k.extract_answer(f"#### {first} {second}") is None


@try_all
@given(WRITTEN, st.one_of(NUMBERS, st.text(min_size=1, max_size=8)))
def test_an_answer_of_jsonl_is_graded_as_it_is_stated(text, answer):
    try:
        problem = jsonl.parse_row({"question": "q", "answer": answer}, "here")
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert jsonl.reward(problem, problem.solution) == 1.0
    assert jsonl.reward(problem, f"so it is\n{problem.solution}\n") == 1.0
    reward = jsonl.reward(problem, text)
    stated = {jsonl.extract_answer(text), gsm8k.extract_answer(text)}  # `#### 17 apples` is text, and right where 17 is asked for
    assert reward == float(problem.answer in stated) or reward == 0.0


@try_all
@given(WRITTEN)
def test_boxes_and_steps_of_math(text):
    starts = math.step_starts(text)
    assert starts[0] == 0 and starts == sorted(set(starts)) and all(0 <= start < max(1, len(text)) for start in starts)
    found = math.extract_answer(text)
    assert found is None or (isinstance(found, str) and found and "box" in text)
    inside = text.replace("{", "").replace("}", "").replace("\\", "")
    assert math.extract_answer(f"so \\boxed{{{inside}}}.") == (math.normalize(inside) or None)


# Steps


class Pieces:
    """A tokenizer whose token i is the i-th piece of a text."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.pieces[i] for i in ids)


@try_all
@given(st.lists(st.text("ab#. \n\t7", min_size=1, max_size=4), min_size=1, max_size=20), st.sampled_from([None, "####", "so:"]))
def test_steps_are_the_response_in_pieces_that_begin_new_lines(pieces, mark):
    """Between the visible texts of two steps there is a newline. No step but the first is an answer line or blank."""
    cuts = cut_steps(list(range(len(pieces))), Pieces(pieces), answer_mark=mark)
    assert cuts[0] == 0 and cuts == sorted(set(cuts)) and cuts[-1] < len(pieces)
    steps = ["".join(pieces[a:b]) for a, b in zip(cuts, [*cuts[1:], len(pieces)], strict=True)]
    assert "".join(steps) == "".join(pieces)
    for cut in cuts[1:]:
        before, opening = "".join(pieces[:cut]), pieces[cut]
        assert opening.strip() and before.strip()  # a token with visible text opens a step, and a step is before it
        visible = len(before) + len(opening) - len(opening.lstrip())  # where the text of the step begins
        last = [k for k, piece in enumerate(pieces[:cut]) if piece.strip()][-1]  # the token with text before it
        begun = len("".join(pieces[:last])) + len(pieces[last]) - len(pieces[last].lstrip())
        assert "\n" in "".join(pieces)[begun:visible]  # a newline has come since that token's text began


@try_all
@given(st.text(max_size=40), st.booleans())
def test_the_texts_of_steps_are_the_response_for_a_byte_level_tokenizer(text, own_steps):
    """Characters of several tokens included: no step begins inside of one."""
    tokenizer = shipped_tokenizer()
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    cuts = cut_steps(ids, tokenizer, answer_mark="####", starts=math.step_starts if own_steps else None)
    assert "".join(step_texts(ids, cuts, tokenizer)) == tokenizer.decode(ids)


@try_all
@given(st.lists(st.integers(2, 399), min_size=1, max_size=30))
def test_any_tokens_have_steps(ids):
    """A policy may sample tokens that are no text, such as half of a character."""
    cuts = cut_steps(ids, shipped_tokenizer(), answer_mark="####")
    assert cuts[0] == 0 and cuts == sorted(set(cuts)) and cuts[-1] < len(ids)


@try_all
@given(st.integers(1, 50), st.integers(1, 60))
def test_steps_of_a_number_of_tokens(length, every):
    cuts = cut_steps([5] * length, None, every=every)
    sizes = [b - a for a, b in zip(cuts, [*cuts[1:], length], strict=True)]
    assert sum(sizes) == length and set(sizes[:-1]) <= {every} and 1 <= sizes[-1] <= every


# JSON lines


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=5)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def written(content: bytes) -> Path:
    file, path = tempfile.mkstemp(suffix=".jsonl")
    with os.fdopen(file, "wb") as out:
        out.write(content)
    return Path(path)


@try_all
@given(st.lists(st.tuples(TEXT.filter(str.strip), st.integers(-99, 9999)), max_size=5), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans(), st.booleans())  # fmt: skip
def test_questions_are_read_as_they_were_written(rows, end, mark, ascii_only):
    """With any line ends, blank lines, a byte-order mark, and Unicode escaped or not."""
    lines = [json.dumps({"question": q, "answer": f"so\n#### {a}"}, ensure_ascii=ascii_only) for q, a in rows]
    path = written((b"\xef\xbb\xbf" if mark else b"") + end.join(lines).encode())
    try:
        assert [(p.question, p.answer) for p in gsm8k.read_jsonl(path)] == [(q, str(a)) for q, a in rows]
    finally:
        path.unlink()


@try_all
@given(
    st.binary(max_size=40)
    | JSON.map(json.dumps).map(str.encode)
    | st.lists(JSON, max_size=3).map(lambda x: "\n".join(map(json.dumps, x)).encode())
)
def test_any_file_is_read_or_refused_in_one_line(content):
    path = written(content)
    try:
        for parse in (gsm8k.parse_row, jsonl.parse_row, math.parse_row):
            try:
                assert all(isinstance(problem, Problem) for problem in gsm8k.read_jsonl(path, parse))
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)
    finally:
        path.unlink()


@try_all
@given(st.lists(st.dictionaries(TEXT, JSON.filter(lambda x: "\\ud" not in json.dumps(x)), max_size=3), max_size=4), st.data())
def test_a_log_is_read_as_it_was_written_and_without_the_line_that_a_crash_cut(rows, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.jsonl")
        write_rows(path, rows)
        assert read_rows(path) == rows
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        kept = read_rows(path)  # the cut may be inside a character
        assert kept == rows[: len(kept)]


# Advantages, against slow formulas in float64


VALUES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8)
SHARE = st.floats(0, 1)


def slow_steps(values, R, lam, mu):
    """A_i = Q_i - B_i as sums of products, from the definitions alone."""
    n, after, out = len(values), [*values[1:], R], []
    for i in range(n):
        q = sum((1 - lam) * lam ** (j - i) * after[j] for j in range(i, n - 1)) + lam ** (n - 1 - i) * R
        b = sum((1 - mu) * mu ** (i - j) * values[j] for j in range(1, i + 1)) + mu**i * values[0]
        out.append(q - b)
    return out


@try_all
@given(VALUES, st.floats(0, 1), SHARE, SHARE)
def test_lam_and_mu_equal_the_slow_formula(values, R, lam, mu):
    found = step_advantages(values, R, lam=lam, mu=mu)
    assert found == pytest.approx(slow_steps(values, R, lam, mu), abs=1e-12)
    assert sum(step_advantages(values, R)) == pytest.approx(R - values[0], abs=1e-12)  # VinePPO's telescope
    assert step_advantages([0.25] * len(values), 0.25, lam=lam, mu=mu) == pytest.approx([0.0] * len(values), abs=1e-12)


@st.composite
def rows(draw):
    """[B, T] in float64: rewards, values, and a mask whose ones stand side by side; padding holds anything."""
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    mask = torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        start = draw(st.integers(0, T))
        mask[b, start : draw(st.integers(start, T))] = 1.0
    number = st.floats(-4, 4, width=32)
    x, y = (torch.tensor(draw(st.lists(number, min_size=B * T, max_size=B * T)), dtype=torch.float64).view(B, T) for _ in "xy")
    padding = draw(st.sampled_from([0.0, 1e30, float("nan"), float("inf")]))
    return (*(z.where(mask.bool(), padding) for z in (x, y)), mask)


@try_all
@given(rows(), SHARE, SHARE)
def test_gae_equals_the_slow_formula(case, gamma, lam):
    rewards, values, mask = case
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    expected = torch.zeros_like(mask)
    for b in range(len(mask)):
        tokens = mask[b].nonzero()[:, 0].tolist()
        for t in tokens:
            later = [j for j in tokens if j >= t]
            deltas = [rewards[b, j] + (gamma * values[b, j + 1] if j + 1 in tokens else 0.0) - values[b, j] for j in later]
            expected[b, t] = sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas))
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(returns, (expected + values).where(mask.bool(), 0.0), rtol=0, atol=1e-10)


@try_all
@given(rows())
def test_whitening_equals_the_slow_formula(case):
    x, _, mask = case
    inside, white = x[mask.bool()].tolist(), whiten(x, mask)
    n = len(inside)
    mean = sum(inside) / max(n, 1)
    std = (sum((value - mean) ** 2 for value in inside) / max(n - 1, 1)) ** 0.5
    expected = [(value - mean) / std if std > 1e-6 else 0.0 for value in inside]
    assert white[mask.bool()].tolist() == pytest.approx(expected, abs=1e-5, rel=1e-2)  # EPS, where the deviation is small
    assert white[~mask.bool()].abs().sum() == 0


@try_all
@given(st.integers(1, 4), st.integers(2, 8), st.data())
def test_group_baselines_equal_their_slow_formulas(N, G, data):
    """In float32, as in training."""
    reward = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
    rows = data.draw(st.lists(st.lists(reward, min_size=G, max_size=G), min_size=N, max_size=N))
    rewards = torch.tensor(rows)
    relative, centred, others = group_relative(rewards), group_relative(rewards, scale_by_std=False), leave_one_out(rewards)
    for n, row in enumerate(rows):
        mean = sum(row) / G
        std = (sum((r - mean) ** 2 for r in row) / (G - 1)) ** 0.5
        assert centred[n].tolist() == pytest.approx([r - mean for r in row], abs=1e-6)
        assert others[n].tolist() == pytest.approx([r - (sum(row) - r) / (G - 1) for r in row], abs=1e-5)
        if std > 1e-3:
            assert relative[n].tolist() == pytest.approx([(r - mean) / std for r in row], abs=1e-2)
        if len(set(row)) == 1:
            assert relative[n].abs().max() == 0


@try_all
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_spread_gives_each_token_the_advantage_of_its_step(sizes, data):
    cuts = [sum(sizes[:i]) for i in range(len(sizes))]
    of_steps = data.draw(st.lists(st.floats(-1, 1), min_size=len(sizes), max_size=len(sizes)))
    spread = spread_to_tokens(of_steps, cuts, sum(sizes))
    assert spread == [a for a, size in zip(of_steps, sizes, strict=True) for _ in range(size)]


@try_all
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=6), st.integers(1, 40))
def test_micro_batches_hold_each_row_once_and_lose_no_token(lengths, most):
    rows = [Trajectory([7] * p, list(range(1, r + 1)), [-float(i) for i in range(r)], True) for p, r in lengths]
    tokens = collate(rows)
    parts = tokens.micro_batches(torch.arange(len(rows)), most)
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(rows)))
    scores = on_response([t.logprobs for t in rows], tokens.response_mask)
    for part in parts:
        m = tokens.rows(part)
        assert len(part) == 1 or m.input_ids.numel() <= most
        for i, row in enumerate(part.tolist()):
            assert m.input_ids[i][m.response_mask[i].bool()].tolist() == rows[row].response_ids
            assert scores[row][tokens.response_mask[row].bool()].tolist() == rows[row].logprobs


# Tokenizers


VOCABULARY = {word: i for i, word in enumerate(["?", "<pad>", "</s>", "<s>", "<end>", "####", "7", "8", "a", "b", "eggs"])}


def a_tokenizer(pad: bool, eos: bool, bos: bool):
    """A tokenizer of words, with some of the special tokens."""
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>" if pad else None, "eos_token": "</s>" if eos else None, "bos_token": "<s>" if bos else None}
    return PreTrainedTokenizerFast(tokenizer_object=words, **{name: token for name, token in names.items() if token})


@try_all
@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([None, 2, 4, [2, 4]]), st.lists(st.sampled_from(["7", "8", "a", "eggs"]), max_size=4))  # fmt: skip
def test_tokenizers_without_special_tokens(pad, eos, bos, configured, words):
    """Prompts have no padding, every end of a response is known or missed in one line, and the grade is the same."""
    tokenizer = a_tokenizer(pad, eos, bos)
    embeddings = SimpleNamespace(num_embeddings=len(VOCABULARY))
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured), get_input_embeddings=lambda: embeddings)
    expected = {2 if eos else None, *(configured if isinstance(configured, list) else [configured])} - {None}
    if not expected:
        with pytest.raises(UserError, match="no response could ever finish"):
            models.eos_ids(model, tokenizer)
        return
    ends = models.eos_ids(model, tokenizer)
    assert ends == sorted(expected)
    config = SimpleNamespace(prompt="{question} eggs", chat=False, task="arithmetic")
    prompts = tasks.prompt_ids([Problem("a", "", ""), Problem("a b a", "", "")], tokenizer, config)
    assert prompts == [[8, 10], [8, 9, 8, 10]]
    text = " ".join(["####", *words])
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], ends[0]]
    cuts = cut_steps(ids, tokenizer, answer_mark="####")
    assert cuts == [0]
    response = Trajectory(prompts[0], ids, [0.0] * len(ids), True)
    for answer in ("7", "8"):
        assert tasks.grade(arithmetic, Problem("", "", answer), response, tokenizer) == gsm8k.reward(
            Problem("", "", answer), text
        )
    tokens = collate([response, Trajectory(prompts[1], [6], [0.0], False)])
    assert tokens.attention_mask.sum(dim=1).tolist() == [2 + len(ids), 5]
