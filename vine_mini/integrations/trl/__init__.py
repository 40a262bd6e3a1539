"""VinePPO as a subclass of TRL's GRPOTrainer: one process or many, with Hugging Face generation or with vLLM.

TRL samples the responses, holds the reference, computes the loss and updates the weights. This module takes its responses, cuts
them into steps and asks the same engine for K completions of each state. Then it puts the package's own advantages in place of
GRPO's. Each process has whole groups of responses, so states are shared, graded and valued within a process. Whitening alone
looks at the tokens of all processes.

Deviations from `vine_mini.trainer`:
- TRL divides the loss of a minibatch by the mean number of tokens of the iteration's minibatches, not by its own number.
- Its KL (k3) has no upper bound for a token, and no minibatch is skipped. Its warm-up begins at a learning rate of 0.
- It shuffles the minibatches of an iteration once, not anew in each epoch.
- Problems with equal questions are one problem. The last one's answer counts.
- Several processes save every `save_every` iterations and not after Ctrl-C. One process does both, as `train` does.
- Random numbers come from the engine. The same seed gives other tokens than `train`, and other ones for another number of
  processes.
"""

import inspect
import time
from functools import partial
from importlib import metadata
from typing import Any

import torch
from transformers import TrainerCallback

from vine_mini import tasks
from vine_mini.advantages import whiten
from vine_mini.algorithms import vineppo
from vine_mini.models import context_length
from vine_mini.steps import cut_steps
from vine_mini.types import Episodes, Tokens, Trajectory, UserError, derive_seed

TESTED = "1.16"  # signatures of private methods change between minor versions of TRL
PRIVATE = {  # the private methods that are replaced or called, and their arguments in the tested version
    "_generate_and_score_completions": "self inputs",
    "_generate_single_turn": "self prompt_ids images multimodal_fields num_generations has_tool_images",
    "_tokenize_prompts": "self prompts",
    "_get_train_sampler": "self dataset",
}
ANSWER_SECONDS = 600.0  # a request that needs longer counts as lost, also where the vLLM server answers /health
GRPOTrainer: Any = object
try:
    version = metadata.version("trl")
    if version.startswith(f"{TESTED}."):
        from trl import GRPOTrainer  # type: ignore[no-redef]
except metadata.PackageNotFoundError:
    version = "none"


def check_trl() -> None:
    """Raises UserError where TRL is missing, or is not the tested minor version, or has other private methods than that."""
    if GRPOTrainer is object:
        raise UserError(f"this needs TRL {TESTED} (installed: {version}): pip install 'trl=={TESTED}.*'")
    for name, arguments in PRIVATE.items():
        found = " ".join(inspect.signature(getattr(GRPOTrainer, name)).parameters)
        if found != arguments:
            raise UserError(f"TRL {version}: {name} has the arguments ({found}), not ({arguments}); install TRL {TESTED}")


class Order(TrainerCallback):
    """Seeds the order of the problems in each epoch. TRL's sampler alone would begin a resumed run with the first order again."""

    sampler: Any = None

    def on_epoch_begin(self, args, state, control, **_):
        """The sampler draws the order of the epoch after this call."""
        self.sampler.generator.manual_seed(derive_seed(args.seed, "problems", int(state.epoch)))


