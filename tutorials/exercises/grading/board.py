"""The progress board of the `exercises` command: it shows which exercises are done, and which one comes next."""

import multiprocessing
import re
import shlex
import sys
from pathlib import Path

import torch

import grading
from vine_mini.types import UserError

SECONDS = 5  # for an exercise
ORDER = "01 02 04 03 18 05 06 07 08 09 20 19 10 13 17 11 12 21 14 15 22 16".split()  # as the tutorials need them
HINTS = Path(__file__).parents[1] / "hints.md"


def hint(number: int, second: bool) -> int:
    """Prints the first hint of an exercise, or both. -> exit code. Raises UserError if there is no such exercise."""
    if not 1 <= number <= len(grading.EXERCISES):
        raise UserError(f"there is no exercise {number}: choose 1 to {len(grading.EXERCISES)}")
    one, two = hints()[grading.EXERCISES[number - 1].file[:4]]
    print(f"{one}\n\n{two}" if second else f"{one}\n\nA nearer one: add --second")
    return 0


def hints() -> dict[str, list[str]]:
    """The hints of each exercise, such as "ex07", from the first to the nearest."""
    parts = HINTS.read_text(encoding="utf-8").split("\n## ")[1:]
    return {part[:4]: re.findall(r"^\d\. (.+)$", part, re.MULTILINE) for part in parts}


def effort(exercise) -> str:
    """How difficult an exercise is and how long it takes, as its file says: "easy, about 5 minutes"."""
    found = re.search(r"^(Easy|Medium|Hard), about \d+ minutes", exercise.path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[0].lower() if found else ""


def show() -> int:
    """Grades every exercise and prints one line for each. -> exit code"""
    rows = []
    for exercise in grading.EXERCISES:
        state, remark = verdict(exercise)
        rows.append((exercise, state))
        mark = {"done": "✓", "failing": "✗", "untouched": "·"}[state]
        print(f"{mark} {exercise.file:26}{state:11}{remark}".rstrip(), flush=True)
    todo = sorted([row for row in rows if row[1] != "done"], key=lambda row: ORDER.index(row[0].file[2:4]))
    print(f"\n{len(rows) - len(todo)} of {len(rows)} done")
    if todo:
        exercise, state = next((row for row in todo if row[1] == "failing"), todo[0])
        place, python = _from_here(exercise.path), shlex.quote(str(_from_here(Path(sys.executable))))
        print(f"{'fix' if state == 'failing' else 'next'}: {place}")
        print(f"grade: {python} -m pytest {shlex.quote(str(place.parent))} -k {exercise.file[:4]}")
        print(f"hint: {python} -m vine_mini exercises --hint {int(exercise.file[2:4])}")
    return 0


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def verdict(exercise) -> tuple[str, str]:
    """Grades an exercise in a process of its own, which an answer may end or keep busy. -> as `_verdict`"""
    context = multiprocessing.get_context("fork")  # the child has all imports already
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_verdict, args=(exercise, sender), daemon=True)
    child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SECONDS) else ("failing", f"no answer within {SECONDS} s: an endless loop?")
    except EOFError:
        return "failing", "your code ends the process, as os._exit does"
    finally:
        child.kill()
        child.join()


def _send_verdict(exercise, sender):
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    sender.send(_verdict(exercise))


def _verdict(exercise) -> tuple[str, str]:
    """-> "done", "failing" or "untouched"; for a failure also a short reason"""
    try:
        grading.grade_file(exercise)
    except NotImplementedError:
        return "untouched", effort(exercise)
    except AssertionError as error:
        lines = str(error).split("\n")
        case = re.search(r'on "(.*)":$', lines[0])
        reason = re.sub("(On this input, )?.*his is what comes out if", lambda m: f"{m[1] or ''}as if", lines[-1].strip())
        remark = f"{case[1]}: {reason}" if case and not reason.startswith("as if") else reason
        return "failing", remark if len(remark) <= 110 else f"{remark[:107]}..."
    return "done", ""
