"""The sampler: the same tokens as `generate`, the distribution that is scored, and the same tokens whatever the batch."""

import pytest
import torch
from conftest import VOCAB, ragged_prompts, slow

from vine_mini.sampling import fast, plain, rollouts, sample
from vine_mini.sampling.plain import Request, choose
from vine_mini.types import Sampling

NO_EOS = (VOCAB + 1,)


def generate(model, prompt, n):
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("complete", [plain.complete, fast.complete])
def test_greedy_equals_generate(any_model, complete):
    """Ragged prompts in one batch against `generate` on each alone, with several ends and a budget for each row."""
    prompts, budgets = ragged_prompts(), [12, 12, 5, 12, 1]
    requests = [Request(n, len(p), budget) for n, (p, budget) in enumerate(zip(prompts, budgets, strict=True))]
    free = [generate(any_model, p, 12) for p in prompts]
    eos = (free[0][3], free[1][6])
    for batch_size in (512, 2):
        greedy = Sampling(max_new_tokens=12, eos_token_id=eos, temperature=0, batch_size=batch_size)
        got = complete(any_model, prompts, requests, torch.rand(5, 12), greedy, lambda n: None)
        for trajectory, prompt, whole, budget in zip(got, prompts, free, budgets, strict=True):
            end = next((i + 1 for i, token in enumerate(whole) if token in eos), 99)
            assert trajectory.prompt_ids == prompt
            assert trajectory.response_ids == whole[: min(end, budget)]
            assert trajectory.finished == (end <= budget)


@pytest.mark.parametrize("temperature, top_p", [slow(1.0, 1.0), slow(0.6, 1.0), (1.0, 0.7)])
def test_same_tokens_whatever_the_batch_size(any_model, temperature, top_p):
    prompts = ragged_prompts(5) * 2

    def tokens_of(seed, **changes):
        sampling = Sampling(max_new_tokens=8, eos_token_id=(3, 7, 11, 20), temperature=temperature, top_p=top_p, **changes)
        return sample(any_model, prompts, sampling, seed=seed)

    whole = tokens_of(seed=5)
    assert len({t.finished for t in whole}) == 2  # some end early, some do not
    for batch_size in (1, 4):
        parts = tokens_of(seed=5, batch_size=batch_size)
        assert [t.response_ids for t in parts] == [t.response_ids for t in whole]
        for a, b in zip(parts, whole, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert [t.response_ids for t in tokens_of(seed=6)] != [t.response_ids for t in whole]


def test_equal_prompts_get_different_samples(llama):
    a, b = sample(llama, [[1, 2, 3]] * 2, Sampling(max_new_tokens=10, eos_token_id=NO_EOS), seed=0)
    assert a.response_ids != b.response_ids


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_follow_the_distribution(temperature):
    """Chi-square over 40,000 draws and 12 tokens; 11 degrees of freedom exceed 45 with probability 5e-6."""
    g = torch.Generator().manual_seed(0)
    logits, n = torch.randn(12, generator=g), 40_000
    uniform = torch.rand(n, generator=g)
    tokens, logprobs = choose(logits.expand(n, -1), uniform, temperature, 1.0)
    probs = (logits / temperature).softmax(0)
    counts = torch.bincount(tokens, minlength=12)
    assert ((counts - n * probs).square() / (n * probs)).sum() < 45
    torch.testing.assert_close(logprobs, probs.log()[tokens])


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    probs = torch.tensor([0.15, 0.5, 0.05, 0.3])
    uniform = torch.linspace(0, 0.9999999, 1001)
    kept = {
        p: set(choose(probs.log().expand(1001, -1), uniform, 1.0, p)[0].tolist())
        for p in (0.4, 0.49, 0.51, 0.79, 0.81, 0.96, 1.0)
    }
    assert kept == {0.4: {1}, 0.49: {1}, 0.51: {1, 3}, 0.79: {1, 3}, 0.81: {0, 1, 3}, 0.96: {0, 1, 2, 3}, 1.0: {0, 1, 2, 3}}
    tokens, logprobs = choose(probs.log().expand(1001, -1), uniform, 1.0, 0.5)
    torch.testing.assert_close(logprobs, probs.log()[tokens])  # under the whole distribution


def test_a_token_of_probability_zero_is_never_taken():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]]).expand(5, -1)
    almost_one = 1 - 2**-24
    tokens, _ = choose(logits, torch.tensor([0.0, 1e-30, 0.26, almost_one, 0.9999]), 1.0, 1.0)
    assert tokens.tolist() == [1, 1, 1, 3, 3]
    for seed in range(300):  # sums that round to more or less than 1
        logits = 8 * torch.randn(1, 50, generator=torch.Generator().manual_seed(seed))
        logits[0, -7:] = float("-inf")
        for top_p in (1.0, 0.3):
            token, logprob = choose(logits, torch.tensor([almost_one]), 1.0, top_p)
            assert token.item() < 43 and torch.isfinite(logprob).all()


