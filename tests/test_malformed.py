"""Every malformed invocation: exit code 2, one line that says what to change, and no file that is new or other than before.

Most cases follow from the fields of the commands' dataclasses. Those with files are written by hand. All run in this process; by
default a sample of them, and with `-m slow` all.
"""

import json
import os
import shutil
import sys
from dataclasses import fields
from inspect import get_annotations
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from conftest import slow
from safetensors.torch import load_file, save_file

from vine_mini.app.config import SHIPPED
from vine_mini.cli import COMMANDS, main

FREE = "prompt question date task data model out run resume reference scratchpad".split()  # texts that are checked on their own
ALWAYS = {  # what a command needs before it looks at anything else
    "analyze values": ["--run", "nowhere"],
    "lengthgen rank": ["--results", "nowhere"],
    **{f"lengthgen {name}": ["--results", "nowhere"] for name in ("attention", "probe", "temperature")},
}


def kinds(hint) -> set:
    """The types in a field's hint: {int}, {float, NoneType}, ..."""
    return set().union(*map(kinds, get_args(hint))) if get_args(hint) else {hint} if isinstance(hint, type) else set()


def bad_values(name: str, hint) -> list[str]:
    """Values that no field of this type can have."""
    of = kinds(hint)
    if int in of and list not in of and "list" not in str(hint):
        return ["x", "1.5", "nan", "-1", "9" * 5000]
    if float in of and "list" not in str(hint):
        return ["x", "nan", "inf", "-1", "x" * 9000]
    if bool in of:
        return ["maybe"]
    if "list[int]" in str(hint):
        return ["x", "1.5", "-1", "9" * 5000]
    return [] if name in FREE else ["nothing", "\udce9", "\x1b[31m", "x" * 9000]


def owner(config_class, name: str) -> type:
    """The class that declares a field. Commands whose settings inherit it take the same path."""
    return next(of for of in config_class.__mro__ if name in get_annotations(of))


def generated() -> list[tuple[str, list[str]]]:
    """(name, words) for each field, its bad values, and the shapes of a command line that no parser takes.

    A field is tried with the first command that has it. Of the fields that a command shares with earlier ones, one is tried
    again: the command checks what it inherits.
    """
    found, tried = [], set()
    for command, (_, config_class) in COMMANDS.items():
        start, always, hints = command.split(), ALWAYS.get(command, []), get_type_hints(config_class)
        shared = [field.name for field in fields(config_class) if (owner(config_class, field.name), field.name) in tried]
        again = [name for name in shared if bad_values(name, hints[name])][:1]
        for field in fields(config_class):
            if field.name in shared and field.name not in again:
                continue
            tried.add((owner(config_class, field.name), field.name))
            for value in bad_values(field.name, hints[field.name]):
                if (field.name, value) in FINE or (field.name == "nope_every" and value.startswith("9")):
                    continue  # only an encoding that is not asked for here would need so many layers
                found.append((f"{command} --{field.name} {value[:12]!r}", [*start, *always, f"--{field.name}={value}"]))
            if bool not in kinds(hints[field.name]):
                found.append((f"{command} --{field.name} without a value", [*start, f"--{field.name}"]))
        for words in (["--nothing", "1"], ["word"], ["--preset", "nothing"], ["-x"], ["--x=\udce9"], ["\x1b]0;x\x07"]):
            found.append((f"{command} {words!r}", [*start, *always, *words]))
    return found


def policy(**changes):
    """Writes a copy of the shipped policy. Each change is of a file: bytes, a text, a dict of fields, or a function of its path."""

    def prepare():
        shutil.copytree(SHIPPED / "arithmetic", "policy")
        for name, change in changes.items():
            path = Path("policy", name.replace("__", "."))
            if callable(change):
                change(path)
            elif isinstance(change, dict):
                path.write_text(json.dumps(json.loads(path.read_text()) | change))
            else:
                path.write_bytes(change if isinstance(change, bytes) else change.encode())

    return prepare


