"""Markdown tables, and text of models and users made safe to print."""

import unicodedata


def columns(rows: list[list[str]]) -> str:
    """The rows as a Markdown table that can also be read as plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def verdict(reward: float | None, finished: bool) -> str:
    """A response in words, such as "right, ended by itself". The reward is None where no task grades the response."""
    graded = "" if reward is None else {1.0: "right, ", 0.0: "wrong, "}.get(reward, f"reward {reward:g}, ")
    return graded + ("ended by itself" if finished else "cut by the limit")


def visible(text: str) -> str:
    """The text with control, format and unassigned characters as ⟨U+0000⟩. Line ends and tabs stay."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in hidden and c not in "\n\t" else c for c in text)


def one_line(text: str, most: int = 600) -> str:
    """The text as one line of visible characters. Of a longer one than `most`, the middle is left out."""
    line = " ".join(visible(" ".join(text.split())).split())
    return line if len(line) <= most else f"{line[: most // 2]} [...] {line[-most // 2 :]}"
