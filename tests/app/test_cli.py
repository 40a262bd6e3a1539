"""The command line, run as people run it: what it writes, and one clear line for bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from vine_mini import models
from vine_mini.algorithms import ALGORITHMS
from vine_mini.cli import main
from vine_mini.app.config import ALGORITHM_NAMES, TASK_NAMES, EvaluateConfig, SFTConfig, TrainConfig
from vine_mini.app.flags import PRESETS, parse
from vine_mini.app.runs import new_folder
from vine_mini.tasks import TASKS
from vine_mini.types import UserError

ROOT = Path(__file__).parents[1]
QUICK = "--steps 2 --prompts 2 --group 4 --minibatch_size 4 --k 2 --iterations 2 --eval_problems 4 --eval_samples 2".split()


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_leaves_a_whole_run_folder(empty_folder, capsys):
    assert main(["train", *QUICK, "--save_every", "1", "--eval_every", "1", "--out", "run"]) == 0
    run = empty_folder / "run"
    assert {p.name for p in run.iterdir()} == {"config.yaml", "metrics.jsonl", "samples.jsonl", "curves.png", "policy"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert all(set(row["eval"]) >= {"pass@1", "greedy"} for row in rows)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4 and samples[0]["steps"][0]["text"].endswith("\n")
    for sample in samples:
        start_value = sample["reward"] - sum(step["advantage"] for step in sample["steps"])  # they telescope
        assert start_value in (0.0, 0.5, 1.0)  # a mean of k = 2 rollouts
    out = capsys.readouterr().out
    for text in (
        "memory estimate",
        "pass@1",
        "greedy",
        "maj@2",
        "any@2",
        "truncated",
        "kl",
        "sample",
        "rollouts",
        "score",
        "update",
    ):
        assert text in out
    AutoModelForCausalLM.from_pretrained(run / "policy")
    # The saved config starts the same run again, and the saved policy is a policy like any other.
    assert main(["train", "--preset", "run/config.yaml", "--out", "again", "--iterations", "1"]) == 0
    first, again = ((empty_folder / name / "metrics.jsonl").read_text().splitlines()[1] for name in ("run", "again"))
    assert json.loads(first)["loss"] == json.loads(again)["loss"]
    assert (
        main(
            [
                "evaluate",
                "--model",
                "run/policy",
                "--reference",
                str(models.SHIPPED / "arithmetic"),
                "--problems",
                "3",
                "--n",
                "2",
            ]
        )
        == 0
    )


@pytest.fixture
def no_pictures(monkeypatch):
    """A picture takes most of a second; one test that looks at it is enough."""
    monkeypatch.setattr("vine_mini.runs.plot_run", lambda *_: None)


def test_a_resumed_run_goes_on_as_if_never_stopped(empty_folder, no_pictures, capsys):
    """PPO's, which has the most state: two networks and two optimizers."""
    flags = ["train", *QUICK, "--algorithm", "ppo", "--warmup", "1"]
    assert main([*flags, "--iterations", "3", "--out", "whole"]) == 0
    assert main([*flags, "--iterations", "3", "--max_seconds", "1e-9", "--out", "parts"]) == 0  # one iteration
    assert main(["train", "--resume", "parts", "--max_seconds", "0"]) == 0
    assert "going on after iteration 1" in capsys.readouterr().out
    whole, parts = (
        [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()] for run in ("whole", "parts")
    )
    assert [row["iteration"] for row in parts] == [0, 1, 2, 3]
    for a, b in zip(whole, parts, strict=True):
        same = [key for key in a if "seconds" not in key and key != "eval"]
        assert {key: a[key] for key in same} == {key: b[key] for key in same}


