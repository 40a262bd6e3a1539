"""Steps are cut where the sampled tokens are."""

import pytest

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


def test_fixed_number_of_tokens():
    assert cut_steps([5] * 7, None, every=3) == [0, 3, 6]
    assert cut_steps([5] * 6, None, every=3) == [0, 3]
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
