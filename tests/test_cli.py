"""The command line: one clear line for bad input, and help."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from vine_mini import __main__ as module
from vine_mini.app.config import SHIPPED
from vine_mini.cli import COMMANDS, main
from vine_mini.sampling.fast.graphs import GraphError


def bad_folder(missing):
    shutil.copytree(SHIPPED / "arithmetic", "policy")
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
        ("train --task chess", "unknown task 'chess': choose from arithmetic, decisive, gsm8k", None),
        ("train --algorithm sarsa", "unknown algorithm 'sarsa': choose from vineppo", None),
        ("demo --algorithms sarsa", "unknown algorithm 'sarsa'", None),
        ("train --preset gsm9k", "no preset 'gsm9k': choose from arithmetic", None),
        ("train --preset bad.yaml", "unknown field 'learning_rate'", lambda: Path("bad.yaml").write_text("learning_rate: 1")),
        ("train --preset bad.yaml", "is not YAML", lambda: Path("bad.yaml").write_text("a: [")),
        ("train --preset bad.yaml", "bad.yaml: argument --lr: invalid float value: 'fast'", lambda: Path("bad.yaml").write_text("lr: fast")),
        ("train --preset bad.yaml", "bad.yaml: k = 0: must be at least 1", lambda: Path("bad.yaml").write_text("k: 0")),
        ("train --preset good.yaml --lr fast", ": argument --lr: invalid float", lambda: Path("good.yaml").write_text("k: 1")),
        ("train --resume=", "--resume is empty: give it the folder of a run", None),
        ("sample --question x --problem 3", "--question and --problem: give one of them", None),
        ("train --learning_rate 1", "unrecognized arguments: --learning_rate 1 (--help lists all flags)", None),
        ("train --grup=4", "unrecognized arguments: --grup=4 (did you mean --group?)", None),
        ("train --lr fast", "invalid float value: 'fast'", None),
        ("train --model policy", "policy has no tokenizer", lambda: bad_folder("tokenizer*")),
        ("train --model policy", "policy has no weights", lambda: bad_folder("*.safetensors")),
        ("train --model ./nowhere", "no model folder", None),
        ("train --task gsm8k --data data", "no policy ships for gsm8k", lambda: write_data(GOOD)),
        ("train --task gsm8k --data data", "data/train.jsonl, line 2: not JSON", lambda: write_data(GOOD, "{")),
        ("train --task gsm8k --data data", "write one JSON object a line", lambda: write_data("question,answer")),
        ("train --task gsm8k --data data", "line 1: needs a text field 'question'; write one JSON object a line, {", lambda: write_data("[1]")),
        ("train --task gsm8k --data data", "needs a text field 'answer', not null", lambda: write_data('{"question": "q", "answer": null}')),
        ("train --task gsm8k --data data", "data/train.jsonl, line 1: needs a text field 'answer'", lambda: write_data('{"question": "q"}')),
        ("train --task gsm8k --data data", "the train split of gsm8k is empty: /", lambda: write_data("")),
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
        ("train --temperature 0", "temperature = 0.0: must be at least 0.001", None),
        ("train --temperature nan", "temperature = nan: must be at least 0.001", None),
        ("train --clip -1", "clip = -1.0: must be at least 0", None),
        ("train --critic_lr -1", "critic_lr = -1.0: must be at least 0", None),
        ("train --warmup=-1", "warmup = -1: must be at least 0", None),
        ("train --min_steps 0", "min_steps = 0: must be at least 1", None),
        ("train --seed 99999999999999999999", "seed = 99999999999999999999: must be at least 0 and at most", None),
        ("train --out file/x", "file is not a folder", lambda: Path("file").touch()),
        ("sft --out file/x", "file is not a folder", lambda: Path("file").touch()),
        ("evaluate --out file/x.json", "file is not a folder", lambda: Path("file").touch()),
        ("evaluate --out /", "/ is a folder: name a file in it", None),
        ("analyze --help", "write `analyze values`", None),
        ("analyze", "write `analyze values`", None),
        ("evaluate --out folder", "folder is a folder or no regular file", lambda: Path("folder").mkdir()),
        ("evaluate --task chess", "unknown task 'chess'", None),
        ("train --steps 0", "steps = 0: must be at least 1", None),
        ("evaluate --n 0", "n = 0: must be at least 1", None),
        ("sample --n 0", "n = 0: must be at least 1", None),
        ("sample --problem 100000", "there are 500 test problems", None),
        ("sft --error_rate 0.5 --task gsm8k --data data", "needs --error_rate 0", lambda: write_data(GOOD)),
        ("demo --algorithms ppo ppo", "name each of them once", None),
        ("demo --preset arithmetic", "unrecognized arguments: --preset", None),
        ("train --data data", "arithmetic makes its own problems: leave out --data", None),
        ("sample --question=", "--question is empty", None),
        ("demo --seconds 0", "seconds = 0.0: must be above 0", None),
        ("train --prompt {question}\\n", "--prompt holds a backslash and an n: write a line break", None),
        ("evaluate --reference arithmetic --temperature 0", "--reference needs samples", None),
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


def test_exercises_outside_a_clone(empty_folder, monkeypatch, capsys):
    monkeypatch.setattr("vine_mini.app.exercises.__file__", str(empty_folder / "installed" / "app" / "exercises.py"))
    assert main(["exercises"]) == 2
    said = capsys.readouterr().err
    assert "clone the repository and run this command inside the clone" in said and said.count("\n") == 1


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m vine_mini [command]") and all(name in said for name in COMMANDS)
    assert all(line and line.startswith("  ") for line in said.strip().splitlines()[2:-2])  # one line for each command


def test_who_reads_no_output_gets_the_exit_code_alone():
    """`--help | head -1` ended in a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run([sys.executable, "-m", "vine_mini", "--help"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert found.returncode == 141 and not found.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_each_flag_of_a_command(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    said = "".join(capsys.readouterr().out.split())  # argparse breaks lines, also at hyphens
    assert end.value.code == 0 and said.startswith(f"usage:python-mvine_mini{command}".replace(" ", ""))
    for field in fields(COMMANDS[command][1]):
        says = "".join(field.metadata["help"].replace("%%", "%").split())
        assert says and f"--{field.name}" in said and says in said, field.name


def test_a_dollar_in_the_name_of_a_task_is_drawn(empty_folder, capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text().split("```python\n")[1].split("```")[0]
    Path("price_$5_vs_$6.py").write_text(text)
    small = "--prompts 2 --group 2 --minibatch_size 4 --k 1 --iterations 1 --eval_problems 2 --eval_samples 1 --model arithmetic"
    assert main(["train", "--task", "price_$5_vs_$6.py", *small.split(), "--out", "run"]) == 0
    assert Path("run/curves.png").exists()


@pytest.mark.parametrize("error, says", [
    (torch.OutOfMemoryError("CUDA out of memory"), "lower --sample_batch_size or --micro_batch_tokens"),
    (GraphError("no CUDA graph could be captured: it waits"), "no CUDA graph could be captured: it waits"),
])  # fmt: skip
def test_what_a_gpu_refuses_is_one_line(error, says, monkeypatch, capsys):
    def fails(config):
        raise error

    monkeypatch.setitem(COMMANDS, "sample", (fails, COMMANDS["sample"][1]))
    assert main(["sample"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("vine_mini sample: ") and says in line


def test_numbers_beyond_float32_are_refused(capsys):
    assert (
        main(["train", "--clip", "1e300"]) == 2
        and "clip = 1e+300: must be at least 0 and at most 1e+30" in capsys.readouterr().err
    )
    assert main(["train", "--epochs", "1000000000"]) == 2


def test_sigterm_and_a_closed_terminal_are_like_ctrl_c(monkeypatch):
    """`lengthgen` ended at once after SIGHUP, and left its lock. Where `nohup` has SIGHUP ignored, it stays so."""
    numbers, found = (signal.SIGTERM, signal.SIGHUP), []
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr("vine_mini.cli.main", lambda: found.append([signal.getsignal(number) for number in numbers]) or 0)
    try:
        for hangup in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGHUP, hangup)
            assert module.main() == 0
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert found == [[signal.default_int_handler] * 2, [signal.default_int_handler, signal.SIG_IGN]]
