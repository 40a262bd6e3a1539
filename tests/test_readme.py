"""What the README promises: its length, its links, its code."""

import importlib
import re
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from vine_mini import cli
from vine_mini.app.config import SHIPPED, TrainConfig
from vine_mini.app.runs import Run
from vine_mini.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("results/**/*.md"), *ROOT.glob("tutorials/*.md")]


def test_it_is_short():
    assert README.count("\n") <= 150 and len(README.split()) <= 1500


def test_links_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", page.read_text(encoding="utf-8")):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), flags=re.M)
                anchors = {"#" + re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
                assert anchor in anchors, f"{page.name} links to {target}{anchor}"


def test_its_own_task_and_its_own_loop_train(tmp_path, monkeypatch):
    """The two snippets as printed, on the shipped policy, for one small iteration."""
    task, loop = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    (tmp_path / "parity.py").write_text(task, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    policy = SHIPPED / "arithmetic"
    small = "k=1, prompts=2, group=2, minibatch_size=4, iterations=1"
    loop = loop.replace('"NAME"', repr(str(policy))).replace("k=4", small)
    printed = []
    exec(loop, {"print": lambda *words: printed.append(words)})
    assert len(printed) == 1 and printed[0][0] == 1 and 0 <= printed[0][1] <= 1


def printed_commands() -> set[str]:
    """The words after `python -m vine_mini` in all pages, and those of `lengthgen` where it stands alone; without a comment."""
    found: set[str] = set()
    for page in [*PAGES, *ROOT.glob("tutorials/*.py"), *ROOT.glob("benchmarks/*.py")]:
        text = re.sub(r"\\+\n", " ", page.read_text(encoding="utf-8"))  # a line that goes on
        found |= {*re.findall(r"python -m vine_mini(?![.\w])([^`\n#]*)", text), *re.findall(r"`(lengthgen [^`]*)`", text)}
    return {" ".join(words.split()) for words in found if not {"...", "{"} & {*words.split(), *words}}


def test_every_printed_command_can_be_read(tmp_path, monkeypatch):
    """Options that do not exist, choices that do not exist, and settings that exclude each other are found; nothing runs."""
    read = []
    for name, (_, config_class) in COMMANDS.items():
        monkeypatch.setitem(cli.COMMANDS, name, (read.append, config_class))
    Run.start(tmp_path / "run", TrainConfig(), {})
    (tmp_path / "run" / "policy").mkdir()
    real = {"RUN": str(tmp_path / "run"), "TASK": "arithmetic", "NAME": "arithmetic", "FILE": "file.jsonl"}
    monkeypatch.chdir(ROOT)
    commands = sorted(printed_commands())
    assert len(commands) > 30
    for command in commands:
        command = re.sub(r"\S*mine.py", "results/lengthgen/t5-buckets/t5_8.py", command)
        words = [re.sub(r"\b[A-Z]{3,}\b", lambda found: real[found[0]], word) for word in shlex.split(command)]
        assert cli.main(words) == 0, command
    assert len(read) == len(commands)


def test_every_printed_command_of_the_benchmarks_can_be_read(monkeypatch):
    """Their options exist; nothing runs."""

    class Read(Exception):
        pass

    whole, read = ArgumentParser.parse_args, []

    def parse(self, *words):
        read.append(whole(self, *words))
        raise Read

    commands = set()
    for page in PAGES:
        text = re.sub(r"\\+\n", " ", page.read_text(encoding="utf-8"))
        commands |= {" ".join(words.split()) for words in re.findall(r"python -m (benchmarks\.\w+ [^`\n#(]*)", text)}
    monkeypatch.setattr(ArgumentParser, "parse_args", parse)
    for name, *words in map(shlex.split, sorted(commands)):
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(Read):
            importlib.import_module(name).main()
    assert len(read) == len(commands) > 15


def test_without_a_command_it_is_the_demo(monkeypatch):
    ran = []
    for name, (_, config_class) in COMMANDS.items():
        monkeypatch.setitem(cli.COMMANDS, name, (lambda config, name=name: ran.append((name, config.out)), config_class))
    assert "" in printed_commands()
    assert cli.main([]) == 0 and cli.main(["--out", "here"]) == 0
    assert ran == [("demo", None), ("demo", "here")]
