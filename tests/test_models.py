"""Loading, saving and building policies."""

import json
import shutil
import sys

import pytest
import torch
from conftest import VOCAB
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    MambaConfig,
    Qwen2Config,
    RwkvConfig,
    XLMConfig,
)

from vine_mini import models
from vine_mini.app import config as app_config
from vine_mini.app.config import TrainConfig
from vine_mini.logprobs import response_logprobs
from vine_mini.types import UserError

SHIPPED = app_config.SHIPPED / "arithmetic"


def test_the_shipped_policy_is_small_and_standard():
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    assert sum(p.numel() for p in model.parameters()) < 250_000
    assert (SHIPPED / "model.safetensors").exists()
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert "python -m vine_mini sft" in card and "pass@1" in card and "greedy" in card
    text = "Mia has 12 pens, triples them. How many pens now?\n12*3=36\n#### 36"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert models.eos_ids(model, tokenizer) == [tokenizer.eos_token_id]


def test_save_and_load_round_trip(tmp_path):
    model, tokenizer = models.load_policy(str(SHIPPED), "cpu")
    for _ in range(2):  # the second save replaces the first
        models.save_policy(model, tokenizer, tmp_path / "policy")
    again, _ = models.load_policy(str(tmp_path / "policy"), "cpu")
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize(
    "missing, says",
    [("config.json", "has no configuration"), ("model.safetensors", "has no weights"), ("tokenizer*", "has no tokenizer")],
)
def test_an_incomplete_folder_is_refused(tmp_path, missing, says):
    folder = tmp_path / "policy"
    shutil.copytree(SHIPPED, folder)
    for path in folder.glob(missing):
        path.unlink()
    with pytest.raises(UserError, match=says):
        models.load_policy(str(folder), "cpu")


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        models.load_policy(str(tmp_path / "nothing"), "cpu")
    (tmp_path / "broken").mkdir()
    for name, text in {"config.json": "{", "model.safetensors": "x", "tokenizer.json": "{}"}.items():
        (tmp_path / "broken" / name).write_text(text)
    with pytest.raises(UserError, match="cannot load the policy"):
        models.load_policy(str(tmp_path / "broken"), "cpu")


def test_weights_that_are_damaged_or_incomplete_are_refused(tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(SHIPPED, folder)
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"num_hidden_layers": settings["num_hidden_layers"] + 1}))
    with pytest.raises(UserError, match="not the whole model"):  # transformers would make up the layer
        models.load_policy(str(folder), "cpu")
    config.write_text(json.dumps(settings | {"hidden_size": 32}))
    with pytest.raises(UserError, match=r"have other shapes than its config\.json says"):
        models.load_policy(str(folder), "cpu")
    config.write_text(json.dumps(settings))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot load the policy"):
        models.load_policy(str(folder), "cpu")


def only_pickled(folder):
    """The shipped policy with its weights in the old format alone."""
    shutil.copytree(SHIPPED, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_get_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="load the model with transformers, save it with save_pretrained") as refused:
        models.load_policy(str(only_pickled(tmp_path / "policy")), "cpu")
    assert "\n" not in str(refused.value)


def test_pickled_weights_on_the_hub_get_the_same_line(tmp_path, monkeypatch):
    """A repository as it lies in the Hub's cache, read without a network."""
    commit, repository = "0" * 40, tmp_path / "models--someone--old"
    only_pickled(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"^someone/old .*load the model with transformers, save it with save_pretrained"
    ) as refused:
        models.load_policy("someone/old", "cpu")
    assert "\n" not in str(refused.value)


def test_devices():
    assert models.pick_device("cpu").type == "cpu"
    assert models.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(UserError, match=f"device '{name}' is not there"):
            models.pick_device(name)
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match=r"^device 'mps' is not there \(this PyTorch sees no Apple GPU\); try --device auto$"):
            models.pick_device("mps")


