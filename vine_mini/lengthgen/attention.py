"""The Jensen-Shannon distance between the attention distributions of two models (section 5.2).

    D(P, Q) of two heads     mean over positions t of JSD(P_t, Q_t), the distributions over keys 1..t
    D of two layers          the minimum over all pairs of a head of one model with a head of the other
    D of two models          mean over layers, sequences and seeds

This is the definition in the paper. The official code computes another quantity: it calls the KL divergence with swapped
arguments, which gives (KL(M|P) + KL(M|Q)) / 2 with M the average. That quantity has no upper bound, while JSD is at most ln 2 =
0.693. The official code also skips pairs whose first head has the higher index. The order of the paper's published distances can
be compared with ours, the numbers cannot.
"""

from pathlib import Path
from statistics import mean

import torch

from vine_mini.lengthgen.config import LengthgenConfig
from vine_mini.lengthgen.results import load_model
from vine_mini.lengthgen.train import EVAL_SEED, collate, evaluation_examples, position_ids_of


def jensen_shannon(p, q):
    """JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2 in nats, along the last dimension. 0 log 0 = 0."""
    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).clamp(min=0)  # rounding can give -1e-17


def entropy(p):
    """-sum p log p in nats, along the last dimension."""
    return -torch.xlogy(p, p).sum(dim=-1)


def layer_distance(p, q, lengths):
    """The distance of two models' layers on each sequence.

    Args:
        p, q: attention weights [B, H, T, T] of the two models. Their numbers of heads H may differ.
        lengths: [B] tokens of each sequence. Positions beyond them are padding and do not count.
    Returns:
        [B], the minimum over all pairs of heads of the mean over positions.
    """
    counted = (torch.arange(p.shape[2]) < lengths[:, None]).to(p.dtype)  # [B, T]
    pairs = []
    for i in range(p.shape[1]):  # all pairs at once would need H times the memory
        distance = jensen_shannon(p[:, i, None], q)  # [B, H, T]
        pairs.append((distance * counted[:, None]).sum(dim=-1) / lengths[:, None])  # [B, H]
    return torch.cat(pairs, dim=1).amin(dim=1)


@torch.no_grad()
def model_distance(a, b, examples, config: LengthgenConfig) -> list[list[float]]:
    """The distance of two models on prompts with their right answers. -> [sequence][layer]"""
    ids, mask = collate(examples, "cpu")
    lengths = ids.shape[1] - mask.flip(1).argmax(dim=1)  # the last target token ends a sequence

    def attentions(model):
        position_ids = position_ids_of(model, ids, mask, config, torch.Generator().manual_seed(EVAL_SEED))
        return model(input_ids=ids, position_ids=position_ids, output_attentions=True, use_cache=False).attentions

    one, two = attentions(a), attentions(b)
    return torch.stack([layer_distance(p.double(), q.double(), lengths) for p, q in zip(one, two, strict=True)], dim=1).tolist()


def distances_to_nope(results: dict, folder: str | Path, n: int, progress=None) -> dict[str, dict[int, list[list[float]]]]:
    """The distance of NoPE from every encoding with the same seed, and from NoPE with the next seed.

    Args:
        results, folder: a `lengthgen` run with models, NoPE with two seeds among them.
        n: sequences of each length, in training and in the test.
    Returns:
        encoding -> length -> [sequence and seed][layer].
    """
    config = LengthgenConfig(**results["settings"])
    table = {}
    for k, seed in enumerate(config.seeds):
        nope = load_model(folder, config, "nope", seed)
        for name in config.encodings:
            other = load_model(folder, config, name, config.seeds[(k + 1) % len(config.seeds)] if name == "nope" else seed)
            for length in config.lengths():
                rows = model_distance(nope, other, evaluation_examples(config, length, n), config)
                table.setdefault(name, {}).setdefault(length, []).extend(rows)
            if progress:
                progress(1)
    return table


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
