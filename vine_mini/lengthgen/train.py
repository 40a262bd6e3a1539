"""Trains one decoder on short sequences and measures it on longer ones.

Every batch is new and has one random length; the loss is on the target's tokens alone (section 3). How it differs from the
paper: a model 700 times smaller, fresh examples instead of 100,000 fixed ones, the last weights instead of those of the best
validation, no dropout.
"""

import zlib
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
import torch.nn.functional as F

from vine_mini.lengthgen.model import Decoder, DecoderConfig
from vine_mini.lengthgen.tasks import EOS, PAD, VOCABULARY, Task, encode
from vine_mini.logprobs import hidden_before, logits_of

EVAL_SEED = 1_000_003  # the test examples are the same for every run


@dataclass
class Settings:
    """What one training run needs to know beside its task, encoding and seed."""

    train_lengths: list[int]
    test_lengths: list[int]
    steps: int
    lr: float
    batch_size: int
    layers: int
    hidden: int
    heads: int
    weight_decay: float
    examples: int  # for each length, in the evaluation


def train(task: Task, config: DecoderConfig, s: Settings, seed: int, device="cpu", progress=None) -> Decoder:
    """Trains a new decoder. `progress` is called with 1 after each step. -> the model, in eval mode

    AdamW with betas (0.9, 0.98), gradients clipped to norm 1; 6 % warm-up, then linear decay to 5 % of `lr`.
    """
    torch.manual_seed(seed)
    rng = Random(seed)
    model = Decoder(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), s.lr, betas=(0.9, 0.98), weight_decay=s.weight_decay, fused=True)
    warmup = max(1, round(0.06 * s.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warmup, 1 - 0.95 * max(0, i - warmup) / max(1, s.steps - warmup))
    )
    for _ in range(s.steps):
        length = rng.choice(s.train_lengths)
        examples = [example(task, length, rng, held_out=False) for _ in range(s.batch_size)]
        ids, mask = collate(examples, device)  # [B, T] each
        F.cross_entropy(target_logits(model, ids, mask), ids[mask.bool()]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if progress:
            progress(1)
    return model.eval()


@torch.no_grad()
def accuracy(model: Decoder, task: Task, lengths: list[int], examples: int) -> dict[int, float]:
    """Exact match of the whole target for each length: the share of examples that greedy decoding would get right.

    One forward pass over prompt and target tells: greedy decoding writes the target exactly if at every place the most likely
    token is the target's, because up to there it has written the target. Lengths of training are tested on held-out prompts.
    """
    result = {}
    for length in lengths:
        rng = Random(EVAL_SEED + length)
        rows = [example(task, length, rng, held_out=True) for _ in range(examples)]
        ids, mask = collate(rows, model.device)
        right = torch.ones_like(mask)
        right[mask.bool()] = (target_logits(model, ids, mask).argmax(dim=-1) == ids[mask.bool()]).float()
        result[length] = right.amin(dim=1).mean().item()
    return result


def target_logits(model: Decoder, ids, mask):
    """The logits that predict each target token, rows in order. ids, mask [B, T] -> [n, V]"""
    keep = ids.shape[1] - int(mask.any(dim=0).nonzero()[0]) + 1  # from the column before the first target on
    backbone = partial(model.model, keep=keep)  # the last layer need not look at the rest
    return logits_of(model, hidden_before(backbone, ids, torch.ones_like(ids), mask[:, -keep:]))


def example(task: Task, length: int, rng: Random, held_out: bool) -> tuple[list[int], list[int]]:
    """An example as token ids: prompt, and target with its end. A tenth of all prompts is held out from training.

    A checksum of the prompt says which. Where a length has too few prompts for that (parity of two bits), any may come.
    """
    for _ in range(200):
        prompt, target = task.make(length, rng)
        if (zlib.crc32(prompt.encode()) % 10 == 0) == held_out:
            break
    return encode(prompt), [*encode(target), EOS]


def collate(examples, device) -> tuple[torch.Tensor, torch.Tensor]:
    """-> ids [B, T], padded on the right; 1.0 on the targets [B, T]. The padding needs no mask: causal attention never sees it."""
    T = max(len(prompt) + len(target) for prompt, target in examples)
    ids = [[*prompt, *target, *[PAD] * (T - len(prompt) - len(target))] for prompt, target in examples]
    mask = [[0.0] * len(p) + [1.0] * len(t) + [0.0] * (T - len(p) - len(t)) for p, t in examples]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def decoder_config(positions: str, s: Settings, **more) -> DecoderConfig:
    """The decoder for these settings."""
    return DecoderConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=s.hidden,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        positions=positions,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **more,
    )
