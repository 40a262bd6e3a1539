"""A memory estimate from the configuration alone, printed before a run starts."""

from vine_mini.algorithms import ALGORITHMS
from vine_mini.logprobs import LOGITS


def memory_estimate(trainer) -> dict[str, int]:
    """The estimate for a trainer whose prompts may all be as long as its longest. See `estimate`."""
    return estimate(trainer.policy, trainer.config, max(map(len, trainer.prompts)))


def estimate(model, config, longest_prompt: int) -> dict[str, int]:
    """Bytes that training needs: what is always held, what sampling adds, what an update adds, and the peak.

    Weights, gradients and AdamW's two moments are float32. Activations count what PyTorch keeps of a transformer layer for
    the backward pass, about 14 hidden and 4 intermediate vectors a token; with gradient checkpointing one hidden vector.
    The longest prompt and the longest response are assumed for every row. The allocator's own waste is not counted.
    """
    c, algorithm = model.config, ALGORITHMS[config.algorithm]
    critic, reference = algorithm.needs_critic, algorithm.needs_reference and config.kl_coef > 0
    width, layers, vocab = c.hidden_size, c.num_hidden_layers, c.vocab_size
    inner = getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * width
    heads = c.num_attention_heads
    kv_width = (getattr(c, "num_key_value_heads", None) or heads) * (getattr(c, "head_dim", None) or width // heads)
    weights = sum(p.numel() for p in model.parameters())
    backbone = sum(p.numel() for p in model.base_model.parameters())
    number = 2 if config.bf16 else 4
    networks = 2 if critic else 1
    tokens = longest_prompt + config.max_new_tokens

    trunks = min(config.sample_batch_size, config.prompts * config.group)
    rows = config.sample_batch_size if algorithm.needs_rollouts else trunks
    a_layer = 14 * width + 4 * inner
    kept = layers * width + a_layer if config.gradient_checkpointing else layers * a_layer
    at_once = max(config.micro_batch_tokens, tokens)  # in a forward pass: at least one row
    logits = min(LOGITS, at_once * vocab) * 4 * 3  # logits, their log-softmax and its gradient
    parts = {
        "policy: weights, AdamW": weights * 12,
        "critic: weights, AdamW": backbone * 12 * critic,
        "reference": weights * 4 * reference,
        "bf16 copies of the weights": weights * 2 * (networks + 1) * config.bf16,
        "sampling: KV cache": (trunks * tokens + rows * config.max_new_tokens) * layers * 2 * kv_width * number,
        "sampling: logits": rows * vocab * 4 * 5,  # and what becomes of them until a token is chosen
        "update: gradients": (weights + backbone * critic) * 4,
        "update: activations": at_once * kept * number * networks + logits,
    }
    held = sum(size for name, size in parts.items() if not name.startswith(("sampling", "update")))
    update = parts["update: gradients"] + parts["update: activations"]
    return parts | {"peak": held + max(parts["sampling: KV cache"] + parts["sampling: logits"], update)}


def format_memory(parts: dict[str, int]) -> str:
    """The estimate as a line of text."""
    listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size and name != "peak")
    return f"memory estimate: {_size(parts['peak'])} at the peak ({listed})"


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(size / 2**20, 0.1):.1f} MiB"
