"""The `demo` command: the same policy trained by several algorithms for the same time, and what each of them saw.

The last screen shows the accuracy, one response with the credit of each method beside its steps, and what follows from both.
"""

import json
import time
from dataclasses import dataclass, field, replace

from vine_mini.algorithms import ALGORITHMS
from vine_mini.app.commands import INTERRUPTED, machine
from vine_mini.app.config import TrainConfig
from vine_mini.app.fields import Count, Seconds, Seed, check_ranges, knob, one_of
from vine_mini.app.files import new_folder, write_text
from vine_mini.app.flags import parse, read_preset
from vine_mini.app.loop import train_run
from vine_mini.app.plots import plot_comparison
from vine_mini.app.runs import Run
from vine_mini.app.setup import build_trainer
from vine_mini.app.tables import visible
from vine_mini.credit_page.command import explain
from vine_mini.credit_page.config import CreditConfig
from vine_mini.credit_page.page import finding, summary
from vine_mini.credit_page.picture import plot_credit
from vine_mini.evaluate import table
from vine_mini.types import UserError


@dataclass
class DemoConfig:
    """Train VinePPO, PPO and GRPO from the shipped policy for the same time each, and compare them."""

    seconds: Seconds = knob(45, "Training time of each algorithm.")
    algorithms: list[str] = field(default_factory=lambda: ["vineppo", "ppo", "grpo"], metadata={"help": "Trained in this order."})
    problems: Count = knob(200, "Test problems in each evaluation.")
    out: str | None = knob(None, "Folder for the picture and the runs; a new one under runs/ when left out.")
    device: str = knob("cpu", "The shipped policy is so small that a GPU would not be faster.")
    seed: Seed = knob(0, "Seed of everything random.")

    def __post_init__(self):
        check_ranges(self)
        if len(set(self.algorithms)) < len(self.algorithms):
            raise UserError("algorithms: name each of them once")
        for name in self.algorithms:
            one_of("algorithm", name, ALGORITHMS)


def demo(config: DemoConfig) -> int:
    """The `demo` command."""
    start = time.perf_counter()
    folder = new_folder(config.out, "demo")
    limits = dict(iterations=100_000, max_seconds=config.seconds, save_every=100_000, eval_problems=config.problems)
    base = TrainConfig(**read_preset("decisive") | limits, device=config.device, seed=config.seed)
    before, runs = None, {}
    for name in config.algorithms:
        trainer = build_trainer(replace(base, algorithm=name))
        if before is None:
            print(f"{machine(trainer.device)}\nTask: {visible(trainer.test_problems[0].question)}")
            print(f"Training {', '.join(config.algorithms)} for {config.seconds:g} s each, from the same policy.")
            before = trainer.evaluate(with_kl=False)
        run = Run.start(folder / name, trainer.config, before)
        if not train_run(trainer, run):  # a stop was asked for, maybe in the last iteration
            print(f"interrupted; what was trained is in {folder}")
            return INTERRUPTED
        runs[name] = run.rows
    plot_comparison(runs, folder / "demo.png", f"From the same policy, {config.seconds:g} s of training each")
    last = {name: rows[-1] for name, rows in runs.items()}
    write_text(folder / "results.json", json.dumps({"start": before, **last}, indent=1))
    print(table({"start": before} | {name: row["eval"] for name, row in last.items()}))
    # The run that has a critic shows a response, so that the critic's credit stands beside the others'. Else the last run does.
    shown = next((name for name in runs if ALGORITHMS[name].needs_critic), config.algorithms[-1])
    critic = str(int(ALGORITHMS[shown].needs_critic))
    words = ["--run", str(folder / shown), "--critic_iterations", critic, "--k", "32"]
    page = next(explain(parse(CreditConfig, "demo", words)))
    plot_credit(page, folder / "credit.png")
    print(f"\nOne response of the policy that {shown} trained, and the advantage of each step (VinePPO's from 32 rollouts):")
    print(f"{summary(page)}\n\n{seen(runs)}\n{finding(page)}")
    print(f"pictures: {folder / 'demo.png'}, {folder / 'credit.png'}   ({time.perf_counter() - start:.0f} s in all)")
    return 0


def seen(runs: dict[str, list[dict]]) -> str:
    """One line: the mean reward over the last fifth of the same number of episodes, and the test accuracy at the same time."""
    fewest = min(rows[-1]["episodes"] for rows in runs.values())
    early = {name: [row["reward"] for row in rows if 0.8 * fewest <= row["episodes"] <= fewest] for name, rows in runs.items()}
    at = ", ".join(f"{name} {100 * sum(rewards) / len(rewards):.0f} %" for name, rewards in early.items() if rewards)
    end = ", ".join(f"{name} {100 * rows[-1]['eval']['pass@1'][0]:.0f} %" for name, rows in runs.items())
    return f"Mean reward over the last fifth of the same {fewest:,} episodes: {at}. Test accuracy after the same time: {end}."
