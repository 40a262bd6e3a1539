"""The measures, against a policy whose responses are written by hand."""

import pytest

from vine_mini import evaluate as module
from vine_mini.app.config import EvaluateConfig
from vine_mini.evaluate import evaluate, table
from vine_mini.types import Problem, Trajectory


def test_measures_by_hand(tokenizer, monkeypatch):
    def say(answer, finished=True):
        ids = tokenizer(f"#### {answer}")["input_ids"] + [tokenizer.eos_token_id] * finished
        return Trajectory([1], ids, [0.0] * len(ids), finished)

    samples = [say(7), say("7.0"), say(8), say(9), say(1), say(2), say(2), say(1, finished=False)]

    def fake(model, prompts, *, temperature, **_):
        return samples if temperature else [say(7), say(1)]

    monkeypatch.setattr(module, "sample", fake)
    problems = [Problem("a", "", "7"), Problem("b", "", "1")]
    result = evaluate(None, tokenizer, problems, [[1], [1]], EvaluateConfig(), eos=[1], n=4, temperature=0.35)
    assert result["pass@1"] == (pytest.approx(3 / 8), pytest.approx(1 / 8))  # 2/4 and 1/4; the cut response is wrong
    assert result["greedy"] == (1.0, 0.0)
    assert result["maj@4"] == (0.5, pytest.approx(0.5))  # 7 and 7.0 vote together; 2 beats 1, whose second vote was cut
    assert result["any@4"] == (1.0, 0.0)
    assert result["truncated"][0] == pytest.approx(1 / 8)


def test_table():
    text = table({"before": {"pass@1": (0.25, 0.012), "length": (40.0, 0.5)}, "after": {"pass@1": (0.5, 0.02)}})
    assert text.splitlines()[1].split() == ["pass@1", "25.0", "±", "1.2", "%", "50.0", "±", "2.0", "%"]
    assert text.splitlines()[2].split() == ["length", "40", "±", "0.5"]


def test_one_problem_has_no_standard_error(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "sample", lambda *_, **__: [Trajectory([1], [1], [0.0], True)])
    result = evaluate(None, tokenizer, [Problem("a", "", "7")], [[1]], EvaluateConfig(), eos=[1], n=1, temperature=1.0)
    assert result["pass@1"] == (0.0, None)
    assert "0.0 ± ? %" in table({"a": result})
