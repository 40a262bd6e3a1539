"""Which models `slots` can serve: asked of the model itself, because names of architectures would soon be out of date."""

import copy
import warnings
import weakref

import torch
from transformers import DynamicCache

from vine_mini.decoding import Fork
from vine_mini.slots import Slots
from vine_mini.trunks import Forks

_SUPPORTED = weakref.WeakKeyDictionary()  # model -> bool


def supports(model) -> bool:
    """Whether this model's forks can share trunks: asked of the model itself, once, with a short fork of a short trunk."""
    if model not in _SUPPORTED:
        try:
            with torch.autocast(model.device.type, enabled=False):  # an evaluation in bfloat16 may be the first to ask
                _SUPPORTED[model] = _is_exact(model)
        except Exception as error:  # whatever an architecture with another kind of attention or cache makes of this one
            _SUPPORTED[model], why = False, f" ({type(error).__name__})"
        else:
            why = ""
        if not _SUPPORTED[model]:
            warnings.warn(f"{type(model).__name__} cannot share prefixes{why}: it samples the plain, slower way", stacklevel=2)
    return _SUPPORTED[model]


@torch.no_grad()
def _is_exact(model) -> bool:
    """Log-probs of two forks against those of one forward pass; and each layer must tell its sliding window, if it has one.

    Asked of a float32 copy, so that rounding cannot hide or feign a difference.
    """
    if model.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    trunk = [1, 2, 3, 4, 5, 6]
    forks = Forks([Fork(0, 4, 4), Fork(0, 2, 6)], torch.tensor([[0.4] * 6, [0.7] * 6]), 1.0, 1.0, [-1], model.device)
    slots = Slots(model, forks)
    windows, attend = {}, slots._attend

    def spy(*args, sliding_window=None, **kwargs):
        windows[slots.layer] = sliding_window
        return attend(*args, sliding_window=sliding_window, **kwargs)

    slots._attend = spy
    slots.run([trunk], 2, lambda n: None)
    gap = 0.0
    for start, (tokens, logprobs, _) in zip((4, 2), forks.results(), strict=True):
        ids = torch.tensor([trunk[:start] + tokens], device=model.device)
        scored = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float().log_softmax(dim=-1)  # [n, V]
        sampled = torch.tensor(logprobs, device=model.device)
        gap += float((scored.gather(1, ids[0, start:, None])[:, 0] - sampled).abs().sum())
    layers = DynamicCache(config=model.config).layers
    configured = {n: getattr(layer, "sliding_window", None) for n, layer in enumerate(layers)}
    return gap < 1e-2 and windows == configured
