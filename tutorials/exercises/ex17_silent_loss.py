"""ex17: this program has a silent mistake (tutorial 06). Find the mistake, fix it, and delete the line that raises.

Medium, about 15 minutes.
"""

import torch  # noqa: F401


def token_mean_loss(logits, labels):
    """The mean negative log-likelihood of the tokens that are to be learned.

    The users of this function report: nothing crashes and the loss falls, but the loss is too small. The more padding a batch
    has, the smaller the loss is. Code that uses the same labels later gets wrong results as well.

    Args:
        logits: [B, T, V]; column t predicts the token at t + 1.
        labels: [B, T] token ids, or -100 where nothing is to be learned (prompt and padding).
    Returns:
        scalar tensor.

    Example: V = 2, every row of logits is [log 3, 0], labels [[-100, 1, -100, -100]]  ->  log 4 = 1.38629, for any padding.
        The program below gives 0.65389.
    """
    raise NotImplementedError("ex17: find the mistake below, then delete this line")
    targets, outputs = labels[:, 1:], logits[:, :-1]  # [B, T - 1], [B, T - 1, V]
    targets[targets == -100] = 0  # gather needs valid ids; the mask removes these tokens from the mean
    logprobs = outputs.log_softmax(dim=-1).gather(2, targets[..., None])[..., 0]  # [B, T - 1]
    mask = (labels[:, 1:] != -100).to(logprobs.dtype)
    return -(logprobs * mask).sum() / mask.sum()
