"""What Monte Carlo credit costs, and how noisy the gradient is: the plain estimator beside the two ways to pay less.

    python -m benchmarks.credit --quick
    python -m benchmarks.credit --out results/speed

One policy (shipped, or `--model`), several independent iterations of the demo's size. For each iteration and each way of giving
credit: the gradient of the clipped loss at the first update, the rollout tokens, the seconds, and how long the whole iteration
is beside GRPO's on the same trajectories. The noise is the variance of an
iteration's gradient over the squared length of the mean gradient (corrected for the noise that is left in it): so many
iterations have to be averaged until signal and noise are equal. The error of a token's advantage is the root mean square of
the difference to `--truth` rollouts a state.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import machine, report, timed
from vine_mini.advantages import whiten
from vine_mini.algorithms import ALGORITHMS, WHITENED
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.trainer import Trainer

WAYS = {
    "grpo": dict(algorithm="grpo"),
    "plain, K = 9": dict(),
    "plain, K = 5": dict(k=5),
    "plain, K = 3": dict(k=3),
    "k_first = 3": dict(k_first=3),
    "k_first = 2": dict(k_first=2),
    "bisect": dict(bisect=True),
    "bisect, k_first = 3": dict(bisect=True, k_first=3),
    "bisect, k_first = 2": dict(bisect=True, k_first=2),
}


def gradient(trainer: Trainer, batch, advantages, algorithm: str):
    """The whole iteration's gradient at the first update, as one vector."""
    batch.advantages = whiten(advantages, batch.response_mask) if algorithm in WHITENED else advantages
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
    parser.add_argument("--model", help="a policy other than the shipped one")
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--truth", type=int, default=64, help="rollouts a state behind the true advantages")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three iterations, a truth of 16")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.iterations, args.truth = (3, 16) if args.quick else (args.iterations, args.truth)
    torch.set_num_threads(args.threads)
    changes = dict(k=9, iterations=args.iterations, model=args.model)
    trainer = Trainer(TrainConfig(**read_preset("arithmetic") | changes))
    gradients, tokens, seconds, errors, states = ({way: [] for way in WAYS} for _ in range(5))
    rest, own = [], []  # seconds of sampling, scoring and updating; tokens of the trajectories
    for n in tqdm(range(args.iterations), desc="iterations"):
        trainer.iteration = n
        sampling, episodes = timed(trainer.sample_episodes)
        scoring, _ = timed(lambda: trainer.score(episodes.batch, episodes.trajectories))  # noqa: B023
        mask = episodes.batch.response_mask
        truth = None
        if n < 4:  # dear, and its error averages over thousands of tokens
            truth, _ = ALGORITHMS["vineppo"](episodes, replace(trainer.config, k=args.truth))
        own.append(sum(len(t.response_ids) for t in episodes.trajectories))
        for way, settings in WAYS.items():
            config = replace(trainer.config, **settings)
            spent, (advantages, stats) = timed(lambda: ALGORITHMS[config.algorithm](episodes, config))  # noqa: B023
            gradients[way].append(gradient(trainer, episodes.batch, advantages, config.algorithm))
            tokens[way].append(stats.get("rollout_tokens", 0))
            states[way].append(stats.get("valued_states", 0))
            seconds[way].append(spent)
            if way == "grpo":  # what an iteration costs without credit; the policy is put back
                weights = [p.detach().clone() for p in trainer.policy.parameters()]
                rest.append(sampling + scoring + timed(lambda: trainer.update(episodes.batch))[0])  # noqa: B023
                with torch.no_grad():
                    for p, old in zip(trainer.policy.parameters(), weights, strict=True):
                        p.copy_(old)
            if truth is not None:
                errors[way].append(float(((advantages - truth).square() * mask).sum() / mask.sum()))
    head = ["credit", "rollout tokens / own tokens", "seconds", "iteration / GRPO's", "gradient noise", "against plain, K = 9"]
    table = [[*head, "error of advantages"]]
    data, base = {}, noise(gradients["plain, K = 9"])
    for way in WAYS:
        g = noise(gradients[way])
        error = statistics.mean(errors[way]) ** 0.5
        cost, spent = sum(tokens[way]) / sum(own), statistics.median(seconds[way])
        ratio = statistics.median((a + b) / b for a, b in zip(seconds[way], rest, strict=True))
        data[way] = dict(noise=g, tokens=cost, seconds=spent, iteration=ratio, error=error, states=statistics.mean(states[way]))
        numbers = f"{cost:.1f}", f"{spent:.2f}", f"{ratio:.2f}", f"{g:.1f}", f"{g / base:.2f}"
        table.append([way, *numbers, "" if way == "grpo" else f"{error:.3f}"])
    where = args.model or "the shipped policy"
    title = f"Credit on {args.iterations} iterations of {where}, {machine('cpu', args.threads)}"
    report(args.out, "credit", title, table, data)


if __name__ == "__main__":
    main()
