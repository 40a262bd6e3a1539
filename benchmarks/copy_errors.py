r"""Where do models that copy random items make their first error: where the items before it occur twice?

    python -m benchmarks.copy_errors runs/distinct results/lengthgen/alibi/distinct.py --out results/lengthgen/alibi

A model that copies by content finds the last written items in the input, and writes the item that follows them there. Such a
model errs where these items also stand elsewhere with another follower. The more items repeat, the more often it errs. Under this
rule alone the length of the input does not matter. The folder holds models of `lengthgen` that were trained on copy-v3, or on a
task of one's own that is copy-v3 up to the longest training length.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from benchmarks.common import command, count, machine, report, writable
from vine_mini.lengthgen.config import LengthgenConfig
from vine_mini.lengthgen.own import find_task
from vine_mini.lengthgen.results import load_model, load_results
from vine_mini.lengthgen.tasks import ITEMS
from vine_mini.lengthgen.train import collate, target_logits
from vine_mini.lengthgen.vocabulary import EOS, IDS

KINDS = (100, 10, 3)  # how many different items the inputs have
MOST = 6  # repeated items: the last column has this number and all larger ones
FEWEST = 30  # places that a percentage needs


@dataclass
class Counts:
    """Per number of repeated items: places up to each input's first error, errors, and errors that wrote another follower."""

    places: list[int] = field(default_factory=lambda: [0] * (MOST + 1))
    errors: list[int] = field(default_factory=lambda: [0] * (MOST + 1))
    followers: list[int] = field(default_factory=lambda: [0] * (MOST + 1))


def repeated(ids: list[int], place: int) -> tuple[int, set[int]]:
    """How many items before a place also stand elsewhere with another follower; these followers. ids: the items and the end"""
    most, followers = 0, set()
    for other in range(1, len(ids)):
        if ids[other] == ids[place]:
            continue
        n = 0
        while n < min(other, place) and ids[other - 1 - n] == ids[place - 1 - n]:
            n += 1
        if n > most:
            most, followers = n, set()
        if n == most > 0:
            followers.add(ids[other])
    return most, followers


@torch.no_grad()
def first_errors(model, items: list[str], lengths: range, examples: int) -> Counts:
    """Counts the places up to the first error of each input. The first place is left out: it has no item before it."""
    found = Counts()
    for length in lengths:
        rng = Random(length)
        rows = [rng.choices(items, k=length) for _ in range(examples)]
        ids, mask = collate([(f"Copy: {' '.join(row)} [SEP] ", " ".join(row)) for row in rows], model.device)
        written = target_logits(model, ids, mask).argmax(dim=-1).view(examples, length + 1).tolist()
        for row, output in zip(rows, written, strict=True):
            target = [*(IDS[item] for item in row), EOS]
            for place in range(1, length + 1):
                n, followers = repeated(target, place)
                n = min(n, MOST)
                found.places[n] += 1
                if output[place] != target[place]:
                    found.errors[n] += 1
                    found.followers[n] += output[place] in followers
                    break
    return found


def cells(found: Counts) -> list[str]:
    """The share of errors for each number of repeated items, and how many of those at repeated items wrote another follower."""
    shares = [f"{100 * e / n:.2f}" if n >= FEWEST else "" for e, n in zip(found.errors, found.places, strict=True)]
    at_repeated = sum(found.errors[1:])
    return [*shares, f"{100 * sum(found.followers) / at_repeated:.0f}" if at_repeated else ""]


def main():
    """Tests each model of the folder on both halves of its longer lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder of `lengthgen` with its models")
    parser.add_argument("task", nargs="?", default="copy-v3", help="the task's file, where the runs have a task of one's own")
    parser.add_argument("--examples", type=count, default=200, help="inputs of each length")
    parser.add_argument("--out", type=writable, help="folder for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    find_task(args.task)
    results = load_results(args.runs)
    config = LengthgenConfig(**results["settings"])
    first, last = config.test_lengths
    middle = (first + last) // 2
    tests = [(kind, range(*ends)) for kind in KINDS for ends in ((first, middle + 1), (middle + 1, last + 1)) if range(*ends)]
    repeats = [*map(str, range(MOST)), f"{MOST} or more"]
    data, rows = [], [["model", "different items", "length", *repeats, "errors at repeated items that write another follower, %"]]
    with tqdm(total=len(results["runs"]) * len(tests), desc="tests") as bar:
        for run in results["runs"]:
            name = f"{run['encoding']}, seed {run['seed']}"
            model = load_model(args.runs, config, run["encoding"], run["seed"])
            for kind, lengths in tests:
                found = first_errors(model, ITEMS[:kind], lengths, args.examples)
                span = f"{lengths[0]}-{lengths[-1]}"
                data.append({"model": name, "different_items": kind, "length": span} | vars(found))
                rows.append([name, str(kind), span, *cells(found)])
                bar.update()
    title = "Errors in % of the places up to the first error of each input, by how many items before the place also stand"
    title += f" elsewhere with another follower. {args.examples} inputs of each length. {machine('cpu', 1)}"
    report(args.out, "errors", title, rows, {"examples": args.examples, "results": data})


if __name__ == "__main__":
    command(main)
