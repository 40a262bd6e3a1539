"""Policies, tokenizers and the critic: what is loaded, copied, built and written as a Hugging Face folder."""

import copy
import json
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers import logging as hf_logging
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from vine_mini.decoder.model import Decoder  # noqa: F401  registers it with the Auto classes
from vine_mini.logprobs import logits_of
from vine_mini.sampling.fast.probe import sampling_gap
from vine_mini.sampling.plain import complete
from vine_mini.types import UserError

PICKLED = (
    "{} has its weights only as .bin files, which are pickle and can run code when they are read: if you trust them, load the "
    "model with transformers, save it with save_pretrained into a folder, and give that folder as --model"
)
# cuDNN's attention is the default in bfloat16 on an H100 or H200. With a mask, its gradients can be NaN (PyTorch issue 196678).
torch.backends.cuda.enable_cudnn_sdp(False)
PROBED = 8  # tokens with which a model is tried out
# What weights may hold beside the model: masks and frequencies that older versions saved, and the parts for pictures and sound.
BESIDE = re.compile(r"(attn|attention)\.(bias|masked_bias|causal_mask)$|inv_freq$|vision|visual|audio|modal")

logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it would tell of each try to reach the Hub
hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()  # of loading, and with it of downloads, which can take minutes
with warnings.catch_warnings(action="ignore"):  # it warns where HF_HUB_DISABLE_PROGRESS_BARS stays in force
    enable_progress_bars()


