"""A run repeats: two processes with the same seed write the same bytes. And a long run does not grow."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vine_mini import models
from vine_mini.app.config import TrainConfig
from vine_mini.app.loop import train_run
from vine_mini.app.runs import Run
from vine_mini.app.setup import build_trainer

ROOT = Path(__file__).parents[1]
RUN = "train --steps 2 --prompts 2 --group 4 --minibatch_size 4 --k 1 --iterations 2 --eval_problems 2 --eval_samples 1 --validation 0 --seed 3".split()


def without_times(path: Path) -> str:
    """metrics.jsonl without what a clock has measured."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return "\n".join(json.dumps({name: x for name, x in row.items() if not name.startswith("seconds")}) for row in rows)


ALGORITHMS = ("vineppo", "ppo", "dpo")
EACH = f"""
import sys
from vine_mini import cli
from vine_mini.tasks import arithmetic

arithmetic.TRAIN_SIZE = 300
for algorithm in {ALGORITHMS}:
    assert cli.main([*{RUN}, "--algorithm", algorithm, "--out", f"{{sys.argv[1]}}/{{algorithm}}"]) == 0
"""


@pytest.mark.slow
def test_two_processes_with_one_seed_write_the_same_bytes(tmp_path):
    """Two, because the order of a set or the hash of a text is another one in each process."""
    for name, seed in (("one", "1"), ("two", "2")):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", EACH, name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for algorithm in ALGORITHMS:
        one, two = tmp_path / "one" / algorithm, tmp_path / "two" / algorithm
        assert without_times(one / "metrics.jsonl") == without_times(two / "metrics.jsonl"), algorithm
        for name in ("samples.jsonl", "policy/model.safetensors"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), (algorithm, name)


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_five_hundred_iterations_do_not_grow(tmp_path, monkeypatch):
    """With logs, checkpoints and pictures. A network of one layer, so that what Python keeps is seen."""
    model, tokenizer = models.build_tiny(["Mia has 3 pens.\n1+2=3"], hidden=16, layers=1, vocab_size=300, seed=0)
    models.save_policy(model, tokenizer, tmp_path / "tiny")
    config = TrainConfig(
        model=str(tmp_path / "tiny"), steps=1, max_new_tokens=6, prompts=2, group=2, minibatch_size=4, k=1, epochs=1,
        iterations=500, save_every=100, eval_problems=1, eval_samples=1, device="cpu",
    )  # fmt: skip
    trainer, log, sizes = build_trainer(config), Run.log, {}

    def measured(run, metrics, *rest):
        log(run, metrics, *rest)
        if metrics["iteration"] % 100 == 1:  # after a checkpoint and its picture
            sizes[metrics["iteration"]] = resident()

    monkeypatch.setattr(Run, "log", measured)
    assert train_run(trainer, Run.start(tmp_path / "run", config, {"pass@1": (0.0, None)}))
    warm = sizes[101]
    assert max(size for n, size in sizes.items() if n > 101) < 1.03 * warm, sizes
