"""Checkpoints: a resumed run continues as if it had never stopped, whenever it was killed."""

import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import slow
from kills import killed_before_change, largest_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vine_mini.app import checkpoint
from vine_mini.app.config import SHIPPED, TrainConfig
from vine_mini.app.flags import parse
from vine_mini.app.runs import Run
from vine_mini.app.setup import build_trainer
from vine_mini.cli import main
from vine_mini.models import build_tiny, load_policy
from vine_mini.tasks import arithmetic
from vine_mini.types import UserError

QUICK = "--steps 2 --prompts 2 --group 4 --minibatch_size 4 --k 2 --iterations 2 --eval_problems 4 --eval_samples 2".split()


@pytest.mark.parametrize("more", [[], slow(["--adam_8bit"])])
def test_a_resumed_run_goes_on_as_if_never_stopped(more, empty_folder, no_pictures, capsys):
    """PPO's, which has the most state: two networks and two optimizers."""
    if more:
        pytest.importorskip("bitsandbytes")

    def shown() -> tuple[list[int], str]:
        """The percentages of the bar, and the other output since the last call."""
        captured = capsys.readouterr()
        return [int(number) for number in re.findall(r"ppo +(\d+)% \|", captured.err)], captured.out

    flags = ["train", *QUICK, "--algorithm", "ppo", "--warmup", "1", *more]
    assert main([*flags, "--iterations", "3", "--out", "whole"]) == 0
    bar, _ = shown()
    assert {0, 100} <= {*bar} <= {0, 33, 67, 100} and bar == sorted(bar)  # of the iterations
    assert main([*flags, "--iterations", "3", "--max_seconds", "1e-9", "--out", "parts"]) == 0  # one iteration
    bar, _ = shown()
    assert {*bar} == {0, 100}  # of the seconds, which end first
    assert main(["train", "--resume", "parts", "--max_seconds", "0"]) == 0
    bar, out = shown()
    assert bar[0] == 33 and bar[-1] == 100 and "going on after iteration 1" in out
    before = Path("parts/config.yaml").read_text()
    assert main(["train", "--resume", "parts", "--max_seconds", "1e-6"]) == 2  # config.yaml got the smaller number
    assert "parts has trained for" in capsys.readouterr().err and Path("parts/config.yaml").read_text() == before
    whole, parts = (
        [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()] for run in ("whole", "parts")
    )
    assert [row["iteration"] for row in parts] == [0, 1, 2, 3]
    for a, b in zip(whole, parts, strict=True):
        same = [key for key in a if "seconds" not in key and key != "eval"]
        assert {key: a[key] for key in same} == {key: b[key] for key in same}


