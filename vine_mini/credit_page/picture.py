"""The picture of the `credit` command: the steps of a response as rows, the methods as columns."""

from pathlib import Path
from warnings import catch_warnings, simplefilter

from vine_mini.app.plots import COLOURS, new_figure, save_figure
from vine_mini.app.tables import one_line
from vine_mini.credit_page.page import NAMES, signed, strength


def plot_credit(page, path: Path) -> None:
    """Draws the steps of a `page.Page` as rows, and the advantages by each method as a column of coloured cells."""
    texts = [one_line(text, 50) for text in page.steps]
    n, wide, text_wide = len(page.steps), 1.3, 0.095 * max(map(len, texts)) + 0.2  # inches
    figure, ((axis,),) = new_figure(1)
    figure.set_size_inches(text_wide + wide * len(page.credits), 1.3 + 0.42 * n)
    axis.set(xlim=(-text_wide, wide * len(page.credits)), ylim=(n, -1))
    axis.axis("off")
    for row, text in enumerate(texts):
        axis.text(-0.1, row + 0.5, text, ha="right", va="center", family="monospace")
    for column, credit in enumerate(page.credits):
        left = wide * column
        head = NAMES[credit.name] + (" (σ)" if credit.name == "grpo" else "")
        axis.text(left + wide / 2, -0.35, head, ha="center", va="center", weight="bold")
        for row, advantage in enumerate(credit.advantages):
            colour = COLOURS["vineppo" if advantage > 0 else "ppo"]
            alpha = 0.6 * strength(credit, row)  # light enough to read the number
            axis.fill_between([left, left + wide], row, row + 1, facecolor=(colour, alpha), edgecolor="white")
            axis.text(left + wide / 2, row + 0.5, signed(advantage), ha="center", va="center")
    title = one_line(page.question, int(11 * figure.get_figwidth()) - 7)
    figure.suptitle(f"{title}\nreward {page.reward:g}; the advantage of each step, pale within two standard errors", fontsize=10)
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # a character that the font lacks is drawn as a box
        save_figure(figure, path)
