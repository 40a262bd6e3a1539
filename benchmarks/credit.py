"""What Monte Carlo credit costs, and how noisy the gradient is, for several K and beside GRPO.

    python -m benchmarks.credit --quick
    python -m benchmarks.credit --out results/speed

One policy (shipped, or `--model`), several independent iterations of the demo's size. For each iteration and each credit, the
table shows the rollout tokens, the seconds, and the seconds of a whole iteration in units of GRPO's on the same trajectories.
The gradient is that of the clipped loss at the first update. Its noise is the variance over iterations, divided by the squared
length of the mean gradient (corrected for the noise that is left in the mean). Signal and noise are equal after so many
iterations are averaged. The error of a token's advantage is the root mean square difference to the advantage from `--truth`
rollouts of each state.
"""

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import machine, report, timed
from vine_mini.advantages import whiten
from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.setup import build_trainer
from vine_mini.trainer import Trainer
from vine_mini.types import Batch

BASE = "vineppo, K = 9"
WAYS = {
    "grpo": dict(algorithm="grpo"),
    BASE: dict(k=9),
    "vineppo, K = 5": dict(k=5),
    "vineppo, K = 3": dict(k=3),
    "vineppo, K = 2": dict(k=2),
    "vineppo, K = 1": dict(k=1),
}


def gradient(trainer: Trainer, batch: Batch):
    """The gradient of the whole iteration at the first update, as one vector."""
    trainer._accumulate_gradients(batch, torch.arange(len(batch)))
    vector = torch.cat([p.grad.flatten() for p in trainer.policy.parameters()])
    trainer.policy.zero_grad()
    return vector


def noise(gradients: list) -> float:
    """E|g - mean|^2 / |mean|^2, both unbiased."""
    g = torch.stack(gradients)
    spread = g.var(dim=0).sum()
    return float(spread / (g.mean(dim=0).square().sum() - spread / len(g)).clamp(min=1e-30))


def main():
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the policy, in place of the shipped one")
    parser.add_argument("--iterations", type=int, default=24, help="independent iterations")
    parser.add_argument("--truth", type=int, default=64, help="rollouts of each state for the true advantages")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--quick", action="store_true", help="three iterations, a truth of 16")
    parser.add_argument("--out", type=Path, help="folder for the table and its numbers as JSON")
    args = parser.parse_args()
    args.iterations, args.truth = (3, 16) if args.quick else (args.iterations, args.truth)
    torch.set_num_threads(args.threads)
    trainer = build_trainer(TrainConfig(**read_preset("arithmetic") | dict(iterations=args.iterations, model=args.model)))
    gradients, tokens, seconds, errors = ({way: [] for way in WAYS} for _ in range(4))
    rest, own = [], []  # seconds of sampling, scoring and updating; tokens of the trajectories
    for n in tqdm(range(args.iterations), desc="iterations"):
        trainer.iteration = n
        sampling, episodes = timed(trainer.sample_episodes)
        scoring, (scores, _) = timed(lambda: trainer.score(episodes))  # noqa: B023
        mask = episodes.tokens.response_mask
        truth = None
        if n < 4:  # expensive, and its error averages over thousands of tokens
            named = partial(trainer.roll_out, name="truth")
            truth, _, _ = trainer.algorithm.credit(episodes, None, named, replace(trainer.config, k=args.truth))
        own.append(sum(len(t.response_ids) for t in episodes.trajectories))
        for way, settings in WAYS.items():
            config = replace(trainer.config, **settings)
            algorithm, roll_out = ALGORITHMS[config.algorithm], partial(trainer.roll_out, name=way)
            spent, (advantages, _, stats) = timed(lambda: algorithm.credit(episodes, None, roll_out, config))  # noqa: B023
            used = whiten(advantages, mask) if algorithm.whitened else advantages
            batch = Batch(**vars(episodes.tokens), **scores, advantages=used)
            gradients[way].append(gradient(trainer, batch))
            tokens[way].append(stats.get("rollout_tokens", 0))
            seconds[way].append(spent)
            if way == "grpo":  # what an iteration costs without credit; the policy is put back
                weights = [p.detach().clone() for p in trainer.policy.parameters()]
                rest.append(sampling + scoring + timed(lambda: trainer.update(batch))[0])  # noqa: B023
                with torch.no_grad():
                    for p, old in zip(trainer.policy.parameters(), weights, strict=True):
                        p.copy_(old)
            if truth is not None:
                errors[way].append(float(((advantages - truth).square() * mask).sum() / mask.sum()))
    head = ["credit", "rollout tokens / own tokens", "seconds", "iteration / GRPO's", "gradient noise", f"against {BASE}"]
    table = [[*head, "error of advantages"]]
    data, base = {}, noise(gradients[BASE])
    for way in WAYS:
        g = noise(gradients[way])
        error = statistics.mean(errors[way]) ** 0.5
        cost, spent = sum(tokens[way]) / sum(own), statistics.median(seconds[way])
        ratio = statistics.median((a + b) / b for a, b in zip(seconds[way], rest, strict=True))
        data[way] = dict(noise=g, tokens=cost, seconds=spent, iteration=ratio, error=error)
        numbers = f"{cost:.1f}", f"{spent:.2f}", f"{ratio:.2f}", f"{g:.1f}", f"{g / base:.2f}"
        table.append([way, *numbers, "" if way == "grpo" else f"{error:.3f}"])
    where = args.model or "the shipped policy"
    title = f"Credit on {args.iterations} iterations of {where}, {machine('cpu', args.threads)}"
    report(args.out, "credit", title, table, data)


if __name__ == "__main__":
    main()
