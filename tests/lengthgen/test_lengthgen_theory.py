"""Theorems 1 and 2 in the real decoder, with what must break them; the distance between attentions."""

import math

import pytest
import torch

from vine_mini.decoder.positions import alibi_slopes
from vine_mini.lengthgen import theory
from vine_mini.lengthgen.attention import OFFICIAL, entropy, jensen_shannon, layer_distance, of_each_seed, summary, swapped


def sequence(length, batch=2):
    ids = torch.randint(1, theory.VOCAB, (batch, length + 1), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = theory.BOS
    return ids, torch.arange(1, length + 2)


@pytest.mark.parametrize("length", [2, 15, 63, 127, 511])
def test_theorem_1_layer_one_writes_the_position(length):
    ids, truth = sequence(length)
    model = theory.build(length)
    assert (theory.read_positions(model, ids) - truth).abs().max() < 1e-9
    assert (theory.read_positions(model.float(), ids) - truth).abs().max() < 1e-3


def test_theorem_1_leaves_everything_else_alone():
    ids, _ = sequence(15)
    model = theory.build(15, layers=1)
    after = model.model(input_ids=ids, use_cache=False).last_hidden_state
    before = model.model.embed(ids)
    others = [i for i in range(model.config.hidden_size) if i != theory.POSITION]
    assert torch.equal(after[..., others], before[..., others])


@pytest.mark.parametrize("large, tolerance", [(1e2, 0.2), (1e4, 2e-5), (1e6, 2e-9)])
def test_rmsnorm_can_be_bypassed_the_better_the_larger_the_constant(large, tolerance):
    ids, truth = sequence(31)
    error = (theory.read_positions(theory.build(31, large=large), ids) - truth).abs().max()
    assert tolerance / 1000 < error < tolerance


def test_controls_each_ingredient_is_needed():
    length = 31
    ids, truth = sequence(length)
    model = theory.build(length)
    T = length + 1
    everything = theory.read_positions(model, ids, torch.zeros(2, 1, T, T))
    torch.testing.assert_close(everything, torch.full((2, T), float(T), dtype=torch.float64))  # each sees <bos> with 1 / T
    no_bos = ids.clone()
    no_bos[:, 0] = 1
    got = theory.read_positions(model, no_bos)
    torch.testing.assert_close(got, torch.full_like(got, 2 * length + 1))  # attention wrote 0 everywhere
    two = ids.clone()
    two[:, 1] = theory.BOS
    torch.testing.assert_close(theory.read_positions(model, two)[:, 1:], (truth[1:] / 2).double().expand(2, -1), atol=0.2, rtol=0)


def test_beyond_the_built_range_the_count_flattens_as_derived():
    length = 31
    ids, truth = sequence(3 * length)
    got = theory.read_positions(theory.build(length), ids)[0, length + 1 :]
    t = truth[length + 1 :]
    torch.testing.assert_close(got, 2 * length + 1 - length * (length + 1) / t.double())


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("length", [15, 63])
def test_theorem_2_attends_as_alibi_does(length, heads):
    ids, _ = sequence(length)
    model = theory.build(length, heads=heads)
    nope, alibi = theory.attention_of_second_layer(model, ids), theory.attention_of_alibi(model, ids)
    assert (nope - alibi).abs().max() < 1e-12
    assert (alibi[:, :, -1].amax(-1) > 1.3 / (length + 1)).all()  # far from uniform: there is something to agree on


def test_theorem_2_logits_are_content_minus_distance():
    """Without content the log of the attention falls by the slope for each step back, exactly."""
    for length, dtype, tolerance in ((63, torch.float64, 1e-9), (511, torch.float64, 1e-9), (511, torch.float32, 2e-3)):
        ids, _ = sequence(length, batch=1)
        model = theory.build(length)
        q = model.model.layers[1].attention.qkv.weight.view(3, 4, model.config.head_dim, -1)[0]
        q[:, 2:] = 0
        weights = theory.attention_of_second_layer(model.to(dtype), ids)[0]  # [H, T, T]
        for head, slope in enumerate(alibi_slopes(4).tolist()):
            steps = weights[head, -1, -min(length, 200) :].log().diff()  # further back float32 has no number so small
            torch.testing.assert_close(steps, torch.full_like(steps, slope), rtol=0, atol=tolerance)


# --- attention distance ----------------------------------------------------------------------------------------------------


def test_jensen_shannon_against_its_definition():
    p, q = torch.tensor([0.99, 0.01], dtype=torch.float64), torch.tensor([0.01, 0.99], dtype=torch.float64)
    m = (p + q) / 2
    kl = lambda a, b: (a * (a / b).log()).sum()  # noqa: E731
    assert jensen_shannon(p, q).item() == pytest.approx(((kl(p, m) + kl(q, m)) / 2).item(), abs=1e-12)
    assert jensen_shannon(p, q).item() == pytest.approx(0.637, abs=1e-3)  # the official code's variant gives 1.614
    one, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert jensen_shannon(one, other).item() == pytest.approx(math.log(2))  # its largest value
    assert jensen_shannon(one, one).item() == 0 and entropy(one).item() == 0
    x, y = torch.rand(2, 50, 7).softmax(-1)
    torch.testing.assert_close(jensen_shannon(x, y), jensen_shannon(y, x))
    assert (jensen_shannon(x, y) >= 0).all() and (jensen_shannon(x, y) <= math.log(2)).all()


def test_the_official_divergence_against_pytorch_s_with_swapped_arguments():
    """Theirs in torch.nn.functional: the input is log P, the target the average."""
    p, q = torch.rand(2, 20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    kl = lambda x: torch.nn.functional.kl_div(x.log(), (p + q) / 2, reduction="none").sum(-1)  # noqa: E731
    torch.testing.assert_close(swapped(p, q), (kl(p) + kl(q)) / 2, rtol=0, atol=1e-12)
    apart = torch.tensor([0.99, 0.01], dtype=torch.float64)
    assert swapped(apart, apart.flip(0)).item() == pytest.approx(1.614, abs=1e-3)
    near = torch.tensor([0.6, 0.4], dtype=torch.float64)
    assert swapped(near, near.flip(0)).item() == pytest.approx(jensen_shannon(near, near.flip(0)).item(), rel=0.03)
    masked = torch.tensor([1.0, 0.0])
    assert swapped(masked, masked).item() == 0 and swapped(masked, masked.flip(0)).isfinite()


def test_the_official_distance_pairs_a_head_of_nope_with_earlier_heads_only():
    """In the official analyzer, of a pair of head numbers the first is the encoding's and the second, larger one is NoPE's."""
    p, q, lengths = attention(3, 6, 0), attention(3, 6, 1), torch.tensor([6, 4])
    got = layer_distance(p, q, lengths, OFFICIAL)
    for b, n in enumerate(lengths.tolist()):
        pairs = [swapped(p[b, i, :n], q[b, j, :n]).mean() for i, j in ((1, 0), (2, 0), (2, 1))]
        assert got[b].item() == pytest.approx(min(pairs).item(), abs=1e-12)
    assert (layer_distance(p, p, lengths, OFFICIAL) > 0).all()  # a head is never compared with itself
    like_the_second = q.clone()
    like_the_second[:, 0] = p[:, 1]  # the other model's first head is NoPE's second one
    assert layer_distance(p, like_the_second, lengths, OFFICIAL).abs().max() < 1e-12
    assert (layer_distance(like_the_second, p, lengths, OFFICIAL) > 0).all()


def test_distances_of_each_seed():
    table = {2: [[0.1, 0.3], [0.2, 0.2], [0.5, 0.7], [0.6, 0.6]], 9: [[1.0, 1.0], [2.0, 2.0]]}  # two sequences, then one
    assert of_each_seed(table, 2) == pytest.approx([(0.2 + 0.2 + 1) / 3, (0.6 + 0.6 + 2) / 3])


def attention(heads, T, seed):
    logits = torch.randn(2, heads, T, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def test_layer_distance_is_the_least_over_all_pairs_of_heads_and_ignores_padding():
    p, q = attention(3, 6, 0), attention(2, 6, 1)
    lengths = torch.tensor([6, 4])
    got = layer_distance(p, q, lengths)
    for b, n in enumerate(lengths.tolist()):
        pairs = [jensen_shannon(p[b, i, :n], q[b, j, :n]).mean() for i in range(3) for j in range(2)]
        assert got[b].item() == pytest.approx(min(pairs).item(), abs=1e-12)
    torch.testing.assert_close(layer_distance(p, p[:, [2, 0, 1]], lengths), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(got, layer_distance(q, p, lengths))


def test_summary_averages_layers_and_lengths():
    table = {"t5": {2: [[0.1, 0.3], [0.3, 0.5]], 9: [[0.8, 0.6]]}}
    got = summary(table, longest=5)["t5"]
    assert got["layer 1"] == pytest.approx(0.4) and got["layer 2"] == pytest.approx(1.4 / 3)
    assert got["all layers"] == pytest.approx(1.3 / 3)
    assert got["seen lengths"] == pytest.approx(0.3) and got["longer"] == pytest.approx(0.7)