def test_adam_with_moments_in_8_bits_moves_the_weights_as_adam_does():
    """To a few per cent after ten steps, because moments are rounded by about one per cent each time."""
    pytest.importorskip("bitsandbytes")
    start, moved = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)), []
    for adam_8bit in (False, True):
        weight = torch.nn.Parameter(start.clone())
        optimizer = models.adamw([weight], TrainConfig(lr=1e-2, weight_decay=0.1, adam_8bit=adam_8bit))
        for seed in range(10):
            weight.grad = start.sign() + torch.randn(96, 64, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
        moved.append(weight.detach() - start)
    assert (moved[1] - moved[0]).norm() < 0.05 * moved[0].norm()


def test_adam_8bit_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"^adam_8bit needs bitsandbytes: pip install 'bitsandbytes>=0\.50'$"):
        models.adamw([torch.nn.Parameter(torch.zeros(1))], TrainConfig(adam_8bit=True))


def tiny(config_class, **more):
    settings = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return AutoModelForCausalLM.from_config(config_class(**settings, num_key_value_heads=2, pad_token_id=0, **more)).eval()


def test_a_head_that_is_not_linear_is_refused():
    """Cohere multiplies its logits: scored through the head alone, the policy would silently be another one."""
    with pytest.raises(UserError, match="not a linear head"):
        models._check_model(tiny(CohereConfig), range(VOCAB), "cohere")


def test_soft_capped_logits_are_scored_as_they_are_sampled():
    models._check_model(tiny(Gemma2Config, head_dim=8, final_logit_softcapping=0.5), range(VOCAB), "gemma 2")


TINY = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2)
BOTH_WAYS = dict(TINY, num_attention_heads=4, intermediate_size=48, head_dim=8, num_key_value_heads=2, pad_token_id=0)


@pytest.mark.parametrize(
    "config, says",
    [
        (BertConfig(**TINY, num_attention_heads=4), "looks at later tokens"),
        (Gemma3TextConfig(**BOTH_WAYS, use_bidirectional_attention=True), "looks at later tokens"),
        (MambaConfig(**TINY, state_size=4), "does not run as a decoder"),
        (XLMConfig(vocab_size=VOCAB, emb_dim=32, n_layers=2, n_heads=4), "does not run as a decoder"),
        (RwkvConfig(**TINY, attention_hidden_size=32), "sampled with a cache, its tokens have other log-probs"),
        (GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=2), "sees only 2 tokens"),
    ],
)
def test_what_is_no_causal_decoder_is_refused(config, says):
    """A bidirectional Gemma 3 and RWKV were accepted, and had wrong log-probs. The others ended in tracebacks."""
    with pytest.raises(UserError, match=says):
        models._check_model(AutoModelForCausalLM.from_config(config).eval(), range(VOCAB), "policy")


def test_a_causal_model_of_the_same_family_is_accepted():
    models._check_model(AutoModelForCausalLM.from_config(Gemma3TextConfig(**BOTH_WAYS)).eval(), range(VOCAB), "gemma 3")


@pytest.mark.parametrize("layers", [0, -1])
def test_a_model_without_layers_is_refused(tmp_path, layers):
    shutil.copytree(SHIPPED, tmp_path / "policy")
    config = tmp_path / "policy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": layers}))
    with pytest.raises(UserError, match=f"num_hidden_layers = {layers}"):
        models.load_policy(str(tmp_path / "policy"), "cpu")


@pytest.mark.parametrize("eos", ["stop", ["stop", 1], 400, -1, 1.5, True, {"a": 1}, [[1]]])
def test_an_end_of_sequence_that_is_no_token_is_refused(eos):
    """With an id outside the vocabulary, no response ever ended by itself."""
    model, tokenizer = models.load_policy(str(SHIPPED), "cpu")
    model.generation_config.eos_token_id = eos
    with pytest.raises(UserError, match=r"eos_token_id = .* is none of the model's 400 tokens"):
        models.eos_ids(model, tokenizer)