def pick_device(name: str) -> torch.device:
    """'auto' -> the GPU if there is one, else the CPU. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {name!r} is not there (this PyTorch sees no Apple GPU); try --device auto")
    try:
        device = torch.zeros(1, device=name).device
        torch.ones(1, device=device).item()  # the meta device has no numbers
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"device {name!r} is not there ({str(error).splitlines()[0][:100]}); try --device auto") from error


def load_policy(name: str, device) -> tuple[Any, Any]:
    """A causal LM in float32 (the master weights) and its tokenizer, from a folder or the Hub.

    Dropout is set to zero in the configuration: a policy is sampled, scored and updated as one distribution.
    """
    if os.path.lexists(name) or name.startswith((".", "/", "~")) or ("/" in name and Path(name.split("/")[0]).is_dir()):
        _check_folder(Path(name))  # the Hub is not asked for what looks like a folder that is gone
    try:
        with warnings.catch_warnings(action="ignore"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            for part in (config, config.get_text_config()):  # a model of text and pictures has a part for each
                for key, value in vars(part).items():
                    if ("dropout" in key or "pdrop" in key) and isinstance(value, float):
                        setattr(part, key, 0.0)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            how: dict = dict(use_safetensors=True, output_loading_info=True, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32, **how)
            folder = Path(cached_file(name, "config.json")).parent  # of the Hub, in its cache
            if (folder / "generation_config.json").exists():
                GenerationConfig.from_pretrained(folder)  # transformers takes one that is no JSON as none
            files = [load_state_dict(path, map_location="meta") for path in _weight_files(folder, config)]
    except Exception as error:  # the Hub client, configuration, tokenizer and safetensors each have their own kinds
        known = {
            "cannot be loaded with `safetensors`": PICKLED.format(name),
            "trust_remote_code": f"{name!r} comes with code of its own (auto_map in a json file), which is not run",
            "ignore_mismatched_sizes": f"the weights of {name!r} have other shapes than its config.json says",
            "of AutoModel: AutoModelForCausalLM": f"{name!r} is no causal language model: give a decoder",
        }
        says = [text for part, text in known.items() if part in str(error)]
        raise UserError(*says[:1] or [f"cannot load the policy {name!r}: {' '.join(str(error).split())[:300]}"]) from error
    model, report = loaded[0].to(device).eval(), loaded[1]
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise UserError(f"the weights of {name!r} lack {min(report['missing_keys'])} and maybe more: not the whole model")
    integers = [key for file in files for key, x in file.items() if key.endswith("weight") and not x.is_floating_point()]
    if integers or getattr(config, "quantization_config", None):
        raise UserError(f"the weights of {name!r} are quantized ({', '.join(integers[:1])}): save them as float32 first")
    _check_model(model, tokenizer, name)
    if surplus := [key for key in sorted(report["unexpected_keys"]) if not BESIDE.search(key)]:  # transformers would leave it out
        raise UserError(f"the weights of {name!r} have {surplus[0]}, for which its config.json has no place")
    return model, tokenizer


def _weight_files(folder: Path, config) -> list[Path]:
    index, named = folder / "model.safetensors.index.json", {getattr(config, "transformers_weights", None)}
    if index.is_file():
        named |= {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    return [*folder.glob("model*.safetensors"), *(folder / file for file in named if file)]


def _check_folder(folder: Path):
    if not folder.is_dir():
        raise UserError(f"no model folder {folder}")
    if (folder / "config.yaml").exists() and (folder / "policy").exists():
        raise UserError(f"{folder} is the folder of a run: give {folder / 'policy'}")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} has a LoRA adapter: merge it into the weights first, with peft's merge_and_unload")
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise UserError(PICKLED.format(folder))
    for pattern, what in {"config.json": "configuration", "*.safetensors": "weights", "tokenizer*": "tokenizer"}.items():
        if not any(folder.glob(pattern)):
            raise UserError(f"{folder} has no {what} ({pattern}): write model and tokenizer into it with save_pretrained")


@torch.no_grad()
def _check_model(model, tokenizer, name):
    vocabulary, context = model.get_input_embeddings().num_embeddings, context_length(model)
    if len(tokenizer) > vocabulary:
        raise UserError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}")
    if context is not None and context < PROBED:
        raise UserError(f"{name} sees only {context} tokens (max_position_embeddings), too few for a prompt and a response")
    if not all(p.requires_grad for p in model.parameters()):
        raise UserError(f"{name} has a LoRA adapter: merge it into the weights first, with peft's merge_and_unload")
    if getattr(model.config, "num_hidden_layers", 1) < 1:
        raise UserError(f"{name} has no layers: num_hidden_layers = {model.config.num_hidden_layers} in its config.json")
    try:
        fault = _fault(model, vocabulary)
    except Exception as error:  # another kind of architecture can raise anything here
        fault = f"it does not run as a decoder ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if fault:
        raise UserError(f"{name}: {fault}; such models are not supported")


def _fault(model, vocabulary: int) -> str:
    """Why a policy cannot be trained, by a forward pass over a few tokens and a few sampled ones; "" for one that can."""
    ids = torch.arange(PROBED, device=model.device)[None] % vocabulary
    other = torch.cat([ids[:, :-1], ids[:, -1:] + 1], dim=1) % vocabulary  # the last token differs
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    logits, changed = (model(input_ids=x, use_cache=False).logits[0].float() for x in (ids, other))
    if not torch.isfinite(logits).all():
        return "its logits are not numbers, because it has diverged"
    if not torch.allclose(logits[:-1], changed[:-1], rtol=1e-3, atol=1e-4):
        return "it looks at later tokens, as encoders do"
    if not torch.allclose(logits_of(model, hidden), logits, rtol=1e-3, atol=1e-4):
        return "its logits are not a linear head of its hidden states"
    return "" if sampling_gap(model, complete) < 5e-2 else "sampled with a cache, its tokens have other log-probs"


def eos_ids(model, tokenizer) -> list[int]:
    """All ids that end a response, from the tokenizer and from the model's generation config. Raises UserError."""
    configured, vocabulary = model.generation_config.eos_token_id, model.get_input_embeddings().num_embeddings
    configured = configured if isinstance(configured, list) else [configured]
    ids = [i for i in [tokenizer.eos_token_id, *configured] if i is not None]
    if not ids:
        raise UserError("neither tokenizer nor model names an end-of-sequence token, so no response could ever finish")
    for i in ids:
        if type(i) is not int or not 0 <= i < vocabulary:
            raise UserError(f"eos_token_id = {i!r} is none of the model's {vocabulary} tokens: correct generation_config.json")
    return sorted({*ids})


