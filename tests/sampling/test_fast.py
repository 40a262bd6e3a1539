"""The fast way gives what the plain way gives, on every architecture, with any number of slots; on a GPU without graphs."""

import copy
import gc
import warnings
import weakref
from contextlib import contextmanager

import pytest
import torch
from conftest import ARCHITECTURES, VOCAB, ragged_prompts, slow, supports, tiny_model
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig

from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.sampling import fast, rollouts, sample
from vine_mini.sampling.fast import trunks
from vine_mini.sampling.fast.scheduler import _assign
from vine_mini.sampling.plain import Request
from vine_mini.sampling.plain import complete as complete_plain
from vine_mini.types import Sampling, Trajectory, UserError

EOS = (3, 7, 11)
NO_EOS = (VOCAB + 1,)


@pytest.fixture(autouse=True)
def no_graphs(monkeypatch):
    """The code of a CPU, wherever the models are. `test_gpu` tests the graphs."""
    monkeypatch.setattr(fast, "uses_graphs", lambda device: False)


def rollouts_of(model, *, plain=False, **changes):
    """Rollouts from states anywhere in ragged trajectories, some of which end."""
    sampling = Sampling(**dict(max_new_tokens=14, eos_token_id=EOS) | changes)
    prompts = ragged_prompts(4) + ragged_prompts(1)  # the first twice: two trajectories of one prompt
    trajectories = sample(
        model, prompts, Sampling(**dict(eos_token_id=EOS) | changes | dict(max_new_tokens=12)), seed=1, plain=True
    )
    cuts = [list(range(0, len(t.response_ids), 3)) for t in trajectories]
    cuts[1] = []
    return rollouts(model, trajectories, cuts, sampling, k=3, seed=3, plain=plain), trajectories, cuts


def flat(groups):
    return [t for row in groups for group in row for t in group]


def assert_same(quick, plain):
    assert [t.response_ids for t in quick] == [t.response_ids for t in plain]
    assert [t.prompt_ids for t in quick] == [t.prompt_ids for t in plain]
    assert [t.finished for t in quick] == [t.finished for t in plain]
    for a, b in zip(quick, plain, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=2e-4)


