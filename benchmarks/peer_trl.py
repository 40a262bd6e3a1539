"""An iteration of TRL's GRPO, and of VinePPO on top of it. `benchmarks.train_step` starts this file in an environment with TRL.

The file prints one line of JSON: the median seconds of each phase over the measured iterations, the tokens of the rollouts of an
iteration, and the peak memory of the process. VinePPO is a subclass of TRL's trainer that replaces the advantages. It samples K
rollouts from a state every 16 tokens, with TRL's own generation. As in this package, each distinct state is rolled out once: all
responses to a prompt share their first state. The states of one length are decoded together, and no token beyond the limit.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections import defaultdict

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--no-gc", action="store_true", help="no gradient checkpointing")
parser.add_argument("--micro", type=int, default=64, help="responses in a micro-batch")
parser.add_argument("--rollouts", type=int, default=0, help="K of VinePPO; 0: GRPO")
parser.add_argument("--chunk", type=int, default=512, help="rollouts that are decoded at once, of states of one length")
parser.add_argument("--repeats", type=int, default=1, help="measured iterations, after one to warm up")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--model", help="folder of a policy, used in bfloat16; left out: a random Llama of 6.6 million parameters")
parser.add_argument("--cuda", action="store_true", help="on a GPU")
args = parser.parse_args()
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

PROMPTS, GROUP, PROMPT, RESPONSE, STEP = 16, 4, 32, 64, 16
ROWS = PROMPTS * GROUP
STATES = {0: [*range(0, ROWS, GROUP)]} | {cut: [*range(ROWS)] for cut in range(STEP, RESPONSE, STEP)}  # cut -> rows


def odd_share(prompts, completions, completion_ids, **kwargs):
    """The reward is the share of odd token ids."""
    return [sum(t % 2 for t in ids) / len(ids) for ids in completion_ids]


class Timed(GRPOTrainer):
    """GRPO with a clock around its phases. With --rollouts, the advantages are Monte Carlo advantages."""

    clock: defaultdict = defaultdict(float)

    def _calculate_rewards(self, *inputs):
        rewards = super()._calculate_rewards(*inputs)
        self.final = (rewards * self.reward_weights).nansum(1)
        return rewards

    def _generate_and_score_completions(self, inputs):
        start = time.perf_counter()
        out = super()._generate_and_score_completions(inputs)
        self.clock["sample"] += time.perf_counter() - start
        if args.rollouts:
            start = time.perf_counter()
            out["advantages"] = self._monte_carlo(out, self.final.tolist())
            self.clock["rollouts"] += time.perf_counter() - start
        return out

    def _monte_carlo(self, out, final):
        prompts, responses = out["prompt_ids"].tolist(), out["completion_ids"].tolist()
        values, generation, size = {}, self.generation_config, max(1, args.chunk // args.rollouts)
        parts = [(cut, rows[i : i + size]) for cut, rows in STATES.items() for i in range(0, len(rows), size)]
        for cut, rows in parts:
            generation.max_new_tokens = generation.min_new_tokens = RESPONSE - cut
            ids = [prompts[row] + responses[row][:cut] for row in rows for _ in range(args.rollouts)]
            ends = self._generate_single_turn(ids, None, {}, args.rollouts)[0]
            whole = [responses[row][:cut] for row in rows for _ in range(args.rollouts)]
            scores = odd_share(None, None, [a + b for a, b in zip(whole, ends, strict=True)])
            for n, row in enumerate(rows):
                values[row, cut] = statistics.mean(scores[n * args.rollouts : (n + 1) * args.rollouts])
        generation.max_new_tokens = generation.min_new_tokens = RESPONSE
        values |= {(row, 0): values[row - row % GROUP, 0] for row in range(ROWS)}
        advantages = torch.zeros(ROWS, RESPONSE, device=out["advantages"].device)
        for row in range(ROWS):
            for cut in range(0, RESPONSE, STEP):
                after = values.get((row, cut + STEP), final[row])
                advantages[row, cut : cut + STEP] = after - values[row, cut]
        return advantages


class Clock(transformers.TrainerCallback):
    """Adds up the seconds of each iteration."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, *_, **__):
        """Starts the clock."""
        Timed.clock.clear()
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        """Stops it."""
        row = dict(Timed.clock) | {"total": time.perf_counter() - self.start}
        row["update"] = row["total"] - row["sample"] - row.get("rollouts", 0.0)
        self.steps.append(row)


def main():
    """Trains for one iteration to warm up and for `--repeats` more."""
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"t{i}": i for i in range(3, 512)}
    words = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
    torch.manual_seed(0)
    sizes = dict(vocab_size=512, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8)
    ids = dict(pad_token_id=0, eos_token_id=1, bos_token_id=None)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=8, max_position_embeddings=512, **ids))
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    rows = torch.randint(3, 512, (PROMPTS * (args.repeats + 1), PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_dict({"prompt": [" ".join(f"t{i}" for i in row) for row in rows]})
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=not args.cuda, bf16=False, per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=ROWS // args.micro, num_generations=GROUP, max_completion_length=RESPONSE,
        generation_kwargs={"min_new_tokens": RESPONSE}, max_steps=args.repeats + 1, learning_rate=1e-5, beta=0.0,
        gradient_checkpointing=not args.no_gc, temperature=1.0, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    clock = Clock()
    trainer = Timed(model=model, reward_funcs=odd_share, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.add_callback(clock)
    trainer.train()
    measured = clock.steps[1:]
    seconds = {phase: statistics.median(row.get(phase, 0.0) for row in measured) for phase in measured[0]}
    tokens = args.rollouts * sum(len(rows) * (RESPONSE - cut) for cut, rows in STATES.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "rollout_tokens": tokens, "peak_mb": peak}))


if __name__ == "__main__":
    main()