def test_quantized_weights_are_refused(tmp_path):
    """They were read as float32 numbers up to 127."""
    shutil.copytree(SHIPPED, tmp_path / "policy")
    path = tmp_path / "policy" / "model.safetensors"
    save_file(
        {name: (x * 99).to(torch.int8) if x.dim() == 2 else x for name, x in load_file(path).items()}, path, {"format": "pt"}
    )
    with pytest.raises(UserError, match="are quantized"):
        models.load_policy(str(tmp_path / "policy"), "cpu")


def test_a_bfloat16_copy_keeps_float32_buffers():
    """Heads of 64 and sharp attention: with rounded frequencies of RoPE, late tokens have other log-probs."""
    torch.manual_seed(0)
    shape = dict(vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=8, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**shape, num_key_value_heads=2)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0 if "q_proj" in name or "k_proj" in name else 3.0)
    ids = torch.randint(0, VOCAB, (1, 1024))
    last = torch.zeros(ids.shape)
    last[:, -200:] = 1.0

    @torch.no_grad()
    def gap(copy):
        ours, theirs = (response_logprobs(m, ids, torch.ones_like(ids), last) for m in (copy, model))
        return (ours - theirs).abs().sum().item() / 200

    low = models.bfloat16_copy(model)
    kept = dict(model.named_buffers())
    assert all(x.dtype == torch.float32 and torch.equal(x, kept[name]) for name, x in low.named_buffers())
    assert gap(low) < gap(models.frozen_copy(model).bfloat16()) / 3


def test_a_bfloat16_copy_is_refreshed():
    model, _ = models.load_policy(str(SHIPPED), "cpu")
    low = models.bfloat16_copy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    models.refresh(low, model)
    head = low.get_output_embeddings().weight
    assert head.dtype == torch.float32 and torch.equal(head, model.get_output_embeddings().weight)
    for name, parameter in low.base_model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and not parameter.requires_grad
        assert torch.equal(parameter, model.base_model.get_parameter(name).bfloat16())


