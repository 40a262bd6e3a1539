"""Steps are cut where the sampled tokens are."""

import random

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from vine_mini.app.runs import step_texts
from vine_mini.steps import cut_steps


class Pieces:
    """A tokenizer whose token i is the i-th piece of a text; None is the end-of-sequence token."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.pieces[i] or ("" if skip_special_tokens else "</s>") for i in ids)


@pytest.mark.parametrize(
    "pieces, starts",
    [
        (("a", "\n", "b", "\n", "c", None), [0, 2, 4]),
        (("\n", "\n", "a", "\n", "b"), [0, 4]),  # leading blank lines belong to the first step
        (("a", "\n\n", " ", "\n", "b"), [0, 4]),  # and later ones to the step before them
        (("a", ".\n", "b", "\n", None), [0, 2]),  # the closing newline and the end token open nothing
        (("a", "\n", "b", "\n", "####", " 7", None), [0, 2]),  # the answer line belongs to the last step
        (("a", "\n", "#", "#", "#", "#", "7"), [0]),
        (("a", "\n", "##", "# b", None), [0, 2]),  # ... but only the answer line
        (("a", "\nb", "\n", "c"), [0, 1, 3]),  # a token that brings its own newline
        (("a\nb", "c", "\n", "d"), [0, 1, 3]),  # a token on two lines belongs to the first
        (("#### 7", "\n", "more"), [0, 2]),
        (("a", None), [0]),
        ((None,), [0]),
        (("\n", "\n", None), [0]),
    ],
)
def test_newline_cuts(pieces, starts):
    assert cut_steps(list(range(len(pieces))), Pieces(*pieces), answer_mark="####") == starts


def test_the_answer_mark_is_an_argument():
    pieces = Pieces("a", "\n", "so", ":", " 7", "\n", "####", " 7", None)
    ids = list(range(len(pieces.pieces)))
    assert cut_steps(ids, pieces, answer_mark="so:") == [0, 6]  # the mark may have several tokens
    assert cut_steps(ids, pieces, answer_mark="####") == [0, 2]
    assert cut_steps(ids, pieces) == [0, 2, 6]  # without a mark, the answer line is a step of its own


@pytest.mark.parametrize(
    "pieces, offsets, starts",
    [
        (("One", ".", " Two", ".", None), [0, 4], [0, 2]),  # the space belongs to the first step, and Two to the second
        (("One", ". ", "Two"), [0, 4], [0, 2]),
        (("One", ".\n", "Two"), [0, 4], [0, 2]),
        (("One", ". Two", " is", None), [0, 4], [0, 2]),  # a token that reaches over a start belongs to the step before it
        (("One", ".", " ", "\n", "Two"), [0, 4], [0, 4]),
        (("\n", "One", ".", " Two"), [0, 5], [0, 3]),
        (("a. B. C", " d"), [0, 2, 5], [0, 1]),  # never the same start twice
        (("a", "=", "b"), [0, 1, 2], [0, 1, 2]),
        (("a", "b"), [0], [0]),
        (("a", None), [0, 1], [0]),
        ((None,), [0], [0]),
    ],
)
def test_a_task_may_say_where_steps_start(pieces, offsets, starts):
    asked = []
    cuts = cut_steps(
        list(range(len(pieces))), Pieces(*pieces), answer_mark="a", starts=lambda text: asked.append(text) or offsets
    )
    assert cuts == starts and asked == ["".join(piece or "" for piece in pieces)]


def test_steps_do_not_depend_on_the_tokens():
    """Wherever the tokens end, each step begins with the first token whose text begins in it."""
    text, rng = "One. Two is a\n\n long one.  Three\n", random.Random(0)
    offsets = [0, 4, 14, 25]
    for _ in range(200):
        ends = sorted({*rng.sample(range(1, len(text)), 8), len(text)})
        pieces = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        begins = [b - len(piece.lstrip()) if piece.strip() else None for piece, b in zip(pieces, ends, strict=True)]
        steps = [None if begin is None else sum(offset <= begin for offset in offsets) for begin in begins]
        first = {step: steps.index(step) for step in steps if step}
        cuts = cut_steps(list(range(len(pieces))), Pieces(*pieces), starts=lambda text: offsets)
        assert cuts == [0, *sorted(first.values())[1:]]


def test_the_space_before_a_word_is_seen_where_the_tokenizer_drops_it():
    """Tokenizers like Llama 2's drop the space of the first word that they decode."""
    words = Tokenizer(WordLevel({"\u2581One": 0, ".": 1, "\u2581Two": 2, "?": 3}, unk_token="?"))
    words.decoder = decoders.Metaspace()
    tokenizer, asked = PreTrainedTokenizerFast(tokenizer_object=words), []
    assert tokenizer.decode([2]) == "Two"
    assert cut_steps([0, 1, 2], tokenizer, starts=lambda text: asked.append(text) or [0, 5]) == [0, 2]
    assert asked == [" One. Two"]


def test_fixed_number_of_tokens():
    assert cut_steps([5] * 7, None, every=3) == [0, 3, 6]
    assert cut_steps([5] * 6, None, every=3) == [0, 3]
    assert cut_steps([5] * 3, None, every=1) == [0, 1, 2]
    assert cut_steps([5], None, every=1) == cut_steps([], None, every=1) == cut_steps([5], None, every=3) == [0]
    with pytest.raises(ValueError, match="every = 0"):
        cut_steps([5], None, every=0)


def test_gsm8k_shaped_text(tokenizer):
    text = "\n7+5=12\n12-3=9\n#### 9"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    cuts = cut_steps(ids, tokenizer, answer_mark="####")
    assert [tokenizer.decode(ids[a:b]) for a, b in zip(cuts, [*cuts[1:], None], strict=True)] == [
        "\n7+5=12\n",
        "12-3=9\n#### 9<eos>",
    ]


def test_the_texts_of_the_steps_are_the_response(tokenizer):
    ids = tokenizer.encode("1+2=3\n3*4=12\n#### 12") + [tokenizer.eos_token_id]
    texts = step_texts(ids, cut_steps(ids, tokenizer, answer_mark="####"), tokenizer)
    assert texts == ["1+2=3\n", "3*4=12\n#### 12<eos>"]
