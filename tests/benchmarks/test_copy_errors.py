"""The benchmark that asks where a copy fails, on writers whose rule is known, and on models of a tiny sweep."""

import json
import sys

import pytest
import torch

from benchmarks import copy_errors
from vine_mini import cli
from vine_mini.lengthgen.tasks import ITEMS
from vine_mini.lengthgen.vocabulary import EOS, VOCABULARY


def test_other_followers_by_hand():
    ids = [5, 7, 5, 8, 5, 1]  # a b a c a end: the item 5 is followed by 7, 8 and the end (1)
    assert copy_errors.other_followers(ids, 1) == {8, 1}
    assert copy_errors.other_followers(ids, 2) == set()
    assert copy_errors.other_followers(ids, 5) == {7, 8}


class Writer:
    """In the place of a model: its rule gets the items and the end, and the place, and returns the token that it writes there."""

    device = "cpu"

    def __init__(self, rule):
        self.rule = rule

    def logits(self, ids, mask):
        rows = [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]
        written = torch.tensor([self.rule(row, place) for row in rows for place in range(len(row))])
        return torch.nn.functional.one_hot(written, len(VOCABULARY)).float()


def counted(monkeypatch, rule, items=ITEMS[:10]) -> dict:
    monkeypatch.setattr(copy_errors, "target_logits", lambda model, ids, mask: model.logits(ids, mask))
    return copy_errors.first_errors(Writer(rule), items, range(8, 12), 20)


def test_a_writer_that_looks_for_the_last_item_errs_at_repeated_items_only(monkeypatch):
    found = counted(monkeypatch, lambda row, place: row[row.index(row[place - 1]) + 1] if place else row[0])
    assert found["errors"] == found["doubtful_errors"] == found["followers"] > 20
    assert 0.1 * found["errors"] < found["chance"] < 0.5 * found["errors"]


def test_a_writer_that_stops_too_early_errs_anywhere(monkeypatch):
    found = counted(monkeypatch, lambda row, place: row[place] if place != 5 else EOS)
    assert found["errors"] == 80 and found["followers"] <= 20 and 0 < found["doubtful_errors"] < 80
    assert found["places"] == 80 * 5


def test_no_error_counts_all_places(monkeypatch):
    found = counted(monkeypatch, lambda row, place: row[place])
    assert found["errors"] == found["chance"] == 0 and found["places"] == 20 * (8 + 9 + 10 + 11)
    assert copy_errors.row_of("x", "y", found)[2:] == ["0", "0", "0", "", ""]


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    small = "--steps 2 --layers 1 --hidden 16 --heads 1 --head_dim 16 --examples 4 --encodings nope --seeds 0".split()
    lengths = "--train_lengths 2 4 --test_lengths 5 6".split()
    cli.main(["lengthgen", "--task", "copy-v3", *small, *lengths, "--out", str(tmp_path / "runs")])
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "runs"), "--examples", "5", "--out", str(tmp_path)])
    copy_errors.main()
    assert "| nope, seed 0 | ten items |" in capsys.readouterr().out
    assert [row["inputs"] for row in json.loads((tmp_path / "errors.json").read_text())["results"]] == [*copy_errors.KINDS]
