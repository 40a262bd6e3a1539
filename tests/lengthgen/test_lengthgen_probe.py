"""Probes of positions: the regression against its closed form, the construction, and what must hide positions."""

from copy import deepcopy

import torch

from vine_mini import cli
from vine_mini.lengthgen import pictures, theory
from vine_mini.lengthgen import probe as probe_module
from vine_mini.lengthgen import train as train_module
from vine_mini.lengthgen.config import LengthgenConfig, decoder_config
from vine_mini.lengthgen.probe import RIDGE, fit, means, places, probe, probe_folder
from vine_mini.lengthgen.train import Decoder, make_optimizer, train


def built_batches(lengths, rows=12, bos=theory.BOS):
    for n in lengths:
        ids = torch.randint(1, theory.VOCAB, (rows, n), generator=torch.Generator().manual_seed(n))
        ids[:, 0] = bos
        yield ids, (torch.arange(n) > 0).expand(rows, n)


def test_the_fit_is_ridge_regression_with_an_intercept():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, dtype=torch.float64, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5], dtype=torch.float64) + 7
    assert 1 - fit(x, y).r2(x, y) < 1e-9
    noisy = y + torch.randn(200, dtype=torch.float64, generator=generator)
    centred = x - x.mean(0)
    rows = torch.cat([centred, (RIDGE * centred.square().sum() / 5).sqrt() * torch.eye(5, dtype=torch.float64)])
    by_rows = torch.linalg.lstsq(rows, torch.cat([noisy - noisy.mean(), torch.zeros(5, dtype=torch.float64)])[:, None]).solution
    torch.testing.assert_close(fit(x, noisy).weight, by_rows[:, 0])
    assert fit(x, noisy).r2(x, torch.full((200,), 1.0, dtype=torch.float64).cumsum(0)) < 0.1  # another target


def test_the_construction_writes_one_over_t_in_a_head_and_t_after_the_layer():
    built = theory.build(39)
    found = probe(built, [*built_batches((8, 12))], {"seen": [*built_batches((9, 12))], "longer": [*built_batches((20, 40))]})
    for lengths in ("seen", "longer"):
        assert found["layer 1, head 1"]["1/t"][lengths] > 1 - 1e-9
        assert found["after layer 1"]["t"][lengths] > 1 - 1e-9 and found["after layer 2"]["t"][lengths] > 1 - 1e-9
    assert found["layer 1, head 1"]["t"]["seen"] < 0.9 and abs(found["layer 1, head 2"]["t"]["seen"]) < 0.01  # writes nothing


def test_without_bos_the_construction_writes_no_position():
    """Theorem 1 needs a constant first token. Tokens at random tell nothing either."""
    batches = [*built_batches((16,), rows=300, bos=1)]
    found = probe(theory.build(15), batches, {"seen": [*built_batches((16,), rows=301, bos=1)]})
    assert all(found[place]["t"]["seen"] < 0.1 for place in ("embeddings", "layer 1, head 1", "after layer 1"))


def test_places_are_those_of_a_forward_pass():
    model = Decoder(decoder_config(LengthgenConfig(hidden=16, heads=2, layers=2), "nope")).eval()
    ids = torch.randint(0, 9, (2, 7), generator=torch.Generator().manual_seed(0))
    found = places(model, ids)
    out = model.model(input_ids=ids, output_attentions=True, use_cache=False)
    assert list(found) == ["embeddings", "layer 1, head 1", "layer 1, head 2", "after layer 1", "after layer 2"]
    torch.testing.assert_close(model.model.norm(found["after layer 2"].float()), out.last_hidden_state)
    layer = model.model.layers[0]
    v = layer.attention.qkv(layer.attention_norm(model.model.embed(ids))).view(2, 7, 3, 2, -1)[:, :, 2]  # [B, T, H, d]
    for head in (0, 1):
        expected = out.attentions[0][:, head] @ v[:, :, head]
        torch.testing.assert_close(found[f"layer 1, head {head + 1}"].float(), expected)


def test_probes_are_tested_on_other_draws_and_the_untrained_network_is_where_training_began(monkeypatch):
    settings = dict(task="sort", train_lengths=[4, 5], test_lengths=[6, 7], encodings=["nope"], seeds=[3, 5], hidden=16, heads=2)
    config, starts, calls = LengthgenConfig(**settings, updates=1, batch_size=1), [], []
    monkeypatch.setattr(
        train_module, "make_optimizer", lambda model, c: starts.append(deepcopy(model)) or make_optimizer(model, c)
    )
    for seed in config.seeds:
        train(config, "nope", seed)
    monkeypatch.setattr(probe_module, "load_model", lambda folder, config, name, seed: seed)
    monkeypatch.setattr(probe_module, "probe", lambda *of: calls.append(of) or {})
    probe_folder({"settings": settings}, "", 4)
    networks = [network for network, *_ in calls]
    assert networks[:4:2] == config.seeds and len(networks) == 5
    for untrained, start in zip(networks[1:4:2], starts, strict=True):
        assert all(torch.equal(*pair) for pair in zip(untrained.parameters(), start.parameters(), strict=True))
    for _, training, tests in calls:
        fitted, seen, longer = ({tuple(row) for ids, _ in part for row in ids.tolist()} for part in (training, *tests.values()))
        assert len(fitted) == len(seen) == len(longer) == 2 * 4 and not fitted & seen
        assert max(map(len, seen)) == max(map(len, fitted)) < min(map(len, longer))


def test_means_are_over_seeds():
    table = {"trained": [{"place": {"t": {"seen": a}, "1/t": {"seen": 0.0}}} for a in (0.2, 0.4)]}
    assert abs(means(table)["trained"]["place"]["t"]["seen"] - 0.3) < 1e-12


def test_each_point_of_the_picture_stands_above_its_place(monkeypatch, tmp_path):
    """The construction has four heads, and its "after layer 1" stood above another network's fifth head."""
    shares = {"t": {"seen": 0.5, "longer": 0.1}, "1/t": {"seen": 0.5, "longer": 0.1}}
    heads = [f"layer 1, head {k + 1}" for k in range(8)]
    trained = {place: shares for place in ("embeddings", *heads, "after layer 1")}
    built = {place: shares for place in ("embeddings", *heads[:4], "after layer 1")}
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.extend(figure.axes[0].get_lines()))
    pictures.plot_probe({"trained": trained, "constructed": built}, {"task": "sum", "settings": {"scratchpad": "none"}}, tmp_path)
    assert [list(line.get_xdata()) for line in drawn[:4]] == [[*range(10)]] * 2 + [[0, 1, 2, 3, 4, 9]] * 2


def test_prompts_that_differ_at_one_position_have_nothing_to_probe(tmp_path, capsys):
    small = "--updates 1 --hidden 16 --heads 2 --head_dim 8 --examples 2 --batch_size 2 --seeds 0 --processes 1".split()
    lengths = "--task sum --train_lengths 1 1 --test_lengths 2 2 --encodings nope".split()
    assert cli.main(["lengthgen", *small, *lengths, "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["lengthgen", "probe", str(tmp_path / "run"), "--examples", "2"]) == 2
    assert "nothing to probe" in capsys.readouterr().err
