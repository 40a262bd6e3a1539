"""Many runs at the same time: every encoding with every seed, one process for each core, and one file of results."""

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from vine_mini.app.files import discard, locked, whole, write_diverged
from vine_mini.app.processes import SPAWN, end_with_parent
from vine_mini.decoder.model import word_tokenizer
from vine_mini.decoder.table import ENCODINGS
from vine_mini.health import Diverged
from vine_mini.lengthgen import results
from vine_mini.lengthgen.config import LengthgenConfig
from vine_mini.lengthgen.own import check_longest, find_task, short
from vine_mini.lengthgen.train import decoder_config, evaluate, longest_sequence, train
from vine_mini.lengthgen.vocabulary import IDS, TOKEN
from vine_mini.models import pick_device, save_policy
from vine_mini.types import UserError


def sweep(config: LengthgenConfig, folder: Path, again: Path | None = None) -> dict:
    """Trains and tests every encoding with every seed, under one progress bar. -> what `results.load_results` reads

    results.json is written after each run. In a folder where the same sweep was interrupted, only the missing runs are made. A
    sweep with other seeds or encodings adds its runs. FOLDER-diverged holds what is known of a run that has diverged. `again` is
    the --out with which the user's command goes on; left out: `folder`. Raises UserError, and Diverged where a run has diverged,
    after the other runs.
    """
    check_positions(config)
    found, device = results.begin(config, folder), pick_device(config.device)
    done = [(run["encoding"], run["seed"]) for run in found["runs"]]
    names, seeds = found["settings"]["encodings"], found["settings"]["seeds"]
    asked = [(name, seed) for seed in config.seeds for name in config.encodings]
    jobs = [(config, name, seed, str(device), folder) for name, seed in asked if (name, seed) not in done]
    workers = min(config.processes or ((os.cpu_count() or 1) if device.type == "cpu" else 1), len(jobs))
    if not folder.exists():
        with whole(folder) as fresh:  # the folder appears with the file, so the same command always continues in it
            results.write_json(found, fresh / "results.json")
    elif not (folder / "results.json").exists():  # lost, perhaps beside models
        results.write_json(found, folder / "results.json")
    diverged: list[str] = []
    total, kept = len(jobs) * (config.updates + len(config.lengths())), ""
    try:
        with locked(folder):
            if results.begin(config, folder)["runs"] != found["runs"]:
                raise UserError(f"another process has made runs in {folder} meanwhile: call again")
            try:
                with (
                    tqdm(total=total, desc=f"{short(config.task)}: {len(jobs)} runs", dynamic_ncols=True) as bar,
                    closing(_in_order_of_arrival(jobs, workers, bar)) as rows,
                ):
                    for row in rows:
                        if "diverged" in row:  # the other runs go on
                            diverged.append(row["diverged"])
                            continue
                        found["runs"].append(row)
                        found["runs"].sort(key=lambda r: (names.index(r["encoding"]), seeds.index(r["seed"])))
                        results.write_json(found, folder / "results.json")
            finally:
                kept = _kept(found, asked, folder, again or folder)
    except BrokenProcessPool as error:
        lost = "the system ended a process, perhaps for lack of memory: try fewer --processes"
        raise UserError(f"{lost}. {kept}") from error
    except KeyboardInterrupt:
        print(f"\n{kept}", file=sys.stderr)
        raise
    finally:
        with suppress(OSError):
            folder.rmdir()  # if no run was finished, it is empty
    if diverged:
        raise Diverged(f"{'; '.join(diverged)}, and choose another --out")
    return found


def _kept(found: dict, asked: list, folder: Path, again: Path) -> str:
    if not found["runs"] and not (folder / "models").exists():
        (folder / "results.json").unlink(missing_ok=True)
        return "No run was finished"
    kept = sum((run["encoding"], run["seed"]) in asked for run in found["runs"])
    return f"{kept} of {len(asked)} runs are kept; the same command with --out {again} goes on"


def _in_order_of_arrival(jobs, workers: int, bar):
    """Yields the row of each job when the job is done. One worker runs in this process; more workers are new processes."""
    if workers <= 1:
        for job in jobs:
            yield _run(job, bar.update)
        return
    counter = SPAWN.Value("q", 0)  # progress of all workers
    with ProcessPoolExecutor(workers, SPAWN, initializer=_start_worker, initargs=(counter,)) as pool:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this handler: only the parent handles Ctrl-C
        waiting = {pool.submit(_run_in_worker, job) for job in jobs}
        signal.signal(signal.SIGINT, before)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.3, return_when=FIRST_COMPLETED)
                bar.update(counter.value - bar.n)
                for future in done:
                    yield future.result()
        except BaseException:  # after Ctrl-C or a failed run, the parent does not wait for the other runs
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


_counter = None


def _start_worker(counter):
    global _counter
    _counter = counter
    end_with_parent()


def _run_in_worker(job):
    def progress(n):
        with _counter.get_lock():
            _counter.value += n

    return _run(job, progress)


def _run(job: tuple[LengthgenConfig, str, int, str, Path], progress) -> dict:
    config, encoding, seed, device, folder = job
    find_task(config.task)  # a new process does not know a task of one's own
    torch.set_num_threads(1)  # more threads do not speed up such small models
    start = time.perf_counter()
    try:
        model = train(config, encoding, seed, device, progress)
    except Diverged as error:
        write_diverged(folder.with_name(f"{folder.name}-diverged") / f"{short(encoding)}-{seed}", error)
        return {"encoding": encoding, "seed": seed, "diverged": str(error)}
    except ValueError as error:
        if ENCODINGS[encoding].table or ENCODINGS[encoding].ids:  # a rare training example, longer than `check_positions` saw
            raise UserError(f"{encoding}, seed {seed}: {error}: give a larger --max_positions") from error
        raise
    seconds = time.perf_counter() - start
    target = folder / "models" / f"{short(encoding)}-{seed}"
    discard(target)  # of a run that was killed before it was in results.json
    with whole(target) as fresh:
        save_policy(model, word_tokenizer(IDS, TOKEN), fresh)
    accuracy = evaluate(model, config, progress)  # may fail in a file of one's own: the model is saved before
    return {"encoding": encoding, "seed": seed, "accuracy": accuracy, "seconds": round(seconds, 1)}


def check_positions(config: LengthgenConfig) -> None:
    """Raises UserError where an encoding has fewer positions than the longest sequence, or where an own encoding fails at it."""
    limited = [name for name in config.encodings if ENCODINGS[name].table or ENCODINGS[name].ids]
    own = [name for name in config.encodings if name.endswith(".py")]
    needed = longest_sequence(config, config.lengths()) if limited or own else 0
    if limited and needed > config.max_positions:
        raise UserError(
            f"test lengths up to {config.test_lengths[1]} need {needed} positions, past the {config.max_positions} of "
            f"{', '.join(limited)}: give --max_positions {needed}, lower --test_lengths, or leave them out"
        )
    for name in own:
        check_longest(name, decoder_config(config, name), needed)
