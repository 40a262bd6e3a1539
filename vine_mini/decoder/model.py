"""One compact decoder for every position encoding, as a Hugging Face model.

    ids -> embeddings -> layers x [h += attention(norm(h)); h += mlp(norm(h))] -> norm -> logits

RMSNorm comes before each part, the MLP has ReLU, and there are no biases. `generate`, `save_pretrained`, the Auto classes, and
this package's sampler and trainer work with it.

Deviations from the paper's model, a T5 base decoder: this model is smaller. Attention logits are divided by sqrt(d); the paper
folds this factor into the initial weights. The head has its own weights instead of the embeddings. Norms have no gain, because
the matrix after each norm can absorb it. There is no dropout.
"""

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from vine_mini.decoder.positions import BUCKETS, ENCODINGS, alibi_bias, rope_turns, rotate, sinusoidal, t5_bucket
from vine_mini.logprobs import position_ids as position_ids_of


class DecoderConfig(PreTrainedConfig):
    """The shape and the position encoding of a `Decoder`. Raises ValueError for a meaningless combination.

    Attributes:
        positions: one of `positions.ENCODINGS`.
        rope_share: the share of each head's dimensions that RoPE rotates (the paper's code: 0.25).
        nope_every: every n-th layer has no encoding (a hybrid, as in SmolLM3 and Llama 4); 0: all layers have the encoding.
        attention_temperature: attention logits are divided by it. Below 1, attention is sharper than in training.
        max_position_embeddings: rows of the learned table, and so the longest sequence. None for the other encodings.
    """

    model_type = "vine_mini_decoder"

    vocab_size: int = 64
    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    positions: str = "nope"
    rope_share: float = 1.0
    nope_every: int = 0
    attention_temperature: float = 1.0
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.positions not in ENCODINGS:
            raise ValueError(f"unknown position encoding {self.positions!r}: choose from {', '.join(ENCODINGS)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.positions == "rope" and (self.rotated < 2 or self.rotated % 2):
            raise ValueError(f"RoPE turns pairs: rope_share x head size = {self.rotated}, must be even and at least 2")
        if (self.positions == "learned") != (self.max_position_embeddings is not None):
            raise ValueError("max_position_embeddings is the size of the learned table: give it for positions='learned' only")
        if self.nope_every and self.positions not in ("rope", "alibi", "t5"):
            raise ValueError(f"nope_every is for encodings inside the layers (rope, alibi, t5), not for {self.positions}")
        if not self.attention_temperature > 0:
            raise ValueError(f"attention_temperature {self.attention_temperature}: must be above 0")
        super().__post_init__(**kwargs)

    @property
    def head_size(self) -> int:
        """The dimensions of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotated(self) -> int:
        """The dimensions of a head that RoPE rotates."""
        return round(self.rope_share * self.head_size)


class Attention(nn.Module):
    """Multi-head attention: softmax(q k^T / sqrt(d) + bias) v."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.heads = layer, config.num_attention_heads
        self.scale = config.head_size**-0.5 / config.attention_temperature
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, bias, rotation, cache, keep, return_weights):
        """x [B, T, D], bias [B or 1, H or 1, Q, K] -> [B, Q, D], weights [B, H, Q, K] or None. Q = keep, or T if keep is 0."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [3, B, H, T, d]
        (q, k), v = qkv[:2] if rotation is None else rotate(qkv[:2], rotation), qkv[2]
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # [B, H, K, d]
        q = q[:, :, -keep:]  # [B, H, Q, d]
        weights = None
        if return_weights:
            weights = (q @ k.mT * self.scale + bias).softmax(dim=-1)  # [B, H, Q, K]
            y = weights @ v
        else:  # the same in one kernel
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(B, -1, -1, -1), scale=self.scale)
        return self.out(y.transpose(1, 2).flatten(2)), weights


class Layer(GradientCheckpointingLayer):
    """Attention and MLP. Each of them reads the normed residual stream and adds to it."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.without_encoding = config.nope_every > 0 and (layer + 1) % config.nope_every == 0
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=1e-6, elementwise_affine=False)
        self.up = nn.Linear(config.hidden_size, 4 * config.hidden_size, bias=False)
        self.down = nn.Linear(4 * config.hidden_size, config.hidden_size, bias=False)

    def forward(self, h, bias, rotation, cache, keep, return_weights):
        """h [B, T, D] -> the last Q positions [B, Q, D], attention weights or None. Q = keep, or T if keep is 0."""
        attended, weights = self.attention(self.attention_norm(h), bias[:, :, -keep:], rotation, cache, keep, return_weights)
        h = h[:, -keep:] + attended
        return h + self.down(self.up(self.mlp_norm(h)).relu()), weights


