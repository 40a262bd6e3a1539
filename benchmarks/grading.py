"""Seconds to grade the rollouts of one iteration in the paper's numbers.

    python -m benchmarks.grading --out results/speed/grading

The paper has 512 responses an iteration and K = 9; with nine states each these are 41,472 rollouts. Here each one is a different
text of 290 tokens in the form of GSM8K, with tokens of a byte-level BPE. In a real run equal texts are graded once.
"""

import argparse
import random
import statistics

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks.common import command, count, machine, report, timed, writable
from vine_mini import tasks
from vine_mini.tasks import gsm8k
from vine_mini.types import Problem, Trajectory

RESPONSES, STATES, K, TOKENS = 512, 9, 9, 290


def text(rng: random.Random) -> str:
    """Lines with sums, and an answer."""
    pairs = [(rng.randrange(1000), rng.randrange(1000)) for _ in range(20)]
    lines = [f"Then there are {a} + {b} = <<{a}+{b}={a + b}>>{a + b} of them." for a, b in pairs]
    return "\n".join([*lines, f"#### {rng.randrange(1000)}"])


def tokenizer_of(rows: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,000 tokens."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(rows, vocab_size=2000, special_tokens=["<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<eos>")


def main():
    """Grades the rollouts a few times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=count, default=RESPONSES * STATES * K)
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--out", type=writable, help="folder for the table")
    args = parser.parse_args()
    rng = random.Random(0)
    tokenizer = tokenizer_of([text(rng) for _ in range(200)])
    rows = [tokenizer(text(rng)).input_ids[-TOKENS:] for _ in range(args.rollouts)]
    rollouts = [Trajectory([], row, [0.0] * len(row), True) for row in rows]
    problem = Problem("How many are there?", "", "5")
    seconds = [
        timed(lambda: [tasks.grade(gsm8k, problem, t, tokenizer, known={}) for t in rollouts])[0] for _ in range(args.repeats)
    ]
    header = ["rollouts", "tokens, mean", "s, median", "s, least", "s, most"]
    times = [f"{of(seconds):.2f}" for of in (statistics.median, min, max)]
    table = [header, [f"{len(rows):,}", f"{statistics.fmean(map(len, rows)):.0f}", *times]]
    report(args.out, "grading", machine("cpu", 1), table, {"seconds": seconds})


if __name__ == "__main__":
    command(main)
