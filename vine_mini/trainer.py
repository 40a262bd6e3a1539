"""The training loop. The body of `Trainer.train` is one iteration, for VinePPO and its baselines alike.

Deviations from the paper: responses are sampled without top-p by default, because log-probs are of the whole
distribution. Evaluations use none either (paper: 0.9). Problems come in epochs; the official code draws them with replacement.
The learning rate stays constant after its warm-up. The old log-probs are the sampler's own, except in bfloat16.
"""

import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from vine_mini import models, tasks
from vine_mini.advantages import whiten
from vine_mini.algorithms import ALGORITHMS
from vine_mini.divisors import importance
from vine_mini.evaluate import evaluate
from vine_mini.health import finite, located
from vine_mini.logprobs import response_logprobs, response_values
from vine_mini.losses import masked_mean, value_loss
from vine_mini.sampling import rollouts, sample, way
from vine_mini.steps import cut_steps
from vine_mini.types import Batch, Episodes, Sampling, Tokens, UserError, collate, derive_seed, on_response

BAR = dict(leave=False, position=1, dynamic_ncols=True, delay=2)  # progress below the bar of the run, after two seconds


class Trainer:
    """A policy and what its training needs: `train()` runs the loop, `evaluate()` measures the policy on the test problems."""

    clock = staticmethod(time.perf_counter)  # in seconds

    def __init__(self, config, policy, tokenizer, train_problems, test_problems, validation_problems=()):
        self.config = config = replace(config, lr=models.default_lr(policy) if config.lr is None else config.lr)
        self.policy, self.tokenizer, self.device = policy, tokenizer, policy.device
        self.algorithm, self.task = ALGORITHMS[config.algorithm], tasks.get(config.task)
        eos = tuple(models.eos_ids(policy, tokenizer))
        how = dict(every=config.step_tokens, answer_mark=self.task.ANSWER_MARK, starts=getattr(self.task, "step_starts", None))
        self.cut = partial(cut_steps, tokenizer=tokenizer, **how)
        self.sampling = Sampling(config.max_new_tokens, eos, config.temperature, config.top_p, config.sample_batch_size)
        self.train_problems, self.test_problems, self.validation_problems = train_problems, test_problems, validation_problems
        prompts = tasks.prompt_ids([*train_problems, *test_problems, *validation_problems], tokenizer, config)
        tasks.check_prompts(prompts, models.context_length(policy), config.max_new_tokens)
        self.prompts, self.test_prompts = prompts[: len(train_problems)], prompts[len(train_problems) :][: len(test_problems)]
        if config.prompts > len(self.prompts):
            raise UserError(f"prompts = {config.prompts}, but there are only {len(self.prompts)} training problems")
        if config.gradient_checkpointing:
            models.checkpoint_activations(policy)
        with_reference = self.algorithm.needs_reference and config.kl_coef > 0
        self.reference = models.reference_copy(policy, config.bf16) if with_reference else None
        self.low_precision = models.bfloat16_copy(policy) if config.bf16 else None
        self.critic = models.Critic(policy) if self.algorithm.needs_critic else None
        groups = [{"params": list(policy.parameters()), "peak_lr": config.lr, "of": ""}]
        if self.critic:
            critic_lr = config.lr if config.critic_lr is None else config.critic_lr
            groups.append({"params": list(self.critic.parameters()), "peak_lr": critic_lr, "of": "critic's "})
        self.optimizer = models.adamw(groups, config)
        self.iteration, self.updates, self.seconds = 0, 0, defaultdict(float)

    @property
    def done(self) -> bool:
        """Whether the iterations or the seconds are used up."""
        return self.iteration >= self.config.iterations or 0 < self.config.max_seconds <= sum(self.seconds.values())

    def train(self):
        """Yields (metrics, episodes, advantages before whitening [B, T]) after each iteration, until done."""
        while not self.done:
            clock = defaultdict(float)
            with self._phase(clock, "sample"):
                episodes = self.sample_episodes()
            with self._phase(clock, "score"):
                scores, score_stats = self.score(episodes)
            with self._phase(clock, "rollouts"):  # credit; only VinePPO spends time here
                advantages, returns, credit_stats = self.algorithm.credit(episodes, scores["values"], self.roll_out, self.config)
            used = whiten(advantages, episodes.tokens.response_mask) if self.algorithm.whiten_advantages else advantages
            batch = Batch(**vars(episodes.tokens), **scores, advantages=used, returns=returns)
            with self._phase(clock, "update"):
                update_stats = self.update(batch)
            self.iteration += 1
            for phase, seconds in clock.items():
                self.seconds[phase] += seconds
            metrics = self._metrics(episodes, advantages, batch) | credit_stats | update_stats | score_stats
            yield metrics | {f"seconds_{phase}": s for phase, s in clock.items()}, episodes, advantages

    def sample_episodes(self) -> Episodes:
        """G responses to each of the next N problems, their rewards and steps. No gradient flows through sampling."""
        config, n, size = self.config, self.config.prompts, len(self.prompts)
        if config.with_replacement:
            numbers = torch.randint(size, (n,), generator=self._generator("problems", self.iteration))
        else:  # in a new random order each epoch, so an iteration never holds a problem twice
            epoch, place = divmod(self.iteration, size // n)
            numbers = torch.randperm(size, generator=self._generator("problems", epoch))[place * n : (place + 1) * n]
        prompts = [self.prompts[i] for i in numbers.tolist() for _ in range(config.group)]  # [B]
        with tqdm(total=len(prompts), desc="sample", **BAR) as bar:
            seed = derive_seed(config.seed, self.iteration, "responses")
            trajectories = sample(self.sampler(), prompts, self.sampling, seed=seed, progress=bar.update)
        return self.as_episodes([self.train_problems[i] for i in numbers.tolist()], trajectories)

    def as_episodes(self, problems, trajectories) -> Episodes:
        """Grades N x G responses, G to each of the N problems, and cuts them into steps. No other place cuts responses."""
        of = [problem for problem in problems for _ in range(len(trajectories) // len(problems))]  # [B]
        rewards = [tasks.grade(self.task, p, t, self.tokenizer) for p, t in zip(of, trajectories, strict=True)]
        cuts, grouped = [self.cut(t.response_ids) for t in trajectories], torch.tensor(rewards).view(len(problems), -1)
        return Episodes(of, trajectories, grouped, cuts, collate(trajectories, self.device), self.task, self.tokenizer)

    def roll_out(self, trajectories, cuts, k: int, name: str = "rollouts"):
        """K rollouts from each cut of each trajectory, sampled as the trajectories were; the name seeds them. -> [B][cut][K]"""
        seed = derive_seed(self.config.seed, self.iteration, name)
        with tqdm(total=k * sum(map(len, cuts)), desc=name, **BAR) as bar:
            return rollouts(self.sampler(), trajectories, cuts, self.sampling, k=k, seed=seed, progress=bar.update)

    @torch.no_grad()
    def score(self, episodes: Episodes) -> tuple[dict, dict]:
        """-> {old_logprobs, ref_logprobs, values, in bfloat16 also weights}, each [B, T] or None; in bfloat16 also statistics"""
        tokens, reference = episodes.tokens, self.reference if self.algorithm.needs_reference else None
        sampled = on_response([t.logprobs for t in episodes.trajectories], tokens.response_mask)
        rescored = self.policy if self.low_precision else None  # in bfloat16 the sampler's rounding would show in the ratio
        networks = {"old_logprobs": rescored, "ref_logprobs": reference, "values": self.critic}
        scores: dict[str, Any] = {name: torch.zeros_like(sampled) if network else None for name, network in networks.items()}
        for rows in tqdm(tokens.micro_batches(torch.arange(len(tokens)), self.config.micro_batch_tokens), desc="score", **BAR):
            part = tokens.rows(rows)
            for name in [name for name, network in networks.items() if network]:
                scores[name][rows, : part.input_ids.shape[1]] = self.forward(networks[name], part)
        if rescored is None:
            return scores | {"old_logprobs": sampled}, {}
        weights, stats = importance(scores["old_logprobs"], sampled, tokens.response_mask, self.config.importance_cap)
        return scores | {"weights": weights}, stats

    def update(self, batch: Batch) -> dict:
        """epochs x B / minibatch_size updates, one for each minibatch. -> statistics, means over the updates"""
        config, log = self.config, defaultdict(list)
        shuffle = self._generator(self.iteration, "minibatches")
        orders = [torch.randperm(len(batch), generator=shuffle) for _ in range(config.epochs)]
        minibatches = [rows for order in orders for rows in order.split(config.minibatch_size)]
        for number, rows in enumerate(tqdm(minibatches, desc="update", **BAR), 1):
            with located(f"iteration {self.iteration + 1}, minibatch {number}", batch, rows, log):
                stats = self._accumulate_gradients(batch, rows)
                stats["skipped"] = float(not self._step(stats))
            for name, value in stats.items():
                log[name].append(value)
        first = {f"first_{name}": log[name][0] for name in ("ratio", "approx_kl")}  # 1 and 0 up to rounding
        first |= {"sampler_gap": log.pop("gap")[0], "lr": log.pop("lr")[-1]}  # at the first minibatch the policy has not moved
        return first | {name: sum(values) / len(values) for name, values in log.items()}

    def _accumulate_gradients(self, batch: Batch, rows) -> dict:
        """Gradients of one minibatch. The denominator is fixed first, so micro-batches only add up."""
        stats, denominator = defaultdict(float), batch.response_mask[rows].sum()
        for micro in batch.micro_batches(rows, self.config.micro_batch_tokens):
            b = batch.rows(micro)
            logprobs = self.forward(self.policy, b)  # [b, T]
            loss, parts = self.algorithm.loss(logprobs, b, self.config, denominator)
            gap = masked_mean((logprobs.detach() - b.old_logprobs).abs(), b.response_mask, denominator)
            parts |= {"loss": loss.item(), "gap": gap.item()}
            finite("the loss", loss).backward()
            if self.critic:
                values, clip = self.forward(self.critic, b), self.config.value_clip
                loss, more = value_loss(values, b.values, b.returns, b.response_mask, clip=clip, denominator=denominator)
                finite("the critic's loss", loss).backward()
                parts |= more | {"value_loss": loss.item()}
            for name, value in parts.items():
                stats[name] += value
        return stats

    def _step(self, stats: dict) -> bool:
        """One update of policy and critic. -> whether it was made: neither is updated where the ratio has exploded"""
        groups, limit = self.optimizer.param_groups, self.config.max_grad_norm
        norms = [finite(f"the {group['of']}gradient", clip_grad_norm_(group["params"], limit)).item() for group in groups]
        warm = min(1.0, (self.updates + 1) / max(1, self.config.warmup))  # the learning rate rises linearly over the warm-up
        stats |= {"grad_norm": norms[0], "lr": warm * self.config.lr}
        if sound := stats["ratio"] <= self.config.max_ratio:
            for group in groups:
                group["lr"] = warm * group["peak_lr"]
            self.updates += 1  # before the step: a run that is stopped in it shall not be saved
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sound

    def evaluate(self, problems=None, with_kl: bool = True, greedy: bool = True) -> dict:
        """Accuracy on the test problems, or on other problems; see `evaluate.evaluate`."""
        config, problems = self.config, problems or self.test_problems
        prompts, n = tasks.prompt_ids(problems, self.tokenizer, config), config.eval_samples
        sampling = replace(self.sampling, temperature=config.eval_temperature, top_p=1.0)
        parts = self.policy, self.tokenizer, self.task, problems, prompts, sampling
        with models.autocast(self.device, config.bf16), tqdm(total=len(prompts) * (n + greedy), desc="evaluate", **BAR) as bar:
            more = dict(n=n, greedy=greedy, seed=config.seed, sampler=self.sampler(), progress=bar.update)
            return evaluate(*parts, reference=self.reference if with_kl else None, **more)

    def _generator(self, *purpose) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.config.seed, *purpose))

    def sampler(self):
        """The model that samples: the policy itself, or its copy in bfloat16, brought up to date."""
        return models.refresh(self.low_precision, self.policy) if self.low_precision else self.policy

    def forward(self, model, tokens: Tokens):
        """Log-probs of a policy, or values of the critic, [b, T]. Checkpointing works in train mode only; dropout is zero."""
        inputs = tokens.input_ids, tokens.attention_mask, tokens.response_mask
        model.train(self.config.gradient_checkpointing)
        try:
            with models.autocast(self.device, self.config.bf16):
                if model is self.critic:
                    return finite("a critic's value", response_values(model, *inputs))
                return finite("a log-prob", response_logprobs(model, *inputs, temperature=self.config.temperature))
        finally:
            model.eval()

    def _metrics(self, episodes: Episodes, advantages, batch: Batch) -> dict:
        B, mask = len(batch), batch.response_mask
        return {
            "iteration": self.iteration,
            "sampling": way(self.low_precision or self.policy),
            "episodes": self.iteration * B,
            "seconds": sum(self.seconds.values()),
            "reward": episodes.rewards.mean().item(),
            "length": mask.sum().item() / B,
            "truncated": sum(not t.finished for t in episodes.trajectories) / B,
            "nonzero_advantages": masked_mean((advantages.abs() > 1e-6).float(), mask).item(),
            "entropy": -masked_mean(batch.old_logprobs, mask).item(),
        }

    @contextmanager
    def _phase(self, clock, name: str):
        start = self.clock()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        clock[name] += self.clock() - start
