"""ex04: the log-probs of a response that is already there (tutorial 01)."""

import torch  # noqa: F401


def response_logprobs(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """log p(token given all tokens before it) for each response token, in one forward pass.

    Args:
        model: a causal LM: `model(input_ids=..., attention_mask=...).logits` is [B, T, V]. The logits at column t were made from
            the tokens up to and including t.
        input_ids: [B, T] prompt, response and padding.
        attention_mask: [B, T], 1 for tokens and 0 for padding, which may be on either side.
        response_mask: [B, T], 1.0 on response tokens, the end of the sequence included. Column 0 is never a response token.
        temperature: the one that sampled: the distribution is softmax(logits / temperature).
    Returns:
        [B, T] in nats: column t speaks of the token at column t. 0 outside the response. Gradients flow to the model.

    Example: one row with tokens [3, 1, 4] and response_mask [0, 0, 1]: the only number is at column 2. It is the
        log-probability of token 4 in the logits at column 1.
    """
    raise NotImplementedError("ex04: response_logprobs")
