"""The sampler: the same tokens as `generate`, the distribution that is scored, and the same tokens whatever the batch."""

import pytest
import torch
from conftest import VOCAB, ragged_prompts

from vine_mini.sampling.plain import choose
from vine_mini.sampling import sample
from vine_mini.sampling import rollouts

NO_EOS = VOCAB + 1


def generate(model, prompt, n):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_equals_generate(any_model):
    """Ragged prompts in one batch against `generate` on each alone, with several ends and a budget for each row."""
    prompts, budgets = ragged_prompts(), [12, 12, 5, 12, 1]
    free = [generate(any_model, p, 12) for p in prompts]
    eos = [free[0][3], free[1][6]]
    for batch_size in (None, 2):
        got = sample(any_model, prompts, max_new_tokens=budgets, temperature=0, eos_token_id=eos, seed=0, batch_size=batch_size)
        for trajectory, prompt, whole, budget in zip(got, prompts, free, budgets, strict=True):
            end = next((i + 1 for i, token in enumerate(whole) if token in eos), 99)
            assert trajectory.prompt_ids == prompt
            assert trajectory.response_ids == whole[: min(end, budget)]
            assert trajectory.finished == (end <= budget)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7)])
def test_same_tokens_whatever_the_batch_size(any_model, temperature, top_p):
    prompts = ragged_prompts(5) * 2
    settings = dict(max_new_tokens=8, temperature=temperature, top_p=top_p, eos_token_id=[3, 7, 11, 20], seed=5)
    whole = sample(any_model, prompts, **settings)
    assert len({t.finished for t in whole}) == 2  # some end early, some do not
    for batch_size in (1, 4):
        parts = sample(any_model, prompts, batch_size=batch_size, **settings)
        assert [t.response_ids for t in parts] == [t.response_ids for t in whole]
        for a, b in zip(parts, whole, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert [t.response_ids for t in sample(any_model, prompts, **settings | {"seed": 6})] != [t.response_ids for t in whole]


def test_equal_prompts_get_different_samples(llama):
    a, b = sample(llama, [[1, 2, 3]] * 2, max_new_tokens=10, eos_token_id=NO_EOS, seed=0)
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
    torch.testing.assert_close(logprobs, probs.log()[tokens])  # of the whole distribution


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
    good = dict(max_new_tokens=3, eos_token_id=NO_EOS, seed=0)
    assert sample(llama, [], **good) == []
    for prompts, bad in [
        ([[]], {}),
        ([[1]], {"max_new_tokens": 0}),
        ([[1]], {"max_new_tokens": [1, 2]}),
        ([[1]], {"temperature": -1}),
        ([[1]], {"top_p": 0.0}),
        ([[1]], {"eos_token_id": []}),
        ([[1]], {"batch_size": 0}),
    ]:
        with pytest.raises(ValueError):
            sample(llama, prompts, **good | bad)
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        sample(llama.train(), [[1]], **good)


def test_rollouts_fork_with_what_is_left_of_the_budget(any_model):
    trajectories = sample(any_model, ragged_prompts(3), max_new_tokens=8, eos_token_id=NO_EOS, seed=1)
    cuts = [[0, 2, 7], [], [4]]
    forks = rollouts(any_model, trajectories, cuts, k=4, max_new_tokens=8, eos_token_id=NO_EOS, seed=2)
    assert [[len(group) for group in row] for row in forks] == [[4, 4, 4], [], [4]]
    for trajectory, row, groups in zip(trajectories, cuts, forks, strict=True):
        for cut, group in zip(row, groups, strict=True):
            for completion in group:
                assert completion.prompt_ids == trajectory.prompt_ids + trajectory.response_ids[:cut]
                assert len(completion.response_ids) == 8 - cut and not completion.finished


def test_greedy_rollouts_retrace_their_greedy_trajectory(any_model):
    """A fork of the most likely response goes on exactly as it did: the state is the tokens, nothing is lost at the cut."""
    trajectories = sample(any_model, ragged_prompts(3), max_new_tokens=9, temperature=0, eos_token_id=NO_EOS, seed=1)
    forks = rollouts(any_model, trajectories, [[0, 3, 8]] * 3, k=1, max_new_tokens=9, temperature=0, eos_token_id=NO_EOS, seed=9)
    for trajectory, groups in zip(trajectories, forks, strict=True):
        for cut, [completion] in zip([0, 3, 8], groups, strict=True):
            assert completion.response_ids == trajectory.response_ids[cut:]
