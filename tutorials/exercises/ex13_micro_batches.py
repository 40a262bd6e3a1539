"""ex13: one denominator for all micro-batches (tutorial 06).

Medium, about 15 minutes.
"""

import torch  # noqa: F401


def micro_batch_losses(per_token_loss, mask, rows):
    """The mean loss over the tokens of a minibatch, in micro-batches that fit into memory.

    A trainer calls backward() on one micro-batch after the other, and the gradients add up. The sum of the gradients must be
    the gradient of the mean over all masked tokens of the minibatch, for every split into micro-batches.

    Args:
        per_token_loss: [B, T]. Padding may hold any finite numbers.
        mask: [B, T], 1.0 on response tokens. Rows have different numbers of response tokens.
        rows: number of rows in a micro-batch. The last micro-batch may have fewer.
    Returns:
        list of scalar tensors, one for each micro-batch, in order.

    Example: per_token_loss [[1, 2, 3], [4, 9, 9]], mask [[1, 1, 1], [1, 0, 0]], rows 1
        ->  [1.5, 1.0], whose sum is the mean 2.5
    """
    raise NotImplementedError("ex13: micro_batch_losses")
