"""Files that a crash leaves whole, and the lock of a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kills import killed_before_change, largest_file, locked_by_another_process

from vine_mini.app import files
from vine_mini.cli import main
from vine_mini.types import UserError


def test_a_write_that_is_killed_anywhere_leaves_the_old_file_or_the_new_one(tmp_path):
    path, n, found, ended = tmp_path / "a.json", 0, [], [True]
    while ended:
        files.write_text(path, "old")
        with killed_before_change(n, tmp_path) as ended:
            files.write_text(path, "new")
        found.append(path.read_text())
        n += 1
    assert found == ["old"] * (n - 1) + ["new"] and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    path.write_text('{"old": 1}')
    with largest_file(10):
        assert main(["evaluate", "--problems", "1", "--n", "1", "--out", str(path)]) == 2
        with pytest.raises(UserError, match=r"rows.jsonl cannot be written: File too large"):
            files.append_row(tmp_path / "rows.jsonl", {"a": "long line"})
    assert f"vine_mini evaluate: {path} cannot be written: File too large" == capsys.readouterr().err.splitlines()[-1]
    assert path.read_text() == '{"old": 1}' and {p.name for p in tmp_path.iterdir()} == {"numbers.json", "rows.jsonl"}
    assert files.read_rows(tmp_path / "rows.jsonl") == []


def test_a_new_folder_never_replaces_a_full_one(tmp_path):
    (tmp_path / "a").mkdir()
    for name, refused in (("first", False), ("second", True)):
        try:
            with files.whole(tmp_path / "a") as fresh:
                fresh.mkdir()
                (fresh / name).touch()
        except UserError as error:
            assert refused and "cannot be written" in str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and [p.name for p in (tmp_path / "a").iterdir()] == ["first"]


def test_a_folder_is_removed_in_one_moment(tmp_path):
    n, ended, seen = 0, [True], []
    while ended:
        (tmp_path / "a").mkdir(exist_ok=True)
        for name in "xyz":
            (tmp_path / "a" / name).touch()
        with killed_before_change(n, tmp_path) as ended:
            files.discard(tmp_path / "a")
        seen.append(len(list((tmp_path / "a").glob("*"))))
        n += 1
    assert set(seen) == {0, 3} and list(tmp_path.iterdir()) == []


def test_rows_that_a_crash_has_cut_are_left_out_and_other_damage_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert files.read_rows(path) == []
    rows = [{"a": 1.5}, {"b": "ü\u2028"}]
    files.write_rows(path, rows)
    text = path.read_text(encoding="utf-8")
    for cut in range(len(text)):
        path.write_text(text[:cut], encoding="utf-8")
        assert files.read_rows(path) == rows[: text[:cut].count("\n")]
    content = text.encode()
    for cut in range(len(content)):  # also inside a character
        path.write_bytes(content[:cut])
        assert files.read_rows(path) == rows[: content[:cut].count(b"\n")]
    path.write_text('{"a"\n' + json.dumps({"b": 2}) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl, line 1: not JSON"):
        files.read_rows(path)


@pytest.mark.parametrize(
    "line, says",
    [
        (b"[" * 100_000, "line 2: not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 2: not JSON"),
        (b"[1]", "line 2: not JSON"),
        (b"7", "line 2: not JSON"),
        (b'"\xff"', "is not UTF-8"),
    ],
)
def test_rows_of_other_programs_are_named(tmp_path, line, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"rows.jsonl.*{says}"):
        files.read_rows(path)


def test_a_locked_folder_names_the_other_process_and_a_killed_one_holds_nothing(tmp_path):
    with files.locked(tmp_path):
        assert (tmp_path / "lock").read_text().startswith("process ")
    assert not (tmp_path / "lock").exists()
    with locked_by_another_process(tmp_path) as other:
        with pytest.raises(UserError, match=f"is in use by process {other.pid} on moon"), files.locked(tmp_path):
            pass
        assert (tmp_path / "lock").read_text() == f"process {other.pid} on moon"
    with files.locked(tmp_path):
        assert "moon" not in (tmp_path / "lock").read_text()
    assert not (tmp_path / "lock").exists()


@pytest.mark.slow
def test_without_what_windows_lacks_commands_run_and_folders_are_not_locked(tmp_path):
    code = """
import os, sys
from pathlib import Path
from transformers import LlamaForCausalLM  # which reads other names on Windows
sys.modules["fcntl"] = None
del os.sysconf, os.fork, os.killpg
from vine_mini.app import files
from vine_mini.cli import main
with files.locked(Path(".")), files.locked(Path(".")):
    assert not os.listdir()
sys.exit(main(["sample", "--n", "1", "--max_new_tokens", "4"]))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_error_in_the_block_is_not_called_an_error_of_writing(tmp_path):
    """A drawing that failed, and a GPU without memory, were told as a file that cannot be written."""
    with pytest.raises(ZeroDivisionError), files.whole(tmp_path / "file"):
        1 / 0  # noqa: B018
    with pytest.raises(UserError, match="cannot be written: No space"), files.whole(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
