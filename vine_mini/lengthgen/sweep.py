"""Many runs side by side: every encoding with every seed, a process for each core, and one file of results."""

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini.lengthgen.config import LengthgenConfig
from vine_mini.lengthgen.model import Decoder, word_tokenizer
from vine_mini.lengthgen.tasks import IDS, TOKEN
from vine_mini.lengthgen.train import evaluate, longest_sequence, train
from vine_mini.models import pick_device, save_policy
from vine_mini.types import UserError


def sweep(config: LengthgenConfig, folder: Path) -> dict:
    """Trains and tests every encoding with every seed, under one progress bar; results.json grows with each run.

    Returns:
        {"task", "settings", "runs": [{"positions", "seed", "accuracy": {length: share of right answers}, "seconds"}]}.
        The models lie in `folder`/models/ENCODING-SEED, as Hugging Face folders.
    """
    check_learned_table(config)
    device = pick_device(config.device)
    workers = config.processes or ((os.cpu_count() or 1) if device.type == "cpu" else 1)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "processes", "device")}
    results = {"task": config.task, "settings": settings, "runs": []}
    jobs = [(config, name, seed, str(device), folder) for seed in config.seeds for name in config.positions]
    total = len(jobs) * (config.steps + len(config.lengths()))
    with tqdm(total=total, desc=f"{config.task}: {len(jobs)} runs", dynamic_ncols=True) as bar:
        for row in _in_order_of_arrival(jobs, min(workers, len(jobs)), bar):
            results["runs"].append(row)
            results["runs"].sort(key=lambda r: (config.positions.index(r["positions"]), config.seeds.index(r["seed"])))
            write_json(results, folder / "results.json")
    return results


def _in_order_of_arrival(jobs, workers: int, bar):
    """The rows of all jobs as they are done. With one worker in this process, else in that many new ones."""
    if workers == 1:
        for job in jobs:
            yield _run(*job, progress=bar.update)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads half alive
    counter = context.Value("q", 0)  # steps done by all
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(counter,)) as pool:
        waiting = {pool.submit(_run_in_worker, *job) for job in jobs}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.3, return_when=FIRST_COMPLETED)
                bar.update(counter.value - bar.n)
                for future in done:
                    yield future.result()
        except BaseException:  # Ctrl-C: what is running is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


_counter = None


def _start_worker(counter):
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()  # a parent that is killed ends nobody, and its workers would wait for ever
    os._exit(1)


def _run_in_worker(*job):
    def progress(n):
        with _counter.get_lock():
            _counter.value += n

    return _run(*job, progress=progress)


def _run(config: LengthgenConfig, positions: str, seed: int, device: str, folder: Path, progress) -> dict:
    torch.set_num_threads(1)  # models this small are no faster with more
    start = time.perf_counter()
    model = train(config, positions, seed, device, progress)
    seconds = time.perf_counter() - start
    accuracy = evaluate(model, config, progress)
    (folder / "models").mkdir(exist_ok=True)
    save_policy(model, word_tokenizer(IDS, TOKEN), folder / "models" / f"{positions}-{seed}")
    return {"positions": positions, "seed": seed, "accuracy": accuracy, "seconds": round(seconds, 1)}


def check_learned_table(config: LengthgenConfig) -> None:
    """Raises UserError where the learned encoding would meet a position that its table does not have."""
    needed = longest_sequence(config) if "learned" in config.positions else 0
    if needed > config.max_positions:
        raise UserError(
            f"test lengths up to {config.test_lengths[1]} need {needed} positions, past the {config.max_positions} of the "
            f"learned table: give --max_positions {needed}, lower --test_lengths, or leave out learned"
        )


def load_results(folder: str) -> dict:
    """results.json of a folder, lengths as integers. Raises UserError where there is none, or an unfinished or foreign one."""
    path = Path(folder) / "results.json" if Path(folder).is_dir() else Path(folder)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        config = LengthgenConfig(**results["settings"])
        for run in results["runs"]:
            run["accuracy"] = {int(length): float(share) for length, share in run["accuracy"].items()}
        done = [(run["positions"], run["seed"]) for run in results["runs"]]
        whole = results["task"] == config.task and all(list(run["accuracy"]) == config.lengths() for run in results["runs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{folder}: not a folder that `lengthgen` wrote ({type(error).__name__})") from error
    asked = [(name, seed) for name in config.positions for seed in config.seeds]
    if done != asked or not whole:
        raise UserError(f"{folder}: {len(done)} of {len(asked)} runs are there; train it again to the end")
    return results


def load_model(folder: str, positions: str, seed: int, **changes):
    """A trained decoder of a `lengthgen` folder; `changes` are fields of its configuration. Raises UserError."""
    path = Path(folder) / "models" / f"{positions}-{seed}"
    if not (path / "model.safetensors").is_file():
        raise UserError(f"{folder} holds no model {path.name}; results that are kept in a repository come without models")
    return Decoder.from_pretrained(path, **changes).eval()


def write_json(data: dict, path: Path) -> None:
    """Writes a file that is always whole."""
    fresh = path.with_suffix(".partial")
    fresh.write_text(json.dumps(data, indent=1), encoding="utf-8")
    fresh.replace(path)