class VinePPOTrainer(GRPOTrainer):
    """GRPOTrainer with VinePPO's advantages. `train()` and everything else is TRL's.

    After sampling, `episodes`, `advantages` [b, T] before whitening and `stats` hold what this process has seen: b responses.

    Args:
        config: a `TrainConfig`. Read are the fields of the task and the prompt, group, k, mc_lam, mc_mu, max_states, step_tokens,
            max_new_tokens and sample_batch_size.
        policy, tokenizer: as `models.load_policy` returns them. With a KL penalty, TRL reads the reference from the folder or
            the Hub name that the policy was loaded from.
        problems: the training problems.
        args: a `GRPOConfig`; `grpo_arguments` in `__main__.py` makes it from the config.
        more: other arguments of GRPOTrainer, such as callbacks.
    Raises UserError for another TRL, for prompts that do not fit, and where a process would have a part of a group.
    """

    def __init__(self, config, policy, tokenizer, problems, args, **more):
        check_trl()
        from datasets import Dataset

        local = args.per_device_train_batch_size * args.steps_per_generation  # responses of a process in an iteration
        if local % config.group:
            raise UserError(f"each process has {local} responses, which is no multiple of group = {config.group}")
        for ours, theirs in (("group", "num_generations"), ("max_new_tokens", "max_completion_length")):
            if (one := getattr(config, ours)) != (other := getattr(args, theirs)):
                raise UserError(f"config.{ours} = {one}, and args.{theirs} = {other}: make them equal")
        if args.mask_truncated_completions:
            raise UserError("mask_truncated_completions: a response that the limit cuts has reward 0 and is trained")
        if args.beta and not policy.name_or_path:
            raise UserError("a KL penalty needs a policy that was loaded from a folder or the Hub: TRL reads the reference there")
        self.config, self.problems, self.task = config, problems, tasks.get(config.task)
        prompts = tasks.prompt_ids(problems, tokenizer, config)
        tasks.check_prompts(prompts, context_length(policy), config.max_new_tokens)
        self.prompts = dict(zip([problem.question for problem in problems], prompts, strict=True))
        data = Dataset.from_dict({"prompt": list(self.prompts), "problem": list(range(len(self.prompts)))})
        self.problems = list({problem.question: problem for problem in problems}.values())  # in the order of `data`
        cuts = dict(every=config.step_tokens, answer_mark=self.task.ANSWER_MARK, starts=getattr(self.task, "step_starts", None))
        self.cut = partial(cut_steps, tokenizer=tokenizer, **cuts)
        super().__init__(policy, self.grade, args, data, processing_class=tokenizer, **more)
        self.order = Order()
        self.add_callback(self.order)
        if self.use_vllm and self.vllm_mode == "server" and self.accelerator.is_main_process:
            self._check_server(self.vllm_generation.vllm_client)

    def grade(self, prompts, completions, completion_ids, problem, **_) -> list[float]:
        """The reward function that TRL calls. It keeps the trajectories and their rewards for the advantages."""
        self.trajectories = [self._trajectory(self.prompts[p], ids) for p, ids in zip(prompts, completion_ids, strict=True)]
        rows = zip(problem, self.trajectories, strict=True)
        self.rewards = [tasks.grade(self.task, self.problems[i], t, self.processing_class) for i, t in rows]
        return self.rewards

    def _generate_and_score_completions(self, inputs):
        start = time.perf_counter()
        out = super()._generate_and_score_completions(inputs)
        sampled = time.perf_counter()
        mask = out["completion_mask"].float()  # [b, T]
        self.episodes = Episodes(
            [self.problems[row["problem"]] for row in inputs],
            self.trajectories,
            torch.tensor(self.rewards).view(-1, self.config.group),
            [self.cut(t.response_ids) for t in self.trajectories],
            Tokens(out["completion_ids"], mask, mask),  # the responses alone: credit needs no more
            self.task,
            self.processing_class,
        )
        self.advantages, _, stats = vineppo(self.episodes, None, self.roll_out, self.config)
        self.stats = self._of_all_processes(stats)
        out["advantages"] = self._whiten(self.advantages, mask)
        self.stats |= {"seconds_sample": sampled - start, "seconds_rollouts": time.perf_counter() - sampled}
        return out

    def roll_out(self, trajectories, cuts, k: int) -> list[list[list[Trajectory]]]:
        """k completions of the state before each cut, by the engine that sampled the trajectories. -> [trajectory][cut][k]

        The engine has one limit for all states of a call. What goes beyond the limit of a state is cut off, which leaves the
        distribution as it is. All processes make equally many calls with equally many states, because an engine may gather them.
        """
        limit = self.config.max_new_tokens
        states = [(t.prompt_ids + t.response_ids[:c], limit - c) for t, row in zip(trajectories, cuts, strict=True) for c in row]
        order = sorted(range(len(states)), key=lambda i: len(states[i][0]))  # states of similar length together
        most = int(self.accelerator.gather(torch.tensor([len(states)], device=self.accelerator.device)).max())
        padded = order + order[-1:] * (most - len(order))
        size = most if self.use_vllm else max(1, self.config.sample_batch_size // k)
        done: dict[int, list[Trajectory]] = {}
        for part in (padded[i : i + size] for i in range(0, most, size)):
            if not self.use_vllm:
                self.generation_config.max_new_tokens = max(states[i][1] for i in part)
            # The k copies of a state stand side by side: a vLLM server gets each state once, with the number k.
            ends = iter(self._generate_single_turn([states[i][0] for i in part for _ in range(k)], None, {}, k)[0])
            done |= {i: [self._trajectory(states[i][0], next(ends)[: states[i][1]]) for _ in range(k)] for i in part}
        if not self.use_vllm:
            self.generation_config.max_new_tokens = limit
        groups = (done[i] for i in range(len(states)))
        return [[next(groups) for _ in row] for row in cuts]

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        """Hugging Face generation decodes `sample_batch_size` responses at once; vLLM has its own queue."""
        size = len(prompt_ids) if self.use_vllm else self.config.sample_batch_size
        ids, logprobs = [], None
        for i in range(0, len(prompt_ids), size):
            part, logprobs = super()._generate_single_turn(prompt_ids[i : i + size], images, multimodal_fields, num_generations)
            ids += part
        return ids, logprobs  # without vLLM there are no log-probs

    def _get_train_sampler(self, dataset=None):
        self.order.sampler = super()._get_train_sampler(dataset)
        return self.order.sampler

    def _tokenize_prompts(self, prompts):
        return [self.prompts[prompt] for prompt in prompts], None, {}

    def _trajectory(self, prompt_ids, response_ids) -> Trajectory:
        ids = list(response_ids)  # log-probs are TRL's matter, so there are none here
        return Trajectory(prompt_ids, ids, [0.0] * len(ids), bool(ids) and ids[-1] in self.eos_token_ids)

    def _of_all_processes(self, stats: dict) -> dict:
        """Counts are summed over the processes; the share of truncated rollouts is one of all rollouts."""
        counts = [name for name in stats if name != "rollouts_truncated"]
        local = [*(float(stats[name]) for name in counts), stats["rollouts_truncated"] * stats["rollouts"]]
        every = self.accelerator.gather(torch.tensor([local], device=self.accelerator.device))  # [ranks, counts + 1]
        *sums, cut = every.double().sum(dim=0).tolist()
        totals = dict(zip(counts, map(round, sums), strict=True))
        return totals | {"rollouts_truncated": cut / max(totals["rollouts"], 1)}

    def _whiten(self, advantages, mask):
        """Whitens over the response tokens of all processes. [b, T] each"""
        both = torch.stack([advantages, mask], dim=1)  # [b, 2, T]; T differs between processes
        every = self.accelerator.gather(self.accelerator.pad_across_processes(both, dim=2))  # [B, 2, longest T]
        first = self.accelerator.process_index * len(mask)
        return whiten(every[:, 0], every[:, 1])[first : first + len(mask), : mask.shape[1]]

    def _check_server(self, client) -> None:
        """Bounds how long a vLLM server may take to answer. Compares its tokens and its context with ours. Raises UserError."""
        client.session.request = partial(client.session.request, timeout=ANSWER_SECONDS)
        adapter = client.session.get_adapter(client.base_url)
        adapter.max_retries = adapter.max_retries.new(total=2, connect=2, read=0)  # connect again, but do not ask twice
        text, longest = max(self.prompts, key=len), max(map(len, self.prompts.values())) + self.config.max_new_tokens
        answer = client.session.post(f"{client.base_url}/tokenize", json={"model": client.model, "prompt": text})
        if not answer.ok:
            raise UserError(f"the vLLM server answers /tokenize with status {answer.status_code}: {answer.text[:200]}")
        found = answer.json()
        if found.get("tokens") != self.processing_class(text)["input_ids"]:
            raise UserError(f"the vLLM server has another tokenizer than the policy: start it with {self.model.name_or_path}")
        if found.get("max_model_len", longest) < longest:
            raise UserError(f"the vLLM server sees too few tokens: start it with --max-model-len {longest} or more")
