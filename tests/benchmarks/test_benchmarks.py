"""Each benchmark runs in its quick form and leaves what it promises; the GPU's workload, made small, on the CPU."""

import json
import math
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import credit, levers, protect, rollouts, train_step, trl_learns
from benchmarks.common import count, json_from, writable
from vine_mini.types import Batch

ROOT = Path(__file__).parents[2]


def run(*arguments) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def called(monkeypatch, capsys):
    """A benchmark's `main`, called in this process with these arguments. -> what it prints"""

    def call(main, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        main()
        return capsys.readouterr().out

    return call


@pytest.mark.slow
def test_rollouts(tmp_path):
    text = run("benchmarks.rollouts", "--quick", "--workloads", "demo", "middle", "--bf16", "--out", str(tmp_path))
    assert "| middle   | 1       | vine_mini" in text and "| middle   | 1       | vine_mini, bf16" in text and "generate" in text
    results = json.loads((tmp_path / "rollouts.json").read_text())["results"]
    assert all(rate > 0 for r in results for rates in r["tokens_per_second"].values() for rate in rates)
    assert (tmp_path / "rollouts.png").stat().st_size > 5000


@pytest.mark.slow
def test_train_step(tmp_path, called):
    text = called(train_step.main, "--quick", "--out", tmp_path)
    assert "VinePPO, vine_mini" in text and (tmp_path / "train_step.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the benchmark needs Linux")
def test_the_memory_estimate_is_near_the_measured_peak(tmp_path):
    text = run("benchmarks.memory", "--quick", "--out", str(tmp_path))
    results = json.loads((tmp_path / "memory.json").read_text())["results"]
    [(name, found)] = results.items()
    assert f"| {name} " in text and found["as_usual"] > 0
    assert found["measured"] == pytest.approx(found["estimate"], rel=0.15)


@pytest.mark.slow
def test_credit(tmp_path, called):
    text = called(credit.main, "--quick", "--out", tmp_path)
    assert "plain / best [95 %]" in text and "(d) tree" in text
    policy, ideas = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("policy", "ideas"))
    assert policy["2"]["low"] <= policy["2"]["ratio"] <= policy["2"]["high"] and policy["1"]["best"][0] < policy["1"]["plain"][0]
    assert ideas["K = 3"]["noise"] < ideas["K = 1"]["noise"] < ideas["whole response (RLOO)"]["noise"]
    assert ideas["K = 1, (b) group's rewards in V(s_0)"]["noise"] < ideas["K = 1"]["noise"]


@pytest.mark.slow
def test_the_simulated_ideas_are_right():
    """Against closed forms: plain noise of chains of equal slips, whole-response credit, and trees whose steps cannot fail."""
    import numpy

    from benchmarks.credit import Chains

    c = Chains(6, 0.3, 40_000)
    plain = c.error(c.draw(3), 0.0, 0.0)
    variance = c.values[:, :-1] * (1 - c.values[:, :-1])
    expected = float((2 * variance.sum(axis=1) - variance[:, 0]).mean() / 3)
    assert plain == pytest.approx(expected, rel=0.02)
    assert c.error(c.draw(10_000), 0.0, 0.0) < 0.001
    kept = numpy.arange(0, 6, 2)
    assert c.error(c.draw(10_000), 0.0, 0.0, kept=kept) > 0.05  # two steps share the credit of both
    assert Chains(6, 1.0, 100).tree_error(2, 2) == 0


