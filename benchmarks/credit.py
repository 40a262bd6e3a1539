"""The noise of Monte Carlo credit at equal rollout tokens, and further ideas to lower it.

    python -m benchmarks.credit --quick
    python -m benchmarks.credit --out results/credit/noise
    python -m benchmarks.credit --steps 12 --model arithmetic-12 --out results/credit/noise-12

First on a policy: plain VinePPO and its best lam and mu for each K, from a pool of rollouts, with intervals by resampling
problems. Both sides of a ratio have the same K, so they have the same rollout tokens. Then on simulated chains of equal slips,
whose values are known: values at every second or third step only, a critic as the baseline, trees of responses, and a K that
follows from the rollouts of the neighbouring states. All are unbiased. Cost is in units of decoding one response.
"""

import argparse
import random
import statistics

import numpy

from benchmarks.common import command, count, machine, report, writable
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.setup import build_trainer
from vine_mini.credit_cost import noise
from vine_mini.credit_cost.command import EXPONENT, sample_pools

GROUP = 4
REST = 9  # cost of sampling, scoring and updating a response, in units of decoding it (a CPU, one epoch)
TRIED = (0.0, 0.3, 0.5, 0.7, 0.8)  # values of lam and mu, on simulated chains


def of_policy(pools, ks) -> tuple[list[list[str]], dict]:
    """The table of a policy: noise for each K, plain, with the group's rewards, and with the best lam and mu."""

    def total(p, k, group, lam, mu):
        return float(noise.noise(p, k=k, group=group, lam=lam, mu=mu).sum())

    table = [["K", "plain", "plain, group", "lam = mu = .5, group", "best, group", "mc_lam, mc_mu", "plain / best [95 %]"]]
    data, rng = {}, random.Random(0)
    problems = sorted({p.problem for p in pools})
    for k in ks:
        lam, mu = noise.best_dials(pools, k=k, group=GROUP)
        ways = {"plain": (1, 0.0, 0.0), "group": (GROUP, 0.0, 0.0), "half": (GROUP, 0.5, 0.5), "best": (GROUP, lam, mu)}
        rows = {name: [total(p, k, *way) for p in pools] for name, way in ways.items()}
        by_problem = [
            [sum(x for p, x in zip(pools, rows[n], strict=True) if p.problem == i) for i in problems] for n in ("plain", "best")
        ]
        ratios = []
        for _ in range(1000):
            drawn = rng.choices(range(len(problems)), k=len(problems))
            ratios.append(sum(by_problem[0][i] for i in drawn) / sum(by_problem[1][i] for i in drawn))
        low, high = numpy.percentile(ratios, [2.5, 97.5])
        cells = [noise.mean_and_error(pools, rows[name]) for name in ways]
        ratio = cells[0][0] / cells[3][0]
        data[k] = dict(zip(ways, cells, strict=True)) | dict(lam=lam, mu=mu, ratio=ratio, low=low, high=high)
        texts = [f"{mean:.3f} ± {error:.3f}" for mean, error in cells]
        table.append([str(k), *texts, f"{lam:g}, {mu:g}", f"{ratio:.2f} [{low:.2f}, {high:.2f}]"])
    return table, data


