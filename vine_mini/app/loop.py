"""The loop of a run: it logs and saves what the trainer yields.

The loop ends in order after Ctrl-C, after SIGTERM (batch systems, containers) and after SIGHUP (a closed terminal).
"""

import signal
import sys
import time
from contextlib import contextmanager, suppress

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from tqdm import tqdm

from vine_mini.app import checkpoint
from vine_mini.app.files import write_diverged
from vine_mini.app.runs import Run
from vine_mini.health import Diverged, symptoms
from vine_mini.trainer import Trainer

SAVE_SECONDS = 120.0  # a run that is killed loses no more than about so much training, or 20 times what saving takes


def train_run(trainer: Trainer, run: Run) -> bool:
    """The loop with its logging and saving. It evaluates after the last iteration. -> False if a stop was asked for

    Where an error ends it, the finished iterations are saved, if their state is still there. Raises Diverged, and then leaves
    diverged.json in the run folder.
    """
    config = trainer.config

    def done() -> float:
        """The share of the run: of its iterations or of its seconds, whichever end first."""
        seconds = sum(trainer.seconds.values()) / config.max_seconds if config.max_seconds else 0.0
        return min(1.0, max(trainer.iteration / config.iterations, seconds))

    style = dict(dynamic_ncols=True, bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}")
    with tqdm(total=1.0, initial=done(), desc=config.algorithm, **style) as bar, _stops_wait(trainer, run) as stop:
        saved, took, said = time.monotonic(), 0.0, set()
        for metrics, episodes, advantages in trainer.train():
            with stop.unfinished():
                # Also after Ctrl-C, because a resumed run does not evaluate this iteration again.
                evaluates = config.eval_every and trainer.iteration % config.eval_every == 0
                if trainer.validation_problems and (evaluates or trainer.done):
                    metrics["validation"] = trainer.evaluate(trainer.validation_problems)
                if trainer.done or (evaluates and not trainer.validation_problems):
                    metrics["eval"] = trainer.evaluate()
                if run.best(metrics) is metrics:
                    checkpoint.save_best(trainer, run.folder)
                run.log(metrics, episodes, advantages)
                kept = config.keep_every and trainer.iteration % config.keep_every == 0
                late = time.monotonic() - saved >= max(SAVE_SECONDS, 20 * took)
                if (kept or late or trainer.iteration % config.save_every == 0) and not trainer.done:
                    begin = time.monotonic()
                    run.save(trainer)
                    saved = time.monotonic()
                    took = saved - begin
            for name, says in symptoms(metrics).items():
                if says not in said:  # once in a run
                    bar.write(f"iteration {trainer.iteration}: {name} = {metrics[name]:.3g}: {says}", file=sys.stderr)
                    said.add(says)
            bar.update(done() - bar.n)
            bar.set_postfix(iteration=trainer.iteration, **{name: f"{metrics[name]:.2f}" for name in ("reward", "truncated")})
            if stop.asked:
                break
        with stop.unfinished():
            run.save(trainer)
    return not stop.asked


class _Stop:
    """Handles Ctrl-C, SIGTERM and SIGHUP. The first one saves the finished iterations and lets this iteration end.

    The second one stops at once. While an update or an evaluation is under way, nothing can be saved; then the third one does.
    """

    def __init__(self, trainer: Trainer, run: Run):
        self.trainer, self.run, self.asked = trainer, run, 0
        self.weights = self._version()  # those of the finished iterations

    @contextmanager
    def unfinished(self):
        """Inside the block the state of the trainer is not the one that is logged."""
        self.weights = None
        yield
        self.weights = self._version()

    def _version(self) -> tuple[int, int]:
        copied = sum(parameter._version for parameter in self.trainer.policy.parameters())  # counts what is loaded into them
        return copied, self.trainer.updates  # counts before it updates

    def handle(self, number, _) -> None:
        """What Python calls when the signal comes."""
        self.asked += 1
        # A GPU that records a graph, and the first run before it, allow no copy of the weights to the disk.
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        whole = self.weights == self._version() and not recording and _get_current_dispatch_mode() is None
        if whole:
            with self.unfinished():
                checkpoint.save(self.trainer, self.run.folder)
        if self.asked > (1 if whole else 2):
            raise KeyboardInterrupt
        done = self.run.rows[-1]["iteration"]
        now = f"iteration {done} is saved, and iteration {done + 1} will be" if whole else f"iteration {done + 1} ends first"
        again = "again" if whole or self.asked == 2 else "twice more"
        lost = f"loses iteration {done + 1}" if whole else "loses what came after the last checkpoint"
        with suppress(OSError):  # the terminal may be gone
            print(f"\nstopping: {now}; Ctrl-C {again} stops at once and {lost}", file=sys.stderr)


@contextmanager
def _stops_wait(trainer: Trainer, run: Run):
    stop = _Stop(trainer, run)
    numbers = [signal.SIGINT, signal.SIGTERM, *heeded_hangup()]
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    except Exception as error:
        diverged = error if isinstance(error, Diverged) else None
        if diverged and not diverged.found:  # in sampling, and a policy that cannot sample is no good state
            diverged.args = (f"iteration {run.rows[-1]['iteration'] + 1}: {error}",)
        elif stop.weights == stop._version():
            with stop.unfinished():
                run.save(trainer)
        if diverged:
            write_diverged(run.folder, diverged, last_iteration=run.rows[-1])
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heeded_hangup() -> list:
    """SIGHUP, by which a closed terminal ends its processes. Not on Windows, and not where `nohup` has it ignored."""
    number = getattr(signal, "SIGHUP", None)
    return [] if number is None or signal.getsignal(number) == signal.SIG_IGN else [number]
