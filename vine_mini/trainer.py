"""The training loop: one iteration of VinePPO on one screen, and its baselines through the same door.

Deviations from the paper: no top-p while sampling, because the log-probs that the ratio needs are those of the whole
distribution. The old log-probs are the sampler's own. Only in bfloat16, where its rounding would show in the ratio, are they
computed again by the training forward pass. (`sampler_gap` is their mean difference in both cases.)
"""

import itertools
import math
import random
import time
from collections import defaultdict
from contextlib import contextmanager

import torch
from tqdm import tqdm

from vine_mini import models, tasks, vines
from vine_mini.advantages import whiten
from vine_mini.algorithms import ALGORITHMS, WHITENED, Episodes
from vine_mini.evaluate import evaluate, grade
from vine_mini.logprobs import response_logprobs, response_values
from vine_mini.losses import clipped_policy_loss, kl_penalty, masked_mean, value_loss
from vine_mini.memory import memory_estimate
from vine_mini.sampling import sample
from vine_mini.types import Batch, UserError, collate, on_response

MAX_KL = 10.0  # a token's KL counts no more than this in the loss, as in the official code


class Trainer:
    """A policy and what its training needs; `train()` runs the loop, `evaluate()` measures the policy."""

    def __init__(self, config):
        self.config, self.device = config, models.pick_device(config.device)
        self.train_problems, self.test_problems = tasks.load_problems(config)
        policy, tokenizer = models.load_policy(models.policy_name(config), self.device)
        self.policy, self.tokenizer = policy, tokenizer
        self.eos = models.eos_ids(policy, tokenizer)
        self.prompts = tasks.prompt_ids(self.train_problems, tokenizer, config)
        self.test_problems = self.test_problems[: config.eval_problems or None]
        self.test_prompts = tasks.prompt_ids(self.test_problems, tokenizer, config)
        tasks.check_prompts(self.prompts + self.test_prompts, models.context_length(policy), config.max_new_tokens)
        if config.prompts > len(self.prompts):
            raise UserError(f"prompts = {config.prompts}, but there are only {len(self.prompts)} training problems")
        if config.gradient_checkpointing:
            models.checkpoint_activations(policy)
        self.reference = models.frozen_copy(policy) if config.kl_coef else None
        self.low_precision = models.frozen_copy(policy).bfloat16() if config.bf16 else None
        self.critic = models.Critic(policy) if config.algorithm == "ppo" else None
        self.optimizers = [self._optimizer(policy, config.lr)]
        if self.critic:
            self.optimizers.append(self._optimizer(self.critic, config.lr if config.critic_lr is None else config.critic_lr))
        updates = config.iterations * config.epochs * config.prompts * config.group // config.minibatch_size
        warmup = max(1, round(config.warmup * updates))
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1.0, (n + 1) / warmup)) for o in self.optimizers]
        self.iteration, self.seconds = 0, defaultdict(float)

    @property
    def done(self) -> bool:
        """Whether the iterations or the seconds are used up."""
        config = self.config
        return self.iteration >= config.iterations or 0 < config.max_seconds <= sum(self.seconds.values())

    def train(self):
        """Yields (metrics, episodes, advantages) after each iteration, until done."""
        config = self.config
        while not self.done:
            clock = defaultdict(float)
            with self._phase(clock, "sample"):
                episodes = self.sample_episodes()
            with self._phase(clock, "score"):
                score_stats = self.score(episodes.batch, episodes.trajectories)
            with self._phase(clock, "rollouts"):  # where credit is given; only VinePPO spends time here
                advantages, credit_stats = ALGORITHMS[config.algorithm](episodes, config)  # [B, T]
            mask = episodes.batch.response_mask
            episodes.batch.advantages = whiten(advantages, mask) if config.algorithm in WHITENED else advantages
            with self._phase(clock, "update"):
                stats = self.update(episodes.batch)
            self.iteration += 1
            for phase, seconds in clock.items():
                self.seconds[phase] += seconds
            metrics = self._metrics(episodes, advantages) | credit_stats | stats | score_stats
            yield metrics | {f"seconds_{phase}": s for phase, s in clock.items()}, episodes, advantages

    def sample_episodes(self) -> Episodes:
        """The next N problems, G sampled responses to each, and their rewards."""
        config, n, size = self.config, self.config.prompts, len(self.prompts)
        # Problems come in a new random order each epoch; an iteration never holds one twice.
        epoch, place = divmod(self.iteration, size // n)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(config.seed + epoch)).tolist()
        chosen = [i for i in order[place * n : (place + 1) * n] for _ in range(config.group)]
        settings = dict(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            eos_token_id=self.eos,
            batch_size=config.sample_batch_size,
        )

        def seed(call: int) -> int:  # PyTorch's generator looks at 32 bits only
            return random.Random(f"{config.seed} {self.iteration} {call}").getrandbits(32)

        problems = [self.train_problems[i] for i in chosen]
        model = self.sampler()
        with self._bar("sample", len(chosen)) as progress:
            trajectories = sample(model, [self.prompts[i] for i in chosen], seed=seed(0), progress=progress, **settings)
        rewards = torch.tensor([grade(p, t, self.tokenizer) for p, t in zip(problems, trajectories, strict=True)])

        calls = itertools.count(1)

        def fork(trajectories, cuts, k):
            own = seed(next(calls))
            with self._bar("rollouts", k * sum(map(len, cuts))) as progress:
                return vines.rollouts(model, trajectories, cuts, k=k, seed=own, progress=progress, **settings)

        batch = collate(trajectories, self.device)
        return Episodes(problems, trajectories, rewards.view(n, config.group), batch, self.tokenizer, fork)

    @torch.no_grad()
    def score(self, batch: Batch, trajectories) -> dict:
        """Fills in old and reference log-probs and the critic's values, each once an iteration."""
        sampled = on_response([t.logprobs for t in trajectories], batch.response_mask)
        batch.old_logprobs = sampled.clone()
        batch.ref_logprobs = torch.zeros_like(sampled) if self.reference else None
        batch.values = torch.zeros_like(sampled) if self.critic else None
        if not (self.low_precision or self.reference or self.critic):
            return {}
        with self._bar("score", len(batch)) as progress:
            for rows in batch.micro_batches(torch.arange(len(batch)), self.config.micro_batch_tokens):
                b = batch.rows(rows)
                inputs, width = (b.input_ids, b.attention_mask, b.response_mask), b.input_ids.shape[1]
                if self.low_precision:
                    batch.old_logprobs[rows, :width] = self._logprobs(self.policy, inputs)
                if self.reference:
                    batch.ref_logprobs[rows, :width] = self._logprobs(self.reference, inputs)
                if self.critic:
                    batch.values[rows, :width] = self._values(inputs)
                progress(len(rows))
        gap = masked_mean((sampled - batch.old_logprobs).abs(), batch.response_mask).item()
        return {"sampler_gap": gap} if self.low_precision else {}

    def update(self, batch: Batch) -> dict:
        """Epochs of minibatches of clipped policy (and value) loss. -> statistics, means over the optimizer steps"""
        config, log = self.config, defaultdict(list)
        shuffle = torch.Generator().manual_seed(config.seed + self.iteration)
        minibatches = [
            rows
            for _ in range(config.epochs)
            for rows in torch.randperm(len(batch), generator=shuffle).split(config.minibatch_size)
        ]
        with self._bar("update", len(minibatches)) as progress:
            for rows in minibatches:
                stats = self._accumulate_gradients(batch, rows)
                stats["skipped"] = float(not self._step(stats))
                for name, value in stats.items():
                    log[name].append(value)
                progress(1)
        first = {f"first_{name}": log[name][0] for name in ("ratio", "approx_kl")}  # 1 and 0, or the scores are wrong
        first["sampler_gap"] = log.pop("gap")[0]  # the policy has not moved yet
        first["lr"] = self.schedules[0].get_last_lr()[0]
        return first | {name: sum(values) / len(values) for name, values in log.items()}

    def _step(self, stats: dict) -> bool:
        """One optimizer step of each network. -> whether it was taken: not where ratio or gradients have exploded"""
        norms = [
            torch.nn.utils.clip_grad_norm_(o.param_groups[0]["params"], self.config.max_grad_norm).item() for o in self.optimizers
        ]
        stats["grad_norm"] = norms[0]
        sound = stats["ratio"] <= self.config.max_ratio and all(math.isfinite(norm) for norm in norms)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            if sound:
                optimizer.step()
                schedule.step()
            optimizer.zero_grad(set_to_none=True)
        return sound

    def _accumulate_gradients(self, batch: Batch, rows) -> dict:
        """Gradients of one minibatch; the denominator is fixed first, so micro-batches only add up."""
        config, stats = self.config, defaultdict(float)
        denominator = batch.response_mask[rows].sum()
        for micro in batch.micro_batches(rows, config.micro_batch_tokens):
            b = batch.rows(micro)
            inputs, mask = (b.input_ids, b.attention_mask, b.response_mask), b.response_mask
            logprobs = self._logprobs(self.policy, inputs)  # [b, T]
            loss, parts = clipped_policy_loss(
                logprobs, b.old_logprobs, b.advantages, mask, clip=config.clip, denominator=denominator
            )
            if self.reference:
                # Bounded before exp: the clamp after it would turn an infinite k3 into a NaN gradient.
                reference = torch.minimum(b.ref_logprobs, logprobs.detach() + 2 * MAX_KL)
                penalty = kl_penalty(logprobs, reference, kind=config.kl_kind).clamp(max=MAX_KL)
                kl = masked_mean(penalty, mask, denominator)
                parts["kl"] = kl.item()
                loss = loss + config.kl_coef * kl
            parts["loss"] = loss.item()
            parts["gap"] = masked_mean((logprobs.detach() - b.old_logprobs).abs(), mask, denominator).item()
            loss.backward()
            if self.critic:
                values = self._values(inputs)
                loss, more = value_loss(values, b.values, b.returns, mask, clip=config.value_clip, denominator=denominator)
                loss.backward()
                parts |= more | {"value_loss": loss.item()}
            for name, value in parts.items():
                stats[name] += value
        return stats

    def evaluate(self, reference=True) -> dict:
        """Accuracy on the test problems; see `evaluate.evaluate`."""
        config = self.config
        with self._autocast(), self._bar("evaluate", len(self.test_prompts) * (config.eval_samples + 1)) as progress:
            return evaluate(
                self.policy,
                self.tokenizer,
                self.test_problems,
                self.test_prompts,
                config,
                eos=self.eos,
                n=config.eval_samples,
                temperature=config.eval_temperature,
                seed=config.seed,
                reference=self.reference if reference else None,
                sampler=self.sampler(),
                progress=progress,
            )

    def memory(self) -> dict[str, int]:
        """Bytes that a run needs, part by part; see `memory.memory_estimate`."""
        longest = max(map(len, self.prompts))
        return memory_estimate(self.policy, self.config, longest, critic=bool(self.critic), reference=bool(self.reference))

    def _metrics(self, episodes: Episodes, advantages) -> dict:
        trajectories, mask = episodes.trajectories, episodes.batch.response_mask
        return {
            "iteration": self.iteration,
            "episodes": self.iteration * len(trajectories),
            "seconds": sum(self.seconds.values()),
            "reward": episodes.rewards.mean().item(),
            "length": sum(len(t.response_ids) for t in trajectories) / len(trajectories),
            "truncated": sum(not t.finished for t in trajectories) / len(trajectories),
            "nonzero_advantages": masked_mean((advantages.abs() > 1e-6).float(), mask).item(),
            "entropy": -masked_mean(episodes.batch.old_logprobs, mask).item(),
        }

    def _logprobs(self, model, inputs):
        with self._autocast(), self._train_mode(model):
            return response_logprobs(model, *inputs, temperature=self.config.temperature)

    def _values(self, inputs):
        with self._autocast(), self._train_mode(self.critic):
            return response_values(self.critic, *inputs)

    @contextmanager
    def _train_mode(self, model):
        """Gradient checkpointing works in train mode only; dropout is zero in both."""
        model.train(self.config.gradient_checkpointing)
        try:
            yield
        finally:
            model.eval()

    def sampler(self):
        """What samples: the policy itself, or its copy in bfloat16, brought up to date."""
        if self.low_precision is None:
            return self.policy
        with torch.no_grad():
            for copy, original in zip(self.low_precision.parameters(), self.policy.parameters(), strict=True):
                copy.copy_(original)
        return self.low_precision

    def _optimizer(self, model, lr: float):
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=self.config.weight_decay, fused=True)

    def _autocast(self):
        return models.autocast(self.device, self.config.bf16)

    @contextmanager
    def _phase(self, clock, name: str):
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        clock[name] += time.perf_counter() - start

    @contextmanager
    def _bar(self, name: str, total: int):
        with tqdm(total=total, desc=f"  {name}", leave=False, position=1, dynamic_ncols=True, delay=2) as bar:
            yield bar.update
