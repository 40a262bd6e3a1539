"""The folder of a run."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kills import killed_before_change
from torch.utils._python_dispatch import TorchDispatchMode

from vine_mini.app import checkpoint, loop
from vine_mini.app.config import SFTConfig, TrainConfig
from vine_mini.app.files import new_folder
from vine_mini.app.flags import parse
from vine_mini.app.plots import new_figure, save_figure
from vine_mini.app.runs import Run, samples_of
from vine_mini.app.setup import build_trainer, policy_name, task_name
from vine_mini.app.sft import model_card
from vine_mini.cli import main
from vine_mini.types import Episodes, Problem, Trajectory, UserError, collate

ROOT = Path(__file__).parents[2]


def test_a_folder_of_its_own_for_each_run(empty_folder):
    assert new_folder(None, "demo") == Path("runs/demo")
    Path("runs/demo").mkdir(parents=True)
    assert new_folder(None, "demo") == Path("runs/demo-2")
    Path("mine").mkdir()
    assert new_folder("mine", "demo") == Path("mine")  # empty, so nothing is lost
    Path("mine/x").touch()
    with pytest.raises(UserError, match="already holds something"):
        new_folder("mine", "demo")


def test_pictures_need_no_backend(tmp_path):
    """An old or a wrong name in MPLBACKEND ended a training without its curves."""
    draws = "from pathlib import Path; from vine_mini.app.plots import *; save_figure(new_figure(1)[0], Path('x.png'))"
    draws += "; import os; assert os.environ['MPLBACKEND'] == 'Qt4Agg'"
    subprocess.run(
        [sys.executable, "-c", draws],
        env=os.environ | {"MPLBACKEND": "Qt4Agg", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "x.png").exists()


def test_the_saved_config_is_the_config(empty_folder):
    config = TrainConfig(algorithm="grpo", prompt="- {question} #", lr=3e-5, step_tokens=4, out="run")
    Run.start(Path("run"), config, {})
    read = parse(TrainConfig, "train", ["--preset", "run/config.yaml"])
    assert read == replace(config, out=None)
    assert parse(TrainConfig, "train", ["--resume", "run"]) == replace(config, out=None, resume="run")


def test_a_task_file_is_known_by_its_name(empty_folder):
    Path("my_task.py").write_text("from vine_mini.tasks.arithmetic import *\nfrom vine_mini.tasks.arithmetic import reward")
    assert task_name(TrainConfig(task="my_task.py")) == "my_task" and task_name(TrainConfig()) == "arithmetic"


def lines(name: str) -> list[int]:
    return [json.loads(line)["iteration"] for line in Path("run", name).read_text().splitlines()]


def test_a_resume_that_is_killed_anywhere_loses_no_line_before_the_checkpoint(empty_folder):
    """Resuming at iteration 2 drops the lines of iteration 3 and a line that was cut."""
    config, n = TrainConfig(), 0
    Run.start(Path("run"), config, {})
    while True:
        for name in ("metrics.jsonl", "samples.jsonl"):
            Path("run", name).write_text("".join(json.dumps({"iteration": i}) + "\n" for i in range(4)) + '{"iter')
        with killed_before_change(n, Path("run")) as ended:
            run = Run(Path("run"), config, 2)
        assert parse(TrainConfig, "train", ["--resume", "run"]) == replace(config, resume="run")
        if not ended:
            break
        for name in ("metrics.jsonl", "samples.jsonl"):
            assert Path("run", name).read_text().startswith("".join(json.dumps({"iteration": i}) + "\n" for i in range(3)))
        n += 1
    assert n > 6  # three files are written and renamed
    assert lines("metrics.jsonl") == lines("samples.jsonl") == [0, 1, 2] and [row["iteration"] for row in run.rows] == [0, 1, 2]
    assert sorted(p.name for p in Path("run").iterdir()) == ["config.yaml", "metrics.jsonl", "samples.jsonl"]


def test_a_start_that_is_killed_anywhere_leaves_a_whole_run_or_none(empty_folder):
    n, ended = 0, [True]
    while ended:
        with killed_before_change(n, empty_folder) as ended:
            Run.start(Path("run"), TrainConfig(), {"pass@1": [1, None]})
        if Path("run").exists():
            assert lines("metrics.jsonl") == [0] and parse(TrainConfig, "train", ["--resume", "run"]).resume == "run"
            shutil.rmtree("run")
        n += 1
    assert n > 4 and list(empty_folder.iterdir()) == []


def test_a_model_folder_is_found_from_everywhere(empty_folder, monkeypatch):
    """A relative path was asked of the Hub when the run went on from another folder."""
    Path("mine").mkdir()
    Run.start(Path("run"), TrainConfig(model="mine", prompt="-{question}"), {})
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    config = parse(TrainConfig, "train", ["--resume", "../run"])
    assert config.model == str(empty_folder / "mine") and config.prompt == "-{question}"
    (empty_folder / "mine").rmdir()
    with pytest.raises(UserError, match=f"no model folder {empty_folder / 'mine'}"):
        build_trainer(config)
    Path("arithmetic-12").mkdir()  # the policy that ships has the name already
    assert TrainConfig(model="arithmetic-12").model == "arithmetic-12" and TrainConfig(model="a/name").model == "a/name"
    for own in ("./arithmetic-12", "."):  # a path is the user's own folder, whatever it is called
        assert policy_name(TrainConfig(model=own)) == str(Path(own).absolute())


def test_a_run_can_be_watched(empty_folder, monkeypatch):
    """The curves are drawn between checkpoints, but not so often that drawing costs time."""
    from vine_mini.app import runs

    config = TrainConfig(steps=2, prompts=2, group=2, minibatch_size=4, k=1, iterations=3)
    trainer, now, drawn = build_trainer(config), [0.0], []
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runs, "plot_run", lambda rows, *_: drawn.append(len(rows)))
    run = Run.start(Path("run"), config, {})
    for seconds, logged in zip((10, 25, 30), trainer.train(), strict=True):
        now[0] = seconds
        run.log(*logged)
    assert drawn == [3]  # the row of the start and two iterations; the third came five seconds later
    run.save(trainer)
    assert drawn == [3, 4]


@pytest.mark.slow
def test_tensorboard_shows_what_metrics_jsonl_says(empty_folder):
    """Also after a run has gone on from an earlier iteration."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = "--steps 2 --prompts 2 --group 2 --minibatch_size 4 --k 1 --eval_problems 4 --out run".split()
    assert main(["train", *flags, "--iterations", "3"]) == 0
    assert main(["train", "--resume", "run", "--iterations", "4"]) == 0
    events = EventAccumulator("run/tensorboard").Reload()
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()][1:]
    for name in ("reward", "loss", "seconds_update"):
        assert [e.step for e in events.Scalars(name)] == [1, 2, 3, 4], name
        assert [e.value for e in events.Scalars(name)] == pytest.approx([row[name] for row in rows])
    tested = {e.step: e.value for e in events.Scalars("eval/pass@1")}
    assert tested.keys() == {0, 3, 4} and tested[4] == pytest.approx(rows[-1]["eval"]["pass@1"][0])


