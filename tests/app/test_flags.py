"""Flags and presets become configs."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from vine_mini.app.config import EvaluateConfig, SFTConfig, TrainConfig
from vine_mini.app.flags import PRESETS, parse, to_yaml
from vine_mini.cli import main
from vine_mini.types import UserError


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
        minibatch_size=64, lr=1e-6, warmup=312, mc_lam=0.0, mc_mu=0.0, weight_decay=0.0, max_grad_norm=1.0, bf16=True, clip=0.2, value_clip=0.2, kl_coef=1e-4,
        max_ratio=10.0, gamma=1.0, lam=1.0, iterations=650, eval_temperature=0.35, eval_samples=16,
    )  # fmt: skip
    assert {name: getattr(config, name) for name in table} == table
    official = parse(TrainConfig, "train", ["--preset", "gsm8k-rho1b-paper"])
    assert {name: getattr(official, name) for name in table} == table
    differs = {name for name, value in vars(official).items() if value != getattr(config, name)}
    assert differs == {"top_p", "max_states", "with_replacement"}


def test_a_training_preset_does_not_change_how_a_policy_is_measured():
    config = parse(EvaluateConfig, "evaluate", ["--preset", "gsm8k-rho1b"])
    assert (config.task, config.max_new_tokens, config.bf16) == ("gsm8k", 1024, True)
    assert (config.temperature, config.n) == (0.35, 16)
    assert parse(SFTConfig, "sft", ["--preset", "gsm8k-rho1b"]).lr == SFTConfig().lr


def test_a_preset_must_be_a_mapping(empty_folder):
    Path("list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="field: value"):
        parse(TrainConfig, "train", ["--preset", "list.yaml"])


def test_a_saved_prompt_may_look_like_a_flag(empty_folder):
    Path("saved.yaml").write_text("prompt: '--steps {question}'")
    assert parse(TrainConfig, "train", ["--preset", "saved.yaml"]).prompt == "--steps {question}"


@pytest.mark.parametrize(
    "text, says",
    [
        ("out: elsewhere", "remove 'out'"),
        ("resume: runs/other", "remove 'resume'"),
        ("yes: true", "unknown field True"),
        ("'yes': true", "remove 'yes'"),
        ("lr: &a 1\nclip: *a", "anchors"),
        ("a: &a x\n" + "".join(f"{n}: &{n} [*{m}, *{m}, *{m}, *{m}]\n" for m, n in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)), "anchors"),
        ("[" * 5000, "field: value"), ("a: " + "{b: " * 5000, "one value each"),
        ("seed: " + "9" * 5000, "not YAML"),
        ("date: 2025-99-99", "not YAML"),
        ("lr: [1]", "one value each"),
        ("prompt: ['a {question}']", "one value each"),
        ("? [a]\n: 1", "one value each"),
        ('model: "a\\0b"', "not UTF-8"),
        ('model: "a\\uDCE9"', "not UTF-8"),
    ],
)  # fmt: skip
def test_a_preset_of_somebody_else_is_refused_in_one_line(text, says, empty_folder, capsys):
    """One with `resume` or `out` wrote into another run; 428 bytes of anchors kept the loader busy for 40 seconds."""
    Path("other.yaml").write_text(text)
    assert main(["train", "--preset", "other.yaml"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and len(said) < 700


def test_what_the_user_wrote_is_echoed_in_part_and_without_control_characters(capsys):
    for words in (["train", "--task", "x" * 5000], ["y" * 5000], ["train", "--lr", "\x1b[2J"], ["train", "--out", "caf\udce9"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and len(said) < 700 and said.strip().isprintable()


def test_a_saved_config_may_write_numbers_as_yaml_does_not(empty_folder):
    """YAML reads 1e-5 as text, which a resumed run compared with a number."""
    Path("run").mkdir()
    Path("run/config.yaml").write_text("task: arithmetic\nalgorithm: ppo\nlr: 1e-5")
    assert parse(TrainConfig, "train", ["--resume", "run"]).lr == 1e-5


MAY_CHANGE = "data device sample_batch_size yes iterations max_seconds micro_batch_tokens gradient_checkpointing"
MAY_CHANGE += " eval_problems eval_samples eval_temperature save_every keep_every"
OTHER = dict(task="decisive", data="folder", prompt="{question}", date="2025-01-31", model="m", device="cpu", out="o")
OTHER |= dict(algorithm="ppo", divisor="constant")


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig) if field.name != "resume"])
def test_what_a_resumed_run_may_change(name, empty_folder):
    """Its length, its machine and how it is evaluated. Whatever else changes is refused with its name."""
    saved = TrainConfig(lr=1e-4, bf16=True)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(to_yaml(saved))
    old = getattr(saved, name)
    new = OTHER.get(name) or (not old if isinstance(old, bool) else old / 2 if isinstance(old, float) and old else 2 * (old or 1))
    resume = ["--resume", "run", f"--{name}={new}"]
    if name in MAY_CHANGE.split():
        assert getattr(parse(TrainConfig, "train", resume), name) not in (old, None)
    else:
        with pytest.raises(UserError, match=rf"goes on with {name} = .* cannot change to|cannot begin .* \({name}\)"):
            parse(TrainConfig, "train", resume)


def test_a_run_that_evaluates_may_do_so_more_often_but_not_stop(empty_folder):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(to_yaml(TrainConfig(lr=1e-4, eval_every=4)))
    assert parse(TrainConfig, "train", ["--resume", "run", "--eval_every", "2"]).eval_every == 2
    with pytest.raises(UserError, match=r"goes on with eval_temperature = 1\.0; it cannot"):  # RUN/best would mix two
        parse(TrainConfig, "train", ["--resume", "run", "--eval_temperature", "0"])
    with pytest.raises(UserError, match="cannot begin or end evaluations"):
        parse(TrainConfig, "train", ["--resume", "run", "--eval_every", "0"])


def test_a_run_finds_its_data_from_any_folder(empty_folder, monkeypatch):
    Path("own.jsonl").touch()
    Path("run").mkdir()
    Path("run/config.yaml").write_text(to_yaml(TrainConfig(task="jsonl", data="own.jsonl", lr=1e-4)))
    monkeypatch.chdir("run")
    assert parse(TrainConfig, "train", ["--resume", "."]).data == str(empty_folder / "own.jsonl")
    for data in ("own.jsonl", 300 * "x"):  # which is not there; text of a user's own task, too long for a path
        assert TrainConfig(task="jsonl", data=data).data == data


def test_a_saved_config_without_its_algorithm_is_refused(empty_folder):
    """The default algorithm went on with a run of another one, and with another learning rate."""
    Path("run").mkdir()
    Path("run/config.yaml").write_text("task: arithmetic\nlr: 1e-5")
    with pytest.raises(UserError, match=r"run/config\.yaml lacks algorithm: put the lines back"):
        parse(TrainConfig, "train", ["--resume", "run"])


def test_two_whole_configurations_at_once_are_refused(tmp_path, capsys):
    assert main(["train", "--preset", "arithmetic", "--resume", str(tmp_path)]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, says",
    [
        ("lr: 1e-4\nlr: 1e-3\n", "has 'lr' twice"),
        ("clip: null\n", "clip has no value"),
        ("clip:\n", "clip has no value"),
        ("seed: 010\n", "seed = 010 is 8 in YAML: write a plain decimal number"),
        ("iterations: 1:30\n", "iterations = 1:30 is 90 in YAML: write"),
        ("clip: 1:30.5\n", "clip = 1:30.5 is 90.5 in YAML: write"),
        ("seed: 0x10\n", "seed = 0x10 is 16 in YAML"),
    ],
)
def test_a_value_of_a_preset_that_would_be_read_as_another_is_refused(text, says, empty_folder, capsys):
    """The last of two lines won, a missing value was the default, and 010 was 8."""
    Path("other.yaml").write_text(text)
    assert main(["train", "--preset", "other.yaml"]) == 2
    assert says in capsys.readouterr().err


def test_a_field_without_a_default_may_be_left_empty(empty_folder):
    Path("own.yaml").write_text("max_states: null\nlr:\nseed: 10\nclip: 0.25\n")
    config = parse(TrainConfig, "train", ["--preset", "own.yaml"])
    assert (config.max_states, config.lr, config.seed, config.clip) == (None, None, 10, 0.25)


OWN = "import pathlib\npathlib.Path('RAN').touch()\nfrom vine_mini.tasks.arithmetic import *\nfrom vine_mini.tasks.arithmetic import reward\n"


@pytest.mark.parametrize("config_class", [TrainConfig, EvaluateConfig])
def test_the_task_file_of_a_preset_runs_only_if_the_command_line_names_it(config_class, empty_folder, capsys):
    """A preset of somebody else ran a file."""
    Path("own.py").write_text(OWN)
    Path("own.yaml").write_text("task: own.py\n")
    for more in ([], ["--task", "other.py"]):
        with pytest.raises(UserError, match=r"own.yaml names the task file own.py.*add --task own.py|no task file .*other.py"):
            parse(config_class, "train", ["--preset", "own.yaml", *more])
    assert not Path("RAN").exists()
    assert parse(config_class, "train", ["--preset", "own.yaml", "--task", str(empty_folder / "own.py")]).task.endswith("own.py")
    assert Path("RAN").exists() and capsys.readouterr().err == ""


def test_the_task_file_of_a_run_is_named_when_it_runs(empty_folder, capsys):
    Path("own.py").write_text(OWN)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(to_yaml(TrainConfig(task="own.py", lr=1e-4)))
    for words in (["--resume", "run"], ["--preset", "run/config.yaml"]):
        parse(TrainConfig, "train", words)
        assert f"running the task file {empty_folder / 'own.py'}, which run/config.yaml names" in capsys.readouterr().err
    parse(TrainConfig, "train", ["--resume", "run", "--task", "own.py"])
    assert capsys.readouterr().err == ""
