"""Which models the fast way supports. Each model is tried out, because a list of architectures would soon be out of date."""

import copy
import warnings
import weakref

import torch
from transformers import DynamicCache

from vine_mini.logprobs import response_logprobs
from vine_mini.sampling.fast import complete
from vine_mini.sampling.fast.attention import use_attention
from vine_mini.sampling.fast.graphs import GraphError
from vine_mini.sampling.plain import Request
from vine_mini.types import Sampling, collate, on_response

_ANSWERS = weakref.WeakKeyDictionary()  # model -> its way


def way(model) -> str:
    """How this model is sampled: "fast", or "plain" and the reason. Each model is tried once. If it fails, there is a warning.

    Errors of CUDA are raised, because they do not tell whether the fast way is right for the model.
    """
    if model not in _ANSWERS:
        try:
            with torch.autocast(model.device.type, enabled=False):  # the caller may be in an autocast to bfloat16
                why = "" if _is_exact(model) else "its log-probs would be wrong"
        except (GraphError, torch.AcceleratorError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # an architecture with another kind of attention or cache can raise anything here
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        _ANSWERS[model] = f"plain: {why}" if why else "fast"
        if why:
            warnings.warn(f"{type(model).__name__} cannot share prefixes ({why}): it samples the plain, slower way", stacklevel=2)
    return _ANSWERS[model]


@torch.no_grad()
def _is_exact(model) -> bool:
    """Whether the fast way gives the log-probs of a forward pass.

    A sliding window is often longer than these few tokens, so each layer must also pass its window to the attention function.
    """
    if any(p.dtype != torch.float32 for p in model.parameters()):
        model = copy.deepcopy(model).float()  # rounding could hide a difference or look like one
    if _windows(model) != [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=model.config).layers]:
        return False
    return sampling_gap(model, complete) < 1e-2


@torch.no_grad()
def sampling_gap(model, complete) -> float:
    """Samples two requests on one trunk. -> the sum of |sampled log-prob - log-prob of a forward pass over the whole sequence|

    `complete` samples: `plain.complete`, or a function with the same arguments and result.
    """
    trunk = _trunk(model)
    requests, uniforms = [Request(0, 4, 4), Request(0, 2, 6)], torch.tensor([[0.4] * 6, [0.7] * 6])
    never_ends = Sampling(max_new_tokens=6, eos_token_id=(-1,), batch_size=2)
    done = complete(model, [trunk], requests, uniforms, never_ends, lambda n: None)
    tokens = collate(done, model.device)
    scores = response_logprobs(model, tokens.input_ids, tokens.attention_mask, tokens.response_mask)  # [2, T]
    return float((scores - on_response([t.logprobs for t in done], tokens.response_mask)).abs().sum())


def _trunk(model) -> list[int]:
    return [i % model.get_input_embeddings().num_embeddings for i in range(1, 7)]


def _windows(model) -> list:
    """The sliding window that each layer passes to its attention function, None where there is no window."""
    windows = []

    def attend(module, query, key, value, attention_mask, sliding_window=None, **kwargs):
        windows.append(sliding_window)
        return query.transpose(1, 2), None  # any numbers of the right shape

    with use_attention(model, attend):
        model.base_model(input_ids=torch.tensor([_trunk(model)], device=model.device), use_cache=False)
    return windows
