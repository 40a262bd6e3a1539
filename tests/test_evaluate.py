"""The measures, against a policy whose responses are written by hand."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model

from vine_mini import evaluate as module
from vine_mini import tasks
from vine_mini.evaluate import evaluate, table
from vine_mini.types import Problem, Sampling, Trajectory

SAMPLING = Sampling(20, (1,), temperature=0.35)
ARITHMETIC = tasks.get("arithmetic")


def say(tokenizer, answer, finished=True):
    ids = tokenizer(f"#### {answer}")["input_ids"] + [tokenizer.eos_token_id] * finished
    return Trajectory([1], ids, [0.0] * len(ids), finished)


def sampler_that_says(samples, greedy):
    return lambda model, prompts, sampling, **_: samples if sampling.temperature else greedy


def test_measures_by_hand(tokenizer, monkeypatch):
    samples = [say(tokenizer, answer) for answer in (7, "7.0", 8, 9, 1, 2, 2)] + [say(tokenizer, 1, finished=False)]
    monkeypatch.setattr(module, "sample", sampler_that_says(samples, [say(tokenizer, 7), say(tokenizer, 1)]))
    problems = [Problem("a", "", "7"), Problem("b", "", "1")]
    result = evaluate(None, tokenizer, ARITHMETIC, problems, [[1], [1]], SAMPLING, n=4)
    assert result["pass@1"] == (pytest.approx(3 / 8), pytest.approx(1 / 8))  # 2/4 and 1/4; the cut response is wrong
    assert result["greedy"] == (1.0, 0.0)
    assert result["maj@4"] == (0.5, pytest.approx(0.5))  # 7 and 7.0 vote together; 2 beats 1, whose second vote was cut
    assert result["pass@4"] == (1.0, 0.0)
    assert result["truncated"][0] == pytest.approx(1 / 8)


def test_measures_of_partial_credit_by_hand(tokenizer, monkeypatch):
    """Every measure is a mean of rewards; a majority vote gets the reward of the response that gave the answer first."""

    def reward(problem, text):
        return 1.0 if text.endswith("7") else 0.5 if text.endswith("8") else 0.25 * ("9" in text)

    task = SimpleNamespace(reward=reward, extract_answer=lambda text: text[-1])
    samples = [say(tokenizer, answer) for answer in (8, 8, 7, 9)]
    monkeypatch.setattr(module, "sample", sampler_that_says(samples, [say(tokenizer, 9)]))
    result = evaluate(None, tokenizer, task, [Problem("a", "", "7")], [[1]], SAMPLING, n=4)
    means = {name: mean for name, (mean, _) in result.items()}
    assert means == pytest.approx({"pass@1": 2.25 / 4, "greedy": 0.25, "maj@4": 0.5, "pass@4": 1.0} | _lengths(result))


def _lengths(result):
    return {name: result[name][0] for name in ("length", "truncated")}


def test_the_error_of_the_kl_respects_problems(tokenizer, monkeypatch):
    """Four equal samples of each of two problems are two observations: error .1. Eight would give .038."""
    samples = [say(tokenizer, answer) for answer in (1, 2)]
    monkeypatch.setattr(module, "sample", sampler_that_says([samples[0]] * 4 + [samples[1]] * 4, samples))
    monkeypatch.setattr(module, "kl_to_reference", lambda *_: [0.1] * 4 + [0.3] * 4)
    problems = [Problem("a", "", "1"), Problem("b", "", "2")]
    result = evaluate(None, tokenizer, ARITHMETIC, problems, [[1], [1]], SAMPLING, n=4, reference=object())
    assert result["kl"] == (pytest.approx(0.2), pytest.approx(0.1))


def test_every_error_is_an_error_over_problems(tokenizer, monkeypatch):
    """More samples that are the same responses again change neither a mean nor an error."""
    once = [say(tokenizer, answer) for answer in (1, 2, 3, 4)]
    problems = [Problem("a", "", "1"), Problem("b", "", "4")]
    results = []
    for copies in (1, 5):
        samples = [t for i in (0, 2) for t in once[i : i + 2] * copies]
        monkeypatch.setattr(module, "sample", sampler_that_says(samples, [once[0], once[2]]))
        monkeypatch.setattr(module, "kl_to_reference", lambda *_, c=copies: [0.1, 0.2] * c + [0.3, 0.5] * c)
        parts = None, tokenizer, ARITHMETIC, problems, [[1], [1]], SAMPLING
        results.append(list(evaluate(*parts, n=2 * copies, reference=object()).values()))
    torch.testing.assert_close(results[0], results[1])


def test_table():
    before = {"pass@1": (0.25, 0.012), "length": (1023.4, 12.3), "kl": (0.0123, 0.00456)}
    text = table({"before": before, "after": {"pass@1": (0.5, 0.02)}})
    assert text.splitlines()[1].split() == ["pass@1", "25.0", "±", "1.2", "%", "50.0", "±", "2.0", "%"]
    assert text.splitlines()[2].split() == ["length", "1023.4", "±", "12.3"]
    assert text.splitlines()[3].split() == ["kl", "0.012", "±", "0.0046"]


def test_grading_shows_progress(tokenizer, monkeypatch):
    """A grader of the user may take seconds for each response."""
    bars = []

    def counted(items, desc, delay, **style):
        bars.append((desc, len(items), delay))
        return items

    samples = [say(tokenizer, answer) for answer in (1, 2, 1, 2)]
    monkeypatch.setattr(module, "sample", sampler_that_says(samples, samples[:2]))
    monkeypatch.setattr(module, "tqdm", counted)
    evaluate(None, tokenizer, ARITHMETIC, [Problem("a", "", "1")] * 2, [[1], [1]], SAMPLING, n=2)
    assert bars == [("grade", 2, 2)] * 2  # problems of the samples and of the greedy responses, after two seconds


def test_one_problem_has_no_standard_error(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "sample", lambda *_, **__: [Trajectory([1], [1], [0.0], True)])
    result = evaluate(None, tokenizer, ARITHMETIC, [Problem("a", "", "7")], [[1]], SAMPLING, n=1)
    assert result["pass@1"] == (0.0, None)
    assert "0.0 ± ? %" in table({"a": result})


def test_the_kl_is_of_the_policy_to_the_reference_at_the_samples_temperature():
    """k3 of each sampled token from whole distributions in float64: exp(r) - 1 - r with r = log p_ref - log p_policy."""
    policy, reference = tiny_model("llama").double(), tiny_model("gpt2").double()
    trajectories = [Trajectory([1, 2], [3, 4, 5], [0.0] * 3, True), Trajectory([7], [8], [0.0], False)]
    expected = []
    for t in trajectories:
        ids = torch.tensor([t.prompt_ids + t.response_ids])
        start = len(t.prompt_ids)
        logs = [(m(ids).logits[0, start - 1 : -1] / 0.7).log_softmax(dim=-1) for m in (policy, reference)]
        p, q = (x.gather(1, ids[0, start:, None])[:, 0] for x in logs)
        expected.append(((q - p).exp() - 1 - (q - p)).mean().item())
    for rows in (1, 16):  # in a forward pass
        assert module.kl_to_reference(policy, reference, trajectories, 0.7, rows) == pytest.approx(expected, rel=1e-5)


def test_lengths_by_hand(tokenizer, monkeypatch):
    samples = [Trajectory([1], [1] * n, [0.0] * n, True) for n in (2, 4, 5, 7)]
    monkeypatch.setattr(module, "sample", sampler_that_says(samples, samples[:2]))
    problems = [Problem("a", "", "7"), Problem("b", "", "1")]
    result = evaluate(None, tokenizer, ARITHMETIC, problems, [[1], [1]], SAMPLING, n=2)
    assert result["length"] == (4.5, pytest.approx(1.5))  # 3 and 6