@pytest.mark.slow
def test_the_fight_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    from concurrent.futures import ThreadPoolExecutor

    from benchmarks import fight

    tiny = dict(prompts=4, minibatch_size=8, eval_problems=4, eval_samples=1)
    monkeypatch.setattr(fight, "SETTINGS", {"six": tiny | dict(steps=2), "chain12": tiny | dict(steps=3)})
    monkeypatch.setattr(fight, "updates_of", lambda setting, epochs: dict(epochs=epochs, minibatch_size=8))
    monkeypatch.setattr(fight, "SECONDS", 0.5)
    monkeypatch.setattr(fight, "PAPERS_SECONDS", 0.6)
    monkeypatch.setattr(fight, "LRS", (1e-4, 2e-4))
    monkeypatch.setattr(fight, "EPOCHS", (1,))
    monkeypatch.setattr(fight, "REST_SETTINGS", ["chain12"])
    monkeypatch.setattr(fight, "LARGE", dict(prompts=4, group=8, minibatch_size=8))
    monkeypatch.setattr("vine_mini.study.runs.ProcessPoolExecutor", ThreadPoolExecutor)
    log = tmp_path / "runs.jsonl"

    def lines(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["fight", *arguments, "--out", str(tmp_path)])
        fight.main()
        return len(log.read_text().splitlines())

    with pytest.raises(SystemExit, match="the grid of six is not complete"):
        fight.best_configs([], "six")
    assert lines("grid", "--settings", "six") == 6 and lines("grid") == 12 and lines("grid") == 12
    assert lines("fresh", "--seeds", "0", "1") == 24
    lines("predict")
    assert set(json.loads((tmp_path / "predictions.json").read_text())) == {"six", "chain12"}
    assert lines("order", "--seeds", "0", "1") == 28  # plain VinePPO is new, the others have run
    assert lines("rest") == lines("report") == 28 + 2 + 2 + 6 + 4
    table = (tmp_path / "table.md").read_text()
    assert "Predicted order:" in table and table.count("| six ") == 4 + 3 + 3 and "grpo, plain" in table
    assert table.count("| chain12 | dpo ") == 1 and "validation accuracy" in table
    assert (tmp_path / "six.png").stat().st_size > 10_000
    run = json.loads(log.read_text().splitlines()[0])
    assert len(run["validation"]) >= 1 and 0 <= run["test"] <= 1 and run["curve"][-1][0] >= 0.5


