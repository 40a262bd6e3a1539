"""The files of a `lengthgen` run, and how they are read again.

results.json            The settings, and the accuracy of each encoding and seed at each length. Written after each finished run.
models/ENCODING-SEED    The trained decoders, as Hugging Face folders.
table.md, accuracy.png  The results as a table and a picture. `rank`, `attention` and `temperature` add their own.
"""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from vine_mini.app.files import write_text
from vine_mini.decoder.model import Decoder
from vine_mini.lengthgen.config import LengthgenConfig, decoder_config
from vine_mini.lengthgen.own import check_named, path_of, short
from vine_mini.types import UserError

WHOLE = ("updates", "batch_size", "layers", "hidden", "heads", "head_dim", "nope_every", "max_positions", "examples")


def begin(config: LengthgenConfig, folder: Path) -> dict:
    """Empty results, or those that a run with the same settings has left in the folder. Further seeds and encodings join its own.

    Returns {"task", "settings", "files", "runs": [{"encoding", "seed", "accuracy": {length: share}, "seconds"}]}. "files" has
    a checksum of each file of one's own. Raises UserError.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "processes", "device", "yes")}
    files = {name: _checksum(name) for name in (config.task, *config.encodings) if name.endswith(".py")}
    fresh: dict = {"task": config.task, "settings": settings, "files": files, "runs": []}
    exists = (folder / "results.json").exists()
    found = _read(folder, "to --encodings or as --task, or choose another --out,") if exists else fresh
    if not found["runs"]:
        return fresh
    before, used = found.get("files", {}), {found["task"], *(run["encoding"] for run in found["runs"])}
    found["files"] = before | files
    if changed := [name for name in files if name in used and before.get(name, files[name]) != files[name]]:
        raise UserError(f"{folder} holds runs with {changed[0]} as it was before it was changed: choose another --out")
    of_name = {short(name): name for name in found["settings"]["encodings"]}
    for name in config.encodings:  # models/ has the names of the files alone
        if (other := of_name.get(short(name), name)) != name:
            says = f"{folder} holds runs with {other}, and {name} has the same file name"
            raise UserError(f"{says}: write {other}, rename the file, or choose another --out")
    for name in ("seeds", "encodings"):
        found["settings"][name] += [each for each in settings[name] if each not in found["settings"][name]]
    for name, value in settings.items():
        if found["settings"].get(name) != value and name not in ("seeds", "encodings"):
            raise UserError(f"{folder} holds a run with {name} = {found['settings'].get(name)}: choose another --out")
    return found


def check_files(results: dict, folder: Path) -> None:
    """Raises UserError where a file of one's own is no longer the one with which the runs were made."""
    for name in (results["task"], *results["settings"]["encodings"]):
        before = results.get("files", {}).get(name)
        if before and before != _checksum(path_of(name)):
            raise UserError(f"{folder} holds runs with another {path_of(name)}: its models need the file as it was")


def _checksum(path: str) -> str:
    return sha256(Path(path).expanduser().read_bytes()).hexdigest()


def load_results(folder: str | Path) -> dict:
    """The results of a finished sweep. Raises UserError for missing, foreign or unfinished results."""
    results = _read(Path(folder))
    settings = results["settings"]
    asked = {(name, seed) for name in settings["encodings"] for seed in settings["seeds"]}
    missing = len(asked - {(run["encoding"], run["seed"]) for run in results["runs"]})
    if missing:
        raise UserError(f"{folder}: {missing} of {len(asked)} runs are missing; the same command with --out {folder} goes on")
    return results


def load_so_far(folder: str | Path) -> dict | None:
    """The results of the seeds with which all encodings have run. None where there is no such seed, or no results at all."""
    if not (Path(folder) / "results.json").is_file():
        return None
    results = _read(Path(folder))
    settings = results["settings"]
    done = {(run["encoding"], run["seed"]) for run in results["runs"]}
    settings["seeds"] = [seed for seed in settings["seeds"] if all((name, seed) in done for name in settings["encodings"])]
    results["runs"] = [run for run in results["runs"] if run["seed"] in settings["seeds"]]
    return results if settings["seeds"] else None


def only(results: dict, encodings: list[str], seeds: list[int]) -> dict | None:
    """The runs with these encodings and seeds; None unless all of them are there."""
    runs = [run for run in results["runs"] if run["encoding"] in encodings and run["seed"] in seeds]
    settings = results["settings"] | {"encodings": encodings, "seeds": seeds}
    return results | {"settings": settings, "runs": runs} if len(runs) == len(encodings) * len(seeds) else None


def merged(one: dict, other: dict) -> dict:
    """Joins two sweeps of one task with different encodings. Only the seeds that both have are kept."""
    seeds = [seed for seed in one["settings"]["seeds"] if seed in other["settings"]["seeds"]]
    encodings = one["settings"]["encodings"] + other["settings"]["encodings"]
    runs = [run for run in one["runs"] + other["runs"] if run["seed"] in seeds]
    return one | {"settings": one["settings"] | {"seeds": seeds, "encodings": encodings}, "runs": runs}


def _read(folder: Path, where: str = "after the folder") -> dict:
    path = folder / "results.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{folder} has no results.json: not a folder that `lengthgen` wrote")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if "steps" in results["settings"]:
            raise UserError('an older version wrote it: rename "steps" to "updates" in its settings')
        check_named([results["settings"]["task"], *results["settings"]["encodings"]], where)
        config = LengthgenConfig(**results["settings"])
        if any(getattr(config, name) != value for name, value in results["settings"].items()):
            raise UserError("its settings lack numbers")
        if any(type(getattr(config, name)) is not int for name in WHOLE):
            raise UserError(f"{', '.join(WHOLE)} must be whole numbers")
        for run in results["runs"]:
            run["accuracy"] = {int(length): share for length, share in run["accuracy"].items()}
            shares = run["accuracy"].values()
            if list(run["accuracy"]) != config.lengths() or not all(type(x) in (int, float) and 0 <= x <= 1 for x in shares):
                raise UserError("its accuracies do not fit its settings")
        done = [(run["encoding"], run["seed"]) for run in results["runs"]]
        asked = {(name, seed) for name in config.encodings for seed in config.seeds}
        fits = results["task"] == config.task and {*done} <= asked and isinstance(results.get("files", {}), dict)
        if not fits or len({*done}) < len(done):
            raise UserError("its runs do not fit its settings")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not what `lengthgen` wrote ({type(error).__name__})") from error
    return results


def load_model(folder: str | Path, config: LengthgenConfig, encoding: str, seed: int) -> Decoder:
    """A trained decoder of a folder. Raises UserError for a wrong or broken model."""
    path = Path(folder) / "models" / f"{short(encoding)}-{seed}"
    if not (path / "model.safetensors").is_file():
        raise UserError(f"there is no model {path}; results in a repository come without models")
    try:
        loaded: Any = Decoder.from_pretrained(path, output_loading_info=True)
        model, report = loaded
        whole = not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    except Exception as error:  # configuration, safetensors and transformers each have their own kinds
        raise UserError(f"{path} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    expected = decoder_config(config, encoding)
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "encoding", "nope_every")
    if not whole or any(getattr(model.config, name) != getattr(expected, name) for name in shape):
        raise UserError(f"{path} is not the model that results.json describes")
    return model.eval()


def write_json(data: dict, path: Path) -> None:
    """Writes a JSON file, or replaces it. Raises UserError where that is impossible."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False))
