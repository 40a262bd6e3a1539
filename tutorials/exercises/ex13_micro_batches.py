"""ex13: one denominator, whatever the micro-batch (tutorial 05)."""

import torch  # noqa: F401


def micro_batch_losses(per_token_loss, mask, rows):
    """The token mean of a minibatch, in parts that fit into memory.

    A trainer calls backward() on each part, one after the other, and the gradients add up. They must add up to the gradient of
    the mean over all masked tokens of the minibatch, however it is cut.

    Args:
        per_token_loss: [B, T]; padding may hold any number.
        mask: [B, T], 1.0 on response tokens; rows have different numbers of them.
        rows: rows of a micro-batch; the last one may have fewer.
    Returns:
        list of scalar tensors, one for each micro-batch, in order.

    Example: per_token_loss [[1, 2, 3], [4, 9, 9]], mask [[1, 1, 1], [1, 0, 0]], rows 1  ->  [1.5, 1.0], whose sum is the mean 2.5
    """
    raise NotImplementedError("ex13: micro_batch_losses")
