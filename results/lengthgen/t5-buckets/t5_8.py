"""T5's relative bias with 8 exact buckets and 8 for the distances from 8 to 64, half of each, for inputs of half the length."""

import math

import torch

from vine_mini.decoder.table import Encoding


def bias(distance, t, config, w):
    """distance [B, Q, K] -> [B, H, Q, K]"""
    distance = distance.clamp(min=0)
    far = 8 + (8 * (distance.clamp(min=1) / 8).log() / math.log(64 / 8)).long()
    return w["table"][torch.where(distance < 8, distance, far.clamp(max=15))].permute(0, 3, 1, 2)


def table(config):
    """The parameters."""
    return {"table": torch.zeros(16, config.num_attention_heads)}


ENCODING = Encoding("T5 bias, half", bias=bias, slow=True, parameters=table)
