"""Log-probs and values of response tokens: the shift by one. (Only sampling/fast/trunks.py and lengthgen also shift logits.)

A causal model's output at position t - 1 predicts the token at t. The functions below line the two up, so that in every
[B, T] tensor of this package column t belongs to the token at t. The language-model head and the critic's head are computed in
float32, outside autocast. In bfloat16 a head would round its output. The error of a log-ratio would then be larger than the
log-ratio itself.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from vine_mini.hardware import logits_at_once
from vine_mini.types import on_response


def response_logprobs(model, input_ids, attention_mask, response_mask, *, temperature: float = 1.0):
    """log p(token | all tokens before it) of each response token, under softmax(logits / temperature). -> [B, T] float32

    Only logits of the response are computed, for a limited number of tokens at a time (with gradients: again in the backward
    pass), so memory does not grow with batch x vocabulary.

    Args:
        model: a Hugging Face causal LM whose logits are a linear head of its hidden states, soft-capped if its config says so.
        input_ids, attention_mask, response_mask: [B, T]; padding on either side. Column 0 cannot be a response token.
        temperature: the one that sampled the tokens; greedy tokens (temperature 0) are scored at 1.
    """
    hidden = hidden_before(model.base_model, input_ids, attention_mask, response_mask)  # [n, D]
    tokens = input_ids[response_mask.bool()]  # [n]

    def score(hidden, tokens):
        return logits_of(model, hidden).div(temperature or 1.0).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]

    pieces = list(zip(*(x.split(rows_of_logits(model)) for x in (hidden, tokens)), strict=True))
    recompute = len(pieces) > 1 and torch.is_grad_enabled()
    scores = [checkpoint(score, *p, use_reentrant=False) if recompute else score(*p) for p in pieces]
    return on_response(torch.cat(scores), response_mask)


def response_values(critic, input_ids, attention_mask, response_mask):
    """V(s_t) at each response token t: the critic's value of the state before that token. Shapes as above."""
    hidden = hidden_before(critic.backbone, input_ids, attention_mask, response_mask)  # [n, D]
    return on_response(_linear(critic.head, hidden)[:, 0], response_mask)


def logits_of(model, hidden):
    """Hidden states [n, D] -> logits [n, V] in float32 (float64 for a float64 model)."""
    logits = _linear(model.get_output_embeddings(), hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)  # Gemma 2 and 3
    return logits if cap is None else cap * torch.tanh(logits / cap)


def rows_of_logits(model) -> int:
    """Tokens whose logits may exist at once."""
    weight = model.get_output_embeddings().weight  # [V, D]
    return max(1, logits_at_once(weight.device) // len(weight))


def position_ids(attention_mask):
    """[B, T] positions counted from each row's first real token, whichever side the padding is on."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def hidden_before(backbone, input_ids, attention_mask, response_mask):
    """The hidden state that predicts each response token, row by row. -> [n, D]. Arguments as in `response_logprobs`."""
    if bool(response_mask[:, 0].any()):
        raise ValueError("a response token in column 0 has nothing before it to be predicted from")
    if input_ids.is_cuda and not torch.is_autocast_enabled("cuda"):  # float32 is fast only with a mask that is not all ones
        input_ids, attention_mask = F.pad(input_ids, (1, 0)), F.pad(attention_mask, (1, 0))
    mask = dict(attention_mask=attention_mask, position_ids=position_ids(attention_mask))  # causality hides padding on the right
    hidden = backbone(input_ids=input_ids, **({} if attention_mask[:, 0].all() else mask), use_cache=False).last_hidden_state
    return hidden[:, -response_mask.shape[1] : -1][response_mask[:, 1:].bool()]  # [n, D]: the shift by one


def _linear(head, hidden):
    """A linear head in float32 or wider. [n, D] -> [n, V]"""
    dtype, bias = torch.promote_types(head.weight.dtype, torch.float32), head.bias
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(dtype), head.weight.to(dtype), None if bias is None else bias.to(dtype))
