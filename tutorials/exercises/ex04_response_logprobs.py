"""ex04: the log-probs of a given response (tutorial 01).

Medium, about 20 minutes.
"""

import torch  # noqa: F401


def response_logprobs(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    """log p(token given all tokens before it) for each response token, in one forward pass.

    Args:
        model: a causal LM. `model(input_ids=..., attention_mask=...).logits` is [B, T, V]. The logits at column t are computed
            from the tokens up to and including column t.
        input_ids: [B, T] prompt, response and padding.
        attention_mask: [B, T], 1 for tokens and 0 for padding. Padding may be on either side.
        response_mask: [B, T], 1.0 on response tokens, including the end-of-sequence token. Column 0 is never a response token.
        temperature: the temperature at which the tokens were sampled. The distribution is softmax(logits / temperature).
    Returns:
        [B, T] in nats. Column t belongs to the token at column t. The result is 0 outside the response. Gradients flow to the
        model.

    Example: one row has the tokens [3, 1, 4] and response_mask [0, 0, 1]. The only result is at column 2: the log-probability
        of token 4 in the logits at column 1.
    """
    raise NotImplementedError("ex04: response_logprobs")
