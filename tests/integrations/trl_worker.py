"""One process of the tests of VinePPO on TRL: `torchrun --nproc_per_node N trl_worker.py FOLDER`. It writes FOLDER/RANK.json.

A fake vLLM client stands behind TRL's own code for vLLM servers: a completion says which prompt it answers. With `fsdp` after
FOLDER, the model is trained once, divided by FSDP.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from trl import GRPOConfig
from trl.generation.vllm_generation import VLLMGeneration

from vine_mini import models, tasks
from vine_mini.app.config import SHIPPED
from vine_mini.integrations.trl import VinePPOTrainer
from vine_mini.integrations.trl.__main__ import RANK, RANKS, TrlConfig, grpo_arguments
from vine_mini.types import UserError

ROOT = Path(__file__).parents[2]
CONFIG = dict(task="arithmetic", steps=4, prompts=4, group=2, k=2, minibatch_size=4, epochs=1, iterations=2, max_new_tokens=48)
CONFIG |= dict(
    lr=1e-3, warmup=0, kl_coef=0.05, sample_batch_size=12, micro_batch_tokens=200, device="cpu", mc_lam=0.25, mc_mu=0.5
)


class Recorder(VinePPOTrainer):
    """Keeps what each iteration has seen."""

    def _generate_and_score_completions(self, inputs):
        self.ends = {}
        out = super()._generate_and_score_completions(inputs)
        rows = [
            dict(problem=row["problem"], prompt=t.prompt_ids, response=t.response_ids, finished=t.finished, advantages=a[m > 0].tolist())
            for row, t, a, m in zip(inputs, self.trajectories, out["advantages"], out["completion_mask"], strict=True)
        ]  # fmt: skip
        plain = self.advantages.abs().max().item()
        self.__dict__.setdefault("seen", []).append(dict(rows=rows, ends=list(self.ends.items()), plain=plain, **self.stats))
        return out

    def roll_out(self, trajectories, cuts, k):
        groups = super().roll_out(trajectories, cuts, k)
        for t, row, of_row in zip(trajectories, cuts, groups, strict=True):
            for cut, group in zip(row, of_row, strict=True):
                self.ends[json.dumps([t.prompt_ids, t.response_ids[:cut]])] = [[r.response_ids, r.finished] for r in group]
        return groups


class FakeClient:
    """Answers a prompt with its own checksum and the end of the sequence."""

    base_url, model, synchronized = "http://fake", "fake", 0

    def __init__(self, tokenizer, context=1000):
        self.tokenizer = tokenizer

        def answer(url, json):  # as vLLM's /tokenize
            tokens = tokenizer(json["prompt"])["input_ids"]
            return SimpleNamespace(ok=True, json=lambda: {"tokens": tokens, "count": len(tokens), "max_model_len": context})

        retries = SimpleNamespace(max_retries=SimpleNamespace(new=lambda **_: None))
        self.session = SimpleNamespace(request=print, get_adapter=lambda url: retries, post=answer)

    def generate(self, prompts, n, **_):
        ids = [[2 + sum(prompt) % 97, self.tokenizer.eos_token_id] for prompt in prompts for _ in range(n)]
        return dict(prompt_ids=prompts, completion_ids=ids, logprobs=[[[-1.0], [-1.0]] for _ in ids])

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, parameters):
        assert len(list(parameters)) == len(metadata) > 0
        self.synchronized += 1

    def reset_prefix_cache(self):
        pass


def make(out, **changes):
    """-> a trainer from the shipped policy"""
    config = TrlConfig(**CONFIG | changes)
    policy, tokenizer = models.load_policy(str(SHIPPED / "arithmetic"), "cpu")
    problems = tasks.load_problems(config)[0][:40]
    arguments = grpo_arguments(config, RANKS, max(map(len, tasks.prompt_ids(problems, tokenizer, config))))
    return Recorder(config, policy, tokenizer, problems, GRPOConfig(output_dir=str(out), save_strategy="no", **arguments))


def divide_by_fsdp() -> None:
    """What the accelerate files of the package set. accelerate refuses FSDP on CPUs, so their processes are called GPUs here."""
    file = ROOT / "vine_mini/integrations/trl/accelerate/fsdp-2.yaml"
    settings = {name.upper(): str(value) for name, value in load_config_from_file(str(file)).fsdp_config.items()}
    os.environ |= settings | {"ACCELERATE_USE_FSDP": "true"}
    start = AcceleratorState.__init__

    def started(self, *args, **more):
        PartialState(cpu=True)  # gloo connects the processes
        if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        start(self, *args, **more)

    AcceleratorState.__init__ = started


def train_once(folder: Path, trainer) -> dict:
    """Trains. Each process then has all weights, also those that FSDP has divided. The first one saves them."""
    trainer.train()
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in trainer.model.named_parameters()}
    if RANK == 0:
        torch.save({name.removeprefix("module."): weight for name, weight in whole.items()}, folder / "weights.pt")
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in whole.values())).hexdigest()
    kinds = sorted({type(p).__name__ for p in trainer.model.parameters()})
    lengths = [[len(row["response"]) for row in iteration["rows"]] for iteration in trainer.seen]
    ranks, steps = trainer.accelerator.num_processes, trainer.state.global_step
    return dict(ranks=ranks, seen=trainer.seen, steps=steps, weights=digest, kinds=kinds, lengths=lengths)


def main(folder: Path):
    """Trains three times: as it is, with a reward that depends on the prompt alone, and with the fake server."""
    trainer = make(folder)
    result = train_once(folder, trainer)

    grade = tasks.grade
    tasks.grade = lambda task, problem, *_: len(problem.question) % 2 * 1.0
    trainer = make(folder, iterations=1)
    trainer.train()
    used = [a for iteration in trainer.seen for row in iteration["rows"] for a in row["advantages"]]
    result["prompt_only"] = [max(map(abs, used)), max(iteration["plain"] for iteration in trainer.seen), len(used)]
    tasks.grade = grade

    def connect(self):
        self.vllm_client = FakeClient(self.processing_class)

    VLLMGeneration._init_vllm = connect
    trainer = make(folder, iterations=2, vllm="http://fake")
    trainer.train()
    states = [(json.loads(state), group) for iteration in trainer.seen for state, group in iteration["ends"]]
    result["own_states"] = all(
        ids == [2 + sum(prompt + so_far) % 97, trainer._tokenizer.eos_token_id]
        for (prompt, so_far), group in states
        for ids, _ in group
    )
    result["synchronized"] = trainer.vllm_generation.vllm_client.synchronized
    other = FakeClient(lambda text: {"input_ids": [1]})
    with pytest.raises(UserError, match="another tokenizer"):
        trainer._check_server(other)
    with pytest.raises(UserError, match=f"--max-model-len {max(map(len, trainer.prompts.values())) + 48} or more"):
        trainer._check_server(FakeClient(trainer.processing_class, context=60))
    end(folder, result, trainer)


def end(folder: Path, result: dict, trainer):
    (folder / f"{RANK}.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    os._exit(0)  # FSDP keeps gloo's threads alive; one that wants Python's lock while Python ends would abort the process


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    if sys.argv[2:] == ["fsdp"]:
        divide_by_fsdp()
        one = make(where)
        end(where, train_once(where, one), one)
    else:
        main(where)
