"""One compact decoder for every position encoding, as a Hugging Face model.

    ids -> embeddings -> layers x [h += attention(norm(h)); h += mlp(norm(h))] -> norm -> logits

RMSNorm comes before each part, the MLP has ReLU, and there are no biases. `generate`, `save_pretrained`, the Auto classes, and
this package's sampler and trainer work with it.

Deviations from the paper's model, a T5 base decoder: this model is smaller. Attention logits are divided by sqrt(d); the paper
folds this factor into the initial weights. The head has its own weights instead of the embeddings. Norms have no gain, because
the matrix after each norm can absorb it. There is no dropout.
"""

import torch
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
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from vine_mini.decoder.table import ENCODINGS, check_shapes
from vine_mini.logprobs import position_ids as position_ids_of


class DecoderConfig(PreTrainedConfig):
    """The shape and the position encoding of a `Decoder`. Raises ValueError for a meaningless combination.

    Attributes:
        head_dim: dimensions of a head. None: hidden_size / num_attention_heads.
        encoding: a name in `table.ENCODINGS`.
        nope_every: every n-th layer has no encoding (a hybrid, as in SmolLM3 and Llama 4); 0: all layers have the encoding.
            None: as the table says.
        max_position_embeddings: rows of a learned table, and so the longest sequence. None for the other encodings.
    """

    model_type = "vine_mini_decoder"

    vocab_size: int = 64
    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    head_dim: int | None = None
    encoding: str = "nope"
    nope_every: int | None = None
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.encoding not in ENCODINGS:
            raise ValueError(f"unknown position encoding {self.encoding!r}: choose from {', '.join(ENCODINGS)}")
        encoding = ENCODINGS[self.encoding]
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if encoding.table != (self.max_position_embeddings is not None):
            raise ValueError("max_position_embeddings is the size of a learned table: give it only for encodings with a table")
        if self.nope_every is None:
            self.nope_every = encoding.nope_every
        if self.nope_every and not (encoding.queries_keys or encoding.bias or encoding.content_bias):
            raise ValueError(f"nope_every is for encodings inside the layers, not for {self.encoding}")
        check_shapes(encoding, self)
        super().__post_init__(**kwargs)


class Attention(nn.Module):
    """Multi-head attention: softmax(q k^T / sqrt(d) + bias) v.

    `encoded`: whether q, k and the content bias get the encoding. The caller chooses `bias`.
    """

    def __init__(self, config: DecoderConfig, layer: int, encoded: bool):
        super().__init__()
        self.config, self.layer, self.heads = config, layer, config.num_attention_heads
        self.scale, width = config.head_dim**-0.5, self.heads * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * width, bias=False)
        self.out = nn.Linear(width, config.hidden_size, bias=False)
        encoding = ENCODINGS[config.encoding if encoded else "nope"]
        self.queries_keys, self.content_bias = encoding.queries_keys, encoding.content_bias
        self.encoding = nn.ParameterDict(encoding.layer_parameters(config))

    def forward(self, x, positions, bias, cache, keep):
        """x [B, T, D], bias [B or 1, H or 1, Q, K] -> [B, Q, D], weights [B, H, Q, K]. Q = keep, or T if keep is 0."""
        B, T, _ = x.shape
        # cut before transposing: the backward pass then makes one copy less
        q, k, v = (x.transpose(1, 2) for x in self.qkv(x).view(B, T, 3, self.heads, -1).unbind(2))  # [B, H, T, d] each
        if self.queries_keys:
            q, k = self.queries_keys(torch.stack([q, k]), positions, self.config, self.encoding)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # [B, H, K, d]
        if keep:
            q = q[:, :, -keep:]  # [B, H, Q, d]
        if self.content_bias:
            bias = bias + self.content_bias(q * self.scale, k, self.config, self.encoding)  # [B, H, Q, K]
        # for short sequences on a CPU this is faster than F.scaled_dot_product_attention
        weights = torch.add(bias, q @ k.mT, alpha=self.scale).softmax(dim=-1)  # [B, H, Q, K]
        y = weights @ v
        return self.out(y.transpose(1, 2).flatten(2)), weights


class Layer(GradientCheckpointingLayer):
    """Attention and MLP. Each of them reads the normed residual stream and adds to it. `nope`: no position encoding here."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.nope = config.nope_every > 0 and (layer + 1) % config.nope_every == 0
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(config, layer, encoded=not self.nope)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=1e-6, elementwise_affine=False)
        self.up = nn.Linear(config.hidden_size, 4 * config.hidden_size, bias=False)
        self.down = nn.Linear(4 * config.hidden_size, config.hidden_size, bias=False)

    def forward(self, h, positions, bias, cache, keep):
        """h [B, T, D] -> the last Q positions [B, Q, D], attention weights [B, H, Q, K]. Q = keep, or T if keep is 0."""
        x = self.attention_norm(h)
        if keep:  # a slice of everything would still be copied in the backward pass
            h, bias = h[:, -keep:], bias[:, :, -keep:]
        attended, weights = self.attention(x, positions, bias, cache, keep)
        h = h + attended
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
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.ParameterDict) and len(module):
            encoding = ENCODINGS[self.config.encoding]
            for name, value in (encoding.parameters(self.config) | encoding.layer_parameters(self.config)).items():
                if name in module:
                    init.copy_(module[name], value)


class DecoderModel(_Base):
    """The decoder without its head: token ids -> hidden states."""

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoding = nn.ParameterDict(ENCODINGS[config.encoding].parameters(config))  # shared by all layers
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
            position_ids: [B, T] positions of these tokens. Default: counted from a row's first token that is not padding. The
                positions of cached tokens are always counted in this way, so give use_cache=False with others.
            past_key_values: a cache of K - T tokens.
            output_attentions: also return the attention weights, [B, H, T, K] for each layer.
            keep: return the hidden states of the last `keep` columns only. The last layer then computes no others. 0: all.
        """
        config, encoding = self.config, ENCODINGS[self.config.encoding]
        h = self.embed(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, D]
        T = h.shape[1]
        use_cache = config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        K = T + (past_key_values.get_seq_length() if past_key_values is not None else 0)
        mask, key_positions = _mask_and_positions(attention_mask, T, K, h)  # [B or 1, 1, T, K], [B or 1, K]
        positions = key_positions[:, K - T :]  # [B or 1, T]
        if position_ids is not None and (position_ids != positions).any():
            positions = position_ids[:1] if (position_ids == position_ids[:1]).all() else position_ids  # one row serves all
            key_positions = _beside(key_positions[:, : K - T], positions)

        if encoding.vectors:
            h = h + encoding.vectors(positions, config, self.encoding).to(h.dtype)
        bias = mask
        if encoding.bias:
            distance = positions[:, :, None] - key_positions[:, None, :]  # t - i, [B or 1, T, K]
            numbers = encoding.bias(distance, positions, config, self.encoding)  # [B or 1, H or 1, T, K]
            bias = (numbers.to(h.dtype) + mask).contiguous()

        weights = []
        for layer in self.layers:
            wanted = keep if layer is self.layers[-1] else 0
            h, attention = layer(h, positions, mask if layer.nope else bias, past_key_values, wanted)
            weights += [attention] if output_attentions else []
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(h),
            past_key_values=past_key_values if use_cache else None,
            attentions=tuple(weights) if output_attentions else None,
        )


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


def _beside(before, after):
    """[B or 1, M] and [B or 1, T] -> [B or 1, M + T]"""
    rows = max(len(before), len(after))
    return torch.cat([before.expand(rows, -1), after.expand(rows, -1)], dim=1)


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