def test_a_task_that_sets_no_length_limit_needs_one(empty_folder):
    text = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    for given, missing in (("", "max_new_tokens"), ('"max_new_tokens": 16', "eval_temperature")):
        path = empty_folder / f"{missing}.py"
        path.write_text(text.replace('"max_new_tokens": 16, "eval_temperature": 1.0', given))
        with pytest.raises(UserError, match=f"{missing}: the task has no default, so give --{missing}"):
            TrainConfig(task=str(path))
        for of in (TrainConfig, SFTConfig):
            assert of(task=str(path), max_new_tokens=8, eval_temperature=1.0).max_new_tokens == 8


def test_samples_show_the_mean_advantage_of_each_step(tokenizer):
    """GAE gives the tokens of a step different advantages; the page of credit shows their mean too."""
    t = Trajectory([1], [5, 6, 7], [0.0] * 3, True)
    tokens = collate([t])
    problem = Problem("q", "", "a")
    episodes = Episodes([problem], [t], torch.ones(1, 1), [[0, 2]], tokens, None, tokenizer)
    [sample] = samples_of(episodes, torch.tensor([[0.0, 1.0, 2.0, 4.0]]))
    assert [step["advantage"] for step in sample["steps"]] == [1.5, 4.0]


def test_the_card_of_a_policy_names_only_settings_that_a_command_line_can_have():
    config = SFTConfig(task="gsm8k")
    assert config.steps is None and SFTConfig().steps
    assert "None" not in model_card(config, 1.0, "") and "--task gsm8k" in model_card(config, 1.0, "")


def test_a_log_axis_has_numbers_and_not_the_source_of_formulas(tmp_path):
    figure, ((axis,),) = new_figure(1)
    axis.loglog([1, 5], [0.01, 100])
    save_figure(figure, tmp_path / "picture.png")
    numbers = {text.get_text() for side in (axis.xaxis, axis.yaxis) for text in side.get_ticklabels(which="both")}
    assert {"1", "0.01", "100"} <= numbers and not any("$" in text for text in numbers)


def test_nothing_is_saved_while_a_graph_is_recorded(monkeypatch, capsys):
    """Under a dispatch mode, as before a graph is recorded, the first Ctrl-C only asks the iteration to end."""
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda *_: saved.append(1))
    trainer = build_trainer(TrainConfig(algorithm="grpo", steps=2, prompts=2, minibatch_size=4))
    stop = loop._Stop(trainer, SimpleNamespace(rows=[{"iteration": 3}], folder=Path()))
    with TorchDispatchMode():
        stop.handle(2, None)
    assert not saved and "iteration 4 ends first" in capsys.readouterr().err
    stop = loop._Stop(trainer, SimpleNamespace(rows=[{"iteration": 3}], folder=Path()))
    stop.handle(2, None)
    assert saved == [1] and "iteration 3 is saved" in capsys.readouterr().err
