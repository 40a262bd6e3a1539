"""The quick way writes what the plain way writes, on every architecture, with any number of slots."""

import gc
import warnings
import weakref
from contextlib import nullcontext

import pytest
import torch
from conftest import ARCHITECTURES, VOCAB, ragged_prompts, tiny_model
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig

from vine_mini.sampling.fast import slots
from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.sampling import sample
from vine_mini.sampling.fast.probe import supports
from vine_mini.types import Trajectory, UserError
from vine_mini.sampling import rollouts

EOS = [3, 7, 11]


def vines_of(model, **changes):
    """Ragged trajectories, some with an end, and states anywhere in them."""
    settings = dict(temperature=1.0, top_p=1.0, eos_token_id=EOS, seed=3) | changes
    start = {name: settings[name] for name in ("temperature", "top_p", "eos_token_id")}
    prompts = ragged_prompts(4) + ragged_prompts(1)  # the first twice: two trajectories of one prompt
    trajectories = sample(model, prompts, max_new_tokens=12, seed=1, plain=True, **start)
    cuts = [list(range(0, len(t.response_ids), 3)) for t in trajectories]
    cuts[1] = []
    return rollouts(model, trajectories, cuts, k=3, max_new_tokens=14, **settings), trajectories, cuts


def flat(groups):
    return [t for row in groups for group in row for t in group]


def assert_same(quick, plain):
    assert [t.response_ids for t in quick] == [t.response_ids for t in plain]
    assert [t.prompt_ids for t in quick] == [t.prompt_ids for t in plain]
    assert [t.finished for t in quick] == [t.finished for t in plain]
    for a, b in zip(quick, plain, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=2e-4)


@pytest.mark.parametrize("temperature, top_p", [(0, 1.0), (1.0, 1.0), (0.6, 0.7)])
def test_vines_equal_the_plain_way(any_model, temperature, top_p):
    plain, trajectories, cuts = vines_of(any_model, temperature=temperature, top_p=top_p, plain=True)
    for size in (4, None):
        quick, _, _ = vines_of(any_model, temperature=temperature, top_p=top_p, batch_size=size)
        assert [[len(group) for group in row] for row in quick] == [[3] * len(row) for row in cuts]
        assert_same(flat(quick), flat(plain))
    for row, t, at in zip(quick, trajectories, cuts, strict=True):
        assert [group[0].prompt_ids for group in row] == [t.prompt_ids + t.response_ids[:c] for c in at]


def test_samples_equal_the_plain_way(any_model):
    prompts = ragged_prompts(4) * 3
    settings = dict(max_new_tokens=[12, 3, 1] * 4, eos_token_id=EOS, seed=2)
    assert_same(sample(any_model, prompts, batch_size=5, **settings), sample(any_model, prompts, plain=True, **settings))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_fixed_shapes_as_on_a_gpu(architecture, monkeypatch):
    """The same code with padded tensors, each shape "captured" by a stand-in that runs the step again."""
    model, captured = tiny_model(architecture), []
    plain, *_ = vines_of(model, plain=True)

    def capture(step, pool):
        captured.append(step)
        return step

    create = slots.Slots.__init__

    def fixed(self, *args):
        create(self, *args)
        self.static = True

    monkeypatch.setattr(slots.torch.cuda, "device", lambda device: nullcontext())

    monkeypatch.setattr(slots, "_capture", capture)
    monkeypatch.setattr(slots.Slots, "__init__", fixed)
    for size in (4, 50):
        addresses: dict = {}
        step = slots.Slots._step

        def watch(self, step=step, addresses=addresses):
            tensors = self.member, self.slot_of, self.lead, *self.keys
            addresses.setdefault(id(self), set()).add((len(self.member), *(x.data_ptr() for x in tensors)))
            working = self.forks.trunk[self.member[self.member != self.forks.nobody]]
            assert self.shape[1] <= 8 * -(-int(torch.bincount(working).max()) // 8)  # places in the grid for them alone
            return step(self)

        monkeypatch.setattr(slots.Slots, "_step", watch)
        quick, *_ = vines_of(model, batch_size=size)
        monkeypatch.setattr(slots.Slots, "_step", step)
        assert_same(flat(quick), flat(plain))
        for of_run in addresses.values():  # a graph reads and writes where it was captured; tensors move only when halved
            assert len(of_run) == len({size for size, *_ in of_run})
    assert captured


def test_what_a_trunk_says_costs_nothing(llama, monkeypatch):
    """Greedy vines of greedy trajectories write the trajectories again, without one decoding step."""
    prompts = ragged_prompts(4)
    trajectories = sample(llama, prompts, max_new_tokens=10, temperature=0, eos_token_id=EOS, seed=0)
    monkeypatch.setattr(slots.Slots, "_step", None)
    cuts = [[0, 1, len(t.response_ids) - 1] for t in trajectories]
    done = rollouts(llama, trajectories, cuts, k=2, max_new_tokens=10, temperature=0, eos_token_id=EOS, seed=0)
    for t, row, at in zip(trajectories, done, cuts, strict=True):
        for c, group in zip(at, row, strict=True):
            for r in group:
                assert r.response_ids == t.response_ids[c:] and r.finished == t.finished
                assert r.logprobs == pytest.approx(t.logprobs[c:], abs=1e-4)


def test_equal_forks_share_a_slot_and_slots_are_bounded(llama, monkeypatch):
    used = []
    assert supports(llama)  # asked before anything is counted
    step = slots.Slots._step
    monkeypatch.setattr(slots.Slots, "_step", lambda self: (used.append((len(self.lead), len(self.member))), step(self))[1])
    sample(llama, [[5, 6, 7]] * 6, max_new_tokens=8, temperature=0, eos_token_id=[VOCAB + 1], seed=0, batch_size=4)
    assert used == [(1, 4)] * 7 + [(1, 2)] * 7  # greedy copies are one row all the way; at most four forks at a time
    used.clear()
    vines_of(llama, batch_size=5)
    assert max(m for _, m in used) == 5 and all(n <= m for n, m in used)


def test_an_end_inside_the_trunk_ends_the_fork(llama):
    """A trunk from anywhere: tokens after an end are not written, and a prompt may hold the end token."""
    greedy = sample(llama, [[5, 3, 6]], max_new_tokens=6, temperature=0, eos_token_id=[VOCAB + 1], seed=0)[0]
    end = greedy.response_ids[2]
    [[[fork]]] = rollouts(llama, [greedy], [[0]], k=1, max_new_tokens=6, temperature=0, eos_token_id=[end, 3], seed=0)
    n = next(i for i, token in enumerate(greedy.response_ids) if token in (end, 3)) + 1
    assert fork.response_ids == greedy.response_ids[:n] and fork.finished


def test_soft_capped_logits():
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, sliding_window=6, attn_logit_softcapping=5.0, final_logit_softcapping=8.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    assert supports(model)
    assert_same(flat(vines_of(model)[0]), flat(vines_of(model, plain=True)[0]))


def _sinks():
    config = GptOssConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, sliding_window=6,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).float().eval()