@contextmanager
def no_garbage_collection():
    """Inside this context only what nothing refers to is freed. A cycle of references stays in memory."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("temperature, top_p", [slow(0, 1.0), slow(1.0, 1.0), (0.6, 0.7)])
def test_rollouts_equal_the_plain_way(any_model, temperature, top_p):
    plain, trajectories, cuts = rollouts_of(any_model, temperature=temperature, top_p=top_p, plain=True)
    for size in (4, 512):
        quick, _, _ = rollouts_of(any_model, temperature=temperature, top_p=top_p, batch_size=size)
        assert [[len(group) for group in row] for row in quick] == [[3] * len(row) for row in cuts]
        assert_same(flat(quick), flat(plain))
    for row, t, at in zip(quick, trajectories, cuts, strict=True):
        assert [group[0].prompt_ids for group in row] == [t.prompt_ids + t.response_ids[:c] for c in at]


def test_samples_equal_the_plain_way(any_model):
    """Several samples of a prompt, with a limit for each."""
    prompts = ragged_prompts(4)
    requests = [Request(n % 4, len(prompts[n % 4]), (12, 3, 1)[n % 3]) for n in range(12)]
    uniforms = torch.rand(12, 12, generator=torch.Generator().manual_seed(2))
    rest = Sampling(max_new_tokens=12, eos_token_id=EOS, batch_size=5), lambda n: None
    quick, slow = (complete(any_model, prompts, requests, uniforms, *rest) for complete in (fast.complete, complete_plain))
    assert_same(quick, slow)


@pytest.fixture
def passes(monkeypatch) -> list:
    """Trunks are read one or two at a time, and the logits of three tokens at a time. -> an entry for each pass"""
    passes, cache = [], trunks.DynamicCache
    monkeypatch.setattr(trunks, "READ_TOKENS", 50)
    monkeypatch.setattr(trunks, "rows_of_logits", lambda model: 3)
    monkeypatch.setattr(trunks, "DynamicCache", lambda: passes.append(1) or cache())
    return passes


def test_trunks_that_are_read_in_several_passes(any_model, passes):
    assert supports(any_model)
    passes.clear()
    quick, _, _ = rollouts_of(any_model)
    assert len(passes) > 1
    assert_same(flat(quick), flat(rollouts_of(any_model, plain=True)[0]))


@pytest.mark.parametrize("several", [False, True])
def test_following_a_trunk_costs_nothing(several, llama, monkeypatch, request):
    """Greedy rollouts of greedy trajectories sample the trajectories again, without decoding one position."""
    greedy = Sampling(max_new_tokens=10, eos_token_id=EOS, temperature=0)
    trajectories = sample(llama, ragged_prompts(4), greedy, seed=0)
    passes = request.getfixturevalue("passes") if several else []
    monkeypatch.setattr(fast, "_next_position", None)
    cuts = [[0, 1, len(t.response_ids) - 1] for t in trajectories]
    done = rollouts(llama, trajectories, cuts, greedy, k=2, seed=0)
    assert (len(passes) > 1) == several
    for t, row, at in zip(trajectories, done, cuts, strict=True):
        for c, group in zip(at, row, strict=True):
            for r in group:
                assert r.response_ids == t.response_ids[c:] and r.finished == t.finished
                assert r.logprobs == pytest.approx(t.logprobs[c:], abs=1e-4)


def test_equal_requests_share_a_slot_and_slots_are_bounded(llama, monkeypatch):
    used, step = [], fast._next_position
    assert supports(llama)  # asked before anything is counted

    def count(model, table, cache, slots):
        used.append((len(slots.lead), len(slots.member)))
        return step(model, table, cache, slots)

    monkeypatch.setattr(fast, "_next_position", count)
    sample(llama, [[5, 6, 7]] * 6, Sampling(max_new_tokens=8, eos_token_id=NO_EOS, temperature=0, batch_size=4), seed=0)
    assert used == [(1, 4)] * 7 + [(1, 2)] * 7  # greedy copies are one row all the way; at most four requests at a time
    used.clear()
    rollouts_of(llama, batch_size=5)
    assert max(m for _, m in used) == 5 and all(n <= m for n, m in used)


def test_slots_are_assigned_without_gaps():
    """Groups from slots 0, 0, 2, 5 and two that were waiting (places from 8 on): six slots, and no group moves without need."""
    assert _assign(torch.tensor([0, 0, 2, 5, 8, 9])).tolist() == [0, 1, 2, 5, 3, 4]
    assert _assign(torch.tensor([3, 7])).tolist() == [0, 1]


def test_an_end_inside_the_trunk_ends_the_request(llama):
    """A trunk from anywhere: tokens after an end are not sampled, and a prompt may hold the end token."""
    [greedy] = sample(llama, [[5, 3, 6]], Sampling(max_new_tokens=6, eos_token_id=NO_EOS, temperature=0), seed=0)
    ends = (greedy.response_ids[2], 3)
    [[[rollout]]] = rollouts(llama, [greedy], [[0]], Sampling(max_new_tokens=6, eos_token_id=ends, temperature=0), k=1, seed=0)
    n = next(i for i, token in enumerate(greedy.response_ids) if token in ends) + 1
    assert rollout.response_ids == greedy.response_ids[:n] and rollout.finished


def test_soft_capped_logits():
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, sliding_window=6, attn_logit_softcapping=5.0, final_logit_softcapping=8.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    assert supports(model)
    assert_same(flat(rollouts_of(model)[0]), flat(rollouts_of(model, plain=True)[0]))


def _sinks():
    config = GptOssConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, sliding_window=6,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).float().eval()


def _own_attention():
    return Decoder(
        DecoderConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, encoding="t5")
    ).eval()


def _silent_window():
    model = tiny_model("llama")  # its configuration has a sliding window that its attention does not get
    model.config.layer_types, model.config.sliding_window = ["sliding_attention"] * 2, 4
    return model


@pytest.mark.parametrize("make", [_sinks, _own_attention, _silent_window])
def test_what_cannot_share_falls_back_and_says_so_once(make):
    """Attention sinks, a model that does not ask AttentionInterface, a window that the attention is not told."""
    torch.manual_seed(0)
    model = make()
    sampling = Sampling(max_new_tokens=6, eos_token_id=EOS)
    with pytest.warns(UserWarning, match="cannot share prefixes"):
        quick = sample(model, ragged_prompts(), sampling, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sample(model, ragged_prompts(), sampling, seed=0)
    assert_same(quick, sample(model, ragged_prompts(), sampling, seed=0, plain=True))
    assert_same(again, quick)


def test_the_model_keeps_its_own_attention(llama, monkeypatch):
    before = llama.config._attn_implementation
    assert supports(llama)
    rollouts_of(llama)
    assert llama.config._attn_implementation == before
    monkeypatch.setattr(fast, "_next_position", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rollouts_of(llama)
    assert llama.config._attn_implementation == before


def _gap(exact, done) -> float:
    """The mean distance between the rollouts' log-probs and those of the exact model for the same tokens."""
    gaps = []
    for t in done:
        with torch.no_grad():
            ids = torch.tensor([t.prompt_ids + t.response_ids], device=exact.device)
            logits = exact(input_ids=ids).logits[0, len(t.prompt_ids) - 1 : -1].cpu()
        scores = logits.log_softmax(-1).gather(1, torch.tensor(t.response_ids)[:, None])[:, 0]
        gaps.append((scores - torch.tensor(t.logprobs)).abs().mean())
    return float(torch.stack(gaps).mean())


