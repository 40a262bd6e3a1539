"""Small inputs for the graders: tensors and a model."""

from functools import cache

import torch

from vine_mini.decoder.model import Decoder, DecoderConfig


def random(*shape, seed=0):
    """Normal random numbers in float64, the same in every call."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tensor(*rows):
    """A float64 tensor of the given rows."""
    return torch.tensor(rows, dtype=torch.float64)


@cache
def decoder():
    """A small decoder with RoPE and random weights. The logits lie far apart, so rounding cannot change the best token."""
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=17, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, encoding="rope")
    model = Decoder(config).double().eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(2.0)
    return model
