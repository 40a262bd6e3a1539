"""Scoring: what the sampler said is what the loss sees, on every architecture, padded or not."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE, VOCAB, ragged_prompts, tiny_model
from transformers import Gemma2Config, PretrainedConfig

from vine_mini import hardware
from vine_mini import logprobs as module
from vine_mini.logprobs import logits_of, response_logprobs, response_values
from vine_mini.models import Critic
from vine_mini.sampling import sample
from vine_mini.types import Sampling
from vine_mini.types import collate as collate_on

collate = partial(collate_on, device=DEVICE)


def scored(model, batch, **kwargs):
    return response_logprobs(model, batch.input_ids, batch.attention_mask, batch.response_mask, **kwargs)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_ratio_is_one(any_model, temperature):
    """Rule 1: log-probs of the cached, left-padded sampler equal those of one right-padded forward pass, to 1e-4."""
    sampled = sample(any_model, ragged_prompts(6), Sampling(9, (3, 7, 11), temperature), seed=0)
    batch = collate(sampled)
    got = scored(any_model, batch, temperature=temperature)
    for row, trajectory in zip(got.cpu(), sampled, strict=True):
        start = len(trajectory.prompt_ids)
        ratio = (row[start : start + len(trajectory.response_ids)] - torch.tensor(trajectory.logprobs)).exp()
        assert (ratio - 1).abs().max() < 1e-4
    assert (got * (1 - batch.response_mask)).abs().sum() == 0


def test_equals_the_plain_formula(any_model):
    batch = collate(sample(any_model, ragged_prompts(3), Sampling(5, (VOCAB,)), seed=0))
    logits = any_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.double()
    for b, t in batch.response_mask.nonzero().tolist():
        expected = logits[b, t - 1].log_softmax(-1)[batch.input_ids[b, t]]
        assert scored(any_model, batch)[b, t].item() == pytest.approx(expected.item(), abs=1e-4)


def test_padding_on_either_side_changes_nothing(any_model):
    [trajectory] = sample(any_model, [[5, 9, 2]], Sampling(6, (VOCAB,)), seed=0)
    batch = collate([trajectory])
    plain = scored(any_model, batch)
    for left, right in ((4, 0), (0, 3), (2, 5)):
        padded = [torch.nn.functional.pad(x, (left, right)) for x in (batch.input_ids, batch.attention_mask, batch.response_mask)]
        got = response_logprobs(any_model, *padded)[:, left : left + plain.shape[1]]
        torch.testing.assert_close(got, plain, rtol=0, atol=1e-4)
    mixed = [  # one column of padding on the left of the first row, on the right of the second one
        torch.cat([torch.nn.functional.pad(x, (1, 0)), torch.nn.functional.pad(x, (0, 1))])
        for x in (batch.input_ids, batch.attention_mask, batch.response_mask)
    ]
    for row, got in enumerate(response_logprobs(any_model, *mixed)):
        torch.testing.assert_close(got[1 - row :][: plain.shape[1]], plain[0], rtol=0, atol=1e-4)


def test_chunks_change_neither_values_nor_gradients(any_model, monkeypatch):
    batch = collate(sample(any_model, ragged_prompts(4), Sampling(6, (VOCAB,)), seed=0))
    any_model.double()
    results = []
    for chunk in (1024, 5):
        monkeypatch.setattr(module, "logits_at_once", lambda device, chunk=chunk: chunk * VOCAB)
        any_model.zero_grad()
        got = scored(any_model, batch)
        got.sum().backward()
        results.append((got.detach(), [p.grad.clone() for p in any_model.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_logits_of_more_than_a_chunk_never_exist(llama, monkeypatch):
    monkeypatch.setattr(module, "logits_at_once", lambda device: 5 * VOCAB)
    batch = collate(sample(llama, ragged_prompts(4), Sampling(6, (VOCAB,)), seed=0))
    sizes, logits_of = [], module.logits_of
    monkeypatch.setattr(module, "logits_of", lambda model, hidden: sizes.append(len(hidden)) or logits_of(model, hidden))
    scored(llama, batch)
    assert max(sizes) <= 5 and sum(sizes) == 24  # 24 response tokens, never a prompt token


def test_a_response_needs_something_before_it(llama):
    ids = torch.tensor([[1, 2], [3, 4]], device=DEVICE)
    with pytest.raises(ValueError, match="column 0"):
        response_logprobs(llama, ids, torch.ones_like(ids), torch.tensor([[0, 1], [1, 1]], device=DEVICE))


def test_values_are_of_the_state_before_the_token(any_model):
    critic = Critic(any_model)
    batch = collate(sample(any_model, ragged_prompts(3), Sampling(4, (VOCAB,)), seed=0))
    inputs = batch.input_ids, batch.attention_mask, batch.response_mask
    assert response_values(critic, *inputs).abs().max() == 0  # the head starts at zero
    torch.nn.init.normal_(critic.head.weight)
    values = response_values(critic, *inputs)
    assert (values * (1 - batch.response_mask)).abs().max() == 0
    for row in range(3):
        last = int(batch.response_mask[row].nonzero()[-1])
        changed = batch.input_ids.clone()
        changed[row, last] = (changed[row, last] + 1) % VOCAB  # the value before an action cannot depend on it
        torch.testing.assert_close(response_values(critic, changed, *inputs[1:])[row], values[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_heads_are_computed_in_float32_outside_autocast(bias):
    """In bfloat16 the heads rounded their output: an error of .008 in log-ratios of .002."""
    torch.manual_seed(0)
    hidden = torch.randn(50, 256, dtype=torch.bfloat16)  # what a backbone leaves under autocast
    policy = SimpleNamespace(config=PretrainedConfig(), get_output_embeddings=lambda: head)
    head = torch.nn.Linear(256, 1000, bias=bias)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = logits_of(policy, hidden)
    exact = hidden.double() @ head.weight.double().T + (head.bias.double() if bias else 0)
    assert got.dtype == torch.float32 and (got - exact).abs().max() < 1e-5


def test_the_critics_head_is_computed_in_float32_outside_autocast(any_model):
    critic = Critic(any_model)
    torch.nn.init.normal_(critic.head.weight)
    batch = collate(sample(any_model, ragged_prompts(3), Sampling(4, (VOCAB,)), seed=0))
    inputs = batch.input_ids, batch.attention_mask, batch.response_mask
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        values, hidden = response_values(critic, *inputs), module.hidden_before(critic.backbone, *inputs)
    exact = hidden.double() @ critic.head.weight.double().T  # [n, 1]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[batch.response_mask.bool()], exact[:, 0].float(), rtol=1e-5, atol=1e-5)


def test_critic_and_reference_share_no_storage_with_the_policy(any_model):
    from vine_mini.models import frozen_copy

    ours = {p.data_ptr() for p in any_model.parameters()}
    for other in (Critic(any_model), frozen_copy(any_model)):
        assert not ours & {p.data_ptr() for p in other.parameters()}
    assert not any(p.requires_grad for p in frozen_copy(any_model).parameters())


def test_dropout_is_off_in_a_loaded_policy(tmp_path, tokenizer):
    """Rule 8: a GPT-2 with dropout 0.5, loaded, gives the same log-probs twice even in train mode."""
    from vine_mini.models import load_policy

    tiny_model("gpt2", dropout=0.5).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(Exception, match="the tokenizer has"):
        load_policy(str(tmp_path), "cpu")  # 61 embeddings are too few for this tokenizer
    model = tiny_model("gpt2", dropout=0.5)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    model, _ = load_policy(str(tmp_path), DEVICE)
    batch = collate(sample(model, [[1, 2]], Sampling(5, (VOCAB,)), seed=0))
    model.train()
    torch.testing.assert_close(scored(model, batch), scored(model, batch), rtol=0, atol=0)


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert module.position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_greedy_tokens_are_scored_at_temperature_one(llama):
    batch = collate(sample(llama, ragged_prompts(3), Sampling(5, (VOCAB,), temperature=0.0), seed=0))
    torch.testing.assert_close(scored(llama, batch, temperature=0.0), scored(llama, batch), rtol=0, atol=0)


def test_soft_capped_logits_are_those_of_the_model():
    """Gemma 2's logits are cap * tanh(logits / cap)."""
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 5, bias=False), 30 * torch.randn(7, 8)
    policy = SimpleNamespace(config=Gemma2Config(final_logit_softcapping=4.0), get_output_embeddings=lambda: head)
    expected = 4.0 * torch.tanh(head(hidden) / 4.0)
    assert expected.abs().max() > 3.9  # the cap matters here
    torch.testing.assert_close(logits_of(policy, hidden), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pieces, gradients, computed", [(1, True, 1), (1, False, 1), (2, True, 4), (5, True, 10), (5, False, 5)])
def test_logits_are_computed_again_where_they_were_dropped(llama, monkeypatch, pieces, gradients, computed):
    batch = collate(sample(llama, ragged_prompts(4), Sampling(5, (VOCAB,)), seed=0))  # 20 response tokens
    monkeypatch.setattr(module, "logits_at_once", lambda device: 20 // pieces * VOCAB)
    calls, logits_of = [], module.logits_of
    monkeypatch.setattr(module, "logits_of", lambda model, hidden: calls.append(len(hidden)) or logits_of(model, hidden))
    with torch.set_grad_enabled(gradients):
        total = scored(llama, batch).sum()
        if gradients:
            total.backward()
    assert calls == [20 // pieces] * computed


def test_one_row_is_scored_where_the_vocabulary_is_larger_than_the_limit(llama, monkeypatch):
    monkeypatch.setattr(module, "logits_at_once", lambda device: VOCAB - 1)
    assert module.rows_of_logits(llama) == 1


def test_a_large_gpu_scores_more_tokens_at_once(monkeypatch):
    """At a vocabulary of 152 thousand tokens, 220 rows are too few for a large GPU."""
    head = SimpleNamespace(weight=SimpleNamespace(device=torch.device("cuda"), __len__=None))
    rows = {}
    for gib in (4, 24, 80):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device, gib=gib: SimpleNamespace(total_memory=gib << 30), raising=False
        )
        head.weight = type("Weight", (), {"device": torch.device("cuda"), "__len__": lambda self: 151_936})()
        rows[gib] = module.rows_of_logits(SimpleNamespace(get_output_embeddings=lambda: head))
    assert rows == {4: 220, 24: 662, 80: 2208}
    assert hardware.logits_at_once(torch.device("cpu")) == hardware.LOGITS
