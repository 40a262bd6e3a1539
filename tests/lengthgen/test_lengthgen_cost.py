"""What a run costs, against tensors that are really kept and a count by hand."""

import pytest
import torch
import torch.nn.functional as F

from vine_mini import cli
from vine_mini.decoder.model import Decoder
from vine_mini.lengthgen.config import FullSizeConfig, LengthgenConfig, decoder_config
from vine_mini.lengthgen.cost import cost
from vine_mini.lengthgen.train import collate, evaluation_examples, target_logits

SMALL = dict(train_lengths=[5, 5], test_lengths=[6, 6], hidden=64, layers=2, heads=4, batch_size=16, updates=10)


@pytest.mark.parametrize("encoding", ["nope", "cope"])
def test_the_memory_is_that_of_a_real_update(encoding):
    config = LengthgenConfig(encodings=[encoding], **SMALL)
    model = Decoder(decoder_config(config, encoding)).train()
    ids, mask = collate(evaluation_examples(config, 5, 16), "cpu")
    kept = {}

    def count(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        F.cross_entropy(target_logits(model, ids, mask), ids[mask.bool()]).backward()
    found = cost(config, encoding)
    assert found.parameters == sum(p.numel() for p in model.parameters()) and found.state == 16 * found.parameters
    assert found.activations == pytest.approx(sum(kept.values()), rel=0.15)


@pytest.mark.parametrize("encoding", ["learned", "coupled", "rope-random", "learned-random"])
def test_encodings_with_a_table_have_a_cost(encoding):
    """The end of the table was looked for in positions without numbers."""
    task = "addition-reversed" if encoding == "coupled" else "copy"
    assert cost(LengthgenConfig(task=task, encodings=[encoding], **SMALL), encoding).operations > 0


def test_operations_are_about_six_for_each_weight_and_token():
    config = LengthgenConfig(encodings=["nope"], **SMALL)
    ids, _ = collate(evaluation_examples(config, 5, 16), "cpu")
    matrices = 2 * (4 * 64 * 256 + 8 * 64**2)  # two layers; the head has few tokens, and the last layer leaves some out
    by_hand = 10 * 6 * matrices * ids.numel()
    assert 0.7 * by_hand < cost(config, "nope").operations < 1.3 * by_hand


def test_the_full_size_preset_is_the_paper_s_shape():
    config = FullSizeConfig()
    assert (config.layers, config.hidden, config.heads, config.batch_size, config.updates, config.lr) == (
        12,
        768,
        12,
        64,
        40_000,
        3e-5,
    )
    assert (
        config.train_lengths == [2, 20]
        and config.test_lengths == [21, 40]
        and FullSizeConfig(task="sort").test_lengths == [9, 16]
    )
    with torch.device("meta"):
        model = Decoder(decoder_config(config, "rope25"))
    layers = sum(p.numel() for p in model.model.layers.parameters())
    assert layers == 84_934_656 and layers + 32_100 * 768 == pytest.approx(
        109_607_040, rel=1e-3
    )  # with T5's embeddings: the paper's
    assert model.config.head_dim == 64


def test_full_size_prints_its_cost_and_trains(capsys, tmp_path):
    small = "--train_lengths 2 3 --test_lengths 4 4 --layers 1 --hidden 32 --heads 2 --updates 2".split()
    more = ["--out", str(tmp_path / "run"), *"--encodings nope --seeds 0 --examples 2 --device cpu --processes 1".split()]
    assert cli.main(["lengthgen", "full-size", *small, *more]) == 0
    out = capsys.readouterr().out
    assert "nope: 0.0M parameters; memory of an update" in out and "hours at 10e12 a second" in out and "| nope" in out
    assert cli.main(["lengthgen", "full-size", "--head_dim", "7"]) == 2
    assert "turns pairs" in capsys.readouterr().err
