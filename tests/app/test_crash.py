"""A run that is killed before any change of the file system goes on to the same end. The networks are tiny, the rest is real."""

import itertools
import json
import shutil
import signal
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kills import Killed, killed_before_change, locked_by_another_process
from safetensors.torch import load_file, save_file

from vine_mini.algorithms import ALGORITHMS
from vine_mini.app import checkpoint, commands, files, loop, runs
from vine_mini.app.config import SFTConfig, TrainConfig
from vine_mini.types import Problem, UserError

SETTINGS = dict(algorithm="ppo", iterations=5, eval_every=1, save_every=2, keep_every=2, lr=1e-3)
ACCURACY = [0.1, 0.3, 0.2, 0.4, 0.5, 0.2, 0.2]  # on the validation problems, after each iteration


class TinyTrainer:
    """What the loop needs of a trainer, with a linear policy and critic. Each iteration does what its number says."""

    def __init__(self, config):
        torch.manual_seed(0)
        self.config, self.tokenizer, self.device = config, None, torch.device("cpu")
        self.policy, other = torch.nn.Linear(2, 1), torch.nn.Sequential(torch.nn.Linear(2, 1))
        self.critic = other if ALGORITHMS[config.algorithm].needs_critic else None
        self.policy.num_parameters = lambda: 3
        self.networks = [self.policy, *filter(None, [self.critic])]
        self.optimizer = torch.optim.AdamW([p for network in self.networks for p in network.parameters()], fused=True)
        self.iteration, self.updates, self.seconds, self.reference = 0, 0, defaultdict(float), None
        self.prompts, self.test_prompts, self.validation_problems = [1], [1], [Problem("q", "s", "a")]
        self.train_problems = self.test_problems = self.validation_problems
        self.sampling = self.updated = lambda: None  # a test puts something in

    @property
    def done(self):
        return self.iteration >= self.config.iterations

    def train(self):
        while not self.done:
            self.sampling()
            loss = sum(p.sum() for network in self.networks for p in network.parameters()) * (1 + self.iteration)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.updates += 1
            self.updated()
            self.iteration += 1
            self.seconds["update"] += 1.0
            metrics = {"iteration": self.iteration, "loss": loss.item(), "reward": 0.0, "truncated": 0.0}
            metrics |= {"episodes": self.iteration, "length": 1.0}
            yield metrics, self.iteration, None

    def sampler(self):
        return self.policy

    def evaluate(self, problems=None, with_kl=True, greedy=True):
        return {"pass@1": [ACCURACY[self.iteration], 0.0], "truncated": [0.0, 0.0]}


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    def save_policy(policy, tokenizer, folder):
        folder.mkdir()
        save_file(policy.state_dict(), folder / "model.safetensors")

    def load_policy(name, device):
        policy = torch.nn.Linear(2, 1)
        policy.load_state_dict(load_file(Path(name, "model.safetensors")))
        return policy, None

    def samples_of(number, _):
        return [{"question": f"{number}.{i}"} for i in range(2)]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "save_policy", save_policy)
    monkeypatch.setattr(checkpoint, "load_policy", load_policy)
    monkeypatch.setattr(commands, "models", SimpleNamespace(load_policy=load_policy))
    monkeypatch.setattr(runs, "samples_of", samples_of)
    monkeypatch.setattr(runs.Run, "board", None)  # the events of TensorBoard hold times
    monkeypatch.setattr(runs, "plot_run", lambda rows, path, title: files.write_text(path, f"{len(rows)} rows"))
    monkeypatch.setattr(commands, "build_trainer", lambda config: TinyTrainer(config))
    monkeypatch.setattr(commands, "memory_estimate", lambda trainer: None)
    monkeypatch.setattr(commands, "format_memory", str)
    monkeypatch.setattr(commands, "way", lambda model: "fast")
    monkeypatch.setattr(commands, "table", lambda columns: "")


@pytest.fixture(params=["ppo", "grpo"])
def algorithm(request, monkeypatch):
    """One with a critic and one without: nothing else of an algorithm is in a checkpoint."""
    monkeypatch.setitem(SETTINGS, "algorithm", request.param)


def go_on(**more):
    """Resumes the run, or starts it again where it had not begun."""
    begun = Path("run/config.yaml").exists()
    return commands.train(TrainConfig(**SETTINGS | more, **({"resume": "run"} if begun else {"out": "run"})))


