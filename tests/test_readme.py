"""What the README promises: its length, its links, its code."""

import re
from pathlib import Path

from vine_mini.app.config import SHIPPED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert README.count("\n") <= 150 and len(README.split()) <= 1500


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("results/**/*.md"), *ROOT.glob("tutorials/*.md")):
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
    policy = next(path for path in SHIPPED.iterdir() if path.is_dir())
    small = "k=1, prompts=2, group=2, minibatch_size=4, iterations=1"
    loop = loop.replace('"NAME"', repr(str(policy))).replace("k=4", small)
    printed = []
    exec(loop, {"print": lambda *words: printed.append(words)})
    assert len(printed) == 1 and printed[0][0] == 1 and 0 <= printed[0][1] <= 1