def test_what_a_resumed_run_refuses(empty_folder, no_pictures, capsys):
    assert main(["train", *QUICK, "--iterations", "1", "--out", "run"]) == 0
    state = Path("run/policy/training_state.safetensors")

    def refused(*flags):
        capsys.readouterr()
        assert main(["train", "--resume", "run", *flags]) == 2
        return capsys.readouterr().err

    assert "goes on with algorithm = vineppo; it cannot change to ppo" in refused("--algorithm", "ppo")
    assert "it cannot change to 3" in refused("--steps", "3")
    assert "it cannot change to elsewhere" in refused("--out", "elsewhere")
    weights, other = Path("run/policy/model.safetensors"), Path("run/policy/config.json")
    kept = weights.read_bytes(), other.read_text()
    larger, tokenizer = build_tiny(["a"], hidden=32, layers=1, vocab_size=400, seed=0)
    larger.resize_token_embeddings(len(tokenizer) + 200)
    larger.save_pretrained("run/policy")
    assert "belongs to another model" in refused()
    weights.write_bytes(kept[0]), other.write_text(kept[1])
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in (says := refused()) and "start a new run, perhaps with --model run/policy" in says
    state.unlink()
    assert "nothing was saved there to resume from" in refused()
    state.write_bytes(whole)
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "rew')  # a crash while writing
    assert main(["train", "--resume", "run", "--iterations", "2"]) == 0
    assert [json.loads(line)["iteration"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory):
    """The folder of a run of one iteration."""
    folder = tmp_path_factory.mktemp("ppo") / "run"
    flags = [*QUICK, "--iterations", "1", "--algorithm", "ppo", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "TRAIN_SIZE", 300)
        assert main(["train", *flags]) == 0
    return folder


def moment(tensors):
    return next(name for name in tensors if name.endswith("exp_avg"))


def without(text):
    return lambda tensors, counters: [tensors.pop(name) for name in [*tensors] if text in name]


def counts(tensors, counters, **changed):
    counters.update(changed)


DAMAGE = {
    **{f"iteration {x!r}": partial(counts, iteration=x) for x in (-1, 1.5, "7", None, True, [1], float("nan"))},
    **{f"seconds {x!r}": partial(counts, seconds=x) for x in (7, "x", [1], {"a": "b"}, {"a": -1}, {"a": float("nan")})},
    "no updates": lambda t, c: c.pop("updates"),
    "no moments": without("exp_avg"),
    "one moment lost": lambda t, c: t.pop(moment(t)),
    "one parameter's state lost": without("optimizer.3."),
    "a moment renamed": lambda t, c: t.update({"optimizer.0.other": t.pop(moment(t))}),
    "a moment of another shape": lambda t, c: t.update({moment(t): torch.zeros(3)}),
    "a moment of no parameter": lambda t, c: t.update({"optimizer.999.exp_avg": torch.zeros(3)}),
    "a negative parameter": lambda t, c: t.update({"optimizer.-1.step": t.pop("optimizer.0.step")}),
    "odd names": lambda t, c: t.update({"optimizer": torch.zeros(1)}),
    "more odd names": lambda t, c: t.update({"optimizer.x.step": torch.zeros(1)}),
    "the critic lost": without("critic."),
}  # fmt: skip
QUICKLY = ("iteration -1", "one moment lost", "the critic lost")


@pytest.mark.parametrize("name", [name if name in QUICKLY else slow(name) for name in DAMAGE])
def test_a_checkpoint_with_odd_contents_is_refused_and_nothing_is_lost(name, ppo_run, capsys):
    state = (ppo_run / "policy" / checkpoint.STATE).resolve()
    whole, tensors = state.read_bytes(), load_file(state)
    with safe_open(state, "pt") as file:
        counters = json.loads(file.metadata()["counters"])
    DAMAGE[name](tensors, counters)
    save_file(tensors, state, {"counters": json.dumps(counters)})
    before = {path: path.read_bytes() for path in ppo_run.rglob("*") if path.is_file()}
    try:
        assert main(["train", "--resume", str(ppo_run), "--iterations", "2"]) == 2
        assert {path: path.read_bytes() for path in ppo_run.rglob("*") if path.is_file()} == before
    finally:
        state.write_bytes(whole)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("is damaged" in said or "belongs to another model" in said)


LOGS = ("metrics.jsonl", "samples.jsonl")


@contextmanager
def odd_line(log, line):
    """Inside this context the log ends in the line. Afterwards it must still do so."""
    whole = log.read_bytes()
    log.write_bytes(whole + line + b"\n")
    try:
        yield
        assert log.read_bytes() == whole + line + b"\n"
    finally:
        log.write_bytes(whole)


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("line", [b"\xff", b"[1]", b"{}", b'{"iteration": "1"}', b'{"iteration": 1, "reward": "x"}', b'{"iteration": 0, "eval": 5}', b'{"iteration": 0, "validation": {"pass@1": []}}'])  # fmt: skip
def test_a_log_with_odd_lines_is_refused_and_kept(name, line, ppo_run):
    config = parse(TrainConfig, "train", ["--resume", str(ppo_run)])
    with odd_line(ppo_run / name, line), pytest.raises(UserError, match=str(ppo_run / name)):
        Run(ppo_run, config, 1)


@pytest.mark.parametrize("line", ['{"iteration": 2, "eval": null}', '{"iteration": 2, "episodes": 8, "eval": {"odd": [1]}}', '{"iteration": 2, "episodes": 8, "eval": {"odd": "x"}}',
         '{"iteration": 2, "episodes": 8, "validation": {"zz": 3}}', '{"iteration": 2, "episodes": 8, "reward": 1, "length": 1, "seconds_sample": "x"}',
         '{"iteration": 2, "eval": {"pass@1": [1, 0]}}', '{"iteration": 1}', '{"iteration": 3}'])  # fmt: skip
def test_a_line_of_which_no_picture_can_be_made_is_refused_before_training(line, ppo_run, capsys):
    """An iteration was trained and logged, then came a traceback. Lines that were missing or doubled were accepted."""
    with odd_line(ppo_run / "metrics.jsonl", line.encode()):
        assert main(["train", "--resume", str(ppo_run), "--iterations", "2"]) == 2
    says = capsys.readouterr().err
    assert says.count("\n") == 1 and f"{ppo_run / 'metrics.jsonl'}, line 3: " in says


@pytest.mark.parametrize("name", LOGS)
def test_a_run_with_an_odd_line_in_a_log_does_not_go_on(name, ppo_run, capsys):
    with odd_line(ppo_run / name, b"[1]"):
        assert main(["train", "--resume", str(ppo_run), "--iterations", "2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(ppo_run / name) in said


SMALL = TrainConfig(
    steps=2, prompts=2, group=2, minibatch_size=4, k=1, iterations=2, eval_problems=1, algorithm="ppo", max_new_tokens=4
)


@pytest.mark.slow
def test_a_longer_run_keeps_the_length_of_its_warm_up(empty_folder, no_pictures):
    """It followed from the number of iterations: a run that was extended to 400 fell from its peak to a thirtieth of it."""
    flags = ["train", *QUICK, "--iterations", "4", "--warmup", "2", "--lr", "2e-4", "--algorithm", "grpo"]
    assert main([*flags, "--out", "run"]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    a_little_more = str(rows[-1]["seconds"] + 1e-6)  # one iteration, and the run is over
    assert main(["train", "--resume", "run", "--iterations", "400", "--max_seconds", a_little_more]) == 0
    rates = [json.loads(line)["lr"] for line in Path("run/metrics.jsonl").read_text().splitlines()[1:]]
    assert len(rates) == 5 and rates == sorted(rates) and rates[-1] == pytest.approx(2e-4)


def mark(trainer, iteration: int) -> None:
    """Puts a trainer into a state that can be told from others: every number in it is the iteration."""
    trainer.iteration = trainer.updates = iteration
    trainer.seconds = {"sample": float(iteration)}
    with torch.no_grad():
        for p in [*trainer.policy.parameters(), *trainer.critic.parameters()]:
            p.fill_(iteration / 100)
            trainer.optimizer.state[p] = {
                "step": torch.tensor(float(iteration)),
                "exp_avg": torch.full_like(p, iteration),
                "exp_avg_sq": torch.full_like(p, iteration),
            }


def numbers_in(trainer) -> set[float]:
    """The numbers in a trainer's state that `mark` has made equal."""
    networks = [*trainer.policy.parameters(), *trainer.critic.parameters()]
    moments = [x for p in networks for x in trainer.optimizer.state[p].values()]
    found = {x.item() for tensor in moments for x in tensor.unique()}
    found |= {round(100 * x.item(), 4) for tensor in networks for x in tensor.unique()}
    return found | {float(trainer.iteration), float(trainer.updates), trainer.seconds["sample"]}


@pytest.mark.slow  # `test_crash.py` does the same with tiny networks
def test_a_save_that_is_killed_anywhere_leaves_a_run_that_can_be_resumed(tmp_path):
    """Before every change of the file system: RUN/policy can be read, and is the old checkpoint or the new one, whole.

    The next save leaves nothing of the interrupted one.
    """
    writer, reader = build_trainer(SMALL), build_trainer(SMALL)
    found, n = [], 0
    while True:
        run = tmp_path / str(n)
        run.mkdir()
        mark(writer, 1)
        checkpoint.save(writer, run)
        mark(writer, 2)
        with killed_before_change(n, run) as ended:
            checkpoint.save(writer, run)
        load_policy(str(run / "policy"), "cpu")
        checkpoint.resume(reader, run)
        [number] = numbers_in(reader)
        found.append(number)
        mark(reader, 3)
        checkpoint.save(reader, run)
        assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "policy"]
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["3"]
        if not ended:
            break
        n += 1
    assert n > 10 and found == sorted(found) and set(found) == {1.0, 2.0}  # the switch is one moment


@pytest.mark.slow
def test_a_first_save_that_is_killed_anywhere_can_be_made_again(tmp_path):
    trainer, reader, n = build_trainer(SMALL), build_trainer(SMALL), 0
    mark(trainer, 1)
    while True:
        run = tmp_path / str(n)
        run.mkdir()
        with killed_before_change(n, run) as ended:
            checkpoint.save(trainer, run)
        if not ended:
            break
        if found := checkpoint.newest(run):  # None, until the checkpoint is whole
            checkpoint.resume(reader, run, found)
            assert numbers_in(reader) == {1.0}
        assert not (run / "policy").exists()
        checkpoint.save(trainer, run)
        checkpoint.resume(trainer, run)
        assert numbers_in(trainer) == {1.0}
        assert sorted(p.name for p in run.rglob("*") if p.suffix == ".partial") == []
        n += 1


def test_a_save_of_what_is_saved_already_changes_nothing(tmp_path):
    trainer = build_trainer(SMALL)
    mark(trainer, 1)
    checkpoint.save(trainer, tmp_path)
    with killed_before_change(0, tmp_path) as ended:
        checkpoint.save(trainer, tmp_path)
    assert not ended


def test_a_copy_of_a_run_without_links_can_be_resumed(tmp_path):
    """Many programs copy what a link leads to: RUN/policy is then a folder."""
    trainer = build_trainer(SMALL)
    mark(trainer, 1)
    checkpoint.save(trainer, tmp_path / "run")
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert not (copy / "policy").is_symlink()
    checkpoint.resume(trainer, copy)
    mark(trainer, 2)
    checkpoint.save(trainer, copy)
    checkpoint.resume(trainer, copy)
    assert numbers_in(trainer) == {2.0} and (copy / "policy").is_symlink()
    assert [p.name for p in (copy / "checkpoints").iterdir()] == ["2"]
    moved = (tmp_path / "copy").rename(tmp_path / "moved")  # the link is relative
    checkpoint.resume(build_trainer(replace(SMALL)), moved)


def test_a_config_that_was_changed_by_hand_does_not_drop_the_critic(tmp_path):
    trainer = build_trainer(SMALL)
    mark(trainer, 1)
    checkpoint.save(trainer, tmp_path)
    for name in ("grpo", "restem"):
        other = build_trainer(replace(SMALL, algorithm=name))
        with pytest.raises(UserError, match=f"holds a critic, and {name} has none: another algorithm trained it"):
            checkpoint.resume(other, tmp_path)
        checkpoint.save(other, tmp_path / name)
        with pytest.raises(UserError, match="belongs to another model"):
            checkpoint.resume(trainer, tmp_path / name)


def test_a_config_that_was_changed_by_hand_is_refused(empty_folder, no_pictures, capsys):
    """The same change by a flag was refused. What a flag may change, and files that have moved, may change there too."""
    assert main(["train", *QUICK, "--iterations", "1", "--out", "run"]) == 0
    path = Path("run/config.yaml")
    settings = yaml.safe_load(path.read_text())
    trainer = build_trainer(TrainConfig(**settings))
    for name, x in {"algorithm": "grpo", "lr": 0.5, "seed": 7, "kl_coef": 0.2, "max_states": 3, "task": "decisive"}.items():
        with pytest.raises(UserError, match=f"run/config.yaml has {name} = {x}; the run was trained with {settings[name]}"):
            trainer.config = TrainConfig(**settings | {name: x})
            checkpoint.check_settings(trainer, Path("run"), "policy")
    path.write_text(yaml.safe_dump(settings | {"kl_coef": 0.2}))
    assert main(["train", "--resume", "run", "--iterations", "2"]) == 2
    path.write_text(yaml.safe_dump(settings | {"iterations": 2, "sample_batch_size": 3}))
    assert main(["train", "--resume", "run"]) == 0
    trainer.config = TrainConfig(**settings)
    checkpoint.check_settings(trainer, Path("run"), "policy")
    checkpoint.check_settings(trainer, Path("run"), "nothing")  # told by `resume`


def test_files_that_have_moved_are_no_other_setting(tmp_path):
    trainer = build_trainer(replace(SMALL, model=str(SHIPPED / "arithmetic")))
    checkpoint.save(trainer, tmp_path)
    shutil.copytree(SHIPPED / "arithmetic", tmp_path / "arithmetic")
    trainer.config = replace(trainer.config, model=str(tmp_path / "arithmetic"))
    checkpoint.check_settings(trainer, tmp_path, "policy")
    (tmp_path / "arithmetic").rename(tmp_path / "other")
    trainer.config = replace(trainer.config, model=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"has model = .*other; the run was trained with .*arithmetic"):
        checkpoint.check_settings(trainer, tmp_path, "policy")


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path):
    """safetensors and tokenizers raise errors of their own."""
    trainer, reader = build_trainer(SMALL), build_trainer(SMALL)
    mark(trainer, 1)
    checkpoint.save(trainer, tmp_path)
    mark(trainer, 2)
    files = sorted(tmp_path.rglob("*"))
    for most in (0, 5_000, 600_000):  # bytes of a file: the configuration, the weights or the moments are too large
        with pytest.raises(UserError, match=r"checkpoints/2 cannot be written: .*File too large"), largest_file(most):
            checkpoint.save(trainer, tmp_path)
        with pytest.raises(UserError, match="checkpoints/best-2 cannot be written"), largest_file(most // 2):
            checkpoint.save_best(trainer, tmp_path)
        assert sorted(tmp_path.rglob("*")) == files
    checkpoint.resume(reader, tmp_path)
    assert numbers_in(reader) == {1.0}


def test_a_users_own_copy_of_a_checkpoint_stays(empty_folder, no_pictures, capsys):
    small = "--steps 2 --prompts 2 --group 2 --minibatch_size 4 --k 1 --eval_problems 2 --eval_samples 1 --out run".split()
    assert main(["train", *small, "--iterations", "1"]) == 0
    shutil.copytree("run/checkpoints/1", "run/checkpoints/1-mine")
    assert main(["train", "--resume", "run", "--iterations", "2"]) == 0
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"2", "1-mine"}


def test_a_run_without_its_metrics_is_one_line(empty_folder, no_pictures, capsys):
    small = "--steps 2 --prompts 2 --group 2 --minibatch_size 4 --k 1 --eval_problems 2 --eval_samples 1 --out run".split()
    assert main(["train", *small, "--iterations", "1"]) == 0
    Path("run/metrics.jsonl").unlink()
    for more in ([], ["--iterations", "2"]):
        assert main(["train", "--resume", "run", *more]) == 2
        assert "metrics.jsonl is gone or empty" in capsys.readouterr().err


SMALL_RUN = "--steps 2 --prompts 2 --group 2 --minibatch_size 4 --k 1 --eval_problems 2 --eval_samples 1".split()


def test_metrics_that_lack_the_iteration_of_the_checkpoint_are_one_line(empty_folder, no_pictures, capsys):
    """A line whose end was cut was dropped in silence, and the resume after the next one failed for ever."""
    assert main(["train", *SMALL_RUN, "--iterations", "1", "--out", "run"]) == 0
    metrics = Path("run/metrics.jsonl")
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[:-1])
    assert main(["train", "--resume", "run", "--iterations", "2"]) == 2
    assert "ends with iteration 0, and the checkpoint is of iteration 1: put the rest back" in capsys.readouterr().err
    assert metrics.read_bytes() == whole[:-1] and "iterations: 1\n" in Path("run/config.yaml").read_text()
    metrics.write_bytes(whole)
    assert main(["train", "--resume", "run", "--iterations", "2"]) == 0


def test_a_run_does_not_remove_the_start_policy_of_another_run(empty_folder, no_pictures):
    """The other run could never be resumed."""
    assert main(["train", *SMALL_RUN, "--iterations", "1", "--out", "a"]) == 0
    assert main(["train", *SMALL_RUN, "--iterations", "1", "--model", "a/policy", "--out", "b"]) == 0
    assert main(["train", "--resume", "a", "--iterations", "3"]) == 0
    assert sorted(path.name for path in Path("a/checkpoints").iterdir()) == ["1", "3"]
    assert Path("a/checkpoints/1/start_of.txt").read_text() == f"{Path('b').absolute()}\n"
    assert main(["train", *SMALL_RUN, "--model", "a/checkpoints/3", "--prompts", "999999", "--out", "c"]) == 2
    assert not Path("a/checkpoints/3/start_of.txt").exists()  # a run that is refused marks nothing
    assert main(["train", "--resume", "b", "--iterations", "2"]) == 0


def test_a_run_does_not_go_on_with_other_problems(empty_folder, no_pictures, capsys):
    """It went on without a word, and its evaluations were of two sets of problems."""
    for name, add in (("one", 1), ("two", 2)):
        rows = [{"question": f"{n} + {add}?", "answer": n + add} for n in range(60)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ["--task", "jsonl", "--model", "arithmetic", "--max_new_tokens", "8", *SMALL_RUN[2:]]
    assert main(["train", *task, "--data", "one.jsonl", "--iterations", "1", "--out", "run"]) == 0
    assert main(["train", "--resume", "run", "--iterations", "2", "--data", "two.jsonl"]) == 2
    assert "run: the problems are not those with which the run was trained; put the data back" in capsys.readouterr().err
    Path("one.jsonl").rename("moved.jsonl")
    assert main(["train", "--resume", "run", "--iterations", "2", "--data", "moved.jsonl", "--eval_problems", "3"]) == 0


def test_a_start_policy_that_was_another_run_s_stays_the_same_one(empty_folder):
    """RUN/policy is a link. When that run went on, the reference of this one was its newer policy."""
    Path("a/checkpoints/1").mkdir(parents=True)
    Path("a/policy").symlink_to("checkpoints/1")
    assert TrainConfig(model="a/policy").model == str((empty_folder / "a/checkpoints/1").resolve())


def test_a_run_does_not_go_on_with_another_start_model(tmp_path):
    """The KL was then to the new model, and nothing told of it."""
    trainer = build_trainer(SMALL)
    checkpoint.save(trainer, tmp_path)
    checkpoint.check_settings(build_trainer(SMALL), tmp_path, "policy")
    with torch.no_grad():
        next(trainer.policy.parameters()).zero_()  # it is trained
        checkpoint.check_settings(trainer, tmp_path, "policy")
        [*trainer.reference.parameters()][-1].mul_(1.01)
    with pytest.raises(UserError, match="arithmetic is not the model with which the run started: give the old one back"):
        checkpoint.check_settings(trainer, tmp_path, "policy")
    other = build_trainer(replace(SMALL, kl_coef=0.0))
    checkpoint.save(other, tmp_path / "other")
    checkpoint.check_settings(other, tmp_path / "other", "policy")


def test_a_run_does_not_go_on_with_another_task_file(empty_folder):
    """A changed reward() went on without a word."""
    text = Path(arithmetic.__file__).read_text()
    trainers = {}
    for name, more in (("a", ""), ("b", "\n\ndef reward(problem, text):\n    return 1.0\n")):
        Path(name).mkdir()
        Path(name, "own.py").write_text(text + more)
        trainers[name] = build_trainer(replace(SMALL, task=f"{name}/own.py", model="arithmetic"))
    checkpoint.save(trainers["a"], Path("run"))
    checkpoint.check_settings(trainers["a"], Path("run"), "policy")
    with pytest.raises(UserError, match=r"own.py is not the file with which the run was trained: change it back, or add --yes"):
        checkpoint.check_settings(trainers["b"], Path("run"), "policy")
    trainers["b"].config.yes = True
    checkpoint.check_settings(trainers["b"], Path("run"), "policy")


def test_a_damaged_checkpoint_names_the_command_that_takes_another(tmp_path):
    """It said that another one can be taken, but not how."""
    trainer, run = build_trainer(replace(SMALL, keep_every=1)), tmp_path / "a run"
    for iteration in (1, 2, 3, 4):
        mark(trainer, iteration)
        checkpoint.save(trainer, run)
    for damaged in ("4/model.safetensors", f"3/{checkpoint.STATE}", f"2/{checkpoint.STATE}"):
        (run / "checkpoints" / damaged).write_bytes(b"cut")
    with pytest.raises(UserError, match="take another checkpoint") as found:
        checkpoint.resume(trainer, run)
    subprocess.run(str(found.value).split("`")[1], shell=True, check=True)
    checkpoint.resume(trainer, run)
    assert numbers_in(trainer) == {1.0}
    (run / "checkpoints" / "1" / checkpoint.STATE).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"is damaged .*: start a new run, perhaps with --model"):
        checkpoint.resume(trainer, run)
