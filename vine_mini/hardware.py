"""What a device is large enough for."""

import torch

LOGITS = 1 << 25  # logits that exist at once: 134 MB in float32


def logits_at_once(device) -> int:
    """How many logits of a language-model head may exist at once. On a large GPU they take a 64th of its memory in float32.

    A matrix product of a few rows does not keep a large GPU busy. The backward pass holds three such tensors.
    """
    return max(LOGITS, torch.cuda.get_device_properties(device).total_memory // 256) if device.type == "cuda" else LOGITS
