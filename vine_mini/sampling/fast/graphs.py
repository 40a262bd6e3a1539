"""CUDA graphs. A small model on a GPU spends most of its time on launching kernels; a graph launches all of them at once.

A graph has fixed shapes and reads fixed places in memory. Sizes are therefore rounded up, so that few shapes occur.
"""

import torch


class Graphs:
    """Runs a function on the GPU as a CUDA graph from its shape's second run on. `fixed`: whether shapes must be fixed"""

    def __init__(self, device):
        self.fixed = device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.fixed else None
        self.replays: dict = {}  # shape -> function, or None after the first run

    def run(self, shape, function):
        """The function's result. The function may only read tensors that stay in place."""
        if not self.fixed:  # on a CPU nothing is captured
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
