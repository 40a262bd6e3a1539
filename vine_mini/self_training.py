"""The loop of RestEM and DPO-Positive. An iteration samples, chooses examples, and fine-tunes the start policy on them.

With validation problems, an iteration stops after the first epoch that lowers their accuracy, and goes back to the best epoch.

Deviations from the paper: an iteration draws `prompts` problems instead of all. DPO-Positive may have several iterations.
Log-probs are taken at the sampling temperature.
"""

import copy
import random
from collections import defaultdict

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from vine_mini import models
from vine_mini.health import finite, located
from vine_mini.trainer import BAR, Trainer
from vine_mini.types import Batch, UserError, derive_seed


class SelfTrainer(Trainer):
    """A trainer whose algorithm has `choose_examples`. The reference is the start policy, whatever kl_coef is."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.reference = models.frozen_copy(self.policy)  # in float32, because each iteration starts from it

    def train(self):
        """Yields (metrics, episodes, rewards as advantages [B, T]) after each iteration, until done."""
        while not self.done:
            clock = defaultdict(float)
            with self._phase(clock, "sample"):
                episodes = self.sample_episodes()
            rng = random.Random(derive_seed(self.config.seed, self.iteration, "examples"))
            examples = self.algorithm.choose_examples(episodes.rewards, self.config.examples, rng)
            if not examples and self.iteration == 0:
                says = "no response is an example to learn from: raise --prompts or --group, or take other problems"
                raise UserError(f"{says}, and start again with another --out")
            with self._phase(clock, "score"):
                scores, score_stats = self.score(episodes)
            stats = {"examples": 0}  # then the policy stays as it is
            if examples:
                stats = self.fit(episodes.tokens, examples, scores["ref_logprobs"], rng, clock) | score_stats
            self.iteration += 1
            for phase, seconds in clock.items():
                self.seconds[phase] += seconds
            advantages, _, _ = self.algorithm.credit(episodes, None, None, self.config)  # [B, T]
            metrics = self._metrics(episodes, advantages, Batch(**vars(episodes.tokens), **scores, advantages=advantages)) | stats
            yield metrics | {f"seconds_{phase}": s for phase, s in clock.items()}, episodes, advantages

    def fit(self, tokens, examples, ref_logprobs, rng, clock) -> dict:
        """Fine-tunes the start policy. -> statistics, means over the updates of the last epoch that ran"""
        config, best, highest = self.config, None, 0.0
        self.policy.load_state_dict(self.reference.state_dict())
        self.optimizer = models.adamw(self.policy.parameters(), config)
        made = validated = 0
        for _ in range(config.epochs):
            log = defaultdict(list)
            order = rng.sample(examples, len(examples))
            minibatches = [order[i : i + config.minibatch_size] for i in range(0, len(order), config.minibatch_size)]
            with self._phase(clock, "update"):
                for minibatch in tqdm(minibatches, desc="update", **BAR):
                    made += 1
                    where, rows = f"iteration {self.iteration + 1}, minibatch {made}", torch.tensor(minibatch).flatten()
                    with located(where, tokens, rows, log):
                        stats = self._update(tokens, minibatch, ref_logprobs, min(1.0, made / max(1, config.warmup)))
                    for name, value in stats.items():
                        log[name].append(value)
            if self.validation_problems and config.epochs > 1:  # of a single epoch there is nothing to choose
                with self._phase(clock, "validate"):
                    accuracy = self.evaluate(self.validation_problems, with_kl=False, greedy=False)["pass@1"][0]
                validated += 1
                if accuracy < highest:
                    self.policy.load_state_dict(best)
                    break
                highest, best = accuracy, copy.deepcopy(self.policy.state_dict())
        counts = {"examples": len(examples), "updates_made": made, "validations": validated}
        return counts | {name: sum(values) / len(values) for name, values in log.items()}

    def _update(self, tokens, minibatch, ref_logprobs, warm: float) -> dict:
        """One update. The denominator is fixed first: the tokens of RestEM's examples, or the pairs of DPO-Positive."""
        stats, rows = defaultdict(float), torch.tensor(minibatch)  # [m, w]
        denominator = tokens.response_mask[rows].sum() if rows.shape[1] == 1 else len(rows)
        for part in tokens.micro_batches(rows, self.config.micro_batch_tokens):
            micro = tokens.rows(part.flatten())
            width, shape = micro.input_ids.shape[1], (*part.shape, -1)
            logprobs = self.forward(self.policy, micro).view(shape)  # [m, w, T]
            reference = None if ref_logprobs is None else ref_logprobs[part, :width]
            mask = micro.response_mask.view(shape)
            loss, parts = self.algorithm.loss(logprobs, reference, mask, self.config, denominator)
            finite("the loss", loss).backward()
            for name, value in (parts | {"loss": loss.item()}).items():
                stats[name] += value
        norm = clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        stats["grad_norm"] = finite("the gradient", norm).item()
        self.optimizer.param_groups[0]["lr"] = stats["lr"] = warm * self.config.lr
        self.updates += 1  # before the step: a run that is stopped in it shall not be saved
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return stats
