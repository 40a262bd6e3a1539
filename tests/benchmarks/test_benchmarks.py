"""Each benchmark runs in its quick form and leaves what it promises; the GPU's workload, made small, on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.learning
def test_rollouts(tmp_path):
    text = run("benchmarks.rollouts", "--quick", "--workloads", "demo", "paper", "--growth", "--out", str(tmp_path))
    assert "| paper    | 1       | vine_mini" in text and "generate" in text
    results = json.loads((tmp_path / "rollouts.json").read_text())["results"]
    assert all(rate > 0 for r in results for rates in r["tokens_per_second"].values() for rate in rates)
    assert (tmp_path / "rollouts.png").stat().st_size > 5000 and (tmp_path / "growth.png").stat().st_size > 5000


@pytest.mark.learning
def test_train_step(tmp_path):
    text = run("benchmarks.train_step", "--quick", "--out", str(tmp_path))
    assert "VinePPO, vine_mini" in text and (tmp_path / "train_step.png").exists()


@pytest.mark.learning
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the benchmark needs Linux")
def test_the_memory_estimate_is_near_the_measured_peak(tmp_path):
    text = run("benchmarks.memory", "--quick", "--out", str(tmp_path))
    results = json.loads((tmp_path / "memory.json").read_text())["results"]
    [(name, found)] = results.items()
    assert f"| {name} " in text and found["as_usual"] > 0
    assert found["measured"] == pytest.approx(found["estimate"], rel=0.15)


@pytest.mark.learning
def test_credit(tmp_path):
    run("benchmarks.credit", "--quick", "--out", str(tmp_path))
    found = json.loads((tmp_path / "credit.json").read_text())
    assert found["vineppo, K = 3"]["tokens"] < found["vineppo, K = 9"]["tokens"] and found["grpo"]["tokens"] == 0
    assert found["vineppo, K = 9"]["error"] < found["vineppo, K = 1"]["error"]


@pytest.mark.parametrize("arguments", (["--device", "cuda"], ["--vllm", "nowhere"]))
def test_what_is_not_there_is_told(arguments):
    import torch

    if torch.cuda.is_available() and "cuda" in arguments:
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rollouts", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2 and "there is no" in done.stderr and "Traceback" not in done.stderr
