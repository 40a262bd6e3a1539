"""What a device has, and what it is large enough for."""

import os

import torch

LOGITS = 1 << 25  # logits that exist at once: 134 MB in float32


def logits_at_once(device) -> int:
    """How many logits may exist at once. On a GPU: a 64th of its memory, because products of few rows do not keep it busy."""
    return max(LOGITS, memory(device) // 256) if device.type == "cuda" else LOGITS


def memory(device) -> int:
    """Bytes of the device's memory, used or free. 16 GiB where the system does not tell, as on Windows."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 16 << 30