def test_what_a_resumed_run_refuses(empty_folder, no_pictures, capsys):
    assert main(["train", *QUICK, "--iterations", "1", "--out", "run"]) == 0
    state = Path("run/policy/training_state.safetensors")

    def refused(*flags):
        capsys.readouterr()
        assert main(["train", "--resume", "run", *flags]) == 2
        return capsys.readouterr().err

    assert "goes on with algorithm = vineppo; it cannot change to ppo" in refused("--algorithm", "ppo")
    assert "it cannot change to 3" in refused("--steps", "3")
    assert "it cannot change to elsewhere" in refused("--out", "elsewhere")
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refused()
    state.unlink()
    assert "nothing was saved there to resume from" in refused()
    state.write_bytes(whole)
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "rew')  # a crash while writing
    assert main(["train", "--resume", "run", "--iterations", "2"]) == 0
    assert [json.loads(line)["iteration"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_policy_that_diverged_is_named(empty_folder, no_pictures, capsys):
    assert main(["train", *QUICK, "--lr", "1e10", "--out", "run"]) == 2
    assert "it has diverged; lower --lr" in capsys.readouterr().err.splitlines()[-1]


def test_the_demo(empty_folder, no_pictures, capsys):
    assert main(["demo", "--seconds", "0.5", "--problems", "10"]) == 0
    out = capsys.readouterr().out
    assert "vineppo" in out and "±" in out and "points of sampled accuracy" in out
    assert "How VinePPO saw one response" in out and "in all = reward" in out
    folder = empty_folder / "runs" / "demo"
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"start", "vineppo", "ppo", "grpo"} and (folder / "demo.png").stat().st_size > 10_000


def test_a_folder_of_its_own_for_each_run(empty_folder):
    assert new_folder(None, "demo") == Path("runs/demo")
    Path("runs/demo").mkdir(parents=True)
    assert new_folder(None, "demo") == Path("runs/demo-2")
    Path("mine").mkdir()
    assert new_folder("mine", "demo") == Path("mine")  # empty, so nothing is lost


def test_sft_from_scratch_and_on_from_there(empty_folder, capsys):
    common = "--updates 3 --batch_size 4 --eval_problems 3 --eval_samples 1 --error_rate 0.2".split()
    assert main(["sft", *common, "--hidden", "16", "--layers", "1", "--out", "tiny"]) == 0
    card = (empty_folder / "tiny" / "README.md").read_text()
    assert "python -m vine_mini sft --updates 3 --batch_size 4 --error_rate 0.2 --hidden 16" in card and "pass@1" in card
    assert main(["sft", *common, "--model", "tiny", "--out", "tiny2"]) == 0
    assert main(["train", *QUICK, "--model", "tiny2", "--out", "run", "--iterations", "1"]) == 0


def test_sample(capsys):
    assert main(["sample", "--n", "2", "--problem", "3"]) == 0
    out = capsys.readouterr().out
    assert "(answer: " in out and out.count("---") == 2 and ("right" in out or "wrong" in out)
    assert (
        main(["sample", "--n", "1", "--temperature", "0", "--question", "Mia has 3 pens, buys 4, loses 2. How many pens now?"])
        == 0
    )
    assert capsys.readouterr().out.rstrip().endswith("#### 5")


def test_evaluate_writes_json(empty_folder):
    assert main(["evaluate", "--problems", "3", "--n", "2", "--out", "numbers.json"]) == 0
    assert set(json.loads((empty_folder / "numbers.json").read_text())) == {
        "pass@1",
        "greedy",
        "maj@2",
        "any@2",
        "length",
        "truncated",
    }


def test_gsm8k_whole_iterations_of_each_algorithm(gsm8k_folder, empty_folder, no_pictures, capsys):
    """The real problems, an untrained Llama and a tokenizer trained on the questions."""
    Path("data").mkdir()
    for split, n in (("train", 200), ("test", 20)):
        lines = (gsm8k_folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:n]
        Path("data", f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    gsm8k = "--task gsm8k --data data".split()
    make = "--updates 0 --hidden 32 --layers 1 --vocab_size 1000 --max_new_tokens 400 --eval_problems 1 --eval_samples 1".split()
    assert main(["sft", *gsm8k, *make, "--out", "llama"]) == 0
    for name in ("vineppo", "ppo", "grpo", "rloo", "reinforce"):
        one = f"--model llama --iterations 1 --max_new_tokens 40 --algorithm {name} --out {name}".split()
        flags = [*gsm8k, *QUICK, *one]
        assert main(["train", *flags]) == 0
        row = json.loads((empty_folder / name / "metrics.jsonl").read_text().splitlines()[1])
        assert row["first_ratio"] == pytest.approx(1.0, abs=1e-4) and row["episodes"] == 8
    assert "memory estimate" in capsys.readouterr().out


def test_ctrl_c_saves_and_exits_cleanly(tmp_path):
    flags = [*QUICK, "--iterations", "100000", "--out", "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "vine_mini", "train", *flags],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # wherever the iteration is: it ends whole
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "interrupted; everything is in run" in out
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists() and (tmp_path / "run" / "curves.png").exists()
    logged = json.loads(metrics.read_text().splitlines()[-1])["iteration"]
    with safe_open(tmp_path / "run" / "policy" / "training_state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["counters"])["iteration"] == logged  # what is saved is what is logged


def bad_folder(missing):
    shutil.copytree(models.SHIPPED / "arithmetic", "policy")
    for path in Path("policy").glob(missing):
        path.unlink()


def write_data(*lines):
    Path("data").mkdir()
    for split in ("train", "test"):
        Path("data", f"{split}.jsonl").write_text("\n".join(lines))


GOOD = '{"question": "2+2?", "answer": "#### 4"}'


@pytest.mark.parametrize(
    "command, says, prepare",
    [
        ("walk", "unknown command 'walk'", None),
        ("train --task chess", "unknown task 'chess': choose from arithmetic, gsm8k", None),
        ("train --algorithm sarsa", "unknown algorithm 'sarsa': choose from vineppo", None),
        ("demo --algorithms sarsa", "unknown algorithm 'sarsa'", None),
        ("train --preset gsm9k", "no preset 'gsm9k': choose from arithmetic", None),
        ("train --preset bad.yaml", "unknown field 'learning_rate'", lambda: Path("bad.yaml").write_text("learning_rate: 1")),
        ("train --preset bad.yaml", "is not YAML", lambda: Path("bad.yaml").write_text("a: [")),
        ("train --preset bad.yaml", "argument --lr: invalid float value: 'fast'", lambda: Path("bad.yaml").write_text("lr: fast")),
        ("train --learning_rate 1", "unrecognized arguments: --learning_rate", None),
        ("train --lr fast", "invalid float value: 'fast'", None),
        ("train --model policy", "policy has no tokenizer", lambda: bad_folder("tokenizer*")),
        ("train --model policy", "policy has no weights", lambda: bad_folder("*.safetensors")),
        ("train --model ./nowhere", "no model folder", None),
        ("train --task gsm8k --data data", "no policy ships for gsm8k", lambda: write_data(GOOD)),
        ("train --task gsm8k --data data", "data/train.jsonl, line 2: not JSON", lambda: write_data(GOOD, "{")),
        ("train --task gsm8k --data data", "data/train.jsonl, line 1: needs a text field 'answer'", lambda: write_data('{"question": "q"}')),
        ("train --task gsm8k --data data", "the train split of gsm8k is empty", lambda: write_data("")),
        ("train --task gsm8k --data nowhere", "cannot read nowhere/train.jsonl", None),
        ("train --max_new_tokens 5000", "the longest prompt has", None),
        ("train --prompts 0", "prompts = 0: must be at least 1", None),
        ("train --group 0", "group = 0: must be at least 1", None),
        ("train --k 0", "k = 0: must be at least 1", None),
        ("train --sample_batch_size 0", "sample_batch_size = 0: must be at least 1", None),
        ("train --minibatch_size 0", "minibatch_size = 0: must be at least 1", None),
        ("train --algorithm grpo --group 1", "group must be at least 2", None),
        ("train --minibatch_size 24", "minibatch_size = 24 does not divide prompts x group = 128", None),
        ("train --device cuda:7", "device 'cuda:7' is not there", None),
        ("train --device abacus", "device 'abacus' is not there", None),
        ("train --out full", "full already holds something", lambda: (Path("full").mkdir(), Path("full/x").touch())),
        ("sft --out full", "full already holds something", lambda: (Path("full").mkdir(), Path("full/x").touch())),
        ("train --resume nowhere", "there is no nowhere/config.yaml", None),
        ("train --prompt hello", "--prompt must contain {question}", None),
        ("train --temperature 0", "temperature = 0.0: must be above 0", None),
        ("train --temperature nan", "temperature = nan: must be above 0", None),
        ("train --clip -1", "clip = -1.0: must be at least 0", None),
        ("train --critic_lr -1", "critic_lr = -1.0: must be at least 0", None),
        ("train --warmup 5", "warmup = 5.0: must be between 0 and 1", None),
        ("train --min_steps 0", "min_steps = 0: must be at least 1", None),
        ("train --seed 99999999999999999999", "seed = 99999999999999999999: must be between", None),
        ("train --out file/x", "file is not a folder", lambda: Path("file").touch()),
        ("sft --out file/x", "file is not a folder", lambda: Path("file").touch()),
        ("evaluate --out file/x.json", "file is not a folder", lambda: Path("file").touch()),
        ("evaluate --out folder", "is a folder; name a JSON file", lambda: Path("folder").mkdir()),
        ("evaluate --task chess", "unknown task 'chess'", None),
        ("train --steps 0", "steps = 0: must be at least 1", None),
        ("evaluate --n 0", "n = 0: must be at least 1", None),
        ("sample --n 0", "n = 0: must be at least 1", None),
        ("sample --problem 100000", "there are 500 test problems", None),
        ("sft --error_rate 0.5 --task gsm8k --data data", "need --error_rate 0", lambda: write_data(GOOD)),
        ("demo --algorithms ppo ppo", "name each of them once", None),
        ("demo --preset arithmetic", "unrecognized arguments: --preset", None),
        ("train --data data", "--data is for --task gsm8k", None),
        ("sample --question=", "--question is empty", None),
        ("demo --seconds 0", "seconds = 0.0: must be above 0", None),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(command, says, prepare, empty_folder, capsys):
    if prepare:
        prepare()
    before = sorted(empty_folder.rglob("*"))
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert says in message and "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert sorted(empty_folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["", "demo", "sft", "train", "evaluate", "sample"])
def test_help_can_be_followed(command, capsys):
    if command:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
    else:
        assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: python -m vine_mini" in out and len(out) > 300


@pytest.mark.parametrize("preset", sorted(p.stem for p in PRESETS.glob("*.yaml")))
def test_presets_are_valid_and_every_field_can_be_overridden(preset):
    config = parse(TrainConfig, "train", ["--preset", preset])
    for name, value in yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()).items():
        assert getattr(config, name) == value
    assert parse(TrainConfig, "train", ["--preset", preset, "--lr", "0.5"]).lr == 0.5


def test_the_paper_preset_is_the_papers_table():
    config = parse(TrainConfig, "train", ["--preset", "gsm8k-rho1b"])
    table = dict(
        model="realtreetune/rho-1b-sft-GSM8K", prompts=64, group=8, k=9, temperature=0.6, max_new_tokens=1024, epochs=2,
        minibatch_size=64, lr=1e-6, warmup=0.03, weight_decay=0.0, max_grad_norm=1.0, bf16=True, clip=0.2, value_clip=0.2, kl_coef=1e-4,
        kl_kind="k3", max_ratio=10.0, gamma=1.0, lam=1.0, iterations=650, eval_temperature=0.35, eval_samples=16,
    )  # fmt: skip
    assert {name: getattr(config, name) for name in table} == table


def test_a_training_preset_does_not_change_how_a_policy_is_measured():
    config = parse(EvaluateConfig, "evaluate", ["--preset", "gsm8k-rho1b"])
    assert (config.task, config.max_new_tokens, config.bf16) == ("gsm8k", 1024, True)
    assert (config.temperature, config.n) == (0.35, 16)
    assert parse(SFTConfig, "sft", ["--preset", "gsm8k-rho1b"]).lr == SFTConfig().lr


def test_config_knows_the_tasks_and_algorithms():
    assert tuple(TASKS) == TASK_NAMES and tuple(ALGORITHMS) == ALGORITHM_NAMES


def test_a_preset_must_be_a_mapping(empty_folder):
    Path("list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="field: value"):
        parse(TrainConfig, "train", ["--preset", "list.yaml"])


def test_two_whole_configurations_at_once_are_refused(tmp_path, capsys):
    assert main(["train", "--preset", "arithmetic", "--resume", str(tmp_path)]) == 2
    assert "give one of them" in capsys.readouterr().err