class _Base(PreTrainedModel):
    config_class = DecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]
    _input_embed_layer = "embed"

    def _init_weights(self, module):
        """Matrices keep the size of their inputs. Embeddings have size 1, like the sinusoids that are added to them."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif hasattr(module, "bias_table"):
            nn.init.normal_(module.bias_table, std=self.config.hidden_size**-0.5)


class DecoderModel(_Base):
    """The decoder without its head: token ids -> hidden states."""

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.position_table = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.positions == "t5":
            self.bias_table = nn.Parameter(torch.empty(BUCKETS, config.num_attention_heads))  # shared by all layers
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6, elementwise_affine=False)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=False,
        keep=0,
    ):
        """Hidden states of the last layer, [B, T, D].

        Args:
            input_ids: [B, T], or `inputs_embeds` [B, T, D].
            attention_mask: [B, K] for the cached tokens and these, 1 for tokens and 0 for padding. Default: all ones. Or
                [B, 1, T, K], which is added to the logits and replaces the causal mask.
            position_ids: [B, T] for the encodings of single positions (RoPE, sinusoidal, learned). Default: counted from a
                row's first token that is not padding. ALiBi and T5 always count in this way.
            past_key_values: a cache of K - T tokens.
            output_attentions: also return the attention weights, [B, H, T, K] for each layer.
            keep: return the last `keep` positions only. The last layer then computes no others. 0: all.
        """
        config = self.config
        h = self.embed(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, D]
        T = h.shape[1]
        use_cache = config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        K = T + (past_key_values.get_seq_length() if past_key_values is not None else 0)
        mask, key_positions = _mask_and_positions(attention_mask, T, K, h)  # [B or 1, 1, T, K], [B or 1, K]
        query_positions = key_positions[:, K - T :]
        if position_ids is None:
            position_ids = query_positions

        if config.positions in ("sinusoidal", "learned"):
            h = h + self._vectors(position_ids).to(h.dtype)
        rotation = rope_turns(position_ids, config.rotated) if config.positions == "rope" else None
        bias = mask
        if config.positions in ("alibi", "t5"):
            distance = query_positions[:, :, None] - key_positions[:, None, :]  # t - i, [B or 1, T, K]
            bias = self._bias(distance).to(h.dtype) / config.attention_temperature + mask  # [B or 1, H, T, K]

        weights = []
        for layer in self.layers:
            encoding = (mask, None) if layer.without_encoding else (bias, rotation)
            wanted = keep if layer is self.layers[-1] else 0
            h, attention = layer(h, *encoding, past_key_values, wanted, output_attentions)
            weights.append(attention)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(h),
            past_key_values=past_key_values if use_cache else None,
            attentions=tuple(weights) if output_attentions else None,
        )

    def _vectors(self, position_ids):
        """The vectors that the absolute encodings add to the embeddings. [B, T] -> [B, T, D]"""
        if self.config.positions == "sinusoidal":
            return sinusoidal(position_ids, self.config.hidden_size)
        if int(position_ids.max()) >= self.position_table.num_embeddings:
            raise ValueError(f"the learned table ends at {self.position_table.num_embeddings} positions; the sequence is longer")
        return self.position_table(position_ids)

    def _bias(self, distance):
        """The numbers that the relative encodings add to the logits. [B or 1, T, K] -> [B or 1, H, T, K]"""
        if self.config.positions == "alibi":
            return alibi_bias(distance, self.config.num_attention_heads)
        return self.bias_table[t5_bucket(distance)].permute(0, 3, 1, 2)


class Decoder(_Base, GenerationMixin):
    """The decoder with its head: token ids -> logits."""

    _tied_weights_keys = {"lm_head.weight": "model.embed.weight"}

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.model = DecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, labels=None, logits_to_keep=0, **inputs):
        """Logits [B, T, V], or of the last `logits_to_keep` tokens only. Other arguments: see `DecoderModel.forward`.

        With `labels` [B, T], also the mean loss. Labels are -100 where nothing is learned. The shift by one is made inside.
        """
        out = self.model(input_ids, attention_mask, keep=logits_to_keep, **inputs)
        logits = self.lm_head(out.last_hidden_state)
        return CausalLMOutputWithPast(
            loss=None if labels is None else self.loss_function(logits, labels, self.config.vocab_size),
            logits=logits,
            past_key_values=out.past_key_values,
            attentions=out.attentions,
        )


def _mask_and_positions(attention_mask, T, K, h):
    """-> the mask that is added to the logits, 0 or very negative, [B or 1, 1, T, K]; key positions [B or 1, K]"""
    index = torch.arange(K, device=h.device)
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask.to(h.dtype), index[None]
    visible = index[K - T :, None] >= index  # [T, K], the causal mask
    if attention_mask is None or attention_mask.all():  # one mask serves all rows
        visible, positions = visible[None, None], index[None]
    else:
        positions = position_ids_of(attention_mask)
        visible = visible & attention_mask[:, None, None, :].bool()  # [B, 1, T, K]
    mask = torch.zeros(visible.shape, dtype=h.dtype, device=h.device)
    return mask.masked_fill(~visible, torch.finfo(h.dtype).min), positions


def word_tokenizer(ids: dict[str, int], pattern: str) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer whose tokens are the matches of a pattern. It raises for a match without an id.

    `ids` must hold <pad> and <eos>.
    """
    fast = Tokenizer(WordLevel(ids))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")


AutoConfig.register(DecoderConfig.model_type, DecoderConfig)
AutoModel.register(DecoderConfig, DecoderModel)
AutoModelForCausalLM.register(DecoderConfig, Decoder)