def test_bfloat16(llama):
    """Rollouts in half precision: log-probs near those of the float32 model for the same tokens."""
    low = tiny_model("llama").bfloat16()
    assert supports(low)
    assert 0 < _gap(llama, flat(rollouts_of(low)[0])) < 0.5  # logits of this model are as large as 40


def test_bfloat16_with_a_float32_head(llama):
    """The trainer's sampler in half precision. Here `model(...)` itself would raise."""
    low = tiny_model("llama").bfloat16()
    low.lm_head.float()
    assert supports(low)
    for plain in (False, True):
        assert 0 < _gap(llama, flat(rollouts_of(low, plain=plain)[0])) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_places_do_not_reach_the_others(dtype, monkeypatch):
    """Products in bfloat16 on a CPU multiply what lies after a row of odd length by 0, which a NaN survives."""
    model = tiny_model("llama").to(dtype)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: new_empty(self, *shape).fill_(float("nan")))
    assert supports(model)
    for size in (5, 50):
        rollouts_of(model, batch_size=size)


def test_a_diverged_policy_is_reported(llama):
    with torch.no_grad():
        llama.lm_head.weight.fill_(float("nan"))
    for plain in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UserError, match="diverged"):
                sample(llama, [[1, 2]], Sampling(max_new_tokens=3, eos_token_id=NO_EOS), seed=0, plain=plain)


@pytest.mark.parametrize("plain", [False, True])
def test_progress_counts_every_request(llama, plain):
    seen, sampling = [], Sampling(max_new_tokens=9, eos_token_id=NO_EOS)
    trajectory = Trajectory([1, 2], [4, 5, 6, 8], [0.0] * 4, False)
    rollouts(llama, [trajectory], [[0, 2]], sampling, k=4, seed=0, progress=seen.append, plain=plain)
    assert sum(seen) == 8 and min(seen) >= 0


def test_every_architecture_is_quick():
    """Else the tests above would compare the plain way with itself."""
    assert all(supports(tiny_model(name)) for name in ARCHITECTURES)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 6])
def test_a_vocabulary_smaller_than_the_probe(vocabulary):
    config, changes = ARCHITECTURES["llama"]
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, bos_token_id=None)
    model = AutoModelForCausalLM.from_config(config(vocab_size=vocabulary, eos_token_id=None, **sizes, **changes)).float().eval()
    assert supports(model)
    sampling = Sampling(max_new_tokens=6, eos_token_id=NO_EOS)
    assert_same(*(sample(model, [[0]] * 4, sampling, seed=0, plain=plain) for plain in (False, True)))


def test_the_cache_is_gone_afterwards(llama, monkeypatch):
    made, create = [], fast.SlotCache.__init__

    def note(self, *args, **kwargs):
        made.append(weakref.ref(self))
        create(self, *args, **kwargs)

    monkeypatch.setattr(fast.SlotCache, "__init__", note)
    with no_garbage_collection():
        rollouts_of(llama)
        assert made and not any(ref() for ref in made)


@pytest.mark.parametrize("make", [lambda: tiny_model("llama"), _sinks, _own_attention, _silent_window])
def test_nothing_of_the_probe_survives(make, monkeypatch):
    """In bfloat16 the probe asks a float32 copy of the model. The copy is twice as large as the model itself."""
    model, made, copied = make().bfloat16(), [], copy.deepcopy

    def deepcopy(x, memo=None):
        y = copied(x, memo)
        made.extend([weakref.ref(y)] if x is model else [])
        return y

    monkeypatch.setattr(copy, "deepcopy", deepcopy)
    with no_garbage_collection(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        supports(model)
        assert made and not any(ref() for ref in made)
