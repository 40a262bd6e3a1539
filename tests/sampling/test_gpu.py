"""Decoding with CUDA graphs. On a CPU the code is the same, and a stand-in for the graphs counts what is done.

With TEST_DEVICE=cuda, the tests that compare tokens use real graphs. Those that need the stand-in are skipped.
"""

import copy
import random
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE, USUAL, VOCAB, slow, supports, tiny_model
from test_fast import EOS, assert_same, flat, no_garbage_collection, rollouts_of
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from vine_mini.sampling import fast, rollouts, sample, way
from vine_mini.sampling.fast import graphs, groups
from vine_mini.types import Sampling, Trajectory

capture = graphs._capture
stand_in_only = pytest.mark.skipif(DEVICE != "cpu", reason="needs the stand-in for graphs")


@pytest.fixture
def gpu(monkeypatch):
    """Decodes as on a GPU. A "graph" is a stand-in that calls its function again, or on a GPU a graph. -> what was done"""
    log = SimpleNamespace(captures=[], closed=set(), pools=0)

    class Graph:
        def __init__(self, function, pool):
            self.pool = pool
            log.captures.append(pool)
            self.graph = capture(function, pool) if DEVICE == "cuda" else SimpleNamespace(replay=function)

        def replay(self):
            assert self.pool not in log.closed, "a graph is replayed after another one of its pool was destroyed"
            self.graph.replay()

        def __del__(self):
            log.closed.add(self.pool)

    def new_pool():
        log.pools += 1
        return log.pools

    monkeypatch.setattr(graphs, "_capture", Graph)
    if DEVICE == "cuda":
        return log
    monkeypatch.setattr(fast, "uses_graphs", lambda device: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", new_pool)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return log


@pytest.mark.parametrize("architecture", USUAL)
@pytest.mark.parametrize("size", [4, slow(50), slow(1)])
def test_rollouts_equal_the_plain_way(architecture, size, gpu):
    model = tiny_model(architecture)
    quick, plain = (flat(rollouts_of(model, batch_size=size, plain=plain)[0]) for plain in (False, True))
    assert_same(quick, plain)
    assert gpu.captures and way(model) == "fast"


def test_top_p_and_greedy_rollouts(llama, gpu):
    for changes in (dict(temperature=0), dict(temperature=0.6, top_p=0.7)):
        assert_same(*(flat(rollouts_of(llama, batch_size=9, plain=plain, **changes)[0]) for plain in (False, True)))


class Kernels(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **kwargs or {})


@stand_in_only
@pytest.mark.parametrize("trunks, slots", [(5, 12), slow(48, 128)])
def test_limits(trunks, slots, gpu, monkeypatch):
    """At most 12 graphs, twice the slots that are in use, one wait in sixteen positions, and one kernel a position outside graphs.

    Responses have 1 to 48 tokens. There are two or three chunks.
    """
    model, generator = tiny_model("llama"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.05)  # nearly equal probabilities, so that lengths differ
    ids = torch.randint(0, VOCAB, (trunks, 48), generator=generator).tolist()
    trajectories, cuts = [Trajectory(row[:12], row[12:], [0.0] * 36, False) for row in ids], [[0, 12, 24]] * trunks
    assert supports(model)
    gpu.captures.clear()
    places, used, waits, chunks, addresses, kernels = [], [], [], [], set(), Kernels()
    step, decode = groups.Groups._next_position, groups.Groups.decode

    def watched(self, model, shape):
        places.append(shape.last * shape.crowd)
        used.append((~self.table.done(self.member)).sum())
        tensors = self.member, *self.cache.keys, *self.cache.values, *self.cache.trunk_keys, *self.cache.trunk_values
        addresses.add(tuple(x.data_ptr() for x in tensors))
        step(self, model, shape)

    def counted(self, *args):
        chunks.append(self)
        with monkeypatch.context() as m, kernels:
            for name in ("tolist", "item", "cpu", "nonzero", "__bool__", "__int__"):
                m.setattr(torch.Tensor, name, wait(getattr(torch.Tensor, name)))
            decode(self, *args)

    def wait(method):
        return lambda self, *args: (waits.append(method), method(self, *args))[1]

    monkeypatch.setattr(groups.Groups, "_next_position", _disable_current_modes()(watched))  # a graph is one kernel
    monkeypatch.setattr(groups.Groups, "decode", counted)
    rollouts(model, trajectories, cuts, Sampling(48, (3,), batch_size=slots), k=9, seed=0)
    assert len(chunks) >= 2 and len(places) > 200
    assert len(gpu.captures) <= 12 and len(addresses) == 1  # a graph reads and writes where it was captured
    assert sum(places) <= 2 * sum(used)
    assert len(waits) <= len(places) / 16 + 2 * len(chunks)  # a chunk begins and ends with a look
    assert kernels.count <= 2 * len(places)


@stand_in_only
@pytest.mark.parametrize("architecture", USUAL)
def test_a_position_copies_nothing_from_the_cpu(architecture, gpu, monkeypatch):
    """On a GPU such a copy waits, and no graph can be captured with it. `x[i] = 0` is one, `x[i].zero_()` is none."""
    seen, step = set(), groups.Groups._next_position

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(function)
            return function(*args, **kwargs or {})

    def watched(*args):
        with Names():
            step(*args)

    monkeypatch.setattr(groups.Groups, "_next_position", watched)
    rollouts_of(tiny_model(architecture))
    assert torch.ops.aten.mm.default in seen or torch.ops.aten.addmm.default in seen
    assert torch.ops.aten.lift_fresh.default not in seen  # a Python number that becomes a tensor on the CPU


def test_a_copy_between_devices_is_no_part_of_a_graph():
    for copied in (lambda: torch.zeros(2, device="meta").copy_(torch.zeros(2)), lambda: torch.zeros(2).to("meta")):
        with graphs._NoWaiting(), pytest.raises(graphs.WaitsForGPU, match="copies between"):
            copied()
    with graphs._NoWaiting():
        torch.zeros(2).copy_(torch.ones(2)).to(torch.float64)


def test_slots_in_a_group():
    assert groups.slots_in_a_group([54] * 76, 512) == 8  # six states and K = 9
    assert groups.slots_in_a_group([9] * 100, 512) == 4  # 12 slots for 9 requests; groups of 8 would take 16
    assert groups.slots_in_a_group([1] * 200, 200) == 1  # greedy responses to 200 prompts
    assert groups.slots_in_a_group([54] * 76, 5) == 4 and groups.slots_in_a_group([1], 1) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_serves_each_request_once_and_on_its_trunk(seed):
    rng = random.Random(seed)
    groups_, crowd, spare = rng.randint(1, 20), rng.choice((1, 2, 4, 8)), 400
    waiting = [[row, rng.randrange(12)] for row in rng.sample(range(400), rng.randint(1, 300))]
    trunk_of, plan, served = dict(waiting), groups.Plan(groups_, crowd, spare, waiting), []
    trunk_in, rows_in = [None] * groups_, [spare] * (groups_ * crowd)  # what the tensors hold
    while True:
        ended = [row == spare or rng.random() < 0.4 for row in rows_in]
        gone = {row for row, over in zip(rows_in, ended, strict=True) if over} - {spare}
        served += gone
        assert plan.release(ended) == len(gone)
        for trunk, group in plan.fill():
            trunk_in[group] = trunk
        for source, target in plan.shrink():
            assert target < plan.live <= source
            trunk_in[target] = trunk_in[source]
        if plan.age < 0:
            break
        rows_in = plan.rows
        held = {slot: row for slot, row in enumerate(plan.rows) if row != spare}
        assert all(slot // crowd < plan.live and trunk_of[row] == trunk_in[slot // crowd] for slot, row in held.items())
        if plan.left:  # then no group is idle
            assert {slot // crowd for slot in held} == set(range(groups_))
    assert sorted(served) == sorted(trunk_of)


@stand_in_only
def test_graphs_are_destroyed_together_and_at_once(llama, gpu, monkeypatch):
    """The stand-in refuses to replay after a graph of the same pool was destroyed. Nothing keeps graphs or caches alive."""
    supports(llama)
    made, create = [], groups.SlotCache.__init__

    def note(self, *args):
        made.append(weakref.ref(self))
        create(self, *args)

    monkeypatch.setattr(groups.SlotCache, "__init__", note)
    with no_garbage_collection():
        for size in (4, 50):
            rollouts_of(llama, batch_size=size)
            assert gpu.pools in gpu.closed and not any(ref() for ref in made)
        monkeypatch.setattr(groups.Groups, "_copy", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rollouts_of(llama)
    assert len(set(gpu.captures)) == gpu.pools - 1  # a pool for each call, also for the probe; the last one failed early


@stand_in_only
def test_errors_of_cuda_are_raised_and_not_taken_for_an_architecture(llama, gpu, monkeypatch):
    """The first run of a shape finds out whether the architecture is supported. What comes later is the GPU's."""

    @contextmanager
    def refuses(graph, pool):
        raise RuntimeError("captures_underway INTERNAL ASSERT FAILED")
        yield

    for error in (torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error: misaligned address")):
        with monkeypatch.context() as m, pytest.raises(type(error)):
            m.setattr(graphs, "_capture", lambda function, pool, error=error: (_ for _ in ()).throw(error))
            supports(llama)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refuses)
    monkeypatch.setattr(graphs, "_capture", capture)
    with pytest.raises(graphs.GraphError, match="no CUDA graph could be captured: captures_underway"):
        sample(llama, [[1, 2]], Sampling(4, EOS), seed=0)

    @contextmanager
    def ends_badly(graph, pool):
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def fails(error):
        raise error

    monkeypatch.setattr(torch.cuda, "graph", ends_badly)
    with pytest.raises(graphs.GraphError, match="captured: a copy is not permitted"):
        graphs._capture(lambda: fails(RuntimeError("a copy is not permitted")), None)
    with pytest.raises(torch.OutOfMemoryError):
        graphs._capture(lambda: fails(torch.OutOfMemoryError("CUDA out of memory")), None)


@stand_in_only
def test_rope_that_waits_for_the_longest_position_is_refused_with_a_word(gpu, monkeypatch):
    """Dynamic RoPE compares a position with a number on the CPU. LongRoPE does not, so it becomes a graph."""
    sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    special = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None, max_position_embeddings=128)
    rope = dict(rope_theta=10000.0, rope_type="dynamic", factor=4.0)
    dynamic = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **special, rope_parameters=rope)).eval()
    with pytest.warns(UserWarning, match="waits for the GPU"):
        assert way(dynamic) == "plain: WaitsForGPU: its forward pass waits for the GPU (aten._local_scalar_dense.default)"
    factors = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=64)
    rope = dict(rope_theta=10000.0, rope_type="longrope", factor=2.0, **factors)
    model = AutoModelForCausalLM.from_config(Phi3Config(**sizes, **special, rope_parameters=rope)).eval()
    assert way(model) == "fast"
    assert_same(*(flat(rollouts_of(model, plain=plain)[0]) for plain in (False, True)))
    monkeypatch.setattr(fast, "uses_graphs", lambda device: False)
    assert way(copy.deepcopy(dynamic)) == "fast"  # a CPU needs no graph
