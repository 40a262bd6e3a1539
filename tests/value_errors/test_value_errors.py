"""The errors of value estimates: their mathematics on cases done by hand, and the command on small runs."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE, tiny_model

from vine_mini.app import checkpoint
from vine_mini.app.config import TrainConfig
from vine_mini.app.setup import build_trainer
from vine_mini.cli import main
from vine_mini.evaluate import clustered_mean
from vine_mini.logprobs import response_values
from vine_mini.models import Critic
from vine_mini.types import Trajectory, UserError
from vine_mini.value_errors import command
from vine_mini.value_errors.command import report_of, table
from vine_mini.value_errors.config import ValuesConfig
from vine_mini.value_errors.measures import Choice, State, agreement, error_by_place, errors

QUICK = "--steps 3 --prompts 4 --group 4 --minibatch_size 8 --eval_problems 4 --eval_samples 1".split()
FEW = "--problems 4 --responses 1 --truth 16 --ks 1 3 --states 4 --choices 2".split()


def test_errors_by_hand():
    states = [
        State(p, i, 2, truth, {"x": value}) for p, i, truth, value in [(0, 0, 0.5, 0.7), (0, 1, 1.0, 0.8), (1, 0, 0.2, 0.2)]
    ]
    of = errors(states, "x")
    assert of["error"][0] == pytest.approx(0.4 / 3) and of["bias"][0] == pytest.approx(0.0)
    # Problem 0 deviates by 0.4 - 2 x 0.4 / 3 and problem 1 by as much on the other side.
    assert of["error"][1] == pytest.approx((2 * 2 * (0.4 / 3) ** 2) ** 0.5 / 3)
    assert error_by_place(states, "x", 2) == [pytest.approx(0.1), pytest.approx(0.2)]
    assert error_by_place(states[:1], "x", 3) == [pytest.approx(0.2), None, None]


def test_copies_of_numbers_say_nothing_new():
    numbers, problems = [0.1, 0.4, 0.3, 0.9], [0, 0, 1, 2]
    mean, error = clustered_mean(numbers, problems)
    assert clustered_mean(numbers * 5, problems * 5) == pytest.approx((mean, error)) and error > 0
    assert clustered_mean([1.0, 2.0], [7, 7]) == (1.5, None)


def test_agreement_by_hand():
    choices = [
        Choice(0, [0.1, 0.9, 0.5], {"right": [1.0, 3.0, 2.0], "wrong": [3.0, 1.0, 2.0], "same": [1.0, 1.0, 1.0]}, 256),
        Choice(1, [0.2, 0.5, 0.2], {"right": [1.0, 2.0, 0.0], "wrong": [1.0, 0.0, 1.0], "same": [0.0, 0.0, 0.0]}, 256),
        Choice(
            2, [0.5, 0.45, 0.0], {"right": [0.0, 1.0, 2.0], "wrong": [2.0, 1.0, 0.0], "same": [1.0, 1.0, 1.0]}, 256
        ),  # not clear
    ]
    assert [choice.clear for choice in choices] == [True, True, False]
    found = {name: {what: mean for what, (mean, _) in agreement(choices, name).items()} for name in ("right", "wrong", "same")}
    assert found["right"] == {"top": 1.0, "chance": pytest.approx(1 / 3), "pairs": 1.0}
    assert found["wrong"] == {"top": 0.0, "chance": pytest.approx(1 / 3), "pairs": 0.0}
    assert found["same"] == {"top": pytest.approx(1 / 3), "chance": pytest.approx(1 / 3), "pairs": 0.5}
    assert agreement(choices[2:], "right") == {}


def test_two_true_values_differ_beyond_two_standard_errors():
    choice = Choice(0, [0.0, 0.02], {}, 256)
    variance = [p * (1 - p) / 256 for p in (0.5 / 257, (0.02 * 256 + 0.5) / 257)]
    assert 2 * sum(variance) ** 0.5 < 0.02 and choice.clear and not Choice(0, [0.0, 0.02], {}, 64).clear
    assert not Choice(0, [1.0, 1.0], {}, 256).clear


def test_the_critic_is_read_at_the_states():
    """The value after the last token of a state needs no token after it: any token does."""
    trainer = build_trainer(TrainConfig(algorithm="ppo", steps=2, prompts=2, group=2, minibatch_size=2))
    torch.nn.init.normal_(trainer.critic.head.weight)
    episodes = trainer.sample_episodes()
    cuts = [[*of_row, len(t.response_ids)] for of_row, t in zip(episodes.cuts, episodes.trajectories, strict=True)]
    found = command.critic_values(trainer, episodes.trajectories, cuts)["critic"]
    tokens = episodes.tokens
    with torch.no_grad():
        values = response_values(trainer.critic, tokens.input_ids, tokens.attention_mask, tokens.response_mask)
    for row, of_row in enumerate(episodes.cuts):
        assert found[row][:-1] == pytest.approx(values[row][tokens.response_mask[row].bool()][of_row].tolist(), abs=1e-5)
        assert len(found[row]) == len(of_row) + 1 and math.isfinite(found[row][-1])


@pytest.mark.slow
def test_the_command_over_the_checkpoints_of_a_run(empty_folder, capsys):
    flags = [
        "train",
        *QUICK,
        "--algorithm",
        "ppo",
        "--iterations",
        "3",
        "--keep_every",
        "1",
        "--save_every",
        "50",
        "--out",
        "run",
    ]
    assert main(flags) == 0
    assert checkpoint.kept(Path("run")) == ["checkpoints/1", "checkpoints/2", "checkpoints/3"]
    assert main(["analyze", "values", "--run", "run", *FEW, "--out", "here"]) == 0
    reports = json.loads(Path("here/values.json").read_text())
    assert [report["iteration"] for report in reports] == [1, 2, 3]
    assert reports[0]["names"] == ["critic", "K = 1", "K = 3", "best constant"]
    last = reports[-1]
    assert len(last["states"]) >= 4 and 1 <= len(last["choices"]) <= 4
    assert {state["problem"] for state in last["states"]} == {0, 1, 2, 3}
    assert all(state["values"]["K = 1"] in (0, 1) and (state["truth"] * 16).is_integer() for state in last["states"])
    text = capsys.readouterr().out
    assert text.count("| critic ") == 3 and "checkpoints 1" not in text and Path("here/values.md").read_text().strip() in text
    assert Path("here/values.png").stat().st_size > 20_000 and Path("here/trend.png").stat().st_size > 10_000
    questions = [[state["truth"] for state in report["states"] if state["step"] == 0] for report in reports]
    assert len(questions[0]) == len(questions[1]) == 4  # the same problems at each checkpoint
    assert main(["train", "--resume", "run", "--iterations", "4", "--keep_every", "2"]) == 0
    assert checkpoint.kept(Path("run")) == ["checkpoints/2", "checkpoints/4"]


@pytest.mark.slow
def test_a_run_without_a_critic(empty_folder, capsys, monkeypatch):
    monkeypatch.setattr("vine_mini.app.runs.plot_run", lambda *_: None)
    assert main(["train", *QUICK, "--algorithm", "rloo", "--iterations", "1", "--out", "run"]) == 0
    assert main(["analyze", "values", "--run", "run", *FEW, "--out", "here"]) == 0
    assert "run trained no critic (rloo): only Monte Carlo values are measured" in capsys.readouterr().out
    assert json.loads(Path("here/values.json").read_text())[0]["names"] == ["K = 1", "K = 3", "best constant"]
    assert not Path("here/trend.png").exists()
    for flags, says in (
        (["--problems", "5000"], "problems = 5000, but there are only "),
        (["--ks", "0"], "ks: each K must be at least 1"),
        (["--truth", "1"], "truth = 1: must be at least 2"),
        (["--out", "here"], "here already holds something"),
    ):
        assert main(["analyze", "values", "--run", "run", *FEW, "--out", "new", *flags]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()[-1:]
        assert says in line and not Path("new").exists()


@pytest.mark.slow
def test_states_without_a_choice_lose_nothing(empty_folder, capsys, monkeypatch):
    monkeypatch.setattr("vine_mini.app.runs.plot_run", lambda *_: None)
    assert main(["train", *QUICK, "--algorithm", "rloo", "--iterations", "2", "--keep_every", "1", "--out", "run"]) == 0
    assert main(["analyze", "values", "--run", "run", *FEW, "--choices", "50", "--out", "here"]) == 0
    text = capsys.readouterr().out
    assert "no state has 50 distinct next steps with a clear best one: lower --choices" in text and text.count("| -  ") >= 4
    assert len(json.loads(Path("here/values.json").read_text())) == 2 and Path("here/trend.png").is_file()


def test_what_is_no_run(empty_folder, capsys):
    for flags, says in (
        ([], "vine_mini analyze values: --run is missing"),
        (["--run", "nowhere"], "there is no nowhere/config.yaml: --run needs the folder of a run"),
    ):
        assert main(["analyze", "values", *flags]) == 2
        assert says in capsys.readouterr().err
    assert main(["analyze"]) == 2 and "write `analyze values`" in capsys.readouterr().err
    assert main(["analyze", "words"]) == 2 and "unknown command 'analyze words'" in capsys.readouterr().err


def test_a_checkpoint_is_loaded_without_a_reference(monkeypatch):
    """It was a copy of the policy that nothing read."""

    def build(config):
        raise UserError(f"kl_coef {config.kl_coef}")

    monkeypatch.setattr(command, "build_trainer", build)
    with pytest.raises(UserError, match=r"kl_coef 0\.0"):
        command.load(ValuesConfig(run="run"), TrainConfig(algorithm="ppo", kl_coef=0.1), "policy")


def test_what_was_measured_before_ctrl_c_stays(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    of = {name: (0.1, 0.0) for name in ("error", "bias")}
    report = command.CheckpointErrors(
        1, ["K = 1"], [State(0, 0, 2, 0.5, {"K = 1": 0.6})], [], {"K = 1": of}, {"K = 1": [0.1]}, {}
    )

    def measure(name, config):
        assert (tmp_path / "out").is_dir()  # before hours of measuring, so that no other call takes it
        if name == "second":
            raise KeyboardInterrupt
        return report

    monkeypatch.setattr(command, "config_of_run", lambda run: TrainConfig(algorithm="grpo"))
    monkeypatch.setattr(command.checkpoint, "kept", lambda run: ["first", "second"])
    monkeypatch.setattr(command, "load", lambda config, saved, name: name)
    monkeypatch.setattr(command, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        command.analyze_values(ValuesConfig(run=str(tmp_path), out=str(tmp_path / "out")))
    [found] = json.loads((tmp_path / "out" / "values.json").read_text())
    assert found["iteration"] == 1 and {path.name for path in (tmp_path / "out").iterdir()} == {
        "values.json",
        "values.md",
        "values.png",
    }


def test_one_problem_does_not_show_its_error():
    choices = [Choice(0, [0.1, 0.9], {"K = 9": [0.0, 1.0]}, 256)] * 3
    assert agreement(choices, "K = 9")["top"] == (1.0, None)
    states = [State(0, 0, 2, 0.5, {"K = 9": 0.25})] * 2
    assert errors(states, "K = 9")["error"] == (0.25, None)
    report = report_of(1, states, choices)
    assert "0.250 ± ?" in table([report]) and "100 ± ? %" in table([report]) and "± 0 " not in table([report])


def test_the_truth_shares_no_rollout_with_the_values_that_it_judges(monkeypatch):
    """Rollout i of each state has reward i. The first three are K = 3's, the first two K = 2's, and the other four the truth's."""
    monkeypatch.setattr(command.tasks, "grade", lambda task, problem, r, *_: r)
    trainer = SimpleNamespace(task=None, tokenizer=None)
    trainer.roll_out = lambda rows, cuts, k, name: [[list(range(k)) for _ in of_row] for of_row in cuts]
    config = ValuesConfig(run="", truth=4, ks=[2, 3])
    response = SimpleNamespace(response_ids=[2, 3])
    truth, by_k = command.monte_carlo(trainer, ["p"], [response], [[0, 1]], config)
    assert truth == [[4.5, 4.5]] and by_k == {"K = 2": [[0.5, 0.5]], "K = 3": [[1.0, 1.0]]}


