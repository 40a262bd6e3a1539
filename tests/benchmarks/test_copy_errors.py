"""The benchmark that asks where a copy fails, on writers whose rule is known, and on models of a tiny sweep."""

import json
import sys

import pytest
import torch

from benchmarks import copy_errors
from vine_mini import cli
from vine_mini.lengthgen.tasks import ITEMS
from vine_mini.lengthgen.vocabulary import EOS, VOCABULARY


def test_repeated_items_by_hand():
    ids = [5, 7, 8, 5, 7, 9, 7, 1]  # a b c a b d b end
    assert copy_errors.repeated(ids, 1) == (0, set())  # a is always followed by b
    assert copy_errors.repeated(ids, 2) == (2, {9})  # a b also stands before d; b alone also before the end
    assert copy_errors.repeated(ids, 7) == (1, {8, 9})
    assert copy_errors.repeated(ids, 6) == (0, set())


class Writer:
    """In the place of a model: its rule gets the items and the end, and the place, and returns the token that it writes there."""

    device = "cpu"

    def __init__(self, rule):
        self.rule = rule

    def logits(self, ids, mask):
        rows = [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]
        written = torch.tensor([self.rule(row, place) for row in rows for place in range(len(row))])
        return torch.nn.functional.one_hot(written, len(VOCABULARY)).float()


def counted(monkeypatch, rule, items=ITEMS[:10]) -> copy_errors.Counts:
    monkeypatch.setattr(copy_errors, "target_logits", lambda model, ids, mask: model.logits(ids, mask))
    return copy_errors.first_errors(Writer(rule), items, range(8, 12), 50)


def first_match(n):
    """Finds where the last n items stand for the first time, and writes what follows there."""

    def rule(row, place):
        n_here = min(n, place)
        return next(row[i] for i in range(n_here, len(row)) if row[i - n_here : i] == row[place - n_here : place])

    return rule


@pytest.mark.parametrize("n", [1, 2])
def test_a_writer_that_looks_for_the_last_items_errs_only_where_these_repeat(monkeypatch, n):
    found = counted(monkeypatch, first_match(n), ITEMS[:4])
    assert sum(found.errors[:n]) == 0 and min(found.errors[n : n + 2]) > 5 and min(found.places[:3]) > 20
    if n == 1:  # it writes a follower of the last item, which is not always one of the longest match
        assert found.followers[1] == found.errors[1]


def test_a_writer_that_stops_too_early_errs_anywhere(monkeypatch):
    found = counted(monkeypatch, lambda row, place: row[place] if place != 5 else EOS)
    assert sum(found.errors) == 200 and found.errors[0] > 5 and sum(found.followers) < 40
    assert sum(found.places) == 200 * 5


def test_no_error_counts_all_places(monkeypatch):
    found = counted(monkeypatch, lambda row, place: row[place])
    assert sum(found.errors) == 0 and sum(found.places) == 50 * (8 + 9 + 10 + 11)
    assert copy_errors.cells(found)[:2] == ["0.00", "0.00"] and copy_errors.cells(found)[-2:] == ["", ""]


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    small = "--updates 2 --layers 1 --hidden 16 --heads 1 --head_dim 16 --examples 4 --encodings nope --seeds 0".split()
    lengths = "--train_lengths 2 4 --test_lengths 5 6".split()
    cli.main(["lengthgen", "--task", "copy-v3", *small, *lengths, "--out", str(tmp_path / "runs")])
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "runs"), "--examples", "5", "--out", str(tmp_path)])
    copy_errors.main()
    assert "| nope, seed 0 | 10 " in capsys.readouterr().out
    results = json.loads((tmp_path / "errors.json").read_text())["results"]
    assert [(row["different_items"], row["length"]) for row in results] == [(n, x) for n in (100, 10, 3) for x in ("5-5", "6-6")]
