"""What a run costs: parameters, memory of an update, and arithmetic, counted without computing anything.

A forward and a backward pass of the real model run on PyTorch's meta device, which has shapes and no numbers. A counter sees
each matrix product. A hook sees each tensor that is kept for the backward pass.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vine_mini.decoder.model import Decoder
from vine_mini.lengthgen.config import LengthgenConfig, decoder_config
from vine_mini.lengthgen.tasks import TASKS
from vine_mini.lengthgen.train import collate, columns_of_targets, evaluation_examples

SAMPLE = 64  # sequences from which a length's tokens are taken
RATE = 10e12  # floating-point operations a second: half of what an A100 reaches at most in float32 (data sheet: 19.5e12)


@dataclass(frozen=True)
class Cost:
    """The cost of one run.

    Attributes:
        parameters: of the decoder.
        state: bytes of weights, gradients and the two moments of AdamW, all in float32.
        activations: bytes that an update keeps for its backward pass, on the longest sequences in training.
        operations: floating-point operations of the whole run, without its evaluation.
    """

    parameters: int
    state: int
    activations: int
    operations: float

    def __str__(self):
        memory = (self.state + self.activations) / 2**30
        hours = self.operations / RATE / 3600
        return (
            f"{self.parameters / 1e6:.1f}M parameters; memory of an update {memory:.1f} GiB "
            f"(weights, gradients and AdamW {self.state / 2**30:.1f}, activations {self.activations / 2**30:.1f}); "
            f"{self.operations:.2g} floating-point operations a run, {hours:.1f} hours at {RATE / 1e12:.0f}e12 a second"
        )


def cost(config: LengthgenConfig, encoding: str) -> Cost:
    """The cost of a run with one encoding. Its mean update costs the mean of two: of the shortest length and of the longest.

    Operations grow almost linearly with the length, because sequences are much shorter than the decoder is wide.
    """
    shape = decoder_config(config, encoding)
    with torch.device("meta"):
        model = Decoder(shape).train()
    parameters = sum(p.numel() for p in model.parameters())
    lengths = TASKS[config.task].lengths(*config.train_lengths)
    (fewest, _), (most, kept) = (_update(model, config, length) for length in (lengths[0], lengths[-1]))
    return Cost(parameters, 16 * parameters, kept, config.updates * (fewest + most) / 2)


def _update(model: Decoder, config: LengthgenConfig, length: int) -> tuple[int, int]:
    """The floating-point operations of an update, and the bytes that it keeps for the backward pass."""
    ids, mask = collate(evaluation_examples(config, length, min(SAMPLE, config.batch_size)), "cpu")
    keep = columns_of_targets(mask)
    targets = round(mask.sum().item() / len(ids) * config.batch_size)
    tokens = torch.zeros(config.batch_size, ids.shape[1], dtype=torch.long, device="meta")
    kept: dict[int, int] = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):  # weights are kept anyway
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            hidden = model.model(input_ids=tokens, use_cache=False, keep=keep).last_hidden_state
            logits = model.lm_head(hidden.flatten(0, 1)[:targets])  # the rows of the targets
            loss = F.cross_entropy(logits, torch.zeros(targets, dtype=torch.long, device="meta"))
        loss.backward()
    model.zero_grad()
    return counter.get_total_flops(), sum(kept.values())
