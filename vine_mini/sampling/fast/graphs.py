"""CUDA graphs. A small model on a GPU spends most of its time on launching kernels; a graph launches all of them at once.

A graph has fixed shapes, reads fixed places in memory, and cannot wait for a number to reach the CPU.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class GraphError(RuntimeError):
    """PyTorch could not capture a graph."""


class WaitsForGPU(RuntimeError):
    """A model's forward pass waits for a number from the GPU, so it cannot be a graph."""


def uses_graphs(device) -> bool:
    """Whether positions are decoded as CUDA graphs on this device."""
    return device.type == "cuda"


@contextmanager
def replaying(device):
    """Gives run(shape, function). It calls the function, and from the shape's second run on it replays the function as a graph.

    The function may only read and write tensors that stay in place. All graphs share a new pool of memory. They are destroyed
    together at the end, because destroying one clears workspaces that other graphs use (PyTorch issue 193402).
    """
    replays = {}  # shape -> graph, or None after the first run
    pool = torch.cuda.graph_pool_handle()

    def run(shape, function) -> None:
        if shape not in replays:  # the first run is also the warm-up that a capture needs
            replays[shape] = None
            with _NoWaiting():
                return function()
        if replays[shape] is None:
            replays[shape] = _capture(function, pool)
        replays[shape].replay()

    with torch.cuda.device(device):
        try:
            yield run
        finally:
            torch.cuda.synchronize()
            replays.clear()


class _NoWaiting(TorchDispatchMode):
    """Raises an error where an operation would wait for the GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            other = args[1].device if len(args) > 1 else torch.device((kwargs or {}).get("device") or args[0].device)
            if other.type != args[0].device.type:
                raise WaitsForGPU(f"its forward pass copies between {args[0].device.type} and {other.type}")
        picks = function in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
        shape_of_data = torch.Tag.dynamic_output_shape in function.tags
        if picks:  # by a mask or by numbers
            shape_of_data = any(index is not None and index.dtype == torch.bool for index in args[1])
        if shape_of_data or torch.Tag.data_dependent_output in function.tags:
            raise WaitsForGPU(f"its forward pass waits for the GPU ({function})")
        return function(*args, **kwargs or {})


def _capture(function, pool):
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            function()
    except Exception as error:
        first = error.__context__ or error  # the end of a capture that has failed raises an error of its own
        if isinstance(first, torch.OutOfMemoryError):
            raise first from None
        raise GraphError(f"no CUDA graph could be captured: {first}") from error
    return graph
