"""CUDA graphs. A small model on a GPU spends most of its time on launching kernels; a graph launches all of them at once.

A graph has fixed shapes and reads fixed places in memory. Sizes are therefore rounded up, so that few shapes occur. On a
CPU nothing is captured and shapes are exact.
"""

import torch

from vine_mini.sampling.fast.cache import SlotCache
from vine_mini.sampling.fast.layout import Shape
from vine_mini.sampling.fast.table import Table


def shape_of(table: Table, lead, cache: SlotCache, fixed: bool) -> Shape:
    """The shape of the next position, exact or rounded up. lead [n]: one request of each slot"""
    lead = lead[lead != table.spare]
    trunk, branch = table.trunk[lead], table.branch[lead]
    own, crowd = int((table.start[lead] + table.length[lead] - branch).max()), int(torch.bincount(trunk).max())
    if not fixed:
        return Shape(own, crowd, int(branch.max()), int(trunk.min()), int(trunk.max()) + 1)
    G, _, _, L = cache.trunk_keys[0].shape
    own, crowd = -(-own // 64) * 64, -(-crowd // 8) * 8
    return Shape(min(own, cache.keys[0].shape[3]), crowd + 1, L, 0, G)  # unused slots have a rank of their own


class Graphs:
    """Runs a function on the GPU as a CUDA graph from its shape's second run on. `fixed`: whether shapes must be fixed"""

    def __init__(self, device):
        self.fixed = device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.fixed else None
        self.replays: dict = {}  # shape -> function, or None after the first run

    def run(self, shape: Shape, function):
        """The function's result. The function may only read tensors that stay in place."""
        if not self.fixed:
            return function()
        if shape not in self.replays:  # the first run is also the warm-up that a capture needs
            self.replays[shape] = None
            return function()
        if self.replays[shape] is None:
            self.replays[shape] = _capture(function, self.pool)
        return self.replays[shape]()


def _capture(function, pool):
    """A CUDA graph of the function, in the pool's memory. -> a function that replays the graph and returns its result"""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = function()

    def replay():
        graph.replay()
        return result

    return replay