def test_bad_arguments(llama):
    good = dict(max_new_tokens=3, eos_token_id=NO_EOS)
    assert sample(llama, [], Sampling(**good), seed=0) == []
    for prompts, bad in [
        ([[]], {}),
        ([[1]], {"max_new_tokens": 0}),
        ([[1]], {"temperature": -1}),
        ([[1]], {"top_p": 0.0}),
        ([[1]], {"eos_token_id": ()}),
        ([[1]], {"batch_size": 0}),
    ]:
        with pytest.raises(ValueError):
            sample(llama, prompts, Sampling(**good | bad), seed=0)
    [trajectory] = sample(llama, [[1]], Sampling(**good), seed=0)
    with pytest.raises(ValueError, match="at least one token"):
        rollouts(llama, [trajectory], [[3]], Sampling(**good), k=1, seed=0)
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        sample(llama.train(), [[1]], Sampling(**good), seed=0)


def test_rollouts_get_what_is_left_of_the_limit(any_model):
    sampling = Sampling(max_new_tokens=8, eos_token_id=NO_EOS)
    trajectories = sample(any_model, ragged_prompts(3), sampling, seed=1)
    cuts = [[0, 2, 7], [], [4]]
    groups = rollouts(any_model, trajectories, cuts, sampling, k=4, seed=2)
    assert [[len(group) for group in row] for row in groups] == [[4, 4, 4], [], [4]]
    for trajectory, at, row in zip(trajectories, cuts, groups, strict=True):
        for cut, group in zip(at, row, strict=True):
            for rollout in group:
                assert rollout.prompt_ids == trajectory.prompt_ids + trajectory.response_ids[:cut]
                assert len(rollout.response_ids) == 8 - cut and not rollout.finished


def test_greedy_rollouts_retrace_their_greedy_trajectory(any_model):
    """A rollout of the most likely response goes on exactly as it did: the state is the tokens, nothing is lost at the cut."""
    greedy = Sampling(max_new_tokens=9, eos_token_id=NO_EOS, temperature=0)
    trajectories = sample(any_model, ragged_prompts(3), greedy, seed=1)
    groups = rollouts(any_model, trajectories, [[0, 3, 8]] * 3, greedy, k=1, seed=9)
    for trajectory, row in zip(trajectories, groups, strict=True):
        for cut, [rollout] in zip([0, 3, 8], row, strict=True):
            assert rollout.response_ids == trajectory.response_ids[cut:]


def test_neither_way_asks_the_model_for_logits(any_model, monkeypatch):
    """Logits come from `logits_of` alone: the language-model head may be in another precision than the layers before it."""
    monkeypatch.setattr(type(any_model), "forward", None)
    for way in (True, False):
        assert sample(any_model, ragged_prompts(2), Sampling(max_new_tokens=4, eos_token_id=NO_EOS), seed=0, plain=way)
