r"""Where do models that copy random items make their first error: at items that occur twice?

    python -m benchmarks.copy_errors results/lengthgen/alibi/distinct results/lengthgen/alibi/distinct.py \
        --out results/lengthgen/alibi

A model that copies by content finds the last written item in the input, and writes the item that follows it there. Such a model
errs where the last item also stands elsewhere with another follower, and then writes this follower. The folder holds models of
`lengthgen` that were trained on copy-v3, or on a task that is copy-v3 up to the longest training length.
"""

import argparse
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

KINDS = {"100 items": ITEMS, "ten items": ITEMS[:10]}
HEADER = ["model", "inputs of", "first errors", "per 10,000 places with other followers", "per 10,000 other places"]
HEADER += ["wrote another follower, %", "by chance, %"]


def other_followers(ids: list[int], place: int) -> set[int]:
    """What follows the last item wherever else it stands. ids: the items and the end; ids[place] comes next."""
    last = ids[place - 1]
    return {ids[i] for i in range(1, len(ids)) if ids[i - 1] == last} - {ids[place]}


@torch.no_grad()
def first_errors(model, items: list[str], lengths: range, examples: int) -> dict[str, float]:
    """Counts places up to each example's first error. A place is *doubtful* if its last item has other followers.

    Returns places, doubtful places, errors at each kind, errors that wrote another follower, and how many of these a random
    wrong token among the items and the end would give.
    """
    found = dict(places=0, doubtful=0, errors=0, doubtful_errors=0, followers=0, chance=0.0)
    for length in lengths:
        rng = Random(length)
        rows = [rng.choices(items, k=length) for _ in range(examples)]
        ids, mask = collate([(f"Copy: {' '.join(row)} [SEP] ", " ".join(row)) for row in rows], model.device)
        written = target_logits(model, ids, mask).argmax(dim=-1).view(examples, length + 1).tolist()
        for row, output in zip(rows, written, strict=True):
            target = [*(IDS[item] for item in row), EOS]
            end = next((i for i in range(length + 1) if output[i] != target[i]), None)
            others = [other_followers(target, place) for place in range(1, length + 1 if end is None else end + 1)]
            found["places"] += len(others)
            found["doubtful"] += sum(map(bool, others))
            if end:  # the first item follows no item
                found["errors"] += 1
                found["doubtful_errors"] += bool(others[-1])
                found["followers"] += output[end] in others[-1]
                found["chance"] += len(others[-1]) / len(items)
    return found


def row_of(name: str, kind: str, found: dict) -> list[str]:
    """A line of the table."""
    errors, doubtful, places = found["doubtful_errors"], found["doubtful"], found["places"]
    rates = [errors / max(1, doubtful), (found["errors"] - errors) / max(1, places - doubtful)]
    shares = [f"{100 * found[each] / errors:.0f}" if errors else "" for each in ("followers", "chance")]
    return [name, kind, str(found["errors"]), *(f"{1e4 * rate:.0f}" for rate in rates), *shares]


def main():
    """Tests each model of the folder on longer inputs of both kinds."""
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
    data, rows = [], [HEADER]
    for run in tqdm(results["runs"], desc="models"):  # each takes ten seconds
        name = f"{run['encoding']}, seed {run['seed']}"
        model = load_model(args.runs, config, run["encoding"], run["seed"])
        for kind, items in KINDS.items():
            found = first_errors(model, items, range(first, last + 1), args.examples)
            data.append({"model": name, "inputs": kind} | found)
            rows.append(row_of(name, kind, found))
    title = f"First errors in {first} to {last} items, {args.examples} inputs of each length. {machine('cpu', 1)}"
    report(args.out, "errors", title, rows, {"lengths": [first, last], "examples": args.examples, "results": data})


if __name__ == "__main__":
    command(main)