def halves(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_other_names(path):
    save_file({f"x.{name}": x for name, x in load_file(path).items()}, path, {"format": "pt"})


def folder(path):
    path.unlink()
    path.mkdir()


CHAT = "{{ message.content }}", "{% for m in %}", "{{ raise_exception('no') }}", "Hello"
ODD = [b"", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"[1]", b"null", b"7", b"{", folder]
POLICIES = {
    **{f"{file} {n}": {file: odd} for file in ("config__json", "tokenizer__json", "tokenizer_config__json") for n, odd in enumerate(ODD) if (file, odd) != ("tokenizer_config__json", folder)},
    **{f"config {name} {x!r}": {"config__json": {name: x}} for name, xs in dict(
        num_hidden_layers=[-1, 0, 1, 2, "x", 1.5, None, 10], num_attention_heads=[0, -4, 5, "x"], hidden_size=[-1, 0, 10**12, "x"], vocab_size=[-3, 0, 3, 10**13, "x"],
        max_position_embeddings=[2, 0, -1, "many"], model_type=["nothing", [1], "bert", "mamba", None], hidden_act=["no", 7], rope_parameters=["x", {"rope_type": "x"}],
        quantization_config=["x", {"quant_method": "bitsandbytes"}]).items() for x in xs},
    **{f"eos {x!r}": {"generation_config__json": {"eos_token_id": x}} for x in ("stop", ["a"], 10**6, -1, 1.5, True, {"a": 1}, [[1]])},
    "generation {": {"generation_config__json": "{"},
    **{f"weights {n}": {"model__safetensors": x} for n, x in enumerate([b"", b"\xff" * 99, halves, of_other_names, folder, b"\x02\0\0\0\0\0\0\0{}"])},
}  # fmt: skip
GOOD = '{"question": "2+2?", "answer": "#### 4"}'
LINES = ["[" * 100_000, '{"question": "q", "answer": ' + "9" * 5000 + "}", "[1]", "7", "null", "{", '"a"', '{"question": "q"}', '{"question": 1, "answer": "#### 1"}', '{"question": " ", "answer": "#### 1"}',
         '{"question": "q", "answer": null}', '{"question": "q", "answer": ""}', '{"question": "q", "answer": {}}', '{"question": "q", "answer": "#### "}']  # fmt: skip
PRESETS = ["out: x", "resume: x", "'yes': true", "- 1", "7", "", "a: [", "\t", "lr: &a 1\nclip: *a", "[" * 5000, "seed: " + "9" * 5000, "seed: 99999999999999", "date: 2025-99-99", "date: today", "lr: [1]",
           "lr: fast", "lr: .nan", "lr: .inf", "group: 1.5", "group: -1", "chat: maybe", "1: 2", "? [a]\n: 1", "task: chess", "task: no.py", "prompt: hello", 'prompt: "\\uDCE9 {question}"', 'model: "a\\0b"',
           "lr: 1\nlr: 2", "clip: null", "seed: 010", "iterations: 1:30", "clip: 1:30.5", "task: own.py",
           "!!python/object/apply:os.system ['true']", "lr: !!binary x", "a: 1\n---\nb: 2", "algorithm: none", "learning_rate: 1", "prompts: 0x99999999999", "lr: 1\nlr: x"]  # fmt: skip


def write(name: str, data: bytes | str):
    def prepare():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return prepare


def data(line: bytes | str):
    """A folder and a file of problems whose second line is bad."""

    def prepare():
        for name in ("data/train.jsonl", "data/test.jsonl"):
            write(name, GOOD.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()))()

    return prepare


def not_files():
    """A pipe, and a folder with the name under which a new file is written first."""
    os.mkfifo("fifo")
    Path("r.json.partial").mkdir()


def pipes():
    Path("data").mkdir()
    os.mkfifo("data/train.jsonl")
    os.mkfifo("data/test.jsonl")


