"""The picture of the `credit-cost` command: noise, seconds, what follows from both, and where the value moves."""

from pathlib import Path

from vine_mini.app.plots import COLOURS, PHASES, new_figure, save_figure


def plot_cost(report, path: Path) -> None:
    """Draws a `command.CostReport`: three panels with a bar for each way to give credit, and the signal along the response."""
    figure, ((noise, seconds), (relative, places)) = new_figure(2, 2)
    figure.set_size_inches(12, 2.6 + 0.5 * len(report.ways))
    ways = report.ways[::-1]
    names = [way.name for way in ways]
    colours = [COLOURS["vineppo" if way.name.startswith("VinePPO") else "ppo" if way.name == "PPO" else "grpo"] for way in ways]
    noise.barh(names, [way.noise for way in ways], xerr=[way.error for way in ways], color=colours, capsize=3)
    noise.set(title="noise of the credit", xlabel="squared error, summed over the steps of a response")
    left = [0.0] * len(ways)
    for phase in dict.fromkeys(phase for way in ways for phase in way.seconds):
        widths = [way.seconds.get(phase, 0.0) for way in ways]
        seconds.barh(names, widths, left=left, label=phase, color=PHASES[phase])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    seconds.set(title="seconds of an iteration", xlabel="s")
    seconds.legend(frameon=False)
    whiskers = [[way.relative - way.interval[0] for way in ways], [way.interval[1] - way.relative for way in ways]]
    drawn = relative.barh(names, [way.relative for way in ways], xerr=whiskers, color=colours, capsize=3)
    relative.bar_label(drawn, [f"{way.relative:.2f}" for way in ways], padding=3)
    relative.axvline(1.0, color="0.3", linewidth=1)
    relative.set(title="time to the same learning, predicted", xlabel=f"{report.ways[0].name} = 1")
    relative.margins(x=0.15)
    n = len(report.places)
    places.bar([(i + 0.5) / n for i in range(n)], report.places, width=0.9 / n, color=COLOURS["vineppo"])
    places.set(title="where the value moves", xlabel="place in the response", ylabel="share of the signal", xlim=(0, 1))
    for axis in (seconds, places):
        axis.grid(axis="y", visible=False)
    seconds.set_yticklabels([])
    save_figure(figure, path)
