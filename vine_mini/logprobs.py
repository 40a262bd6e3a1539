"""Log-probs and values of the response tokens that a batch holds: the only shift by one in the code base.

A causal model's output at position t - 1 speaks of the token at t. Here, and nowhere else, the two are lined up, so
that in every [B, T] tensor of this package column t speaks of the token at t.
"""

import torch
from torch.utils.checkpoint import checkpoint

LOGITS = 1 << 25  # that exist at once: 134 MB in float32


def response_logprobs(model, input_ids, attention_mask, response_mask, *, temperature: float = 1.0):
    """log p(token | all before it) of each response token, under softmax(logits / temperature).

    The logits of prompt and padding are never computed, and those of the response only some tokens at a time (with
    gradients: computed again in the backward pass), so memory does not grow with batch x vocabulary.

    Args:
        model: a Hugging Face causal LM whose logits are lm_head(hidden states), soft-capped if its config says so.
        input_ids, attention_mask, response_mask: [B, T]; padding on either side. Column 0 cannot be a response token.
        temperature: the one that sampled the tokens; greedy tokens (temperature 0) are scored at 1.
    Returns:
        [B, T] float32, zero outside the response.
    """
    hidden = hidden_before(model.base_model, input_ids, attention_mask, response_mask)  # [n, D]
    tokens = input_ids[response_mask.bool()]  # [n]

    def score(hidden, tokens):
        return logits_of(model, hidden).div(temperature or 1.0).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]

    size = rows_of_logits(model)
    pieces = list(zip(hidden.split(size), tokens.split(size), strict=True))
    recompute = len(pieces) > 1 and torch.is_grad_enabled()
    scores = [checkpoint(score, *p, use_reentrant=False) if recompute else score(*p) for p in pieces]
    return _back_in_place(torch.cat(scores), response_mask)


def response_values(critic, input_ids, attention_mask, response_mask):
    """V(s_t) at each response token t: the critic's value of the state before that token. Shapes as above."""
    hidden = hidden_before(critic.backbone, input_ids, attention_mask, response_mask)  # [n, D]
    return _back_in_place(_upcast(critic.head(hidden)[:, 0]), response_mask)


def logits_of(model, hidden):
    """Hidden states [n, D] -> logits [n, V] in float32 (float64 for a float64 model)."""
    logits = _upcast(model.get_output_embeddings()(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2 and 3
    return logits if cap is None else cap * torch.tanh(logits / cap)


def rows_of_logits(model) -> int:
    """Tokens whose logits may exist at once."""
    return max(1, LOGITS // model.get_output_embeddings().weight.shape[0])


def position_ids(attention_mask):
    """[B, T] positions counted from each row's first real token, whichever side the padding is on."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def hidden_before(backbone, input_ids, attention_mask, response_mask):
    """The hidden state that predicts each response token, rows in order. -> [n, D]. Arguments as in `response_logprobs`."""
    if bool(response_mask[:, 0].any()):
        raise ValueError("a response token in column 0 has nothing before it to be predicted from")
    hidden = backbone(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=False,
    ).last_hidden_state  # [B, T, D]
    return hidden[:, :-1][response_mask[:, 1:].bool()]


def _back_in_place(flat, response_mask):
    return torch.zeros_like(response_mask, dtype=flat.dtype).masked_scatter(response_mask.bool(), flat)


def _upcast(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))
