"""An estimate of the memory of training, from the shapes of the model and the config. `train` prints the estimate first.

The estimate counts the tensors of a Llama, with the longest prompt and the longest response in every row. Each term below says
which tensors are counted. `benchmarks.memory` compares the estimate with the measured peak. The activations of other
architectures differ by up to a third. Not counted are:

- Python and PyTorch themselves: about 0.4 GB.
- Freed blocks that malloc keeps on a CPU. They are blocks below 32 MiB, so they matter for small models alone.
- Compiled matrix products that oneDNN keeps in bfloat16 on a CPU: at most 1,024 of them, about 0.6 GB in all.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.cost import STATES
from vine_mini.hardware import logits_at_once, memory
from vine_mini.sampling.fast import REQUESTS_PER_SLOT
from vine_mini.sampling.fast.graphs import uses_graphs
from vine_mini.sampling.fast.groups import slots_in_a_group
from vine_mini.sampling.fast.trunks import READ_TOKENS
from vine_mini.types import UserError


@dataclass(frozen=True)
class _Sizes:
    """The numbers that a token has in each place of the transformer, and the bytes of a number in a matrix product."""

    hidden: int
    inner: int  # of the MLP
    queries: int  # of all heads
    keys: int  # of all heads of keys and values
    layers: int
    vocab: int
    number: int
    logits: int  # that exist at once
    gpu: bool

    @property
    def cached(self) -> int:
        """Bytes of the keys and values of a token."""
        return self.layers * 2 * self.keys * self.number


class _Phase(NamedTuple):
    """An occasion on which a run samples."""

    trunks: int
    length: int  # tokens of a trunk
    followed: int  # the tokens of a trunk that a request may sample too
    requests: int
    on_trunk: int  # requests on a trunk, at least


def memory_estimate(trainer) -> dict[str, int]:
    """The estimate for a trainer. See `estimate`."""
    return estimate(trainer.policy, trainer.config, max(map(len, trainer.prompts)))


def estimate(model, config, longest_prompt: int, device=None) -> dict[str, int]:
    """The memory of training in bytes.

    Args:
        model: the policy. It may be on the meta device, since only its shapes are read.
        longest_prompt, device: in tokens; where training will run, if not where the model is.
    Returns:
        What is always held, what sampling adds ("sampling: ..."), what an update adds ("update: ..."), and the "peak". Sampling
        and updates take turns, so the peak has the larger of the two.
    """
    algorithm, sizes = ALGORITHMS[config.algorithm], _sizes(model, config, device or model.device)
    weights = sum(p.numel() for p in model.parameters())
    backbone = sum(p.numel() for p in model.base_model.parameters())
    critic = (backbone + sizes.hidden) * algorithm.needs_critic  # a backbone and a head of one output
    linear = sum(p.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    reference = weights * 4 - linear * 2 * (config.bf16 and not algorithm.choose_examples)
    cache, forward = max((_sampling(sizes, config, phase) for phase in _phases(config, longest_prompt)), key=sum)
    # Autocast keeps a bfloat16 copy of each linear layer for the backward pass. With checkpointing only one layer is in use.
    cast = (backbone - sizes.vocab * sizes.hidden) // (sizes.layers if config.gradient_checkpointing else 1)
    adamw = 6 if config.adam_8bit else 12  # bytes of a float32 weight and its two moments
    parts = {
        "policy: weights, AdamW": weights * adamw,
        "critic: weights, AdamW": critic * adamw,
        "reference": reference * bool(algorithm.choose_examples or (algorithm.needs_reference and config.kl_coef > 0)),
        "best epoch": weights * 4 * bool(algorithm.choose_examples and config.eval_every and config.epochs > 1),
        "bf16 copy that samples": backbone * 2 * config.bf16,  # its head is the policy's float32 head
        "sampling: KV cache": cache,
        "sampling: activations": forward,
        "update: gradients": (weights + critic) * 4,
        "update: bf16 weights": cast * 2 * config.bf16,
        "update: activations": _activations(sizes, config, longest_prompt),
    }
    in_turn = [sum(size for name, size in parts.items() if name.startswith(phase)) for phase in ("sampling", "update")]
    return parts | {"peak": sum(parts.values()) - min(in_turn)}


def check_memory(parts: dict[str, int], device, yes: bool) -> None:
    """Raises UserError where the peak in `parts` is above the memory of a GPU, unless `yes`."""
    if device.type == "cuda" and parts["peak"] > memory(device) and not yes:
        room = f"the GPU has {_size(memory(device))}, the estimate is {_size(parts['peak'])}"
        raise UserError(f"{room}: lower --sample_batch_size or --micro_batch_tokens, or add --yes to try")


def format_memory(parts: dict[str, int]) -> str:
    """The estimate as a line of text."""
    listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size and name != "peak")
    return f"memory estimate: {_size(parts['peak'])} at the peak ({listed})"


def _sizes(model, config, device) -> _Sizes:
    c = model.config.get_text_config()  # a model of text and pictures has one for each
    heads, width = c.num_attention_heads, c.hidden_size
    head_dim = _largest(c, "head_dim") or width // heads
    inner = _largest(c, "intermediate_size") or _largest(c, "n_inner") or 4 * width
    keys = head_dim * (_largest(c, "num_key_value_heads") or heads)
    rest = 2 if config.bf16 else 4, logits_at_once(device), uses_graphs(device)
    return _Sizes(width, inner, heads * head_dim, keys, c.num_hidden_layers, c.vocab_size, *rest)


def _largest(config, name: str) -> int | None:
    """A size, where the config has it; the largest one, where layers have different sizes (Gemma 3n and 4)."""
    try:
        found = getattr(config, name, None)
    except RuntimeError:  # how transformers says that it differs between layers
        found = [getattr(layer, name) for layer in config.per_layer_config]
    return max(found) if isinstance(found, (list, tuple)) else found


def _phases(config, longest_prompt: int):
    """Yields each occasion on which a run samples."""
    slots, episodes, response = config.sample_batch_size, config.prompts * config.group, config.max_new_tokens
    yield _Phase(config.prompts, longest_prompt, 0, episodes, config.group)  # the responses
    tests = config.eval_problems or slots  # 0: all test problems, which are taken to be many
    yield _Phase(tests, longest_prompt, 0, tests * config.eval_samples, config.eval_samples)
    if ALGORITHMS[config.algorithm].needs_rollouts:
        states = -(-response // config.step_tokens) if config.step_tokens else STATES  # of a response
        fewest = states if config.step_tokens else 1
        yield _Phase(episodes, longest_prompt + response, response, max(episodes * states * config.k, slots), fewest * config.k)


def _sampling(s: _Sizes, config, phase: _Phase) -> tuple[int, int]:
    """Bytes of the fast way to sample: of the KV cache, and of a forward pass with its logits."""
    slots = min(config.sample_batch_size, phase.requests)
    chunk = min(phase.requests, REQUESTS_PER_SLOT * slots)  # the requests whose trunks are in memory at once
    trunks = min(phase.trunks, slots, max(1, chunk // phase.on_trunk))
    # The table of all requests holds a uniform number, an id and a log-prob for each token. It is held with the cache.
    table = phase.requests * config.max_new_tokens * 16
    on_trunks = trunks * phase.length * s.cached + table
    # First the trunks are read. The model's own cache then holds the keys and values of one forward pass a second time. In an
    # MLP three inner vectors exist at once: the gate, the other half and their product. The hidden state and its norm are beside
    # them. Afterwards come the logits. `choose` holds four float32 numbers of each, for the first own token of each request: the
    # logit, the log-prob, the probability and the cumulative sum. Tokens that a request may follow need the last three. A
    # top_p below 1 sorts the probabilities, which takes about ten more.
    numbers = 4 if config.top_p == 1 else 14
    at_once = min(trunks, max(1, READ_TOKENS // phase.length))
    layer = at_once * phase.length * (3 * s.inner + 2 * s.hidden) * s.number
    logits = max(numbers * min(s.logits, chunk * s.vocab), (numbers - 1) * min(s.logits, at_once * phase.followed * s.vocab)) * 4
    reading = on_trunks + at_once * phase.length * s.cached, max(layer, logits)
    # Then the slots are decoded. Each has room for the longest response. On a GPU they stay, each group with a copy of its trunk.
    on_slots = slots * config.max_new_tokens * s.cached
    if s.gpu:
        on_slots += slots // slots_in_a_group([phase.on_trunk], slots) * phase.length * s.cached
        reading = reading[0] + on_slots, reading[1]
    decoding = on_trunks + on_slots, numbers * slots * s.vocab * 4
    return max(reading, decoding, key=sum)


def _activations(s: _Sizes, config, longest_prompt: int) -> int:
    """Bytes of what the backward pass needs, for one forward pass of as many rows as `micro_batch_tokens` allows.

    The critic's forward pass comes after the policy's backward pass and needs less, so it is not counted.
    """
    length = longest_prompt + config.max_new_tokens
    algorithm = ALGORITHMS[config.algorithm]
    together = 2 if algorithm.choose_examples and algorithm.needs_group else 1  # DPO-Positive: the two responses of a pair
    rows = together * min(max(1, config.micro_batch_tokens // (together * length)), config.minibatch_size)
    tokens = rows * length
    # Autograd keeps these vectors of each token in a layer, here in the order of the forward pass:
    #   2 norms: their input and the normalised input, in float32                                        4 hidden
    #   inputs of q, k, v, gate and up: one vector for q, k and v, and one for gate and up               2 hidden
    #     (in bfloat16, autocast makes a copy for each of the five)                                      5 hidden
    #   attention: q and its output, k and v (in float32 on a GPU repeated for all heads)                2 queries, 2 keys
    #   MLP: the gate, its SiLU, the other half, and their product                                       4 inner
    keys = s.queries if s.gpu and not config.bf16 else s.keys
    products = (5 if config.bf16 else 2) * s.hidden + 2 * (s.queries + keys) + 4 * s.inner
    layer = 4 * s.hidden * 4 + products * s.number
    kept = s.layers * s.hidden * 4 + layer if config.gradient_checkpointing else s.layers * layer  # checkpointing: the inputs
    # The backward pass begins at the head: the last norm, the states that predict response tokens, and three numbers of each
    # logit, which are the log-prob and the gradients before and after the softmax.
    predicted = rows * config.max_new_tokens
    head = tokens * 2 * s.hidden * 4 + predicted * s.hidden * 4 + min(s.logits, predicted * s.vocab) * 4 * 3
    # Then comes the last layer's MLP: the gradients of the gate and of the other half, and of the layer's output.
    mlp = tokens * (2 * s.inner * s.number + 2 * s.hidden * 4)
    return tokens * kept + max(head, mlp)


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(size / 2**20, 0.1):.1f} MiB"
