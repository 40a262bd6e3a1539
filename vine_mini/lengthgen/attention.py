"""The distance between the attention distributions of two models (section 5.2), in two measures.

    D(P, Q) of two heads     mean over positions t of the divergence of P_t and Q_t, the distributions over keys 1..t
    D of two layers          the minimum over pairs of a head of one model with a head of the other
    D of two models          mean over layers, sequences and seeds

"Jensen-Shannon" is the paper's definition. The divergence is JSD, at most ln 2 = 0.693, and all pairs of heads count. "official
code" is what the paper's figures show. That code calls the KL divergence with swapped arguments, which gives (KL(M|P) + KL(M|Q))
/ 2 with M the average. This quantity has no upper bound: it weighs most the keys that one of the two heads hardly attends to.
The code also compares head i of NoPE only with the heads before i of the other model. ALiBi's last head has the flattest bias.
It therefore never counts.

Two encodings of one seed share training examples and, unless they draw initial values of their own, initial weights. This
changes their distance. Two different NoPE models never share these. So we compare NoPE of one seed with the *next* seed of every
encoding. The official code compares models of one seed. Our measure "official code, same seed" does so too.

Deviation: a weight that underflows to zero counts as 1e-38. The official code gets infinity there.
"""

from pathlib import Path
from statistics import mean

import torch

from vine_mini.lengthgen.config import LengthgenConfig
from vine_mini.lengthgen.results import load_model
from vine_mini.lengthgen.train import EVAL_SEED, Draw, collate, evaluation_examples, own_ids, widths

MEASURES = PAPER, OFFICIAL = "Jensen-Shannon", "official code"
SAME_SEED = "official code, same seed"
TINY = 1e-38  # about the smallest normal float32


def jensen_shannon(p, q):
    """JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2 in nats, along the last dimension. 0 log 0 = 0."""
    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).clamp(min=0)  # rounding can give -1e-17


def swapped(p, q):
    """(KL(m | p) + KL(m | q)) / 2 in nats with m = (p + q) / 2, along the last dimension: the official code's divergence."""
    m = (p + q) / 2
    logs = sum(x.clamp(min=TINY).log() for x in (p, q)) / 2
    return (torch.xlogy(m, m) - torch.where(m > 0, m * logs, 0)).sum(dim=-1).clamp(min=0)


def entropy(p):
    """-sum p log p in nats, along the last dimension."""
    return -torch.xlogy(p, p).sum(dim=-1)


def layer_distance(p, q, lengths, measure: str = PAPER):
    """The distance of two models' layers on each sequence.

    Args:
        p, q: attention weights [B, H, T, T] of NoPE and of the other model. Their numbers of heads H may differ.
        lengths: [B] tokens of each sequence. Positions beyond them are padding and do not count.
        measure: "Jensen-Shannon" or "official code"; the latter needs two heads.
    Returns:
        [B], the minimum over the pairs of heads of the mean over positions.
    """
    counted = (torch.arange(p.shape[2]) < lengths[:, None]).to(p.dtype)  # [B, T]
    divergence = jensen_shannon if measure == PAPER else swapped
    pairs = [(i, j) for i in range(p.shape[1]) for j in range(q.shape[1]) if measure == PAPER or j < i]
    means = [(divergence(p[:, i], q[:, j]) * counted).sum(dim=-1) / lengths for i, j in pairs]  # [B] each
    return torch.stack(means).amin(dim=0)


@torch.no_grad()
def model_distances(a, b, examples, config: LengthgenConfig, measures=MEASURES, width=0) -> dict[str, list[list[float]]]:
    """The distances of two models on prompts with their right answers. -> measure -> [sequence][layer]

    `width`: for how many tokens an encoding with ids of its own draws them.
    """
    ids, mask = collate(examples, "cpu")
    lengths = ids.shape[1] - mask.flip(1).argmax(dim=1)  # the last target token ends a sequence

    def attentions(model):
        draw = Draw(config.max_positions, width, torch.Generator().manual_seed(EVAL_SEED))
        position_ids = own_ids(model, ids, mask, draw)
        return model(input_ids=ids, position_ids=position_ids, output_attentions=True, use_cache=False).attentions

    layers = [(p.double(), q.double()) for p, q in zip(attentions(a), attentions(b), strict=True)]
    return {
        measure: torch.stack([layer_distance(p, q, lengths, measure) for p, q in layers], dim=1).tolist()
        for measure in measures
        if measure == PAPER or config.heads > 1  # the official code has no pair of a single head
    }


def distances_to_nope(results: dict, folder: str | Path, n: int, progress=None) -> dict[str, dict[str, dict[int, list]]]:
    """The distances of NoPE from every encoding, by each measure. The next seed of the last seed is the first one.

    Args:
        results, folder: a `lengthgen` run with models, NoPE with two seeds among them.
        n: sequences of each length, in training and in the test.
    Returns:
        measure -> encoding -> length -> [sequence, those of the first seed first][layer].
    """
    config = LengthgenConfig(**results["settings"])
    tables: dict[str, dict[str, dict[int, list]]] = {}
    for k, seed in enumerate(config.seeds):
        nope = load_model(folder, config, "nope", seed)
        for name in config.encodings:
            other = load_model(folder, config, name, config.seeds[(k + 1) % len(config.seeds)])
            same = other if name == "nope" else load_model(folder, config, name, seed)
            seen, longer = widths(name, config)
            for length in config.lengths():
                examples, width = evaluation_examples(config, length, n), seen if config.seen(length) else longer
                found = model_distances(nope, other, examples, config, MEASURES, width)
                if OFFICIAL in found:
                    found[SAME_SEED] = model_distances(nope, same, examples, config, [OFFICIAL], width)[OFFICIAL]
                for measure, rows in found.items():
                    tables.setdefault(measure, {}).setdefault(name, {}).setdefault(length, []).extend(rows)
            if progress:
                progress(1)
    return tables


def of_each_seed(by_length: dict[int, list], seeds: int) -> list[float]:
    """The mean over layers, sequences and lengths, for each seed. The sequences of a length stand in the order of the seeds."""
    sizes = {length: len(rows) // seeds for length, rows in by_length.items()}
    return [
        mean(mean(row) for length, rows in by_length.items() for row in rows[k * sizes[length] : (k + 1) * sizes[length]])
        for k in range(seeds)
    ]


def summary(table: dict, longest: int) -> dict[str, dict[str, float]]:
    """encoding -> the mean distance of each layer, of all layers, and of all layers on seen and on longer lengths"""
    result = {}
    for name, by_length in table.items():
        rows = [row for rows in by_length.values() for row in rows]
        seen, beyond = (
            [mean(row) for length, rows in by_length.items() if (length <= longest) == is_seen for row in rows]
            for is_seen in (True, False)
        )
        layers = {f"layer {i + 1}": mean(layer) for i, layer in enumerate(zip(*rows, strict=True))}
        result[name] = layers | {"all layers": mean(map(mean, rows)), "seen lengths": mean(seen), "longer": mean(beyond)}
    return result