@pytest.mark.slow
def test_what_protects_a_policy(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from benchmarks import fight, protect

    tiny = dict(prompts=4, steps=2, eval_problems=4, eval_samples=1)
    monkeypatch.setattr(fight, "SETTINGS", {protect.SETTING: tiny})
    monkeypatch.setattr("vine_mini.study.runs.ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(protect, "SECONDS", 0.2)
    names = ("none", "advantages not divided by a deviation", "no negative advantages")
    monkeypatch.setattr(protect, "CHANGES", {name: protect.CHANGES[name] for name in names})
    monkeypatch.setattr(sys, "argv", ["protect", "--seeds", "0", "--out", str(tmp_path)])
    protect.main()
    table = (tmp_path / "protect.md").read_text()
    assert all(name in table for name in names) and table.count("of 1") == 6
    made = {}
    for name in names:
        job = dict(
            setting=protect.SETTING, seconds=1, seed=0, config=fight.ALGORITHMS["vineppo"] | protect.RISKY | protect.CHANGES[name]
        )
        made[name] = protect.risky_trainer(job).algorithm
    assert [made[name].whiten_advantages for name in names] == [True, False, True]
    assert made["none"].loss is not made["no negative advantages"].loss


def test_no_negative_advantages_means_that_they_have_no_gradient():
    logprobs, mask = torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3)
    tokens = torch.ones(1, 3, dtype=torch.long)
    batch = Batch(tokens, tokens, mask, torch.zeros(1, 3), torch.tensor([[-1.0, 0.0, 2.0]]))

    def loss(logprobs, batch, config, denominator):
        return -(batch.advantages * logprobs).sum(), {}

    protect.positive_loss(loss, logprobs, batch, None, 3)[0].backward()
    assert logprobs.grad.tolist() == [[0.0, 0.0, -2.0]]


def test_types_of_arguments(tmp_path):
    assert count("3") == 3 and writable(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    (tmp_path / "file").touch()
    for kind, text in ((count, "0"), (count, "-1"), (count, "1.5"), (writable, str(tmp_path / "file"))):
        with pytest.raises(ArgumentTypeError, match=r"must be a whole number from 1|cannot be written"):
            kind(text)


def test_json_from_a_process():
    def python(text, **more):
        return json_from([sys.executable, "-c", f"import os, sys, time; {text}"], **more)

    assert python("print('a word'); print('[1, ' + os.environ['OURS'] + ']\\n')", environment={"OURS": "2"}) == [1, 2]
    assert python("print(len(os.environ['PATH']))") == len(os.environ["PATH"])
    with pytest.raises(RuntimeError, match=r"^ValueError: no$"):
        python("print(1); raise ValueError('no')")
    with pytest.raises(RuntimeError, match="exit code 3"):
        python("sys.exit(3)")
    for text in ("0", "print('a word')"):
        with pytest.raises(RuntimeError, match="not JSON"):
            python(text)
    with pytest.raises(subprocess.TimeoutExpired):
        python("time.sleep(60)", limit=0.1)


@pytest.mark.slow
def test_train_and_trl_are_compared(tmp_path):
    pytest.importorskip("trl")
    arguments = ("benchmarks.trl_learns", "--seeds", "0", "--iterations", "2", "--out", str(tmp_path))
    out = run(*arguments)
    here, there = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert here["way"] == "vine_mini" and there["way"].startswith("TRL") and all(r["way"] in out for r in (here, there))
    assert here["after"] > 0.35 and there["after"] > 0.35  # 0.29 before
    assert all(len(r["rewards"]) == 2 and 100 < r["peak"] < 5000 for r in (here, there))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.jsonl", "trl_learns.json", "trl_learns.md"]


@pytest.mark.parametrize("benchmark", [levers, trl_learns])
def test_a_line_that_a_crash_has_cut_spoils_no_other(benchmark, tmp_path, monkeypatch):
    """The next run was appended to the cut line, and the file could no longer be read."""

    def learn(way, seed, iterations, *_):
        numbers = dict(before=0.3, after=0.4, moments=1024, gap=0.0, rewards=[0.3], seconds=1.0, peak=1.0)
        return dict(way=way, seed=seed, iterations=iterations) | numbers

    monkeypatch.setattr(benchmark, "learn", learn)
    monkeypatch.setattr(trl_learns, "check_trl", lambda: None)
    monkeypatch.setattr(trl_learns, "evaluate", lambda folder: (folder / "evaluation.json").touch() or 0.3)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--seeds", "0", "--iterations", "2", "--out", str(tmp_path)])
    whole = json.dumps(learn(next(iter(benchmark.WAYS)), 0, 2)) + "\n"
    (tmp_path / "runs.jsonl").write_text(whole + whole[:20])
    benchmark.main()
    made = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [run["way"] for run in made] == list(benchmark.WAYS)


def test_vllm_ends_whatever_happens(monkeypatch):
    """After Ctrl-C the processes stayed, and their timers kept the benchmark alive for an hour."""
    closed = []

    class Peer:
        def __init__(self, *_):
            pass

        def __call__(self):
            raise KeyboardInterrupt

        def close(self):
            closed.append(self)

    monkeypatch.setitem(rollouts.WORKLOADS, "nothing", lambda quick: None)
    for name, fake in (("Vllm", Peer), ("ours", lambda *_: 1), ("generate", lambda *_: 1)):
        monkeypatch.setattr(rollouts, name, fake)
    with pytest.raises(KeyboardInterrupt):
        rollouts.measure("nothing", SimpleNamespace(quick=True, slots=[8], bf16=False, vllm="python", repeats=1), 1)
    assert len(closed) == 2


@pytest.mark.slow
def test_every_lever_trains(tmp_path):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    out = run("benchmarks.levers", "--seeds", "0", "--iterations", "1", "--out", str(tmp_path))
    made = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [r["way"] for r in made] == list(levers.WAYS) and all(way in out for way in levers.WAYS)
    moments = {r["way"]: r["moments"] for r in made}
    assert moments["AdamW, moments in 8 bits"] < 0.5 * moments["AdamW"] and moments["LoRA"] < 0.5 * moments["AdamW"]
    gaps = {r["way"]: r["gap"] for r in made}
    assert gaps["AdamW"] < 1e-5 < gaps["bfloat16"] < 0.1


def test_what_is_not_there_is_told(called, capsys):
    with pytest.raises(SystemExit, match="2"):
        called(rollouts.main, "--vllm", "nowhere")
    assert "there is no" in capsys.readouterr().err


def test_the_theory_of_equal_steps_by_enumeration():
    """All responses of a chain of three steps, each right with probability 0.6: the noise of both credits, term by term."""
    from benchmarks.steps import theory

    p, n, k, group = 0.6, 3, 4, 5
    whole = plain = 0.0
    of_group = p**n * (1 - p**n) / (group - 1)  # the variance of the mean of the other rewards
    for outcome in product([True, False], repeat=n):
        weight = math.prod(p if right else 1 - p for right in outcome)
        values = [p ** (n - i) if all(outcome[:i]) else 0.0 for i in range(n)] + [float(all(outcome))]
        true = [b - a for a, b in pairwise(values)]
        whole += weight * sum((values[n] - values[0] - a) ** 2 + of_group for a in true)
        variances = [v * (1 - v) / k for v in values]  # the last one is a reward, which is known
        variances[0] *= k / (k + group - 1)
        plain += weight * sum(a + b for a, b in pairwise(variances))
    assert theory(3, p**n, k, group) == pytest.approx((whole, plain))


def test_gains_by_hand():
    from benchmarks import steps

    def run(name, seed, accuracies):
        checks = [dict(test=x, seconds=10.0 * i) for i, x in enumerate(accuracies)]
        return dict(task="4 steps", seed=seed, config=steps.SETTINGS["chains"][name], checks=checks)

    made = [run("vineppo", 0, [0.0, 0.5, 1.0]), run("grpo", 0, [0.0, 0.25, 0.5]), run("grpo", 1, [0.0, 0.25, 0.5])]
    made += [run("vineppo", 1, [0.0, 0.0, 0.1])]  # lost: never at 0.45, so it counts as 40 seconds
    found = steps.gains(made, 4, steps.with_k(1), "grpo")
    assert [math.exp(x) for x in found] == pytest.approx([18 / 9, 18 / 40])
    assert steps.factor_and_interval([math.log(2), math.log(2)]) == pytest.approx((2, 2, 2))


@pytest.mark.slow
def test_steps_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from benchmarks import steps

    small = dict(prompts=4, eval_samples=1, sample_batch_size=64)
    monkeypatch.setattr(steps, "SHARED", steps.SHARED | small)
    monkeypatch.setattr(steps, "STEPS", (2, 3))
    monkeypatch.setattr(steps, "AT", 3)
    monkeypatch.setattr(steps, "KS", (1, 3, 9))
    monkeypatch.setattr(steps, "SECONDS", 0.2)
    monkeypatch.setattr("vine_mini.study.runs.ProcessPoolExecutor", ThreadPoolExecutor)
    algorithms = {name: of | dict(minibatch_size=8) for name, of in steps.SETTINGS["chains"].items()}
    monkeypatch.setattr(steps, "SETTINGS", {"chains": algorithms})
    jobs = steps.jobs
    monkeypatch.setattr(steps, "jobs", lambda *a: [job | dict(problems=4, evaluations=2) for job in jobs(*a)])
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["steps", "--model", "arithmetic", "--seeds", "0", "1", "--out", str(tmp_path)])
        steps.main()
        assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2 * (2 * 3 + 2)
    text = (tmp_path / "steps.md").read_text()
    assert text.count("| grpo ") == 4 and "K = 3, averaged" in text and (tmp_path / "steps.png").stat().st_size > 30_000


@pytest.fixture
def gpu_script(monkeypatch):
    """`benchmarks.gpu` called with these arguments. -> its exit code"""
    from benchmarks import gpu

    def call(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
        return gpu.main()

    return call


@pytest.mark.slow
def test_the_rehearsal_of_the_gpu_script(tmp_path, gpu_script):
    assert gpu_script("--cpu-rehearsal", "--out", tmp_path) == 0
    table, data = (tmp_path / "gpu.md").read_text(), json.loads((tmp_path / "gpu.json").read_text())["pieces"]
    assert list(data) == list("abcde") and "2 passed" in table and "does not end well" not in table
    for of_model in data["b"]["data"]["rates"].values():
        assert {"vine_mini", "vine_mini, no graphs", "generate"} <= set(of_model) and min(of_model.values()) > 0
    for found in data["c"]["data"].values():
        assert {"sample", "rollouts", "score", "update"} <= set(found["seconds"]) and found["sampling"] == "fast"
    assert [rows[-1]["eval"]["pass@1"] for rows in data["d"]["data"].values()] and table.count("credit-cost, ") == 3
    shown = {"credit-cost-policy-of-d", "credit-cost-shipped", "credit-cost-shipped-on-cpu", "iteration", "learning", "rollouts"}
    assert {path.stem for path in tmp_path.glob("*.png") if path.stat().st_size > 10_000} == shown


def test_the_gpu_script_goes_on_where_it_stopped(tmp_path, gpu_script, monkeypatch, capsys):
    """A piece that fails does not stop the others, and the next call tries it again. A rehearsal begins anew each time."""
    from benchmarks import gpu

    asked, broken = [], ["b"]

    def in_process(name, place):
        asked.append(name)
        record = {"machine": where, "seconds": 1.0, "table": {"tokens": "9"}}
        return record | ({"error": "it broke"} if name in broken else {})

    where = "a GPU"
    monkeypatch.setattr(gpu, "in_process", in_process)
    monkeypatch.setattr(gpu, "where", lambda place: where)
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    assert gpu_script("--out", tmp_path, "--pieces", "a", "b", "c") == 1 and asked == ["a", "b", "c"]
    assert "it broke" in capsys.readouterr().out and "| b     | tokens" in (tmp_path / "gpu.md").read_text()
    broken.clear()
    assert gpu_script("--out", tmp_path) == 0 and asked == ["a", "b", "c", "b", "d", "e"]
    assert "it broke" not in (tmp_path / "gpu.md").read_text()
    assert gpu_script("--out", tmp_path) == 0 and len(asked) == 6
    assert gpu_script("--out", tmp_path, "--pieces", "d") == 0 and asked[6:] == ["d"]
    where = "another GPU"
    assert gpu_script("--out", tmp_path) == 0 and asked[7:] == list("abcde")
    assert gpu_script("--cpu-rehearsal", "--out", tmp_path, "--pieces", "a") == 0
    assert [*json.loads((tmp_path / "gpu.json").read_text())["pieces"]] == ["a"]


def test_a_piece_that_raises_or_dies_keeps_what_it_had_measured(tmp_path, gpu_script, monkeypatch, capsys):
    from benchmarks import gpu

    def piece(place):
        yield {"table": {"tokens": "9"}}
        raise ZeroDivisionError("of  two\nlines")

    monkeypatch.setitem(gpu.PIECES, "a", piece)
    assert gpu_script("--cpu-rehearsal", "--out", tmp_path, "--one", "a") == 0
    lines = capsys.readouterr().out
    script = f"import sys, time; print({lines!r}, flush=True); sys.exit(7) if 'quick' in sys.argv else time.sleep(60)"
    started, start, kinds = [], subprocess.Popen, iter(("quick", "slow"))

    def instead(call, **more):
        started.append(start([sys.executable, "-c", script, next(kinds)], **more))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", instead)
    monkeypatch.setattr(gpu, "where", lambda place: "here")
    monkeypatch.setattr(gpu, "LIMIT", 3)
    for says in ("its process ended with exit code 7", "stopped after 3 s"):
        record = gpu.in_process("a", gpu.Place("cpu", tmp_path, True))
        assert record["error"] == says and record["table"] == {"tokens": "9"} and started[-1].returncode is not None
    monkeypatch.setattr(subprocess, "Popen", lambda call, **more: start([sys.executable, "-c", f"print({lines!r})"], **more))
    assert gpu.in_process("a", gpu.Place("cpu", tmp_path, True))["error"] == "ZeroDivisionError: of two lines"


def test_where_the_gpu_script_does_not_run(gpu_script, monkeypatch):
    import torch

    from benchmarks import gpu
    from vine_mini.types import UserError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no CUDA here"):
        gpu_script()
    with pytest.raises(UserError, match="results/gpu is for figures of a GPU"):
        gpu_script("--cpu-rehearsal", "--out", gpu.RESULTS / "here")
    assert not gpu.RESULTS.exists() or (gpu.RESULTS / "gpu.json").exists()


@pytest.mark.slow
def test_the_clock_of_the_study(tmp_path, monkeypatch):
    from benchmarks import clock

    few = {name: clock.SETTINGS["decisive"][name] for name in ("vineppo", "grpo")}
    monkeypatch.setattr(clock, "SETTINGS", {"decisive": few})
    monkeypatch.setattr(clock, "PAPERS", {"decisive": few["vineppo"]})
    monkeypatch.setattr(clock, "TASKS", {"decisive": clock.TASKS["decisive"]})
    monkeypatch.setattr(sys, "argv", ["clock", "--rounds", "1", "--out", str(tmp_path)])
    clock.main()
    text = (tmp_path / "clock.md").read_text()
    assert text.count("| decisive | VinePPO") == 2 and text.count("| decisive | GRPO") == 1 and " 0.00 " not in text
    assert "VinePPO, K = 1 - GRPO, test accuracy" in (tmp_path / "cheaper-and-dearer.md").read_text()


def test_grading_is_timed(tmp_path, monkeypatch, capsys):
    from benchmarks import grading

    monkeypatch.setattr(sys, "argv", ["grading", "--rollouts", "5", "--repeats", "1", "--out", str(tmp_path)])
    grading.main()
    assert (
        "| 5        | 290 " in capsys.readouterr().out
        and len(json.loads((tmp_path / "grading.json").read_text())["seconds"]) == 1
    )
