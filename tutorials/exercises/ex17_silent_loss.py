"""ex17: this program is silently wrong (tutorial 05). Find out why, mend it, and delete the line that raises."""

import torch  # noqa: F401


def token_mean_loss(logits, labels):
    """The mean negative log-likelihood of the tokens that are to be learned.

    Its users say: nothing crashes and the loss goes down, but it is too small, the more so the more padding a batch has. And a
    second call with the same labels behaves differently from the first.

    Args:
        logits: [B, T, V]; column t predicts the token at t + 1.
        labels: [B, T] token ids, and -100 where there is nothing to learn (prompt and padding).
    Returns:
        scalar tensor.

    Example: V = 4, all logits 0, labels [[-100, 2, 1, -100, -100]]  ->  log 4 = 1.38629, whatever the padding.
    """
    raise NotImplementedError("ex17: find the mistake below, then delete this line")
    targets, outputs = labels[:, 1:], logits[:, :-1]  # [B, T - 1], [B, T - 1, V]
    targets[targets == -100] = 0  # gather needs ids that exist; the mask takes these out again
    logprobs = outputs.log_softmax(dim=-1).gather(2, targets[..., None])[..., 0]  # [B, T - 1]
    mask = (labels[:, 1:] != -100).to(logprobs.dtype)
    return -(logprobs * mask).sum() / mask.sum()
