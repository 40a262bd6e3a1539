"""Whether a training is sound: numbers that are not finite end it, and metrics say when it does not learn."""

import math
from collections import defaultdict
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
    """Where the block raises Diverged, adds to the error: the minibatch (`where`), its rows [m], and earlier metrics."""
    try:
        yield
    except Diverged as error:
        error.args = (f"{where}: {error}",)
        ids = [ids[mask.bool()].tolist() for ids, mask in zip(tokens.input_ids[rows], tokens.attention_mask[rows], strict=True)]
        error.found = {"rows": rows.tolist(), "ids": ids, "metrics": log}
        raise


def symptoms(metrics: dict) -> dict[str, str]:
    """Warnings that follow from the metrics of one iteration. -> {name of the metric: what is wrong and what to try}"""
    m = defaultdict(lambda: math.nan, metrics)  # a comparison with what is not measured is false
    unsolved = m["reward"] < 0.9
    cases = [
        # Where most are cut, the length alone decides the reward.
        ("truncated", m["truncated"] > 0.5, "most responses are cut by the limit and get reward 0: raise --max_new_tokens"),
        # That is one response of a usual iteration's 128.
        ("nonzero_advantages", unsolved and m["nonzero_advantages"] < 0.01,
         "responses to a problem have equal rewards: take other problems, or raise --group or --temperature"),
        # Below 0.1 nats a response, nine of ten samples are the most likely response, and there is nothing to compare.
        ("entropy", unsolved and m["entropy"] * m["length"] < 0.1, "samples are all alike: raise --temperature or --kl_coef"),
        # Each token is as uncertain as a choice among 20. The presets have 0.01 to 0.2 nats.
        ("entropy", m["entropy"] > 3, "the policy writes at random: lower --lr or raise --kl_coef"),
        # Five times the largest of the runs in results/claims.
        ("kl", m["kl"] > 1, "the policy is far from its start: lower --lr or raise --kl_coef"),
        # Its expectation is 1. The presets have 0.998 to 1.002, and 1.000 before the first update, in bfloat16 as well.
        ("ratio", abs(m["ratio"] - 1) > 0.1, "updates lead away from the policy that sampled: lower --lr or --epochs"),
        ("first_ratio", abs(m["first_ratio"] - 1) > 0.01, "sampler and trainer disagree before any update: report a bug"),
        # In nats a token. The policies here have 0.0005 in bfloat16.
        ("sampler_gap", m["sampler_gap"] > 0.05, "sampler and trainer differ: add --importance_cap 2 (without --bf16: a bug)"),
        ("skipped", m["skipped"] > 0, "minibatches with a ratio above --max_ratio were skipped: lower --lr or --epochs"),
    ]  # fmt: skip
    return {name: says for name, bad, says in cases if bad}
