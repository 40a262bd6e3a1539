"""The installed package: all its files, and a script that works from any folder."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vine_mini"


def test_every_file_that_is_not_python_is_package_data():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["vine_mini"]
    listed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert {path for path in files if path.suffix != ".py"} <= listed <= files


def test_every_folder_with_python_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.install
def test_an_installed_package_works_from_any_folder(tmp_path):
    """Built from a copy, so that the clone stays clean, and run in a folder that is in no clone."""
    source, target, elsewhere = (tmp_path / name for name in ("source", "installed", "elsewhere"))
    shutil.copytree(PACKAGE, source / "vine_mini", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    elsewhere.mkdir()

    def run(*command, code=0) -> str:
        environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    run(*pip, str(target), str(source))
    assert run(sys.executable, "-c", "import vine_mini; print(vine_mini.__file__)").startswith(str(target))
    script = str(target / "bin" / "vine-mini")
    assert "usage: python -m vine_mini" in run(script, "--help")
    small = "--steps 2 --prompts 2 --group 2 --minibatch_size 4 --k 1 --iterations 1 --eval_problems 2 --eval_samples 1"
    assert "everything is in run" in run(script, "train", "--preset", "arithmetic", *small.split(), "--out", "run")
    assert "--- 1:" in run(script, "sample", "--policy", "run/policy", "--n", "1")
    credit = "credit --run run --k 1 --group 2 --critic_iterations 0 --out page".split()
    assert "page/credit.html" in run(script, *credit) and "--strength" in (elsewhere / "page" / "credit.html").read_text()
    said = run(script, "exercises", code=2)
    assert "clone the repository and run this command inside the clone" in said and said.count("\n") == 1