def test_states_and_next_steps_are_graded_as_responses_to_their_own_problem(monkeypatch):
    """Steps of two tokens, two responses to each of two problems. The first rollout of a state is K = 1's, the others the truth's."""
    worth = {("p", ()): 0.5, ("p", (5, 5)): 0.25, ("p", (1, 1)): 0.1, ("p", (2, 2)): 0.9, ("q", ()): 1.0, ("q", (4, 4)): 0.6}
    worth |= {("q", (1, 1)): 0.8, ("q", (3, 3)): 0.2}
    sampled = {
        (0, ()): [[1, 1, 9], [1, 1, 8], [3], [2, 2, 9]],  # two distinct next steps; [3] ends within its step
        (0, (5, 5)): [[1, 1, 9], [1, 1, 8]],  # no choice
        (1, ()): [[1, 1, 9], [3, 3, 9]],
    }

    def roll_out(trajectories, cuts, k, name):
        rows = zip(trajectories, cuts, strict=True)
        if name == "truth":
            return [[range(k) for _ in of_row] for _, of_row in rows]
        found = [[sampled[t.prompt_ids[0], tuple(t.response_ids[:cut])] for cut in of_row] for t, of_row in rows]
        return [[[SimpleNamespace(response_ids=ids) for ids in state] for state in of_row] for of_row in found]

    def grade(task, problem, rollout, tokenizer, so_far, known):
        value = worth[problem, tuple(so_far)]
        return value if rollout > 0 else 1 - value

    monkeypatch.setattr(command.tasks, "grade", grade)
    trainer = SimpleNamespace(task=None, tokenizer=None, critic=None, roll_out=roll_out, cut=lambda ids: range(0, len(ids), 2))
    responses = [(0, [5, 5, 6, 6, 7]), (0, [5, 5]), (1, [4, 4, 6]), (1, [4])]
    trajectories = [Trajectory([problem], ids, [0.0] * len(ids), True) for problem, ids in responses]
    episodes = SimpleNamespace(problems=["p", "p", "q", "q"], trajectories=trajectories, cuts=[[0, 2, 4], [0], [0, 2], [0]])
    config = ValuesConfig(run="", responses=2, truth=2, ks=[1], states=2, choices=2)
    choices = command.values_of_next_steps(trainer, episodes, config)
    assert [(c.problem, c.truth, c.rollouts) for c in choices] == [(0, [0.1, 0.9], 2), (1, [0.8, 0.2], 2)]
    assert [c.values for c in choices] == [{"K = 1": [pytest.approx(1 - v) for v in c.truth]} for c in choices]
    assert command.values_of_next_steps(trainer, episodes, replace(config, states=1)) == choices[:1]
    episodes.cuts = [[0, 2], [0], [0, 2], [0]]
    states = command.values_of_states(trainer, episodes, config)
    assert [(s.problem, s.step, s.steps, s.truth) for s in states] == [
        (0, 0, 2, 0.5), (0, 1, 2, 0.25), (0, 0, 1, 0.5), (1, 0, 2, 1.0), (1, 1, 2, 0.6), (1, 0, 1, 1.0)
    ]  # fmt: skip
    assert all(s.values == {"K = 1": pytest.approx(1 - s.truth), "best constant": 0.55} for s in states)


def test_items_are_spread_at_equal_distances():
    assert command.spread([*range(10)], 3) == [0, 3, 6] and command.spread([*range(4)], 4) == [0, 1, 2, 3]
    assert command.spread([1, 2], 5) == [1, 2] and command.spread([], 5) == []


def test_the_critic_values_a_response_that_fills_the_context():
    """With learned positions there is none for one more token. Only where the last state is the whole response is it needed."""
    trainer = SimpleNamespace(critic=Critic(tiny_model("gpt2")), device=DEVICE, sampling=SimpleNamespace(eos_token_id=(0,)))
    torch.nn.init.normal_(trainer.critic.head.weight)
    trainer.config = SimpleNamespace(micro_batch_tokens=1000)
    trainer.forward = lambda critic, t: response_values(critic, t.input_ids, t.attention_mask, t.response_mask)
    whole, start = (Trajectory([1], [2] * n, [0.0] * n, False) for n in (127, 5))  # the model has 128 positions
    [first, second] = command.critic_values(trainer, [whole, start], [[0, 5], [0, 5]])["critic"]
    assert first == pytest.approx(second, abs=1e-5) and abs(first[0] - first[1]) > 1e-3
