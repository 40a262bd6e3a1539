"""Tests of the tutorials. Every run checks their form. With `-m tutorials`, each tutorial runs in its quick mode."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def named(path: Path) -> str:
    return path.stem


def test_they_are_numbered_without_gaps_and_listed_in_the_readme():
    assert [path.name[:2] for path in TUTORIALS] == [f"{n:02}" for n in range(1, len(TUTORIALS) + 1)]
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in [*TUTORIALS, *(FOLDER / "exercises").glob("ex*.py")]:
        assert path.name in table or path.stem in table, f"{path.name} is not in tutorials/README.md"


def test_the_table_names_the_exercises_that_the_tutorials_name():
    named_somewhere = set()
    for path in TUTORIALS:
        [row] = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").split("\n") if f"]({path.name})" in line]
        in_table = set(re.findall(r"\b\d\d\b", row.split("|")[4]))
        assert in_table == set(re.findall(r"`ex(\d\d)`", path.read_text(encoding="utf-8").split("# %%")[-1])), path.name
        assert re.fullmatch(r" \d+ ", row.split("|")[5]), f"{path.name} has no time in tutorials/README.md"
        named_somewhere |= in_table
        assert (FOLDER.parent / "results" / "tutorials" / f"{path.stem}.png").is_file()  # shown further down in the README
    assert len(named_somewhere) == len(list((FOLDER / "exercises").glob("ex*.py")))


@pytest.mark.parametrize("path", TUTORIALS, ids=named)
def test_every_question_has_an_answer(path):
    sections = re.split(r"^## (\d+)\. .*$", (FOLDER / "answers.md").read_text(encoding="utf-8"), flags=re.M)
    answers = dict(zip(map(int, sections[1::2]), sections[2::2], strict=True))
    assert list(answers) == [int(p.name[:2]) for p in TUTORIALS]
    questions = path.read_text(encoding="utf-8").split("# ## Questions")[1]
    numbers = re.findall(r"^# (\d+)\. ", questions, flags=re.M)
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    assert re.findall(r"^(\d+)\. \S", answers[int(path.name[:2])], flags=re.M) == numbers


@pytest.mark.parametrize("path", TUTORIALS, ids=named)
def test_each_is_a_notebook_of_cells_that_ends_in_a_picture_and_questions(path):
    text = path.read_text(encoding="utf-8")
    assert re.match(rf"# %% \[markdown\]\n# # {int(path.name[:2])}\. ", text)
    assert f'show(figure, "{path.stem}")' in text
    last = text.split("# %%")[-1]
    assert last.startswith(" [markdown]\n# ## Questions") and last.count("?") >= 3
    assert text.count("\n") <= 200
    for number in re.findall(r"\bex\d\d\b", text):
        assert list((FOLDER / "exercises").glob(f"{number}_*.py")), f"{path.name} names {number}"
    for module in re.findall(r"`vine_mini/([\w/]+\.py)`", text):
        assert (FOLDER.parent / "vine_mini" / module).is_file(), f"{path.name} names {module}"


def test_error_bars_of_tutorials_come_from_the_differences_between_problems(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from lesson import mean_and_error

    samples = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    mean, error = mean_and_error(samples)
    assert mean == pytest.approx(samples.mean().item())
    assert error == pytest.approx(samples.mean(dim=1).std().item() / 30**0.5)
    assert mean_and_error(samples.repeat(1, 9)) == pytest.approx((mean, error))  # copies of samples say nothing new
    mean, error = mean_and_error([[1, 1, 1], [0], []])  # a mean of 3/4; problems deviate by 3/4, -3/4 and 0
    assert mean == 0.75 and error == pytest.approx((2 * 0.75**2 * 3 / 2) ** 0.5 / 4)


def test_the_error_of_a_correlation_comes_from_the_differences_between_responses(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from lesson import correlation_and_error

    truth = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).tolist()
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)).tolist()
    guess = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(truth, noise, strict=True)]
    assert correlation_and_error(truth, truth) == pytest.approx((1.0, 0.0), abs=1e-3)
    found, error = correlation_and_error(guess, truth)
    assert found == pytest.approx(0.5**0.5, abs=3 * error)
    assert error == pytest.approx((1 - found**2) / 600**0.5, rel=0.3)  # the textbook's error of 600 independent pairs
    copied = [row * 4 for row in guess], [row * 4 for row in truth]  # copies within a response say nothing new
    assert correlation_and_error(*copied) == pytest.approx((found, error), abs=1e-4)


@pytest.mark.tutorials
@pytest.mark.parametrize("path", TUTORIALS, ids=named)
def test_each_runs_in_its_quick_mode(path, tmp_path):
    picture = FOLDER.parent / "runs" / "tutorials-quick" / f"{path.stem}.png"
    picture.unlink(missing_ok=True)
    begin = time.perf_counter()
    command = [sys.executable, "-W", "error::SyntaxWarning", str(path), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert picture.stat().st_size > 10_000
    assert not re.search(r"\bnan\b|Warning", done.stdout + done.stderr)
    assert not list(tmp_path.iterdir())  # no files are left in the reader's folder
    print(f"{path.stem}: {time.perf_counter() - begin:.0f} s")


@pytest.mark.tutorials
@pytest.mark.parametrize("path", TUTORIALS, ids=named)
def test_its_notebook_holds_the_same_cells_and_the_picture(path):
    jupytext = pytest.importorskip("jupytext", reason="pip install jupytext")
    text = (FOLDER / "notebooks" / f"{path.stem}.ipynb").read_text(encoding="utf-8")
    made, now = jupytext.reads(text, "ipynb"), jupytext.read(path)
    assert [(c.cell_type, c.source) for c in made.cells] == [(c.cell_type, c.source) for c in now.cells], (
        f"{path.name} has changed: python tutorials/notebooks.py {path.name[:2]}"
    )
    outputs = [o for c in made.cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 1 and not any(o.get("name") == "stderr" for o in outputs)
    assert all("Traceback" not in str(o) and str(FOLDER.parent) not in str(o.get("text", "")) for o in outputs)


def test_the_notebooks_are_small():
    assert sum(path.stat().st_size for path in (FOLDER / "notebooks").glob("*.ipynb")) < 8 * 2**20


@pytest.mark.tutorials
def test_the_command_for_notebooks(tmp_path):
    for name in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"pip install {name}")
    folder, name = tmp_path / "tutorials", "11_nope_and_rope"
    folder.mkdir()
    for path in (FOLDER / "notebooks.py", FOLDER / "lesson.py"):
        shutil.copy(path, folder)
    code = f"import lesson\nfrom vine_mini.app.plots import new_figure\n\nprint(6 * 7)\nlesson.show(new_figure(1)[0], {name!r})\n"
    (folder / f"{name}.py").write_text(f"# %% [markdown]\n# A cell.\n\n# %%\n{code}")
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    command = [sys.executable, str(folder / "notebooks.py")]
    done = subprocess.run([*command, "11"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "11_nope_and_rope.ipynb: " in done.stdout, done.stderr
    assert "42\\n" in (folder / "notebooks" / f"{name}.ipynb").read_text()
    shown, kept = (tmp_path / place / "tutorials" / f"{name}.png" for place in ("runs", "results"))
    assert shown.read_bytes() == kept.read_bytes()
    done = subprocess.run([*command, "77"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.tutorials
@pytest.mark.parametrize("path", TUTORIALS, ids=named)
def test_each_opens_as_a_notebook(path):
    jupytext = pytest.importorskip("jupytext", reason="pip install jupytext")
    notebook = jupytext.read(path)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == kinds[-1] == "markdown" and kinds.count("code") >= 3
    assert all("# %%" not in cell.source for cell in notebook.cells)