def test_a_reference_in_bfloat16_is_the_start_policy_and_shares_nothing_with_it():
    """Under autocast its log-probs are exactly those of the policy, so the KL starts at 0."""
    model, _ = models.load_policy(str(SHIPPED), "cpu")
    ids = torch.randint(2, 400, (4, 60), generator=torch.Generator().manual_seed(0))
    response = torch.ones(ids.shape)
    response[:, 0] = 0.0
    low = models.reference_copy(model, bf16=True)
    assert not {p.data_ptr() for p in low.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert all(not p.requires_grad for p in low.parameters())
    half = sum(p.numel() for p in low.parameters() if p.dtype == torch.bfloat16)
    assert half > 0.7 * model.num_parameters() and low.get_output_embeddings().weight.dtype == torch.float32
    with torch.no_grad(), models.autocast(torch.device("cpu"), True):
        policy, reference = (response_logprobs(m, ids, torch.ones_like(ids), response) for m in (model, low))
    assert torch.equal(policy, reference)
    assert {p.dtype for p in models.reference_copy(model, bf16=False).parameters()} == {torch.float32}


def test_to_refresh_a_copy_leaves_the_policy_as_it_is():
    """A run tells by its weights' versions whether it can be saved. The head, which both share, was written over with itself."""
    model, _ = models.load_policy(str(SHIPPED), "cpu")
    low = models.bfloat16_copy(model)
    before = [parameter._version for parameter in model.parameters()]
    models.refresh(low, model)
    assert [parameter._version for parameter in model.parameters()] == before


def test_code_that_comes_with_a_model_is_not_run(tmp_path, monkeypatch):
    """On a terminal, transformers asked whether to run it."""
    folder = shutil.copytree(SHIPPED, tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    (folder / "own.py").write_text("raise SystemExit('RAN')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="comes with code of its own"):
        models.load_policy(str(folder), "cpu")


def test_an_adapter_and_a_broken_file_beside_good_weights_are_one_line(tmp_path):
    folder = shutil.copytree(SHIPPED, tmp_path / "policy")
    (folder / "model-2.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="cannot load the policy"):
        models.load_policy(str(folder), "cpu")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="merge_and_unload"):
        models.load_policy(str(folder), "cpu")


def test_a_device_whose_module_is_not_there():
    with pytest.raises(UserError, match="device 'hpu' is not there"):
        models.pick_device("hpu")


def test_an_architecture_without_checkpoints_of_activations(llama, monkeypatch):
    monkeypatch.setattr(type(llama), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="no gradient_checkpointing"):
        models.checkpoint_activations(llama)


def changed(folder, **settings):
    """A copy of the shipped policy with other settings in its config.json."""
    shutil.copytree(SHIPPED, folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


def with_tensors(folder, **more):
    path = folder / "model.safetensors"
    save_file(load_file(path) | more, path, {"format": "pt"})


@pytest.mark.parametrize("layers", [1, 2])
def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(tmp_path, layers):
    """The other layers were left out without a word."""
    folder = changed(tmp_path / "policy", num_hidden_layers=layers)
    with pytest.raises(UserError, match=rf"have model\.layers\.{layers}\..* for which its config\.json has no place"):
        models.load_policy(str(folder), "cpu")


def test_weights_that_the_model_does_not_use_are_refused(tmp_path):
    with_tensors(folder := changed(tmp_path / "policy"), **{"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
    with pytest.raises(UserError, match=r"have model\.layers\.0\.self_attn\.q_proj\.bias, for which"):
        models.load_policy(str(folder), "cpu")


def test_masks_that_older_versions_saved_are_no_weights(tmp_path, tokenizer):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    models.save_policy(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "policy")
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    with_tensors(tmp_path / "policy", **masks)
    models.load_policy(str(tmp_path / "policy"), "cpu")
    with_tensors(folder := changed(tmp_path / "llama"), **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    models.load_policy(str(folder), "cpu")


def quantized(folder):
    """The shipped policy with integers in a file that the index names."""
    shutil.copytree(SHIPPED, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(
        {name: (x * 99).to(torch.int8) if x.dim() == 2 else x for name, x in tensors.items()},
        folder / "part-1.safetensors",
        {"format": "pt"},
    )
    index = {"metadata": {}, "weight_map": {name: "part-1.safetensors" for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def in_the_cache(tmp_path, monkeypatch):
    """The folder of someone/policy in the Hub's cache, which is read without a network."""
    repository = tmp_path / "models--someone--policy"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / ("0" * 40)


def test_quantized_weights_in_a_file_of_another_name_are_refused(tmp_path, monkeypatch):
    """They were read as float32, and of the Hub no file was looked at."""
    quantized(tmp_path / "policy")
    with pytest.raises(UserError, match="are quantized"):
        models.load_policy(str(tmp_path / "policy"), "cpu")
    quantized(in_the_cache(tmp_path, monkeypatch))
    with pytest.raises(UserError, match="are quantized"):
        models.load_policy("someone/policy", "cpu")


def test_a_folder_that_is_gone_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    """A stranger's repository of that name would have been loaded."""
    shutil.copytree(SHIPPED, in_the_cache(tmp_path, monkeypatch))
    monkeypatch.chdir(tmp_path)
    assert models.load_policy("someone/policy", "cpu")
    (tmp_path / "someone").mkdir()
    (tmp_path / "best").symlink_to("nowhere")
    for name in ("someone/policy", "best"):
        with pytest.raises(UserError, match=f"no model folder {name}"):
            models.load_policy(name, "cpu")


def test_a_damaged_generation_config_is_refused(tmp_path):
    """Its further end-of-sequence ids were lost without a word."""
    folder = shutil.copytree(SHIPPED, tmp_path / "policy")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot load the policy.*generation_config"):
        models.load_policy(str(folder), "cpu")


def test_downloads_show_their_progress():
    """With its own bars, transformers switches off those of the Hub's client: gigabytes came in silence."""
    assert not are_progress_bars_disabled()


def test_what_is_no_decoder_is_one_line(tmp_path):
    """It was a part of a list of the hundred classes that are."""
    folder = shutil.copytree(SHIPPED, tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(UserError, match="policy' is no causal language model: give a decoder"):
        models.load_policy(str(folder), "cpu")
