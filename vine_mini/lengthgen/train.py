"""Trains one decoder on short sequences and measures it on longer sequences.

Every batch has new examples of one random length. The loss counts the target's tokens only (section 3).
Deviations from the paper: the whole target must be right, its end included. The official code reads the answer out of the
sentence and ignores what follows the full stop. The model is hundreds of times smaller. Examples are fresh instead of 100,000
fixed ones, and 32 in a batch instead of 64 of mixed lengths. The learning rate is higher and falls to 5 % of its peak. T5's table
starts at 0 and has a tenth of the learning rate. AdamW's second beta is 0.98. The last weights are used instead of the weights
with the best validation. There is no dropout.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from random import Random
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from vine_mini.decoder.model import Decoder
from vine_mini.decoder.table import ENCODINGS
from vine_mini.health import finite, located
from vine_mini.lengthgen.config import LengthgenConfig, decoder_config
from vine_mini.lengthgen.scratchpad import expand, final_answer, parts_of
from vine_mini.lengthgen.tasks import TASKS
from vine_mini.lengthgen.vocabulary import EOS, IDS, PAD, decode, encode
from vine_mini.logprobs import logits_of
from vine_mini.sampling import sample
from vine_mini.types import Sampling

EVAL_SEED = 1_000_003  # the examples of an evaluation are the same for every run
FEWEST_HELD_OUT, DRAWS = 10, 200  # different prompts, and among how many draws
EVAL_ROWS = 500  # sequences in a forward pass
SPARE = 16  # a written scratchpad may be so many tokens longer than the longest right one


@dataclass(frozen=True)
class Draw:
    """How an encoding with position ids of its own draws them: below `largest`, for sequences of `width` tokens."""

    largest: int
    width: int
    generator: torch.Generator


def train(config: LengthgenConfig, encoding: str, seed: int, device="cpu", progress=None) -> Decoder:
    """Trains a new decoder. -> the model, in eval mode

    The optimizer is AdamW with betas (0.9, 0.98). Gradients are clipped to norm 1. The learning rate rises over 6 % of the
    updates, then falls linearly to 5 %. `progress` is called with 1 after each update. Raises Diverged, which says what is not
    finite in which update.
    """
    torch.manual_seed(seed)
    rng = Random(seed)
    model = Decoder(decoder_config(config, encoding)).to(device).train()
    optimizer = make_optimizer(model, config)
    warmup, total = max(1, round(0.06 * config.updates)), config.updates
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / warmup, 1 - 0.95 * max(0, done - warmup) / max(1, total - warmup))
    )
    lengths = TASKS[config.task].lengths(*config.train_lengths)
    weights = [TASKS[config.task].weight(length) for length in lengths]
    draw, losses = Draw(config.max_positions, widths(encoding, config)[0], torch.Generator().manual_seed(seed)), list[float]()
    for update in range(config.updates):
        [length] = rng.choices(lengths, weights) if config.by_example else [rng.choice(lengths)]
        ids, mask = collate([example(config, length, rng, held_out=False) for _ in range(config.batch_size)], device)  # [B, T]
        tokens = SimpleNamespace(input_ids=ids, attention_mask=ids != PAD)
        with located(f"{encoding}, seed {seed}, update {update + 1}", tokens, torch.arange(len(ids)), {"loss": losses}):
            loss = F.cross_entropy(target_logits(model, ids, mask, draw), ids[mask.bool()])
            finite("the loss", loss).backward()
            losses.append(loss.item())
            finite("the gradient", torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if progress:
            progress(1)
    return model.eval()


def make_optimizer(model, config: LengthgenConfig):
    """AdamW in two groups: matrices, and the parameters of an encoding that act on attention logits.

    The second group has no weight decay, and `encoding_lr` times the learning rate if the encoding is `slow`. Of the table's
    encodings only T5's bias is. AdamW moves a parameter by at most about the sum of the learning rates. That is lr x updates / 2
    with this schedule: 0.6 in the paper (3e-5 and 40,000 updates), and at the full rate 2 to 18 here. Such large biases could let
    T5's table become a code for the positions that training has. In short runs (not kept) T5 was better on longer inputs with a
    tenth of the rate. Vectors that are added to embeddings (the learned table) are matrices.
    """
    encoding = ENCODINGS[getattr(model.config, "encoding", "nope")]
    small = {name for name, _ in model.named_parameters() if ".encoding." in name and not encoding.vectors}
    groups: list = [
        {"params": [p for name, p in model.named_parameters() if name not in small]},
        {
            "params": [p for name, p in model.named_parameters() if name in small],
            "lr": (config.encoding_lr if encoding.slow else 1) * config.lr,
            "weight_decay": 0.0,
        },
    ]
    return torch.optim.AdamW(groups, config.lr, (0.9, 0.98), weight_decay=config.weight_decay, fused=True)


def target_logits(model: Decoder, ids, mask, draw: Draw | None = None):
    """The logits that predict each target token, row by row. ids, mask [B, T] -> [n, V]

    An encoding with ids of its own needs `draw`.
    """
    keep = columns_of_targets(mask)
    position_ids = own_ids(model, ids, mask, draw)
    h = model.model(input_ids=ids, position_ids=position_ids, use_cache=False, keep=keep).last_hidden_state  # [B, keep, D]
    return logits_of(model, h[:, :-1][mask[:, 1 - keep :].bool()])  # the state before a token predicts it


def columns_of_targets(mask) -> int:
    """The number of columns from the one before the first target on. mask [B, T]"""
    return mask.shape[1] - int(mask.any(dim=0).nonzero()[0]) + 1


def own_ids(model: Decoder, ids, mask, draw: Draw | None):
    """The position ids of an encoding that computes its own, [B or 1, T]; None for the others. ids, mask [B, T]

    Ids are drawn for draw.width tokens, and a sequence has the first T of them. If they were drawn for T tokens, their spacing
    would tell the model how long the answer is. In training, one draw serves a batch. In an evaluation each example has its own.
    """
    own = ENCODINGS[model.config.encoding].ids
    if own is None:
        return None
    assert draw is not None, "ids of its own need a draw"
    is_digit = torch.isin(ids, torch.tensor([IDS[digit] for digit in "0123456789"], device=ids.device))
    T, rows = ids.shape[1], len(ids) if model.training else 1
    padded = [F.pad(x, (0, max(0, draw.width - T))).split(rows) for x in (is_digit, mask.bool())]  # [rows, width] each
    found = [own(*part, draw.largest, draw.generator)[:, :T] for part in zip(*padded, strict=True)]
    return torch.cat(found).to(ids.device)


def widths(encoding: str, config: LengthgenConfig) -> tuple[int, int]:
    """For how many tokens an encoding with ids of its own draws them: on seen lengths, on longer ones. 0, 0 for the others."""
    if ENCODINGS[encoding].ids is None:
        return 0, 0
    return longest_sequence(config, filter(config.seen, config.lengths())), longest_sequence(config, config.lengths())


@torch.no_grad()
def evaluate(model: Decoder, config: LengthgenConfig, progress=None) -> dict[int, float]:
    """The share of right answers under greedy decoding. -> length -> share, for each length in training and in the test

    Without a scratchpad the whole target must be right. One forward pass decides this: greedy decoding writes the target if and
    only if the target's token is the most likely token at every position, given the target's tokens before it. With a scratchpad
    only the answer after the steps must be right. The response is then written token by token, and the answer is checked.
    """
    result = {}
    right, seen, longer = _right_answers, 0, 0
    if not parts_of(config.scratchpad):
        right, (seen, longer) = _right_targets, widths(model.config.encoding, config)
    for length in config.lengths():
        examples = evaluation_examples(config, length, config.examples)
        width, generator = seen if config.seen(length) else longer, torch.Generator().manual_seed(EVAL_SEED + length)
        draw = Draw(config.max_positions, width, generator)
        parts = [examples[i : i + EVAL_ROWS] for i in range(0, len(examples), EVAL_ROWS)]
        result[length] = sum(sum(right(model, config, part, draw)) for part in parts) / len(examples)
        if progress:
            progress(1)
    return result


def _right_targets(model, config, examples, draw: Draw) -> list[bool]:
    ids, mask = collate(examples, model.device)
    right = torch.ones_like(mask)
    right[mask.bool()] = (target_logits(model, ids, mask, draw).argmax(dim=-1) == ids[mask.bool()]).float()
    return right.all(dim=1).tolist()


def _right_answers(model, config, examples, draw: Draw) -> list[bool]:  # no encoding with ids of its own comes here
    prompts = [encode(prompt) for prompt, _ in examples]
    room = max(len(encode(target)) for _, target in examples) + SPARE
    written = sample(model, prompts, Sampling(room, (EOS,), temperature=0.0), seed=0, plain=True)
    answers = [final_answer(decode(t.response_ids[:-1]), parts_of(config.scratchpad)) for t in written]
    check = TASKS[config.task].check
    rows = zip(examples, written, answers, strict=True)
    return [t.finished and bool(answer) and check(prompt, answer) for (prompt, _), t, answer in rows]


def evaluation_examples(config: LengthgenConfig, length: int, n: int) -> list[tuple[str, str]]:
    """The same n examples of a length for every model. For a length in training, their prompts are held out from training.

    Some lengths have too few prompts to hold some out: all of copy and copy-2x, parity up to six bits, SCAN of 1, 2 and 21
    actions, sums of two digits. Their examples may occur in training.
    """
    rng = Random(EVAL_SEED + length)
    if config.seen(length):
        # drawn before the question whether it can be: other draws would change the examples of the committed runs
        held_out = [example(config, length, rng, held_out=True) for _ in range(n)]
        if _can_hold_out(config.task, length):
            return held_out
    return [example(config, length, rng, held_out=None) for _ in range(n)]


def example(config: LengthgenConfig, length: int, rng: Random, held_out: bool | None) -> tuple[str, str]:
    """A random prompt and its target. A checksum holds out a tenth of all prompts.

    held_out: True takes one of the held-out prompts, False one of the other prompts, None one of all prompts. Where 200 draws
    find no such prompt, the last one is taken.
    """
    prompt, target = _draw(config.task, length, rng, held_out)
    return prompt, expand(config.task, prompt, target, parts_of(config.scratchpad))


def _draw(task: str, length: int, rng: Random, held_out: bool | None) -> tuple[str, str]:
    for _ in range(200):
        prompt, target = TASKS[task].make(length, rng)
        if held_out is None or held_out == _is_held_out(prompt):
            break
    return prompt, target


def _is_held_out(prompt: str) -> bool:
    return zlib.crc32(prompt.encode()) % 10 == 0


@cache
def _can_hold_out(task: str, length: int) -> bool:
    """Whether a length has enough different prompts that are held out."""
    rng, found = Random(EVAL_SEED + length), set[str]()
    for _ in range(DRAWS):
        found.add(_draw(task, length, rng, held_out=True)[0])
        if len(found) >= FEWEST_HELD_OUT:
            return all(map(_is_held_out, found))
    return False


def longest_sequence(config: LengthgenConfig, lengths: Iterable[int]) -> int:
    """The tokens of the longest sequence among examples of these lengths; at least 200 of each, which training may exceed."""
    longest = 0
    for length in lengths:
        examples = evaluation_examples(config, length, max(200, config.examples))
        rows = [(len(encode(p)), len(encode(t))) for p, t in examples]
        prompts, targets = zip(*rows, strict=True)
        written = max(prompts) + max(targets) + SPARE if parts_of(config.scratchpad) else max(map(sum, rows)) + 1
        longest = max(longest, written)
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