def by_hand() -> list[tuple]:
    """(name, words, preparation) of the cases with files and with texts."""
    found = [(f"policy {name}", "sample --n 1 --model policy", policy(**changes)) for name, changes in POLICIES.items()]
    found += [
        (
            f"chat {x}",
            "sample --n 1 --model policy --chat",
            policy(tokenizer_config__json={"chat_template": x}, chat_template__jinja=x),
        )
        for x in CHAT
    ]
    for line in (*LINES, b"\xff"):
        for task, where in (("gsm8k", "data"), ("jsonl", "data/train.jsonl")):
            if not (task == "jsonl" and "9999" in str(line[:60])):
                found.append((f"{task} {line[:50]!r}", f"evaluate --model arithmetic --task {task} --data {where}", data(line)))
    found += [
        (f"preset {x[:30]!r}", f"{command} --preset bad.yaml", write("bad.yaml", x))
        for x in (*PRESETS, b"\xff")
        for command in ("train", "credit-cost")
    ]
    found += [(f"resume {x[:30]!r}", "train --resume run", write("run/config.yaml", x)) for x in (*PRESETS, b"\xff")]
    found += [(f"run {x[:30]!r}", "credit --run run", write("run/config.yaml", x)) for x in (*PRESETS, b"\xff")]
    found += [
        (f"results {n}", "lengthgen rank r", write("r/results.json", x))
        for n, x in enumerate(
            (
                b"",
                b"\xff",
                b"[" * 100_000,
                b"[]",
                b"{}",
                b"7",
                b"9" * 5000,
                b'{"settings": {}}',
                b'{"settings": 1, "runs": 2, "task": 3}',
                b'{"settings": {"task": "evil.py", "encodings": []}, "runs": [], "task": "evil.py"}',
                b'{"settings": {"task": "copy", "encodings": ["evil.py"]}, "runs": [], "task": "copy"}',
            )
        )
    ]
    for command in (
        "train",
        "sft",
        "evaluate",
        "credit",
        "credit-cost",
        "demo",
        "lengthgen",
        "lengthgen theory",
        "study",
        "lengthgen study",
    ):
        for out in ("file/x", "caf\udce9", "x" * 9000, "", " "):
            found.append((f"{command} --out {out[:9]!r}", [*command.split(), f"--out={out}"], write("file", "")))
    for name in ("fifo", "r.json"):
        found.append((f"evaluate --out {name}", f"evaluate --out {name}", not_files))
    for task in ("gsm8k", "jsonl"):
        found.append((f"{task} of a pipe", f"evaluate --task {task} --model arithmetic --data data/train.jsonl", pipes))
        found.append((f"{task} of a folder of pipes", f"evaluate --task {task} --model arithmetic --data data", pipes))
    for path in ("nothing.py", "x" * 9000 + ".py", "bad.py", "data"):
        for command in ("train", "evaluate", "lengthgen"):
            found.append(
                (
                    f"{command} --task {path[-9:]}",
                    [*command.split(), f"--task={path}"],
                    write("bad.py", "raise SystemExit('x' * 9000 + '\\n')"),
                )
            )
    for name in ("prompt", "question", "date", "data", "model", "reference"):
        texts = ("", "\udce9", "\udce9 {question}", "x" * 9000, "\x1b[31m")
        found += [
            (f"sample --{name} {x[:9]!r}", ["evaluate" if name == "reference" else "sample", f"--{name}={x}"], None)
            for x in texts
            if (name, x) not in FINE
        ]
    words = ("train --iterations 999999999", "train --epochs 10000 --iterations 1000", "train --max_seconds 1e30", "evaluate --temperature 1e-45", "lengthgen --max_positions 999999999", "evaluate --n 999999999", "sample --n 999999999", "sft --updates 999999999", "sft --hidden 4096 --layers 100", "credit --truth 999999999",
             "credit-cost --pool 999999999", "lengthgen --updates 999999999", "lengthgen --hidden 65536 --layers 1000", "train --eval_samples 999999999", "walk", "analyze", "analyze x", "lengthgen x", "\x1b[2J",
             "x" * 9000, "\udce9", "train --resume", "train --preset a --resume b", "credit --run a --preset b", "train --resume nowhere", "sample --problem 99999", "evaluate --device cuda:99", "evaluate --device meta")  # fmt: skip
    return found + [(each[:30], each, None) for each in words]


FINE = {("question", "x" * 9000), ("question", "\x1b[31m")}
CASES = [(name, words, None) for name, words in generated()] + by_hand()
SAMPLE = range(0, len(CASES), 25)


@pytest.mark.parametrize(
    "words, prepare",
    [case[1:] if n in SAMPLE else slow(*case[1:]) for n, case in enumerate(CASES)],
    ids=[f"{n} {case[0]}".encode("ascii", "replace").decode() for n, case in enumerate(CASES)],
)
def test_a_malformed_invocation_is_one_line_and_changes_nothing(words, prepare, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # beside a task file, Python itself writes one
    if prepare:
        prepare()
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    code = main(words.split() if isinstance(words, str) else words)
    says = capsys.readouterr().err
    assert code == 2, says
    assert says.count("\n") == 1 and says.strip().isprintable() and len(says) < 700, says
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_there_are_enough_cases():
    assert len(CASES) >= 300
