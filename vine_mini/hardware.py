"""What a device is large enough for."""

import torch

LOGITS = 1 << 25  # logits that exist at once: 134 MB in float32


def logits_at_once(device) -> int:
    """How many logits may exist at once. On a GPU: a 64th of its memory, because products of few rows do not keep it busy."""
    return max(LOGITS, torch.cuda.get_device_properties(device).total_memory // 256) if device.type == "cuda" else LOGITS
