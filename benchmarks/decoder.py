"""An update of `lengthgen`'s decoder beside an update of Hugging Face's Llama of the same size.

    python -m benchmarks.decoder --out results/lengthgen/decoder

Both models learn to count: the task is copy, and the batches are those of the recipe, drawn beforehand. The optimizer settings
are those of the recipe too. Everything runs on one thread. The Llama takes its own loss, `model(input_ids, attention_mask,
labels).loss`. It is measured with PyTorch's default AdamW and with the fused AdamW of the recipe. Blocks of updates alternate
between all models. The table shows the median over the blocks.
"""

import argparse
import statistics
from functools import partial
from random import Random

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import alternate, command, count, machine, report, timed, writable
from vine_mini.decoder.model import Decoder
from vine_mini.decoder.table import PAPER
from vine_mini.lengthgen.config import LengthgenConfig, decoder_config
from vine_mini.lengthgen.parts import SHORT
from vine_mini.lengthgen.tasks import TASKS
from vine_mini.lengthgen.train import collate, example, make_optimizer, target_logits
from vine_mini.lengthgen.vocabulary import VOCABULARY


def batches(config: LengthgenConfig, n: int):
    """n batches of the recipe."""
    rng = Random(0)
    lengths = TASKS[config.task].lengths(*config.train_lengths)
    chosen = [rng.choice(lengths) for _ in range(n)]
    return [collate([example(config, length, rng, False) for _ in range(config.batch_size)], "cpu") for length in chosen]


def updater(model, optimizer, loss_of):
    """A function that makes one update."""

    def update(ids, mask):
        loss_of(ids, mask).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def ours(config: LengthgenConfig, encoding: str):
    """-> a function that makes an update, number of parameters"""
    torch.manual_seed(0)
    model = Decoder(decoder_config(config, encoding)).train()

    def loss_of(ids, mask):
        return F.cross_entropy(target_logits(model, ids, mask), ids[mask.bool()])

    update = updater(model, make_optimizer(model, config), loss_of)
    return update, sum(p.numel() for p in model.parameters())


def llama(config: LengthgenConfig, fused: bool):
    """-> a function that makes an update, number of parameters

    The Llama's MLP has three matrices, ours has two. An inner width of 8/3 gives both MLPs the same number of parameters.
    """
    torch.manual_seed(0)
    shape = dict(hidden_size=config.hidden, intermediate_size=round(8 / 3 * config.hidden), num_hidden_layers=config.layers)
    heads = dict(num_attention_heads=config.heads, num_key_value_heads=config.heads, head_dim=config.head_dim)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(VOCABULARY), **shape, **heads)).train()
    plain = torch.optim.AdamW(model.parameters(), config.lr, (0.9, 0.98), weight_decay=config.weight_decay)
    optimizer = make_optimizer(model, config) if fused else plain

    def loss_of(ids, mask):
        labels = ids.masked_fill(mask == 0, -100)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss

    return updater(model, optimizer, loss_of), sum(p.numel() for p in model.parameters())


def main():
    """Measures, prints a table, writes JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=count, default=9, help="measured blocks of each model")
    parser.add_argument("--updates", type=count, default=40, help="updates in a block")
    parser.add_argument("--out", type=writable, help="folder for the table and its numbers as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = LengthgenConfig(task="copy", **SHORT["copy"])
    data = batches(config, arguments.updates)
    models = {
        "llama": llama(config, False),
        "llama, fused AdamW": llama(config, True),
        **{name: ours(config, name) for name in PAPER},
    }

    def block(update):
        for ids, mask in data:
            update(ids, mask)

    ways = {name: partial(timed, partial(block, update)) for name, (update, _) in models.items()}
    taken = alternate(ways, arguments.blocks, "blocks")
    if failed := models.keys() - taken.keys():
        raise RuntimeError(f"without {', '.join(sorted(failed))} there is nothing to compare")
    times = {name: [1000 * seconds / len(data) for seconds, _ in taken[name]] for name in models}
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: [statistics.median(t / mine for t, mine in zip(times[peer], values, strict=True)) for peer in list(models)[:2]]
        for name, values in times.items()
    }
    rows = [["", "parameters", "ms an update", "Llama's time / this one's", "with fused AdamW"]]
    for name, (plain, fused) in ratios.items():
        rows.append([name, f"{models[name][1]:,}", f"{medians[name]:.1f}", f"{plain:.2f}", f"{fused:.2f}"])
    sizes = f"copy, batches of {config.batch_size}, medians of {arguments.blocks} blocks of {len(data)} updates"
    title = f"{sizes}; {machine('cpu', 1)}"
    report(arguments.out, "decoder", title, rows, {"ms_an_update": medians, "llama_and_fused_llama_over_this": ratios})


if __name__ == "__main__":
    command(main)
