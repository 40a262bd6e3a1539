"""All position encodings: a line for each, with its name, its label, the places where it acts, and its settings.

To add an encoding, write one function in the way of `positions.py` and `later.py`, and one line here. `lengthgen --encodings
mine.py` takes the same from a file of your own, which sets ENCODING to an `Encoding`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from vine_mini.decoder import later, positions

WIDTH = 8  # keys that a query sees in a layer with a window
LOG_LENGTH = 32  # tokens at which log-length scaling is 1
COPE_ROWS = 64  # CoPE's largest position + 1
FIRE_WIDTH = 32  # of its MLP, as in the paper


@dataclass(frozen=True)
class Encoding:
    """Where an encoding acts. Each place is a function or None, and every function has these arguments beside its own:

        config    the `DecoderConfig`: hidden_size D, num_attention_heads H, head_dim d
        w         the encoding's parameters by name

    Attributes:
        label: the name in pictures.
        vectors: (positions [B, T], config, w) -> [B, T, D], added to the token embeddings.
        queries_keys: (qk [2, B, H, T, d], positions [B, T], config, w) -> [2, B, H, T, d], the queries and keys.
        bias: (distance [B, Q, K], positions of the queries [B, Q], config, w) -> [B, H or 1, Q, K], added to the attention logits
            of all layers.
        content_bias: (q [B, H, Q, d], k [B, H, K, d], config, w) -> [B, H, Q, K], added to the logits of one layer. q is divided
            by sqrt(d). The queries are the last Q of the K tokens.
        ids: (is_digit [B, T], is_answer [B, T], largest, generator) -> position ids [B or 1, T] below `largest`. The recipe of
            `lengthgen` computes them, and the decoder takes them as `position_ids`. Elsewhere, as in `generate`, they are
            0, 1, 2, ... None: always 0, 1, 2, ...
        parameters: config -> name -> initial value; one set for the model, for `vectors` and `bias`.
        layer_parameters: the same for each layer, for `queries_keys` and `content_bias`.
        slow: whether its parameters learn at a lower rate, see `lengthgen.train.make_optimizer`.
        table: whether `vectors` has a row for each of config.max_position_embeddings positions.
        nope_every: every n-th layer has no encoding; 0: all layers have it.
    """

    label: str
    vectors: Callable | None = None
    queries_keys: Callable | None = None
    bias: Callable | None = None
    content_bias: Callable | None = None
    ids: Callable | None = None
    parameters: Callable = lambda config: {}
    layer_parameters: Callable = lambda config: {}
    slow: bool = False
    table: bool = False
    nope_every: int = 0


def _gates(q, k):
    """CoPE's gates, sigmoid(q . k); 0 for keys after the query. -> [B, H, Q, K]"""
    logits = q @ k.mT
    return logits.sigmoid().tril(logits.shape[-1] - logits.shape[-2])


def _log_forget(k, w):
    """FoX's log f at each token. The gate reads the keys of all heads, because a cache has these. [B, H, K, d] -> [B, H, K]

    The paper's gate reads the layer's input x. The keys are W x, where W is [H d, D]. If its rank is D, each linear function of x
    is also a linear function of the keys.
    """
    logits = k.transpose(1, 2).flatten(2) @ w["gate"] + w["gate_bias"]  # [B, K, H]
    return torch.nn.functional.logsigmoid(logits).transpose(1, 2)


# --- initial values --------------------------------------------------------------------------------------------------------
# What is added to embeddings starts at random, like them. What acts on logits starts at zero, or at a known encoding.


def _rows(config) -> dict:
    return {"table": torch.randn(config.max_position_embeddings, config.hidden_size)}


def _t5(config) -> dict:
    return {"table": torch.zeros(positions.BUCKETS, config.num_attention_heads)}


def _kerple(config) -> dict:  # ALiBi at small distances (official: random). The logarithms keep p and a positive.
    slopes = positions.alibi_slopes(config.num_attention_heads)
    return {"log_p": torch.zeros_like(slopes), "log_a": slopes.log()}


def _fire(config) -> dict:
    # All layers share one set (the paper's FIRE-S; the official class is made once in each layer). The MLP starts at the zero
    # function and L at FIRE_UNIT tokens (official class: at random, and 512).
    first = {"first": torch.randn(FIRE_WIDTH), "first_bias": torch.randn(FIRE_WIDTH)}
    scalars = {"c": torch.tensor(0.1), "L": torch.tensor(1.0)}
    return first | {"second": torch.zeros(FIRE_WIDTH, config.num_attention_heads)} | scalars


def _forget(config) -> dict:  # f = 1/2 at every token (official: near 1/2, because the weights are random)
    gate = torch.zeros(config.num_attention_heads * config.head_dim, config.num_attention_heads)
    return {"gate": gate, "gate_bias": torch.zeros(config.num_attention_heads)}


def _cope(config) -> dict:
    return {"table": torch.zeros(COPE_ROWS, config.head_dim)}


def _scale(config) -> dict:
    return {"scale": torch.ones(config.num_attention_heads)}


# --- the table -------------------------------------------------------------------------------------------------------------


def _coupled(is_digit, is_answer, largest, generator):
    return later.shifted(later.coupled_ids(is_digit, is_answer), largest, generator)


