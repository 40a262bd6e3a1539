"""Where a trained network writes positions: ridge regressions from its hidden states (a check of section 5 on trained models).

Theorem 1 constructs a NoPE layer in two steps. A head of the first layer writes 1/t, and the layer's MLP turns 1/t into t. A
probe asks both of each place in the network: how well does a linear function of the vectors at this place give t, or 1/t?

    places    the embeddings, the output of each head of the first layer, the residual stream after each layer
    R²        1 - (squared error / variance of the target), at most 1; 0 is as good as the mean

The probe is fitted on sequences of the seen lengths. It is tested on other draws of these lengths, and on longer ones. On
longer ones R² is far below 0 if the network writes positions for the trained lengths only. Constant words reveal their position.
So a position of the prompt counts only if prompts of the same length differ there. An untrained network stands beside the trained
one.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from vine_mini.decoder.model import Decoder
from vine_mini.lengthgen import theory
from vine_mini.lengthgen.config import LengthgenConfig, decoder_config
from vine_mini.lengthgen.results import load_model
from vine_mini.lengthgen.train import collate, evaluation_examples
from vine_mini.types import UserError

RIDGE = 1e-6  # times the mean variance of the inputs
TARGETS = {"t": lambda t: t, "1/t": lambda t: 1 / t}
NETWORKS = ("trained", "untrained", "constructed")


@dataclass(frozen=True)
class Linear:
    """A fitted probe: y = (x - middle) @ weight + mean. middle [D], weight [D], mean a number."""

    middle: torch.Tensor
    weight: torch.Tensor
    mean: torch.Tensor

    def r2(self, x, y) -> float:
        """R² on x [n, D] and y [n]. It compares with the variance of these y."""
        errors = y - (x - self.middle) @ self.weight - self.mean
        return 1 - (errors.square().mean() / y.var(correction=0)).item()


def fit(x, y) -> Linear:
    """Ridge regression with an intercept, in closed form: (X'X + lambda I)^-1 X'y of the centred x [n, D] and y [n], float64."""
    middle, centre = x.mean(dim=0), y.mean()
    X = x - middle
    ridge = RIDGE * X.square().sum() / X.shape[1]
    # A tiny number on the diagonal: inputs that never vary (the construction has some) would make the matrix singular.
    gram = X.T @ X + (ridge + 1e-30) * torch.eye(X.shape[1], dtype=X.dtype)
    return Linear(middle, torch.linalg.solve(gram, X.T @ (y - centre)), centre)


@torch.no_grad()
def places(model: Decoder, ids) -> dict[str, torch.Tensor]:
    """The vectors at each place of the network for token ids [B, T]. -> place -> [B, T, width] float64"""
    found, first = {}, model.model.layers[0].attention

    def keep(name):
        def hook(module, inputs, output):
            found[name] = (output[0] if isinstance(output, tuple) else output).double()

        return hook

    def heads(module, inputs):  # the input of the output projection: all heads side by side
        for k, y in enumerate(inputs[0].unflatten(-1, (first.heads, -1)).unbind(dim=-2)):
            found[f"layer 1, head {k + 1}"] = y.double()

    hooks = [model.model.embed.register_forward_hook(keep("embeddings")), first.out.register_forward_pre_hook(heads)]
    hooks += [layer.register_forward_hook(keep(f"after layer {i + 1}")) for i, layer in enumerate(model.model.layers)]
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def probe(model: Decoder, training: list, tests: dict[str, list]) -> dict[str, dict[str, dict[str, float]]]:
    """Fits and tests probes at each place.

    Args:
        training: batches (ids [B, T], counts [B, T] bool), the tokens that count.
        tests: name -> batches.
    Returns:
        place -> target -> name -> R².
    """
    inputs, positions = _gather(model, training)
    tested = {name: _gather(model, batches) for name, batches in tests.items()}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for place, x in inputs.items():
        for target, of in TARGETS.items():
            fitted = fit(x, of(positions))
            result.setdefault(place, {})[target] = {name: fitted.r2(found[place], of(t)) for name, (found, t) in tested.items()}
    return result


def _gather(model, batches) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """-> place -> [n, width], positions [n] counted from 1, over all tokens of all batches"""
    rows: dict[str, list] = {}
    positions = []
    for ids, counts in batches:
        positions.append(torch.arange(1, ids.shape[1] + 1).expand(ids.shape)[counts].double())
        for place, vectors in places(model, ids).items():
            rows.setdefault(place, []).append(vectors[counts])
    return {place: torch.cat(parts) for place, parts in rows.items()}, torch.cat(positions)


def probe_folder(results: dict, folder: str | Path, n: int, progress=None) -> dict[str, list[dict]]:
    """Probes the NoPE models of a `lengthgen` folder. -> network -> for each seed, what `probe` returns

    The untrained network has the weights with which training began. The construction of Theorem 1 reads random tokens after
    its <bos>, as many as the task's sequences have; it has one entry. n: sequences of each length, once to fit and once to test.
    """
    config = LengthgenConfig(**results["settings"])
    seen, longer = [k for k in config.lengths() if config.seen(k)], [k for k in config.lengths() if not config.seen(k)]

    def batches(lengths, half):
        for length in lengths:
            ids, mask = collate(evaluation_examples(config, length, 2 * n)[half * n :][:n], "cpu")
            yield ids, (mask.cumsum(dim=1) == 0) & (ids != ids[:1]).any(dim=0)  # of the prompt, and not the same in all rows

    training = [*batches(seen, 0)]
    if len({t for ids, counts in training for t in counts.any(dim=0).nonzero()[:, 0].tolist()}) < 2:
        raise UserError("the prompts differ at fewer than two positions, so there is nothing to probe: take longer ones")
    tests = {"seen": [*batches(seen, 1)], "longer": [*batches(longer, 1)]}
    table: dict[str, list[dict]] = {name: [] for name in NETWORKS}
    for seed in config.seeds:
        table["trained"].append(probe(load_model(folder, config, "nope", seed), training, tests))
        torch.manual_seed(seed)
        table["untrained"].append(probe(Decoder(decoder_config(config, "nope")).eval(), training, tests))
        if progress:
            progress(1)
    longest = max(ids.shape[1] for part in tests.values() for ids, _ in part)
    built = theory.build(longest - 1)
    draw = torch.Generator().manual_seed(0)
    random = {name: [(_random_ids(ids, draw), counts) for ids, counts in part] for name, part in {"": training, **tests}.items()}
    table["constructed"].append(probe(built, random.pop(""), random))
    return table


def _random_ids(ids, generator):
    random = torch.randint(1, theory.VOCAB, ids.shape, generator=generator)
    random[:, 0] = theory.BOS
    return random


def means(table: dict[str, list[dict]]) -> dict:
    """The means over seeds: network -> place -> target -> lengths -> R²"""
    return {
        network: {
            place: {
                target: {name: mean(seed[place][target][name] for seed in seeds) for name in seeds[0][place][target]}
                for target in TARGETS
            }
            for place in seeds[0]
        }
        for network, seeds in table.items()
    }
