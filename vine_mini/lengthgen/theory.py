"""Theorems 1 and 2 (section 5) as explicit weights in the decoder of `decoder/model.py`.

Theorem 1: a NoPE layer can write each token's absolute position. Attention with equal weights on all visible tokens gives <bos>
the weight 1/t at position t. The MLP turns 1/t into t.

    embedding  [1, is <bos>, 0, content]
    attention  [1, is <bos>, 1/t, content]      every key is the same vector, the value is "is <bos>"
    MLP        [1, is <bos>, t, content]        adds t - 1/t, linear in 1/t between 1, 1/2, 1/3, ...

Theorem 2: a later layer can then attend by distance: q = [m, -m t, content], k = [i, 1, content] gives the logit
content - m (t - i), which is ALiBi.

The theorems are about what weights can compute, not about what training finds. The MLP that inverts 1/t is exact up to the length
that it was built for, and becomes flat beyond that length. (The paper only cites that MLPs approximate any function.)
"""

import torch
from torch import nn

from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.decoder.positions import alibi_slopes

ONE, IS_BOS, POSITION, LARGE = 0, 1, 2, 3  # coordinates of the residual stream; all others are content
BOS, VOCAB = 0, 32


def build(length: int, *, layers: int = 2, heads: int = 4, large: float | None = None) -> Decoder:
    """A NoPE decoder in float64. Its first layer counts to length + 1, and its later layers attend like ALiBi.

    Args:
        length: tokens after <bos>. The MLP needs so many units, so the hidden size is at least length / 4.
        large: None replaces the norms by identities, as in the theorems. A number M keeps RMSNorm and makes it nearly linear: one
            coordinate holds M, and no weight reads this coordinate. It dominates the norm, so norm(h) is nearly h sqrt(D) / M.
            The weights after the norm are larger by M / sqrt(D).
    """
    torch.manual_seed(0)
    hidden = max(8 * heads, -(-length // (8 * heads)) * 2 * heads)  # a multiple of 2 x heads; the MLP has 4 times as many units
    config = DecoderConfig(vocab_size=VOCAB, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads)
    model = Decoder(config).double().eval().requires_grad_(False)
    embed = model.model.embed.weight  # [V, D]; the content stays random
    embed[:, : LARGE + 1] = 0
    embed[:, ONE] = 1
    embed[BOS, IS_BOS] = 1
    write_position(model.model.layers[0], length)
    for layer in model.model.layers[1:]:
        attend_by_distance(layer, alibi_slopes(heads).double())
    if large is None:
        for layer in model.model.layers:
            layer.attention_norm = layer.mlp_norm = nn.Identity()
        model.model.norm = nn.Identity()
    else:
        embed[:, LARGE] = large
        for layer in model.model.layers:
            layer.attention.qkv.weight *= large / hidden**0.5
            layer.up.weight *= large / hidden**0.5
    return model


def write_position(layer, length: int) -> None:
    """Theorem 1: the layer adds the position t, counted from 1 at <bos>, to a coordinate that holds 0."""
    q, k, v = layer.attention.qkv.weight.chunk(3)  # [D, D] each, a row for each dimension of each head
    q.normal_()[:, LARGE] = 0  # any queries
    k.zero_()[:, ONE] = 1  # equal keys
    v.zero_()[0, IS_BOS] = 1
    layer.attention.out.weight.zero_()[POSITION, 0] = 1  # 1/t, because one of t visible tokens is <bos>
    # x = 1/t -> t - x, linear between 1/(j + 1) and 1/j: sum over j of c_j relu(1/j - x) with c_1 = 3, c_j = 2j
    j = torch.arange(1, length + 1, dtype=torch.float64)
    layer.up.weight.zero_()
    layer.up.weight[:length, ONE] = 1 / j
    layer.up.weight[:length, POSITION] = -1
    layer.down.weight.zero_()
    layer.down.weight[POSITION, :length] = torch.where(j == 1, 3, 2 * j)


def attend_by_distance(layer, slopes) -> None:
    """Theorem 2: the layer's logits are content - slope (t - i). Values and MLP are random and touch content only."""
    heads, d = len(slopes), layer.attention.qkv.weight.shape[1] // len(slopes)
    q, k, v = (w.view(heads, d, -1) for w in layer.attention.qkv.weight.chunk(3))  # [H, d, D]; the rows stay random
    for w in (q, k, v, layer.up.weight):
        w[..., : LARGE + 1] = 0  # content reads content
    q[:, :2], k[:, :2] = 0, 0
    q[:, 0, ONE] = slopes * d**0.5  # sqrt(d): the model divides by it
    q[:, 1, POSITION] = -slopes * d**0.5
    k[:, 0, POSITION] = 1
    k[:, 1, ONE] = 1
    layer.attention.out.weight[: LARGE + 1] = 0
    layer.down.weight[: LARGE + 1] = 0


def read_positions(model: Decoder, ids, mask=None):
    """The positions that the first layer writes: ids [B, T] -> [B, T]. `mask` [B, 1, T, T] replaces the causal mask."""
    hidden = _first_layer(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden[..., POSITION] / hidden[..., ONE]  # the last norm cancels in the ratio


def attention_of_second_layer(model: Decoder, ids):
    """The attention weights of the second layer, [B, H, T, T]."""
    return model(input_ids=ids, output_attentions=True, use_cache=False).attentions[1]


def attention_of_alibi(model: Decoder, ids):
    """The attention weights of an ALiBi layer with the second layer's content on the same input, [B, H, T, T].

    The two rows of q and k that compute the distance are set to zero, and ALiBi's bias takes their place. For `large=None`.
    """
    hidden = _first_layer(model)(input_ids=ids, use_cache=False).last_hidden_state
    config = DecoderConfig(**model.config.to_dict() | {"encoding": "alibi", "num_hidden_layers": 1})
    alibi = Decoder(config).double().eval().requires_grad_(False)
    alibi.model.norm = nn.Identity()
    layer = alibi.model.layers[0]
    layer.load_state_dict(model.model.layers[1].state_dict())
    layer.attention_norm = layer.mlp_norm = nn.Identity()
    q, k, _ = layer.attention.qkv.weight.view(3, config.num_attention_heads, config.head_dim, -1)
    q[:, :2], k[:, :2] = 0, 0
    return alibi.model(inputs_embeds=hidden, output_attentions=True, use_cache=False).attentions[0]


def _first_layer(model: Decoder):
    shorter = Decoder(DecoderConfig(**model.config.to_dict() | {"num_hidden_layers": 1})).model.to(model.dtype).eval()
    shorter.embed, shorter.norm = model.model.embed, model.model.norm
    shorter.layers = model.model.layers[:1]
    return shorter


def demonstrate(length: int) -> dict:
    """Builds the weights, measures their errors, and breaks one condition at a time.

    Returns {"errors": {name: largest error}, "curves": {name: positions that layer 1 writes}, "attention": {name: weights}}.
    """
    ids = torch.randint(1, VOCAB, (4, 2 * (length + 1)), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS
    T = length + 1
    truth = torch.arange(1, T + 1)
    model = build(length)

    def error(model, ids=ids[:, :T]):
        return (read_positions(model, ids) - truth).abs().max().item()

    errors = {"Theorem 1, float64": error(model), "Theorem 1, float32": error(build(length).float())}
    for large in (1e2, 1e4, 1e6):
        errors[f"Theorem 1, RMSNorm kept, constant {large:g}"] = error(build(length, large=large))
    nope, alibi = attention_of_second_layer(model, ids[:, :T]), attention_of_alibi(model, ids[:, :T])
    errors["Theorem 2, attention weights against ALiBi's"] = (nope - alibi).abs().max().item()

    no_bos, two = ids.clone(), ids.clone()
    no_bos[:, 0], two[:, 1] = 1, BOS
    curves = {
        f"built for {T} positions": read_positions(model, ids)[0],
        "no <bos>": read_positions(model, no_bos)[0],
        "two <bos>": read_positions(model, two)[0],
        "no causal mask": read_positions(model, ids[:, :T], torch.zeros(4, 1, T, T))[0],
    }
    return {
        "errors": errors,
        "curves": {name: curve.tolist() for name, curve in curves.items()},
        "attention": {"NoPE, built weights": nope[0, 1, -1].tolist(), "ALiBi": alibi[0, 1, -1].tolist()},
    }