def _own_attention():
    return Decoder(
        DecoderConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, positions="t5")
    ).eval()


def _silent_window():
    model = tiny_model("llama")  # says that its layers slide, and does not tell its attention
    model.config.layer_types, model.config.sliding_window = ["sliding_attention"] * 2, 4
    return model


@pytest.mark.parametrize("make", [_sinks, _own_attention, _silent_window])
def test_what_cannot_share_falls_back_and_says_so_once(make):
    """Attention sinks, a model that does not ask AttentionInterface, a window that the attention is not told."""
    torch.manual_seed(0)
    model = make()
    settings = dict(max_new_tokens=6, eos_token_id=EOS, seed=0)
    with pytest.warns(UserWarning, match="cannot share prefixes"):
        quick = sample(model, ragged_prompts(), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sample(model, ragged_prompts(), **settings)
    assert_same(quick, sample(model, ragged_prompts(), plain=True, **settings))
    assert_same(again, quick)


def test_the_model_keeps_its_own_attention(llama, monkeypatch):
    before = llama.config._attn_implementation
    assert supports(llama)
    vines_of(llama)
    assert llama.config._attn_implementation == before
    monkeypatch.setattr(slots.Slots, "_step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vines_of(llama)
    assert llama.config._attn_implementation == before


def test_bfloat16(llama):
    """Rollouts in half precision: log-probs near those of the float32 model for the same tokens."""
    low = tiny_model("llama").bfloat16()
    assert supports(low)
    done = flat(vines_of(low)[0])
    ids = [torch.tensor([t.prompt_ids + t.response_ids]) for t in done]
    with torch.no_grad():
        exact = [llama(input_ids=i).logits[0, len(t.prompt_ids) - 1 : -1].log_softmax(-1) for i, t in zip(ids, done, strict=True)]
    gaps = [
        (lp.gather(1, torch.tensor(t.response_ids)[:, None])[:, 0] - torch.tensor(t.logprobs)).abs().mean()
        for lp, t in zip(exact, done, strict=True)
    ]
    assert 0 < torch.stack(gaps).mean() < 0.5  # logits of this model are as large as 40


def test_a_diverged_policy_is_reported(llama):
    with torch.no_grad():
        llama.lm_head.weight.fill_(float("nan"))
    for plain in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UserError, match="diverged"):
                sample(llama, [[1, 2]], max_new_tokens=3, eos_token_id=EOS, seed=0, plain=plain)


def test_progress_counts_every_fork(llama):
    seen = []
    trajectory = Trajectory([1, 2], [4, 5, 6, 8], [0.0] * 4, False)
    rollouts(llama, [trajectory], [[0, 2]], k=4, max_new_tokens=9, eos_token_id=EOS, seed=0, progress=seen.append)
    assert sum(seen) == 8 and min(seen) >= 0


def test_every_architecture_is_quick():
    """Else the tests above would compare the plain way with itself."""
    assert all(supports(tiny_model(name)) for name in ARCHITECTURES)


def test_the_cache_is_gone_afterwards(llama, monkeypatch):
    made = []
    create = slots.Slots.__init__
    monkeypatch.setattr(slots.Slots, "__init__", lambda self, *args: (made.append(weakref.ref(self)), create(self, *args))[1])
    vines_of(llama)
    gc.collect()
    assert made and not any(ref() for ref in made)
