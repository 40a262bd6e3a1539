"""Real kills at random moments: the short form of `benchmarks.reliability`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_runs_end_like_a_run_that_was_never_stopped(tmp_path):
    names = ["vineppo", "ppo", "restem", "sft", "lengthgen"]
    words = ["--algorithms", *names, *"--kills 4 --iterations 6 --out".split()]
    command = [sys.executable, "-m", "benchmarks.reliability", *words, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "kills.md").read_text()
    assert [line.split()[1:4:2] for line in table.splitlines()[-len(names) :]] == [[name, "4"] for name in names]