def state() -> dict:
    """All that a run leaves: its files, as bytes, and where its links lead."""
    run = Path("run")
    found = {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    return found | {name: (run / name).readlink() for name in ("policy", "best")}


def whole_run() -> dict:
    """What a run leaves that nothing disturbs."""
    assert commands.train(TrainConfig(**SETTINGS, out="run")) == 0
    expected = state()
    shutil.rmtree("run")
    assert {"config.yaml", "metrics.jsonl", "samples.jsonl", "curves.png"} < set(expected)
    assert expected["policy"] == Path("checkpoints/5") and expected["best"] == Path("checkpoints/best-4")
    checkpoints = {name.split("/")[1] for name in expected if name.startswith("checkpoints/")}
    assert checkpoints == {"2", "4", "5", "best-4"} and expected["curves.png"] == b"6 rows"
    return expected


@pytest.mark.slow
def test_a_run_that_is_killed_before_any_change_goes_on_to_the_same_end(capsys, algorithm):
    """The start, the logs, RUN/best, the checkpoints and those that are kept, the curves, the evaluation of the best policy."""
    expected = whole_run()
    for n in itertools.count():
        with killed_before_change(n, Path()) as ended:
            commands.train(TrainConfig(**SETTINGS, out="run"))
        if not ended:
            break
        numbers = [] if not Path("run").exists() else [p for p in Path("run/checkpoints").glob("*") if p.name.isdecimal()]
        assert all((p / checkpoint.STATE).exists() for p in numbers)  # a numbered folder is whole
        assert go_on() == 0 and state() == expected, n
        shutil.rmtree("run")
    assert n > 120


@pytest.mark.slow
def test_a_resume_that_is_killed_before_any_change_goes_on_to_the_same_end(capsys, monkeypatch, algorithm):
    """After a kill in iteration 4, whose policy was already the best one: the checkpoint is of iteration 2."""
    expected = whole_run()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runs, "append_row", killed_in_iteration(4))
        commands.train(TrainConfig(**SETTINGS, out="run"))
    assert Path("run/policy").readlink() == Path("checkpoints/2") and Path("run/best").readlink() == Path("checkpoints/best-4")
    shutil.copytree("run", "base", symlinks=True)
    for n in itertools.count():
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree("base", "run", symlinks=True)
        with killed_before_change(n, Path("run")) as ended:
            go_on()
        if not ended:
            break
        assert go_on() == 0 and state() == expected, n
    assert n > 70


def test_sft_that_is_killed_before_any_change_begins_anew_and_ends_the_same(capsys, monkeypatch, tmp_path):
    """It has no checkpoint, so the same command makes the policy again. What an interrupted one has left is no hindrance."""
    policy = SimpleNamespace(num_parameters=lambda: 3, state_dict=lambda: {"weight": torch.ones(2)})
    monkeypatch.setattr(commands, "imitate", lambda config, folder: (policy, None, 1.0, 1e-3))
    monkeypatch.setattr(commands, "models", SimpleNamespace(save_policy=checkpoint.save_policy))
    monkeypatch.setattr(commands, "_evaluate", lambda *_: {})

    def made():
        assert commands.sft(SFTConfig(out="policy")) == 0
        found = {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}
        shutil.rmtree("policy")
        return found

    expected = made()
    assert set(expected) == {"policy/README.md", "policy/model.safetensors"}
    for n in itertools.count():
        with killed_before_change(n, tmp_path) as ended:
            commands.sft(SFTConfig(out="policy"))
        if not ended:
            break
        if Path("policy").exists():  # whole, but for its evaluation
            assert {path.name for path in Path("policy").iterdir() if path.suffix != ".partial"} == {
                "README.md",
                "model.safetensors",
            }
            shutil.rmtree("policy")
        assert made() == expected, n
    assert n > 5


def killed_in_iteration(number: int):
    def append_row(path, row):
        if row["iteration"] == number and path.name == "metrics.jsonl":
            raise Killed
        files.append_row(path, row)

    return append_row


def test_the_best_policy_of_dropped_iterations_is_not_kept(capsys, monkeypatch):
    """Iteration 4 was the best. The run goes on after iteration 2 with other evaluations, in which iteration 1 is."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runs, "append_row", killed_in_iteration(4))
        commands.train(TrainConfig(**SETTINGS, out="run"))
    monkeypatch.setattr(f"{__name__}.ACCURACY", [0.1, 0.3, 0.2, 0.1, 0.1, 0.1])
    assert go_on() == 0 and Path("run/best").readlink() == Path("checkpoints/best-1")


def rows() -> list[int]:
    return [json.loads(line)["iteration"] for line in Path("run/metrics.jsonl").read_text().splitlines()]


def saved() -> int:
    return int(Path("run/policy").readlink().name)


@pytest.fixture
def hangup():
    """The usual handling of SIGHUP, also where `nohup` runs these tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "SIGTERM", "SIGHUP"])
