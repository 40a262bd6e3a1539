"""Trains one decoder on short sequences and measures it on longer sequences.

Every batch has new examples of one random length. The loss counts the target's tokens only (section 3).
Deviations from the paper: the model is hundreds of times smaller. Examples are fresh instead of 100,000 fixed ones. The last
weights are used instead of the weights with the best validation. There is no dropout.
"""

import zlib
from functools import partial
from random import Random

import torch
import torch.nn.functional as F

from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.lengthgen.config import LengthgenConfig
from vine_mini.lengthgen.scratchpad import expand, final_answer, parts_of
from vine_mini.lengthgen.tasks import EOS, PAD, TASKS, VOCABULARY, decode, encode
from vine_mini.logprobs import hidden_before, logits_of
from vine_mini.sampling import sample
from vine_mini.types import Sampling, UserError

EVAL_SEED = 1_000_003  # the examples of an evaluation are the same for every run
FEWEST_HELD_OUT = 10  # prompts
EVAL_ROWS = 500  # sequences in a forward pass
SPARE = 16  # a written scratchpad may be so many tokens longer than the longest right one


def decoder_config(config: LengthgenConfig, positions: str) -> DecoderConfig:
    """The configuration of the decoder for one of `config.VARIANTS`."""
    more: dict[str, dict] = {
        "learned": {"max_position_embeddings": config.max_positions},
        "rope25": {"positions": "rope", "rope_share": 0.25},
        "hybrid": {"positions": "rope", "nope_every": config.nope_every},
    }
    shape: dict = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "positions": positions,
    }
    return DecoderConfig(**shape | more.get(positions, {}))


def train(config: LengthgenConfig, positions: str, seed: int, device="cpu", progress=None) -> Decoder:
    """Trains a new decoder. -> the model, in eval mode

    The optimizer is AdamW with betas (0.9, 0.98). Gradients are clipped to norm 1. The learning rate rises over 6 % of the
    updates, then falls linearly to 5 %. `progress` is called with 1 after each update. Raises UserError if training diverges.
    """
    torch.manual_seed(seed)
    rng = Random(seed)
    model = Decoder(decoder_config(config, positions)).to(device).train()
    optimizer = make_optimizer(model, config)
    warmup, total = max(1, round(0.06 * config.steps)), config.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 1 - 0.95 * max(0, step - warmup) / max(1, total - warmup))
    )
    lengths = TASKS[config.task].lengths(*config.train_lengths)
    for step in range(config.steps):
        length = rng.choice(lengths)
        ids, mask = collate([example(config, length, rng, held_out=False) for _ in range(config.batch_size)], device)  # [B, T]
        F.cross_entropy(target_logits(model, ids, mask), ids[mask.bool()]).backward()
        if not torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            raise UserError(f"{positions}, seed {seed}: training diverged at update {step + 1}; lower --lr (now {config.lr:g})")
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if progress:
            progress(1)
    return model.eval()


def make_optimizer(model, config: LengthgenConfig):
    """AdamW with the settings of this recipe."""
    return torch.optim.AdamW(model.parameters(), config.lr, (0.9, 0.98), weight_decay=config.weight_decay, fused=True)


def target_logits(model: Decoder, ids, mask):
    """The logits that predict each target token, row by row. ids, mask [B, T] -> [n, V]"""
    keep = ids.shape[1] - int(mask.any(dim=0).nonzero()[0]) + 1  # from the column before the first target on
    last = partial(model.model, keep=keep)  # gives the hidden states of these columns only
    return logits_of(model, hidden_before(last, ids, torch.ones_like(ids), mask[:, -keep:]))


