"""The commands, run as people run them: what they print and what they write."""

import datetime
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Gemma3Config

from vine_mini import tasks
from vine_mini.app import commands
from vine_mini.app.config import SHIPPED, EvaluateConfig, SampleConfig, SFTConfig, TrainConfig
from vine_mini.app.cost import check_cost
from vine_mini.app.setup import build_trainer
from vine_mini.cli import main
from vine_mini.demo import seen
from vine_mini.models import load_policy, save_policy
from vine_mini.types import UserError

ROOT = Path(__file__).parents[2]
QUICK = "--steps 2 --prompts 2 --group 4 --minibatch_size 4 --k 2 --iterations 2 --eval_problems 4 --eval_samples 2".split()


def test_train_leaves_a_whole_run_folder(empty_folder, capsys):
    assert (
        main(
            [
                "train",
                *QUICK,
                "--save_every",
                "1",
                "--eval_every",
                "1",
                "--validation",
                "6",
                "--mc_lam",
                "0",
                "--mc_mu",
                "0",
                "--out",
                "run",
            ]
        )
        == 0
    )
    run = empty_folder / "run"
    names = {p.name for p in run.iterdir()} - {"tensorboard"}  # there where TensorBoard is installed
    assert names == {"config.yaml", "metrics.jsonl", "samples.jsonl", "curves.png", "checkpoints", "policy", "best"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert [row["iteration"] for row in rows if "eval" in row] == [0, 2]
    assert all(set(row["validation"]) >= {"pass@1", "greedy"} for row in rows[1:])
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4 and samples[0]["steps"][0]["text"].endswith("\n")
    for sample in samples:
        start_value = sample["reward"] - sum(step["advantage"] for step in sample["steps"])  # they telescope
        assert 5 * start_value == pytest.approx(round(5 * start_value))  # a mean of k = 2 rollouts and 3 other responses
    out = capsys.readouterr().out
    for text in (
        "memory estimate",
        "sampling: fast",
        *"pass@1 greedy maj@2 pass@2 truncated kl sample rollouts score update".split(),
    ):
        assert text in out
    AutoModelForCausalLM.from_pretrained(run / "policy")
    # The saved config starts the same run again, and the saved policy is a policy like any other.
    assert main(["train", "--preset", "run/config.yaml", "--out", "again", "--iterations", "1"]) == 0
    first, again = ((empty_folder / name / "metrics.jsonl").read_text().splitlines()[1] for name in ("run", "again"))
    assert json.loads(first)["loss"] == json.loads(again)["loss"]
    flags = ["--reference", str(SHIPPED / "arithmetic"), "--problems", "3", "--n", "2"]
    assert main(["evaluate", "--model", "run/policy", *flags]) == 0


@pytest.mark.slow
def test_the_best_policy_by_validation_problems_is_kept_and_tested(empty_folder, no_pictures, capsys, monkeypatch):
    """The learning rate destroys the policy in the second iteration. The first one is the best and is the one that is tested."""
    monkeypatch.setattr("vine_mini.trainer.Trainer._step", _destroys_at(2))
    assert main(["train", *QUICK, "--eval_every", "1", "--validation", "20", "--out", "run"]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    first, last = (row["validation"]["pass@1"][0] for row in rows[1:])
    assert first > last == 0
    out = capsys.readouterr().out
    assert "best on 20 validation problems: iteration 1, run/best" in out
    [line] = [line for line in out.splitlines() if line.startswith("greedy")]
    assert "100.0" in line.split("%")[2] and "0.0 ± 0.0" in line.split("%")[1]  # columns: iteration 0, iteration 2, best
    best, _ = load_policy("run/best", "cpu")
    shipped, _ = load_policy(str(SHIPPED / "arithmetic"), "cpu")
    assert all(map(torch.equal, best.state_dict().values(), shipped.state_dict().values()))


def _destroys_at(iteration: int):
    def step(trainer, stats):
        if trainer.iteration == iteration - 1:  # counted after the update
            for parameter in trainer.policy.parameters():
                parameter.data.zero_()
        trainer.optimizer.zero_grad(set_to_none=True)
        stats |= {"grad_norm": 0.0, "lr": 0.0}
        return True

    return step


def test_validation_problems_are_set_aside_by_a_rule():
    settings = dict(steps=4, prompts=2, group=2, minibatch_size=4)
    plain, same, other = (
        build_trainer(TrainConfig(**settings, eval_every=every, seed=seed)) for every, seed in ((0, 0), (5, 0), (5, 1))
    )
    count = min(200, len(plain.train_problems) // 10)
    assert len(plain.validation_problems) == 0 and len(same.validation_problems) == count
    assert same.validation_problems == other.validation_problems  # whatever the seed
    assert len(same.train_problems) + count == len(plain.train_problems)
    assert not set(same.train_problems) & set(same.validation_problems)
    assert set(same.train_problems) | set(same.validation_problems) == set(plain.train_problems)
    few = build_trainer(TrainConfig(**settings | dict(eval_every=5, steps=1, max_number=3)))
    assert 0 < len(few.validation_problems) <= (len(few.train_problems) + len(few.validation_problems)) / 10


def test_a_policy_that_diverged_is_named(empty_folder, no_pictures, capsys):
    assert main(["train", *QUICK, "--lr", "1e10", "--warmup", "0", "--out", "run"]) == 2
    assert "it has diverged; lower --lr" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_demo(empty_folder, no_pictures, capsys):
    assert main(["demo", "--seconds", "0.5", "--problems", "10"]) == 0
    out = capsys.readouterr().out
    assert "vineppo" in out and "±" in out and "one response of the policy that ppo trained" in out.lower()
    assert all(name in out for name in ("VinePPO", "PPO's critic", "GRPO")) and "VinePPO's value" in out.splitlines()[-2]
    assert "episodes: vineppo" in out and "Test accuracy after the same time: vineppo" in out
    folder = empty_folder / "runs" / "demo"
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"start", "vineppo", "ppo", "grpo"} and (folder / "demo.png").stat().st_size > 10_000
    assert (folder / "credit.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_demo_without_a_critic(empty_folder, no_pictures, capsys):
    assert main(["demo", "--seconds", "0.1", "--problems", "4", "--algorithms", "rloo", "--out", "here"]) == 0
    out = capsys.readouterr().out
    assert "policy that rloo trained" in out and "PPO's critic" not in out and Path("here/credit.png").exists()


@pytest.mark.slow
def test_sft_from_scratch_and_on_from_there(empty_folder, capsys):
    common = "--updates 3 --batch_size 4 --eval_problems 3 --eval_samples 1 --error_rate 0.2".split()
    assert main(["sft", *common, "--hidden", "16", "--layers", "1", "--out", "tiny"]) == 0
    card = (empty_folder / "tiny" / "README.md").read_text()
    of_task = "--steps 6 --max_new_tokens 64"  # also where they are the task's own
    assert f"sft {of_task} --updates 3 --batch_size 4 --lr 0.003 --error_rate 0.2 --hidden 16" in card and "pass@1" in card
    assert "lr = 0.003, the default for a new model" in capsys.readouterr().out
    assert main(["sft", *common, "--model", "tiny", "--out", "tiny2"]) == 0
    assert "lr = 0.001, the default for a model of this size" in capsys.readouterr().out
    assert "--lr 0.001" in (empty_folder / "tiny2" / "README.md").read_text()
    assert main(["sft", *common, "--model", "tiny", "--lr", "0.5", "--out", "tiny3"]) == 0
    assert "default for" not in capsys.readouterr().out and "--lr 0.5" in (empty_folder / "tiny3" / "README.md").read_text()
    assert main(["train", *QUICK, "--model", "tiny2", "--out", "run", "--iterations", "1"]) == 0


def rows_of(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_a_learning_rate_that_follows_from_the_model_is_printed_and_stored(empty_folder, no_pictures, capsys):
    """`--model` without a preset kept a learning rate that is meant for the shipped policy."""
    flags = [*QUICK, "--model", str(SHIPPED / "arithmetic"), "--iterations", "1", "--warmup", "0"]
    assert main(["train", *flags, "--out", "run"]) == 0
    assert "lr = 0.0001, the default for a policy of 130,496 parameters" in capsys.readouterr().out
    assert yaml.safe_load(Path("run/config.yaml").read_text())["lr"] == 1e-4 == rows_of("run")[1]["lr"]
    assert main(["train", "--resume", "run", "--iterations", "2"]) == 0
    assert "the default for" not in capsys.readouterr().out  # it is the run's now
    assert main(["train", *flags, "--lr", "3e-5", "--out", "other"]) == 0
    assert "the default for" not in capsys.readouterr().out and rows_of("other")[1]["lr"] == 3e-5


def test_a_large_model_gets_the_papers_learning_rate(empty_folder, no_pictures, monkeypatch, capsys):
    monkeypatch.setattr("vine_mini.models.default_lr", lambda policy: 1e-6)
    assert main(["train", *QUICK, "--iterations", "1", "--warmup", "0", "--out", "run"]) == 0
    assert "lr = 1e-06" in capsys.readouterr().out and rows_of("run")[1]["lr"] == 1e-6


DATED = (
    "{{ strftime_now('%d %b %Y') }}\n{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}12+3=15\n{% endif %}"
)


def chat_model(folder: str) -> None:
    """The shipped policy with a chat template that shows today's date, and thinks unless it is asked not to."""
    model, tokenizer = load_policy(str(SHIPPED / "arithmetic"), "cpu")
    tokenizer.chat_template = DATED
    save_policy(model, tokenizer, Path(folder))


@pytest.mark.slow
def test_a_chat_template_sees_the_date_of_the_runs_start(empty_folder, no_pictures, monkeypatch):
    """A run that went on after midnight had other prompts, and so had a run that was started again from its config.yaml."""

    def on(day: int):
        today = type("Date", (datetime.date,), {"today": classmethod(lambda cls: cls(2025, 1, day))})
        monkeypatch.setattr("vine_mini.app.config.datetime", SimpleNamespace(date=today))

    def numbers(run: str) -> list[dict]:
        return [{k: v for k, v in row.items() if "seconds" not in k and k != "eval"} for row in rows_of(run)]

    chat_model("chat")
    flags = ["train", *QUICK, "--model", "chat", "--chat", "True"]
    on(30)
    assert main([*flags, "--out", "whole"]) == 0
    assert main([*flags, "--max_seconds", "1e-9", "--out", "parts"]) == 0  # one iteration
    on(31)
    assert main(["train", "--resume", "parts", "--max_seconds", "0"]) == 0
    assert yaml.safe_load(Path("parts/config.yaml").read_text())["date"] == "2025-01-30"
    assert numbers("parts") == numbers("whole")
    assert main(["train", "--preset", "parts/config.yaml", "--out", "again"]) == 0
    assert numbers("again") == numbers("whole")
    assert main([*flags, "--out", "next_day"]) == 0
    assert numbers("next_day") != numbers("whole")  # the date is in the prompts


def test_a_chat_template_is_asked_not_to_think(empty_folder, capsys):
    chat_model("chat")
    trainer = build_trainer(TrainConfig(model="chat", chat=True, prompts=1, group=1, minibatch_size=1, date="2025-01-31"))
    assert trainer.tokenizer.decode(trainer.prompts[0]).startswith("31 Jan 2025\n")
    assert trainer.tokenizer.decode(trainer.prompts[0]).endswith("12+3=15\n")


PARTIAL = """
from vine_mini.tasks.arithmetic import ANSWER_MARK, DEFAULTS, TEMPLATE, extract_answer, problems


def reward(problem, text):
    given = extract_answer(text)
    return 0.0 if given is None else 1.0 if given == problem.answer else 0.25
"""


@pytest.mark.slow
def test_a_task_with_partial_credit(empty_folder, capsys):
    """Rewards between 0 and 1 are shown as numbers, and enter every measure with their value."""
    Path("close.py").write_text(PARTIAL)
    task = ["--task", "close.py", "--model", str(SHIPPED / "arithmetic"), "--steps", "2"]
    assert main(["sample", *task, "--n", "8", "--seed", "1"]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("---")]
    assert {line.split()[2] for line in heads} == {"right,", "reward"} and any("reward 0.25, ended by" in line for line in heads)
    assert main(["evaluate", *task, "--problems", "6", "--n", "4", "--temperature", "1", "--out", "numbers.json"]) == 0
    numbers = json.loads(Path("numbers.json").read_text())
    assert 0.25 < numbers["pass@1"][0] < 1 and (16 * 6 * numbers["pass@1"][0]) % 1 == 0 and numbers["pass@4"][0] > 0.25
    assert main(["train", *QUICK, *task, "--out", "run"]) == 0
    rewards = {json.loads(line)["reward"] for line in Path("run/samples.jsonl").read_text().splitlines()}
    assert rewards <= {0.0, 0.25, 1.0} and 0.25 in rewards
    assert Path("run/curves.png").stat().st_size > 10_000
    assert main(["credit", "--run", "run", "--k", "2", "--group", "2", "--critic_iterations", "0", "--out", "page"]) == 0
    assert Path("page/credit.html").exists()


def test_sample(capsys):
    assert main(["sample", "--n", "2", "--problem", "3"]) == 0
    out = capsys.readouterr().out
    asked = tasks.load_problems(SampleConfig())[1][3]
    assert out.startswith(f"{asked.question}   (answer: {asked.answer})\n") and out.count("\n--- ") == 2
    said = []
    for seed in "001":
        assert main(["sample", "--n", "4", "--temperature", "2", "--seed", seed]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    question = "Mia has 3 pens, buys 4, loses 2. How many pens now?"
    assert main(["sample", "--n", "1", "--temperature", "0", "--question", question]) == 0
    assert capsys.readouterr().out.rstrip().endswith("#### 5")


def test_evaluate_writes_json(empty_folder, capsys):
    assert main(["evaluate", "--problems", "3", "--n", "2", "--out", "numbers.json"]) == 0
    numbers = json.loads((empty_folder / "numbers.json").read_text())
    settings = {"temperature": 1.0, "top_p": 1.0, "n": 2}
    assert set(numbers) == {"pass@1", "greedy", "maj@2", "pass@2", "length", "truncated", *settings}
    assert numbers.items() >= settings.items()
    assert "arithmetic, temperature 1\n" in capsys.readouterr().out


def test_evaluations_have_the_temperature_of_the_task():
    """`evaluate` took 0.35 for every task, so the shipped policies looked perfect; `sft` took 1 for GSM8K."""
    for task, temperature in (("arithmetic", 1.0), ("gsm8k", 0.35)):
        assert EvaluateConfig(task=task).temperature == SFTConfig(task=task).eval_temperature == temperature
    assert EvaluateConfig(task="gsm8k", temperature=0.5).temperature == 0.5


def test_evaluate_replaces_files_alone(empty_folder, capsys):
    """A FIFO was replaced, a link as well, and its target kept the old numbers; r.json.partial/ was deleted."""
    os.mkfifo("fifo")
    Path("r.json.partial").mkdir()
    Path("old.json").write_text("old")
    Path("link").symlink_to("old.json")
    for out in ("fifo", "r.json", "."):
        assert main(["evaluate", "--problems", "1", "--n", "1", "--out", out]) == 2
        assert "name another file" in capsys.readouterr().err
    assert Path("fifo").is_fifo() and Path("r.json.partial").is_dir()
    assert main(["evaluate", "--problems", "1", "--n", "1", "--out", "link"]) == 0
    assert Path("link").is_symlink() and "pass@1" in Path("old.json").read_text()


def test_the_name_of_a_shipped_policy_and_of_a_folder_here_is_refused(empty_folder, capsys):
    """The shipped policy was taken without a word. Of --reference, the Hub was asked for it."""
    few = ["evaluate", "--problems", "1", "--n", "1", "--out", "r.json"]
    assert main([*few, "--reference", "arithmetic-12"]) == 2
    assert (
        "--reference has another tokenizer than the policy (their vocabularies differ): no KL" in capsys.readouterr().err
    )  # it printed one
    shutil.copytree(SHIPPED / "arithmetic", "arithmetic-12")
    for flag in ("--model", "--reference"):
        assert main([*few, flag, "arithmetic-12"]) == 2
        assert "arithmetic-12 is a shipped policy and a folder here: write ./arithmetic-12" in capsys.readouterr().err
        assert main([*few, flag, "./arithmetic-12"]) == 0


def test_the_name_of_a_policy_s_folder_is_printed_safely(empty_folder, capsys):
    shutil.copytree(SHIPPED / "arithmetic", "a\x1b[31m")
    assert main(["evaluate", "--model", "a\x1b[31m", "--problems", "1", "--n", "1"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_temperature_too_low_for_the_logits_is_refused(empty_folder, capsys):
    """It said that the policy had diverged."""
    for words in ("evaluate --temperature 1e-45", "train --temperature 1e-30", "sft --eval_temperature 1e-9"):
        assert main(words.split()) == 2
        assert "at least 0.001" in capsys.readouterr().err


def test_updates_count_in_the_estimate(empty_folder, capsys):
    """About 25 days started without a word."""
    for words in ("--epochs 10000 --iterations 1000", "--algorithm restem --epochs 10000 --iterations 1000 --eval_every 1"):
        assert main(["train", *words.split()]) == 2
        assert "days" in capsys.readouterr().err
    assert main(["train", "--max_seconds", "1e30", "--iterations", "999999999"]) == 2
    assert "max_seconds = 1e+30: must be at least 0 and at most 604800" in capsys.readouterr().err


def test_a_folder_whose_path_is_not_utf8_is_refused(empty_folder, monkeypatch, capsys):
    try:
        Path("caf\udce9").mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    monkeypatch.chdir("caf\udce9")
    assert main(["train", "--iterations", "1"]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err and not any(Path().iterdir())


def test_who_has_stopped_reading_gets_the_exit_code(monkeypatch):
    """The line was printed to the broken pipe again, and the exit code was 1."""

    class Broken(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Broken())
    assert main(["walk"]) == 2


def spied(monkeypatch, name: str) -> list:
    """The positional arguments of each call of a function of `commands`, from now on."""
    calls, whole = [], getattr(commands, name)
    monkeypatch.setattr(commands, name, lambda *args, **more: calls.append(args) or whole(*args, **more))
    return calls


def test_evaluate_measures_test_problems_and_the_kl_to_another_policy(empty_folder, monkeypatch):
    policy, tokenizer = load_policy(str(SHIPPED / "arithmetic"), "cpu")
    with torch.no_grad():
        policy.lm_head.weight.mul_(0.6)
    save_policy(policy, tokenizer, Path("reference"))
    calls, other = spied(monkeypatch, "evaluate"), ["--reference", "reference", "--top_p", "0.9"]
    assert main(["evaluate", *other, "--problems", "3", "--n", "2", "--temperature", "0.8", "--out", "numbers.json"]) == 0
    [(*_, problems, prompts, sampling)] = calls
    assert problems == tasks.load_problems(EvaluateConfig())[1][:3] and len(prompts) == 3
    assert (sampling.temperature, sampling.top_p) == (0.8, 0.9)
    assert json.loads(Path("numbers.json").read_text())["kl"][0] > 1e-3
    assert main(["evaluate", "--reference", "reference", "--temperature", "0"]) == 2  # the KL was left out without a word


def test_sample_in_bfloat16(monkeypatch, capsys):
    calls = spied(monkeypatch, "sample_responses")
    assert main(["sample", "--n", "1", "--bf16", "True"]) == 0
    assert torch.bfloat16 in {parameter.dtype for parameter in calls[0][0].parameters()}


def test_what_the_demo_has_seen_by_hand():
    def rows(*rewards, end):
        made = [{"episodes": 10 * (i + 1), "reward": x} for i, x in enumerate(rewards)]
        made[-1]["eval"] = {"pass@1": [end, 0.0]}
        return [{"episodes": 0, "eval": {"pass@1": [0.1, 0.0]}}, *made]

    said = seen({"a": rows(0.0, 0.5, end=0.7), "b": rows(0.0, 0.2, 0.9, end=0.4)})
    assert said.startswith("Mean reward over the last fifth of the same 20 episodes: a 50 %, b 20 %. ")
    assert said.endswith("time: a 70 %, b 40 %.")


def test_train_tells_of_test_problems_that_are_training_problems_and_of_cut_responses(empty_folder, no_pictures, capsys):
    Path("data").mkdir()
    for split, numbers in (("train", range(6)), ("test", range(5, 7))):
        rows = [json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) for n in numbers]
        Path("data", f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    flags = [*QUICK, "--task", "jsonl", "--data", "data", "--model", "arithmetic", "--max_new_tokens", "1"]
    assert main(["train", *flags, "--iterations", "1", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "1 test problems are training problems too" in said and "are cut by the limit" in said


@pytest.mark.slow
def test_gsm8k_whole_iterations_of_each_algorithm(gsm8k_folder, empty_folder, no_pictures, capsys):
    """The real problems, an untrained Llama and a tokenizer trained on the questions."""
    Path("data").mkdir()
    for split, n in (("train", 200), ("test", 20)):
        lines = (gsm8k_folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:n]
        Path("data", f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    gsm8k = "--task gsm8k --data data".split()
    make = "--updates 0 --hidden 32 --layers 1 --vocab_size 1000 --max_new_tokens 400 --eval_problems 1 --eval_samples 1".split()
    assert main(["sft", *gsm8k, *make, "--out", "llama"]) == 0
    for name in ("vineppo", "ppo", "grpo", "rloo", "reinforce"):
        one = f"--model llama --iterations 1 --max_new_tokens 40 --algorithm {name} --out {name}".split()
        flags = [*gsm8k, *QUICK, *one]
        assert main(["train", *flags]) == 0
        row = json.loads((empty_folder / name / "metrics.jsonl").read_text().splitlines()[1])
        assert row["first_ratio"] == pytest.approx(1.0, abs=1e-4) and row["episodes"] == 8
    assert "memory estimate" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stop_saves_and_exits_cleanly(number, tmp_path):
    flags = [*QUICK, "--iterations", "100000", "--out", "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vine_mini", "train", *flags],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 60
    try:
        while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.time() < deadline:
            time.sleep(0.1)
        process.send_signal(number)  # wherever the iteration is: it ends whole
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err
    assert "interrupted; everything is in run" in out
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists() and (tmp_path / "run" / "curves.png").exists()
    logged = json.loads(metrics.read_text().splitlines()[-1])["iteration"]
    with safe_open(tmp_path / "run" / "policy" / "training_state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["counters"])["iteration"] == logged  # what is saved is what is logged


def test_a_model_of_text_and_pictures_trains_on_text(empty_folder, no_pictures, capsys):
    """Its config holds one for the text and one for the pictures, so the sizes of the text model stand a level deeper."""
    _, tokenizer = load_policy(str(SHIPPED / "arithmetic"), "cpu")
    text = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    text |= dict(vocab_size=len(tokenizer), head_dim=8, max_position_embeddings=60, eos_token_id=tokenizer.eos_token_id)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))
    save_policy(model, tokenizer, Path("gemma"))
    common = ["--model", "gemma", "--steps", "2", "--max_new_tokens"]
    assert main(["train", *QUICK, *common, "16", "--iterations", "1", "--out", "run"]) == 0
    assert main(["evaluate", *common, "16", "--reference", "run/policy", "--problems", "2", "--n", "1"]) == 0
    assert "memory estimate" in capsys.readouterr().out
    assert main(["train", *QUICK, *common, "60", "--iterations", "1", "--out", "other"]) == 2
    assert "the model sees only 60" in capsys.readouterr().err  # of the text model


def test_whoever_says_yes_goes_on(empty_folder):
    config = TrainConfig(max_new_tokens=1000)
    with pytest.raises(UserError, match="add --yes to go on"):
        check_cost(config, 10**9, 10**9, 10)
    check_cost(replace(config, yes=True), 10**9, 10**9, 10)


def test_sft_saves_its_policy_before_an_evaluation_that_may_fail(empty_folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vine_mini.app.commands._evaluate", fail)
    small = "--updates 20 --batch_size 2 --hidden 16 --layers 1".split()  # 20 updates once divided by zero
    assert main(["sft", *small, "--out", "tiny"]) == 130
    assert load_policy("tiny", "cpu")[0].num_parameters() > 0 and "(not evaluated)" in Path("tiny/README.md").read_text()


def test_sft_looks_at_the_test_problems_before_it_trains(empty_folder, capsys):
    Path("data").mkdir()
    Path("data/train.jsonl").write_text(json.dumps({"question": "1+1?", "answer": 2}))
    Path("data/test.jsonl").write_text(json.dumps({"question": "long " * 2000, "answer": 2}))
    data = ["--task", "jsonl", "--data", "data", "--max_new_tokens", "20"]
    assert main(["sft", *data, "--updates", "1", "--hidden", "16", "--layers", "1", "--out", "tiny"]) == 2
    assert "but the model sees only 1024" in capsys.readouterr().err and not Path("tiny").exists()


def test_a_training_that_diverges_removes_no_folder(empty_folder, capsys):
    """What stood in tiny-diverged was deleted, whatever it was."""
    (empty_folder / "tiny-diverged").mkdir()
    (empty_folder / "tiny-diverged" / "mine").write_text("")
    for name in ("tiny-diverged-2", "tiny-diverged-3"):
        assert main("sft --updates 3 --batch_size 2 --hidden 16 --layers 1 --lr 1e30 --out tiny".split()) == 2
        assert f"{name}/diverged.json has the ids" in capsys.readouterr().err
    assert (empty_folder / "tiny-diverged" / "mine").exists()


@pytest.mark.parametrize("out", [".", "..", "x" * 250])
def test_what_no_folder_can_be_renamed_to_is_refused_before_work(out, empty_folder, capsys):
    (empty_folder / "here").mkdir()
    os.chdir("here")
    assert main(["sft", "--updates", "0", "--hidden", "16", "--layers", "1", "--out", out]) == 2
    said = capsys.readouterr().err
    assert ("name a folder inside it" in said or "too long" in said or "already holds" in said) and said.count("\n") == 1