def test_the_first_stop_saves_at_once_what_is_finished_and_then_the_iteration(number, capsys, monkeypatch):
    expected, seen, before = whole_run(), [], signal.getsignal(number)

    def stop(trainer):
        def while_sampling():
            if trainer.iteration == 3:
                signal.raise_signal(number)
                seen.append((saved(), rows()))

        trainer.sampling = while_sampling
        return trainer

    monkeypatch.setattr(commands, "build_trainer", lambda config: stop(TinyTrainer(config)))
    assert commands.train(TrainConfig(**SETTINGS, out="run")) == commands.INTERRUPTED
    assert seen == [(3, [0, 1, 2, 3])] and saved() == 4 and rows() == [0, 1, 2, 3, 4]
    assert (
        "iteration 3 is saved, and iteration 4 will be; Ctrl-C again stops at once and loses iteration 4"
        in capsys.readouterr().err
    )
    assert signal.getsignal(number) is before
    monkeypatch.setattr(commands, "build_trainer", lambda config: TinyTrainer(config))
    assert go_on() == 0 and state() == expected  # the iteration that was stopped has its evaluation too


@pytest.mark.parametrize("error", [UserError("reward() raised"), BrokenPipeError(), MemoryError()], ids=repr)
def test_an_error_saves_the_finished_iterations(error, capsys, monkeypatch):
    """Of `train 2>&1 | head`, and of a reward() that raised, nothing was saved."""

    def fail(trainer):
        def while_sampling():
            if trainer.iteration == 3:
                raise error

        trainer.sampling = while_sampling
        return trainer

    monkeypatch.setattr(commands, "build_trainer", lambda config: fail(TinyTrainer(config)))
    with pytest.raises(type(error)):
        commands.train(TrainConfig(**SETTINGS | dict(save_every=100, keep_every=0), out="run"))
    assert saved() == 3 and rows() == [0, 1, 2, 3]


def test_an_error_after_an_update_saves_nothing(capsys, monkeypatch):
    """The weights are not those of a finished iteration."""

    def fail(trainer):
        trainer.updated = lambda: trainer.iteration == 3 and 1 / 0
        return trainer

    monkeypatch.setattr(commands, "build_trainer", lambda config: fail(TinyTrainer(config)))
    with pytest.raises(ZeroDivisionError):
        commands.train(TrainConfig(**SETTINGS, out="run"))
    assert saved() == 2


@pytest.mark.usefixtures("hangup")
def test_a_terminal_that_is_gone_does_not_keep_the_run_from_saving(capsys, monkeypatch):
    """After SIGHUP the first line that is printed fails."""

    def hang_up(trainer):
        trainer.sampling = lambda: trainer.iteration == 3 and signal.raise_signal(signal.SIGHUP)
        return trainer

    def gone(*_, **more):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(commands, "build_trainer", lambda config: hang_up(TinyTrainer(config)))
    monkeypatch.setattr(loop, "print", gone, raising=False)
    assert commands.train(TrainConfig(**SETTINGS, out="run")) == commands.INTERRUPTED
    assert saved() == 4


@pytest.mark.usefixtures("hangup")
def test_nohup_stays_in_force():
    assert loop.heeded_hangup() == [signal.SIGHUP]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert loop.heeded_hangup() == []


def test_a_stop_in_the_last_iteration_is_told(capsys, monkeypatch):
    """`demo` went on with the next algorithm."""

    def stop(trainer):
        trainer.sampling = lambda: trainer.iteration == 4 and signal.raise_signal(signal.SIGINT)
        return trainer

    monkeypatch.setattr(commands, "build_trainer", lambda config: stop(TinyTrainer(config)))
    assert commands.train(TrainConfig(**SETTINGS, out="run")) == commands.INTERRUPTED and saved() == 5
    monkeypatch.setattr(commands, "build_trainer", lambda config: TinyTrainer(config))
    assert go_on() == 0