def _abacus(is_digit, is_answer, largest, generator):
    return later.shifted(later.abacus_ids(is_digit), largest, generator)


def _randomized(is_digit, is_answer, largest, generator):
    return later.randomized(is_digit.shape[1], largest, generator)


def _rope(qk, t, config, w):
    return positions.rope(qk, t)


LEARNED = Encoding("learned", vectors=lambda t, config, w: positions.learned(t, w["table"]), parameters=_rows, table=True)

PAPER = {
    "nope": Encoding("NoPE"),
    "rope": Encoding("RoPE", queries_keys=_rope),
    "alibi": Encoding("ALiBi", bias=lambda distance, t, config, w: positions.alibi_bias(distance, config.num_attention_heads)),
    "t5": Encoding(
        "T5 bias", bias=lambda distance, t, config, w: positions.t5_bias(distance, w["table"]), parameters=_t5, slow=True
    ),
    "sinusoidal": Encoding("sinusoidal", vectors=lambda t, config, w: positions.sinusoidal(t, config.hidden_size)),
    "learned": LEARNED,
}

ENCODINGS = PAPER | {
    "rope25": Encoding(
        "RoPE, a quarter", queries_keys=lambda qk, t, config, w: positions.rope(qk, t, partial_rotary_factor=0.25)
    ),
    "hybrid": Encoding("RNoPE", queries_keys=_rope, nope_every=3),
    "hybrid-window": Encoding(
        "RNoPE-SWA", queries_keys=_rope, bias=lambda distance, t, config, w: later.window(distance, WIDTH), nope_every=3
    ),
    "p-rope": Encoding("p-RoPE, p = 1/4", queries_keys=lambda qk, t, config, w: positions.rope(qk, t, p=0.25)),
    "kerple": Encoding(
        "KERPLE",
        bias=lambda distance, t, config, w: later.kerple_log(distance, w["log_p"].exp(), w["log_a"].exp()),
        parameters=_kerple,
    ),
    "fire": Encoding("FIRE", bias=lambda distance, t, config, w: later.fire(distance, t, w), parameters=_fire),
    "fox": Encoding(
        "FoX", content_bias=lambda q, k, config, w: later.forget_bias(_log_forget(k, w), q.shape[2]), layer_parameters=_forget
    ),
    "cope": Encoding(
        "CoPE", content_bias=lambda q, k, config, w: later.cope_bias(_gates(q, k), q, w["table"]), layer_parameters=_cope
    ),
    "head-scale": Encoding(
        "NoPE, head scales", queries_keys=lambda qk, t, config, w: later.head_scale(qk, w["scale"]), layer_parameters=_scale
    ),
    "log-length": Encoding("NoPE, log-length", queries_keys=lambda qk, t, config, w: later.log_length(qk, t, LOG_LENGTH)),
    "coupled": replace(LEARNED, label="coupled", ids=_coupled),
    "abacus": replace(LEARNED, label="abacus", ids=_abacus),
}
ENCODINGS |= {
    f"{name}-random": replace(ENCODINGS[name], label=f"{ENCODINGS[name].label}, random positions", ids=_randomized)
    for name in ("rope", "alibi", "t5", "sinusoidal", "learned")
}


def check_shapes(encoding: Encoding, config, T: int = 3) -> None:
    """Calls each function of an encoding on T tokens. Raises ValueError where the result has another shape than it should."""
    H, d = config.num_attention_heads, config.head_dim
    t, q = torch.arange(T)[None], torch.zeros(1, H, T, d)
    distance = t[:, :, None] - t[:, None, :]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # initial values are drawn and thrown away
        w, layer_w = encoding.parameters(config), encoding.layer_parameters(config)
        if both := {*w} & {*layer_w}:
            raise ValueError(f"{encoding.label} has two parameters of the name {both.pop()}: rename one of them")
        if numbers := [name for name, value in (w | layer_w).items() if not isinstance(value, torch.Tensor)]:
            raise ValueError(f"the parameter {numbers[0]} of {encoding.label} must be a tensor, or it would not be learned")
        found = {
            "vectors": encoding.vectors and encoding.vectors(t, config, w),
            "queries_keys": encoding.queries_keys and encoding.queries_keys(torch.stack([q, q]), t, config, layer_w),
            "bias": encoding.bias and encoding.bias(distance, t, config, w),
            "content_bias": encoding.content_bias and encoding.content_bias(q, q, config, layer_w),
        }
    wanted: dict[str, dict[str, list[int]]] = {
        "vectors": {"[B, T, D]": [1, T, config.hidden_size]},
        "queries_keys": {"[2, B, H, T, d]": [2, 1, H, T, d]},
        "bias": {"[B, H, Q, K]": [1, H, T, T], "[B, 1, Q, K]": [1, 1, T, T]},
        "content_bias": {"[B, H, Q, K]": [1, H, T, T]},
    }
    for place, shapes in wanted.items():
        shape = list(getattr(found[place], "shape", ()))
        if getattr(encoding, place) is not None and shape not in shapes.values():
            says = " or ".join(f"{letters} = {numbers}" for letters, numbers in shapes.items())
            raise ValueError(f"{place} of {encoding.label} returns the shape {shape}: must be {says}")