class Chains:
    """Simulated responses: step i fails with probability `slip`, and a failure is final."""

    def __init__(self, n: int, success: float, responses: int, seed: int = 0):
        self.n, self.rng = n, numpy.random.default_rng(seed)
        self.keep = success ** (1 / n)  # probability that a step succeeds
        alive = (self.rng.random((responses, n)) < self.keep).cumprod(axis=1)
        alive = numpy.concatenate([numpy.ones((responses, 1)), alive], axis=1)  # [B, n + 1]
        self.values = alive * self.keep ** numpy.arange(n, -1, -1)
        self.truth, self.reward = numpy.diff(self.values, axis=1), self.values[:, -1]

    def draw(self, k):
        """Monte Carlo values [B, n]; k: a number or one number for each state [B, n]."""
        k = numpy.broadcast_to(k, self.truth.shape)
        return self.rng.binomial(k, self.values[:, :-1]) / k

    def with_group(self, values, k):
        """V(s_0) counts the other responses of the group too."""
        others = self.rng.binomial(GROUP - 1, self.values[:, 0])
        values[:, 0] = (k * values[:, 0] + others) / (k + GROUP - 1)
        return values

    def error(self, values, lam, mu, kept=None, baseline=None) -> float:
        """The noise of the credit from the values of the kept states; the steps between two of them share their credit."""
        kept = numpy.arange(self.n) if kept is None else kept
        v = values[:, kept]
        q, b = numpy.zeros_like(v), numpy.zeros_like(v)
        later, earlier = self.reward, v[:, 0]
        for i in reversed(range(len(kept))):
            later = self.reward if i == len(kept) - 1 else (1 - lam) * v[:, i + 1] + lam * later
            q[:, i] = later
        for i in range(len(kept)):
            earlier = v[:, 0] if i == 0 else (1 - mu) * v[:, i] + mu * earlier
            b[:, i] = earlier
        segment = numpy.searchsorted(kept, numpy.arange(self.n), side="right") - 1
        found = q[:, segment] - (b[:, segment] if baseline is None else baseline)
        return float(((found - self.truth) ** 2).sum(axis=1).mean())

    def best(self, values, **more) -> tuple[float, str]:
        """The least noise over lam and mu."""
        found = min((self.error(values, lam, mu, **more), lam, mu) for lam in TRIED for mu in TRIED)
        return found[0], f"{found[1]:g}, {found[2]:g}"

    def tree_error(self, branches: int, every: int) -> float:
        """The noise of a path in trees as in SPO (arXiv 2505.23564): each node has `branches` segments of `every` steps.

        A segment's credit is the value of its end minus the mean value of its siblings' ends. All of its steps get it. The truth
        within a segment is approximate: a failure happens at one step, a success is spread over all. All that is decoded is
        trained on, so rollouts cost nothing.
        """
        levels = self.n // every
        alive = numpy.ones((len(self.truth) // branches**2 + 1, 1), bool)  # [tree, node]
        states = [alive]
        for _ in range(levels):
            alive = numpy.repeat(states[-1], branches, axis=1)
            states.append(alive & (self.rng.random(alive.shape) < self.keep**every))
        means, total = [states[-1].astype(float)], 0.0
        for _ in range(levels):
            means.insert(0, means[0].reshape(len(alive), -1, branches).mean(axis=2))
        for level in range(levels):
            before, after = (states[j] * self.keep ** (self.n - j * every) for j in (level, level + 1))
            others = (means[level].repeat(branches, axis=1) * branches - means[level + 1]) / (branches - 1)
            found, moved = means[level + 1] - others, after - before.repeat(branches, axis=1)
            within = numpy.where(moved < 0, (every - 1) * found**2 + (found - moved) ** 2, every * (found - moved / every) ** 2)
            total += within.mean()
        return float(total)


def ideas(n: int, success: float, responses: int) -> tuple[list[list[str]], dict]:
    """The table of simulated chains."""
    c = Chains(n, success, responses)
    q = success
    whole = float(((c.reward - q)[:, None] - c.truth).__pow__(2).sum(axis=1).mean()) + n * q * (1 - q) / (GROUP - 1)
    rows = {"whole response (RLOO)": (whole, "1, 1", 0.0)}
    per_k = (n + 1) / 2
    for k in (1, 2, 3):
        rows[f"K = {k}"] = (*c.best(c.draw(k)), k * per_k)
        rows[f"K = {k}, (b) group's rewards in V(s_0)"] = (*c.best(c.with_group(c.draw(k), k)), k * per_k)
    for every in (2, 3):
        kept = numpy.arange(0, n, every)
        for k in (1, every):
            cost = k * float(((n - kept) / n).sum())
            rows[f"K = {k}, (a) values at every {every} steps, group"] = (*c.best(c.with_group(c.draw(k), k), kept=kept), cost)
    for off in (0.0, 0.1, 0.2):
        critic = c.values[:, :-1] + off * c.rng.standard_normal(c.truth.shape)
        found = c.best(c.with_group(c.draw(1), 1), baseline=critic)
        rows[f"K = 1, (c) a critic with error {off:g} as baseline"] = (*found, per_k)
    for branches, every in ((2, n // 3), (3, n // 3), (2, n // 6)):
        rows[f"(d) tree, {branches} branches each {every} steps"] = (c.tree_error(branches, every), "", 0.0)
    first = c.rng.random(c.truth.shape) < c.values[:, :-1]
    around = numpy.stack([numpy.roll(first, 1, axis=1), numpy.roll(first, -1, axis=1)])
    for more in (1, 2):
        k = 1 + more * (around[0] != around[1])  # decided by other states, so a value stays unbiased
        values = (first + (k > 1) * c.rng.binomial(k - 1, c.values[:, :-1])) / k
        cost = float((k * (n - numpy.arange(n)) / n).sum(axis=1).mean())
        rows[f"(e) K = {1 + more} where the neighbours differ, else 1, group"] = (*c.best(c.with_group(values, k[:, 0])), cost)
    table = [["credit", "noise", "mc_lam, mc_mu", "rollouts, in responses", "time to the same learning, RLOO = 1"]]
    signal, data = q * (1 - q), {}
    for name, row in rows.items():
        error, dial, cost = row
        clock = ((error + signal) / (whole + signal)) ** EXPONENT * (REST + cost) / REST
        data[name] = dict(noise=error, cost=cost, clock=clock)
        table.append([name, f"{error:.3f}", dial, f"{cost:.1f}", f"{clock:.2f}"])
    return table, data


def main():
    """Measures, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the policy, in place of the shipped one")
    parser.add_argument("--task", default="arithmetic", help="arithmetic or decisive")
    parser.add_argument("--steps", type=count, help="steps of a problem; left out: the task's own number")
    parser.add_argument("--problems", type=count, default=48, help="problems with four responses each")
    parser.add_argument("--pool", type=count, default=32, help="rollouts for each state")
    parser.add_argument("--quick", action="store_true", help="four problems and a pool of eight")
    parser.add_argument("--out", type=writable, help="folder for the tables and their numbers as JSON")
    args = parser.parse_args()
    args.problems, args.pool = (4, 8) if args.quick else (args.problems, args.pool)
    settings = read_preset("arithmetic") | dict(task=args.task, model=args.model, steps=args.steps, max_new_tokens=140)
    trainer = build_trainer(TrainConfig(**settings | dict(prompts=16, group=GROUP, device="cpu")))
    steps = trainer.config.steps
    pools, _ = sample_pools(trainer, args.problems, args.pool)
    success = statistics.mean(float(p.rewards[0].mean()) for p in pools)
    where = f"{args.model or 'the shipped policy'}, task {args.task}, {steps} steps, {success:.2f} success"
    table, data = of_policy(pools, [k for k in (1, 2, 3, 4, 9) if k <= args.pool])
    title = f"Noise of VinePPO's credit: {where}, {len(pools)} responses, pool of {args.pool}, {machine('cpu', 1)}"
    report(args.out, "policy", title, table, data)
    table, data = ideas(steps, success, 1000 if args.quick else 20_000)
    report(args.out, "ideas", f"Simulated chains of {steps} equal steps, {success:.2f} success, best lam and mu", table, data)


if __name__ == "__main__":
    command(main)