@torch.no_grad()
def evaluate(model: Decoder, config: LengthgenConfig, progress=None) -> dict[int, float]:
    """The share of right answers under greedy decoding. -> length -> share, for each length in training and in the test

    Without a scratchpad the whole target must be right. One forward pass decides this: greedy decoding writes the target if and
    only if the target's token is the most likely token at every position, given the target's tokens before it. With a scratchpad
    only the answer after the steps must be right. The response is then written token by token, and the answer is checked.
    """
    result = {}
    right = _right_answers if parts_of(config.scratchpad) else _right_targets
    for length in config.lengths():
        examples = evaluation_examples(config, length, config.examples)
        parts = [examples[i : i + EVAL_ROWS] for i in range(0, len(examples), EVAL_ROWS)]
        result[length] = sum(sum(right(model, config, part)) for part in parts) / len(examples)
        if progress:
            progress(1)
    return result


def _right_targets(model, config, examples) -> list[bool]:
    ids, mask = collate(examples, model.device)
    right = torch.ones_like(mask)
    right[mask.bool()] = (target_logits(model, ids, mask).argmax(dim=-1) == ids[mask.bool()]).float()
    return right.all(dim=1).tolist()


def _right_answers(model, config, examples) -> list[bool]:
    prompts = [encode(prompt) for prompt, _ in examples]
    room = max(len(encode(target)) for _, target in examples) + SPARE
    written = sample(model, prompts, Sampling(room, (EOS,), temperature=0.0), seed=0, plain=True)
    answers = [final_answer(decode(t.response_ids[:-1]), parts_of(config.scratchpad)) for t in written]
    check = TASKS[config.task].check
    rows = zip(examples, written, answers, strict=True)
    return [t.finished and bool(answer) and check(prompt, answer) for (prompt, _), t, answer in rows]


def evaluation_examples(config: LengthgenConfig, length: int, n: int) -> list[tuple[str, str]]:
    """The same n examples of a length for every model. For a length in training, their prompts are held out from training.

    Some lengths have too few prompts to hold some out, such as parity of two bits. Their examples may occur in training.
    """
    rng = Random(EVAL_SEED + length)
    if config.seen(length):
        held_out = [example(config, length, rng, held_out=True) for _ in range(n)]
        if len({prompt for prompt, _ in held_out}) >= min(n, FEWEST_HELD_OUT):
            return held_out
    return [example(config, length, rng, held_out=None) for _ in range(n)]


def example(config: LengthgenConfig, length: int, rng: Random, held_out: bool | None) -> tuple[str, str]:
    """A random prompt and its target. A checksum holds out a tenth of all prompts.

    held_out: True takes one of the held-out prompts, False one of the other prompts, None one of all prompts.
    """
    for _ in range(200):
        prompt, target = TASKS[config.task].make(length, rng)
        if held_out is None or held_out == (zlib.crc32(prompt.encode()) % 10 == 0):
            break
    return prompt, expand(config.task, prompt, target, parts_of(config.scratchpad))


def longest_sequence(config: LengthgenConfig) -> int:
    """The tokens of the longest sequence in the evaluation."""
    longest = 0
    for length in config.lengths():
        rows = [(encode(p), encode(t)) for p, t in evaluation_examples(config, length, config.examples)]
        if parts_of(config.scratchpad):
            longest = max(longest, max(len(p) for p, _ in rows) + max(len(t) for _, t in rows) + SPARE)
        longest = max(longest, max(len(p) + len(t) + 1 for p, t in rows))
    return longest


def collate(examples: list[tuple[str, str]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """-> ids [B, T] of prompt, target, end and padding; a mask [B, T] that is 1.0 on target and end

    The padding needs no attention mask: it stands on the right, and causal attention does not see it.
    """
    rows = [(encode(prompt), [*encode(target), EOS]) for prompt, target in examples]
    T = max(len(prompt) + len(target) for prompt, target in rows)
    ids = [[*prompt, *target, *[PAD] * (T - len(prompt) - len(target))] for prompt, target in rows]
    mask = [[0.0] * len(p) + [1.0] * len(t) + [0.0] * (T - len(p) - len(t)) for p, t in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