@pytest.mark.parametrize("where, presses, then", [("sampling", 2, 3), ("updated", 3, 2)])
def test_ctrl_c_again_stops_at_once(where, presses, then, capsys, monkeypatch):
    """While the iteration samples, nothing is lost. After its update the finished iterations cannot be saved any more."""
    pressed = []

    def stop(trainer):
        def press():
            while trainer.iteration == 3:
                pressed.append(1)
                signal.raise_signal(signal.SIGINT)

        setattr(trainer, where, press)
        return trainer

    monkeypatch.setattr(commands, "build_trainer", lambda config: stop(TinyTrainer(config)))
    with pytest.raises(KeyboardInterrupt):
        commands.train(TrainConfig(**SETTINGS, out="run"))
    assert len(pressed) == presses and saved() == then and rows() == [0, 1, 2, 3]
    said = capsys.readouterr().err
    assert ("loses what came after the last checkpoint" in said) == (where == "updated")
    monkeypatch.setattr(commands, "build_trainer", lambda config: TinyTrainer(config))
    assert go_on() == 0 and rows() == [0, 1, 2, 3, 4, 5] and not Path("run/lock").exists()


@pytest.mark.parametrize(("takes", "wanted"), [(0, [2, 4]), (10, [2])])
def test_long_iterations_are_followed_by_checkpoints_and_large_checkpoints_are_rarer(takes, wanted, capsys, monkeypatch):
    """By default the first checkpoint came after 40 iterations, however long they took. An iteration takes 70 seconds here."""
    clock, found, save = SimpleNamespace(now=0), [], loop.Run.save
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def slow_save(run, trainer):
        found.append(trainer.iteration)
        clock.now += takes
        save(run, trainer)

    def slow(trainer):
        trainer.sampling = lambda: setattr(clock, "now", clock.now + 70)
        return trainer

    monkeypatch.setattr(loop.Run, "save", slow_save)
    monkeypatch.setattr(commands, "build_trainer", lambda config: slow(TinyTrainer(config)))
    assert commands.train(TrainConfig(**SETTINGS | dict(save_every=100, keep_every=0), out="run")) == 0
    assert [n for n in found if n < 5] == wanted and loop.SAVE_SECONDS == 120


def test_a_run_that_was_killed_in_its_last_picture_has_it_in_the_end(capsys):
    """The checkpoint is of the last iteration, so nothing was trained any more, and `.partial-curves.png` stayed for ever."""
    whole_run()
    commands.train(TrainConfig(**SETTINGS, out="run"))
    Path("run/curves.png").rename("run/curves.png.partial")
    assert go_on() == 0
    assert Path("run/curves.png").read_text() == "6 rows" and not Path("run/curves.png.partial").exists()


def test_a_run_that_was_stopped_and_has_no_iteration_left_is_evaluated(capsys, monkeypatch):
    """Its table had the evaluation of its start alone."""

    def stop(trainer):
        trainer.sampling = lambda: trainer.iteration == 2 and signal.raise_signal(signal.SIGINT)
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(commands, "build_trainer", lambda config: stop(TinyTrainer(config)))
        assert commands.train(TrainConfig(**SETTINGS, out="run")) == commands.INTERRUPTED and rows() == [0, 1, 2, 3]
    tables = []
    monkeypatch.setattr(commands, "table", lambda columns: tables.append(columns) or "")
    assert go_on(iterations=3) == 0 and rows() == [0, 1, 2, 3]
    [columns] = tables
    assert columns["iteration 0"]["pass@1"][0] == ACCURACY[0] and columns["iteration 3"]["pass@1"][0] == ACCURACY[3]


def test_fewer_iterations_than_a_run_has_are_refused(capsys):
    """They replaced the number in config.yaml, and nothing was said."""
    commands.train(TrainConfig(**SETTINGS, out="run"))
    expected = state()
    with pytest.raises(UserError, match="run has its 5 iterations already: raise --iterations to go on"):
        go_on(iterations=4)
    assert state() == expected
    capsys.readouterr()
    assert go_on() == 0 and "run has its 5 iterations already: raise --iterations to go on" in capsys.readouterr().out
    assert state() == expected


def test_two_processes_do_not_go_on_with_the_same_run(capsys):
    commands.train(TrainConfig(**SETTINGS, out="run"))
    expected = state()
    with locked_by_another_process(Path("run")) as other:
        with pytest.raises(UserError, match=f"run is in use by process {other.pid}"):
            go_on(iterations=6)
        Path("run/lock").unlink()
    assert state() == expected


def test_without_validation_problems_the_test_problems_are_measured_on_the_way(monkeypatch):
    class Without(TinyTrainer):
        def __init__(self, config):
            super().__init__(config)
            self.validation_problems = []

    monkeypatch.setattr(commands, "build_trainer", Without)
    assert commands.train(TrainConfig(**SETTINGS | dict(eval_every=2), validation=0, out="run")) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "eval" in row] == [0, 2, 4, 5]