def context_length(model) -> int | None:
    """The most tokens the model can see at once, where its configuration says so."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def checkpoint_activations(model) -> None:
    """In train mode, keep one hidden state a layer and compute the rest again in the backward pass. Raises UserError."""
    if not model.supports_gradient_checkpointing:
        raise UserError("this architecture has no gradient_checkpointing: leave it out, and lower --micro_batch_tokens")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # its older name
    enable({"use_reentrant": False})


def default_lr(policy) -> float:
    """The learning rate where the user gives none: the paper's 1e-6, or 1e-4 for policies of less than ten million parameters."""
    return 1e-4 if policy.num_parameters() < 10_000_000 else 1e-6


def adamw(parameters, config):
    """AdamW. With `adam_8bit` each of its moments takes one byte (Dettmers et al. 2021, arXiv 2110.02861). Raises UserError.

    Tensors of less than 4,096 numbers keep float32 moments.
    """
    if not config.adam_8bit:
        return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("adam_8bit needs bitsandbytes: pip install 'bitsandbytes>=0.50'") from error
    optimizer = AdamW8bit(parameters, config.lr, weight_decay=config.weight_decay)
    device = optimizer.param_groups[0]["params"][0].device
    probe = torch.nn.Parameter(torch.zeros(4096, device=device))
    probe.grad = torch.ones_like(probe)
    try:
        AdamW8bit([probe]).step()
    except RuntimeError as error:  # bitsandbytes has no library for this device
        raise UserError(f"bitsandbytes does not run on {device}, so leave adam_8bit out") from error
    return optimizer


def frozen_copy(model):
    """A copy that shares no storage with the model and takes no gradients: the KL's reference."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def bfloat16_copy(model):
    """A frozen copy that samples in bfloat16. The head stays the model's own float32 head, because logits need its precision.

    Only weights are cast. Buffers stay float32: a rounded frequency of RoPE turns late positions by a wrong angle.
    """
    low = frozen_copy(model)
    for parameter in low.parameters():
        parameter.data = parameter.data.bfloat16()
    low.set_output_embeddings(model.get_output_embeddings())
    return low


def reference_copy(model, bf16: bool):
    """A frozen copy for the KL. With `bf16` its linear layers are kept in bfloat16, to which autocast rounds them anyway."""
    reference = frozen_copy(model)
    for layer in reference.base_model.modules() if bf16 else ():
        if isinstance(layer, nn.Linear):
            layer.bfloat16()
    return reference


@torch.no_grad()
def refresh(low, model):
    """Copies the model's present weights into its bfloat16 copy. -> the copy"""
    for name, parameter in low.named_parameters():
        if (new := model.get_parameter(name)) is not parameter:  # they share the head
            parameter.copy_(new)
    return low


def autocast(device: torch.device, bf16: bool):
    """Matrix products in bfloat16 where `bf16` asks for it; the weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


class Critic(nn.Module):
    """PPO's value network: the policy's backbone and a scalar head. The head starts at zero (official: random, with a bias)."""

    def __init__(self, policy):
        super().__init__()
        self.backbone = copy.deepcopy(policy.base_model)
        weight = policy.get_input_embeddings().weight  # [V, D]
        self.head = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device)
        nn.init.zeros_(self.head.weight)
        self.eval()


def build_tiny(texts: list[str], *, hidden: int, layers: int, vocab_size: int, seed: int):
    """A small untrained Llama and a byte-level BPE tokenizer trained on the texts. -> (model, tokenizer)"""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    quiet: Any = dict(initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, **quiet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokens = dict(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=eos, pad_token_id=pad)
    shape: dict[str, Any] = dict(hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers)
    heads = dict(num_attention_heads=hidden // 16, num_key_value_heads=1)  # decoding on a CPU is bound by the cache's size
    config = LlamaConfig(**shape | heads | tokens, max_position_embeddings=1024, tie_word_embeddings=True)
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval(), tokenizer


def save_policy(model, tokenizer, folder: Path) -> None:
    """Writes a Hugging Face folder (safetensors)."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
