"""The memory estimate counts what is really allocated. `tests/benchmarks` compares it with the peak of a process."""

from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import torch
from conftest import ARCHITECTURES, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu import MODELS
from vine_mini.app import memory
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.memory import check_memory, estimate, format_memory, memory_estimate
from vine_mini.app.setup import build_trainer
from vine_mini.logprobs import response_logprobs
from vine_mini.types import Batch, UserError

SMALL = dict(device="cpu", prompts=2, group=2, minibatch_size=4, max_new_tokens=8, eval_problems=2, eval_samples=2)


def size(tensors) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def llama(layers: int, kv_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=layers, vocab_size=97)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=kv_heads, pad_token_id=0)).train()


def saved_bytes(model, rows: int, prompt: int, response: int, bf16: bool) -> int:
    """Bytes that autograd keeps of a forward pass, without the weights. One row is shorter, as in training."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages, alive = {}, []

    def pack(x):
        alive.append(x)  # so that no two tensors have the same place
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    ids = torch.randint(3, model.config.vocab_size, (rows, prompt + response))
    attention_mask, response_mask = torch.ones_like(ids), torch.zeros(ids.shape)
    response_mask[:, prompt:] = 1
    attention_mask[0, -1], response_mask[0, -1] = 0, 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        response_logprobs(model, ids, attention_mask, response_mask)
    return sum(n for place, n in storages.items() if place not in weights)


@pytest.mark.parametrize("bf16", (False, True))
def test_weights_gradients_and_moments_are_counted_exactly(bf16):
    trainer = build_trainer(TrainConfig(**SMALL, algorithm="ppo", bf16=bf16))
    episodes = trainer.sample_episodes()
    scores, _ = trainer.score(episodes)
    advantages, returns, _ = trainer.algorithm.credit(episodes, scores["values"], trainer.roll_out, trainer.config)
    batch = Batch(**vars(episodes.tokens), **scores, advantages=advantages, returns=returns)
    trainer.update(batch)
    trainer._accumulate_gradients(batch, torch.arange(len(batch)))
    parts, networks = memory_estimate(trainer), (trainer.policy, trainer.critic)
    for network, name in zip(networks, ("policy: weights, AdamW", "critic: weights, AdamW"), strict=True):
        states = [trainer.optimizer.state[p] for p in network.parameters()]
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
        assert parts[name] == size(network.parameters()) + size(moments)
    assert parts["update: gradients"] == sum(size(p.grad for p in network.parameters()) for network in networks)
    assert parts["reference"] == size(trainer.reference.parameters())
    low = trainer.low_precision.parameters() if bf16 else ()
    assert parts["bf16 copy that samples"] == size(p for p in low if p.dtype == torch.bfloat16)


@pytest.mark.parametrize("bf16", (False, True))
@pytest.mark.parametrize("kv_heads", (4, 2))
def test_the_activations_of_a_layer_are_what_autograd_keeps(bf16, kv_heads):
    """One layer more: the estimate and the tensors of autograd grow by the same number of bytes, but for a few vectors."""
    rows, prompt, response = 3, 10, 30
    config = TrainConfig(**SMALL | dict(max_new_tokens=response), bf16=bf16, micro_batch_tokens=rows * (prompt + response))
    kept, counted = [], []
    for layers in (2, 3):
        model = llama(layers, kv_heads)
        parts = estimate(model, config, prompt)
        counted.append(parts["update: activations"] + parts["update: bf16 weights"])
        kept.append(saved_bytes(model, rows, prompt, response, bf16))
    assert counted[1] - counted[0] == pytest.approx(kept[1] - kept[0], rel=0.02)


def test_moments_in_8_bits_are_counted():
    """The estimate leaves out what 256 numbers share, and the small tensors, whose moments stay float32."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = llama(2, 4)
    optimizer = bitsandbytes.optim.AdamW8bit(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    parts = estimate(model, TrainConfig(**SMALL, adam_8bit=True), 30)
    large = [p for p in model.parameters() if p.numel() >= 4096]
    moments = [optimizer.state[p][name] for p in large for name in ("state1", "state2")]
    assert size(moments) == 2 * sum(p.numel() for p in large)
    assert parts["policy: weights, AdamW"] == 6 * sum(p.numel() for p in model.parameters())


def test_what_lowers_the_peak():
    """Smaller batches, checkpointing and bfloat16 lower their part. The peak is what is held and the larger of the two phases."""

    def parts_of(**changes):
        return estimate(llama(4, 4), TrainConfig(**SMALL | dict(prompts=32, minibatch_size=64, eval_problems=0) | changes), 30)

    parts = parts_of(algorithm="vineppo")
    assert parts_of(sample_batch_size=4)["sampling: KV cache"] < parts["sampling: KV cache"]
    for change in (dict(micro_batch_tokens=100), dict(gradient_checkpointing=True), dict(bf16=True)):
        assert parts_of(**change)["update: activations"] < parts["update: activations"]
    largest = max(sum(parts[name] for name in parts if name.startswith(phase)) for phase in ("sampling", "update"))
    assert parts["peak"] == parts["policy: weights, AdamW"] + parts["reference"] + largest
    assert parts_of(algorithm="reinforce", kl_coef=0.0)["reference"] == 0


def test_a_pair_of_dpo_is_two_rows():
    """`micro_batches` never splits a pair, so the smallest micro-batch has two rows."""

    def activations(algorithm, **more):
        shape = dict(prompts=32, minibatch_size=64, eval_problems=0, micro_batch_tokens=1)
        return estimate(llama(4, 4), TrainConfig(**SMALL | shape | more | dict(algorithm=algorithm)), 30)["update: activations"]

    assert activations("dpo") > 1.5 * activations("restem")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_an_estimate_also_without_weights(architecture, monkeypatch):
    config = TrainConfig(**SMALL)
    parts = estimate(tiny_model(architecture), config, 20)
    monkeypatch.setattr(conftest, "DEVICE", "meta")
    with torch.device("meta"):
        assert estimate(tiny_model(architecture), config, 20) == parts
    assert format_memory(parts).startswith("memory estimate: ") and "MiB at the peak (policy: weights" in format_memory(parts)


def test_on_a_gpu_slots_stay_and_each_group_of_slots_copies_its_trunk(monkeypatch):
    """Nine rollouts on each trunk of 30 + 8 tokens: groups of four. A token has 4 layers x 2 x 64 float32 numbers."""
    config = TrainConfig(**SMALL | dict(prompts=32, minibatch_size=64, sample_batch_size=64))
    reading = estimate(llama(4, 4), config, 30)["sampling: KV cache"]  # on a CPU the slots come later
    monkeypatch.setattr(memory, "uses_graphs", lambda device: True)
    assert estimate(llama(4, 4), config, 30)["sampling: KV cache"] == reading + (64 * 8 + 64 // 4 * 38) * 4 * 2 * 64 * 4


def test_sizes_that_differ_between_layers_count_as_the_largest():
    class Config:
        intermediate_size, per_layer_config = [64, 128], [SimpleNamespace(head_dim=16), SimpleNamespace(head_dim=32)]

        @property
        def head_dim(self):
            raise RuntimeError("it differs between layers")

    assert [memory._largest(Config(), name) for name in ("intermediate_size", "head_dim", "n_inner")] == [128, 32, None]


def test_the_estimates_of_the_gsm8k_presets_are_those_of_the_page(monkeypatch):
    """results/README.md, for a GPU of 80 GiB and prompts of 300 tokens. The last line is for one of 24 GiB."""
    page, device = (Path(__file__).parents[2] / "results" / "README.md").read_text(encoding="utf-8"), torch.device("cuda")

    def peak(preset, gib, **changes):
        room = SimpleNamespace(total_memory=gib << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: room)
        kind, config, sizes, tied = MODELS[preset]
        names = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size".split()
        with torch.device("meta"):
            model = kind(config(**dict(zip(names, sizes, strict=True)), tie_word_embeddings=tied, max_position_embeddings=2048))
        parts = estimate(model, TrainConfig(**read_preset(preset) | changes), 300, device)
        if gib == 24 and not changes:
            with pytest.raises(UserError, match=r"the GPU has 24.0 GiB, the estimate is 3\d.\d GiB: lower --sample_batch_size"):
                check_memory(parts, device, yes=False)
        check_memory(parts, device, yes=True)
        return f"{parts['peak'] / 2**30:.1f} GiB"

    for preset in MODELS:
        cells = " | ".join(peak(preset, 80, algorithm=name) for name in ("vineppo", "grpo", "ppo"))
        assert f"| `{preset}` | {cells} |" in page
    assert f"The estimate is {peak('gsm8k-rho1b', 24, adam_8bit=True, sample_batch_size=128)}:" in page
    peak("gsm8k-rho1b", 24)
