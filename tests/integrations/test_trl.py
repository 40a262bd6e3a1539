"""VinePPO on TRL. What needs TRL is skipped without it. `trl_worker.py` is a process of the runs that are tested here."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vine_mini import cli, models, tasks
from vine_mini.advantages import whiten
from vine_mini.algorithms import vineppo
from vine_mini.app.config import SHIPPED, TrainConfig
from vine_mini.app.files import read_rows
from vine_mini.integrations import trl
from vine_mini.integrations.trl import __main__ as command
from vine_mini.integrations.trl.plan import Device, plan, seconds, tokens
from vine_mini.trainer import Trainer
from vine_mini.types import Trajectory, UserError

ROOT = Path(__file__).parents[2]
needs_trl = pytest.mark.skipif(
    trl.GRPOTrainer is object, reason=f"TRL {trl.TESTED} is not installed: pip install 'trl=={trl.TESTED}.*'"
)
launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.xdist_group(f"ranks-{n}")) for n in (1, 2)])
def ranks(request, tmp_path_factory):
    """-> what each process of a run wrote"""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    start = [sys.executable] if request.param == 1 else [*launcher, free_port()]
    done = subprocess.run([*start, "tests/integrations/trl_worker.py", str(folder)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=170, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]
    assert [r["ranks"] for r in results] == [request.param] * request.param
    return results


@needs_trl
@pytest.mark.slow
def test_all_processes_have_the_same_weights_after_their_updates(ranks):
    assert all(r["steps"] == 4 for r in ranks)
    assert len({r["weights"] for r in ranks}) == 1


@needs_trl
@pytest.mark.slow
def test_the_processes_had_different_numbers_of_states(ranks):
    states = [[len(iteration["ends"]) for iteration in r["seen"]] for r in ranks]
    assert len(ranks) == 1 or states[0] != states[1], states
    for r in ranks:  # the metrics count the states of all processes
        assert [iteration["unique_states"] for iteration in r["seen"]] == [sum(row) for row in zip(*states, strict=True)]


@needs_trl
@pytest.mark.slow
def test_a_reward_of_the_prompt_alone_gives_advantages_of_exactly_zero(ranks):
    for r in ranks:
        used, before_whitening, tokens = r["prompt_only"]
        assert used == before_whitening == 0.0 and tokens > 50


@needs_trl
@pytest.mark.slow
def test_recorded_completions_give_the_package_s_own_token_advantages(ranks):
    from trl_worker import CONFIG

    config = TrainConfig(**CONFIG)
    policy, tokenizer = models.load_policy(str(SHIPPED / "arithmetic"), "cpu")
    problems = tasks.load_problems(config)[0][:40]
    own, nonzero, count = Trainer(config, policy, tokenizer, problems, []), 0, 0
    for parts in zip(*(r["seen"] for r in ranks), strict=True):
        rows = [row for part in parts for row in part["rows"]]
        ends = {state: group for part in parts for state, group in part["ends"]}
        for row in rows:
            assert row["prompt"] == own.prompts[row["problem"]]

        def recorded(trajectories, cuts, k, ends=ends):
            keys = [
                [json.dumps([t.prompt_ids, t.response_ids[:c]]) for c in row] for t, row in zip(trajectories, cuts, strict=True)
            ]
            return [[[Trajectory([0], ids, [0.0] * len(ids), ok) for ids, ok in ends[key]] for key in row] for row in keys]

        trajectories = [Trajectory(row["prompt"], row["response"], [0.0] * len(row["response"]), row["finished"]) for row in rows]
        episodes = own.as_episodes([problems[row["problem"]] for row in rows], trajectories)
        advantages, _, _ = vineppo(episodes, None, recorded, config)
        mask = episodes.tokens.response_mask.bool()
        expected = whiten(advantages, mask.float())[mask]
        found = torch.tensor([a for row in rows for a in row["advantages"]])
        assert (found - expected).abs().max() < 1e-6
        nonzero, count = nonzero + (advantages[mask].abs() > 1e-6).sum(), count + len(found)
        lengths = [len(t.response_ids) for t in trajectories]
        for state, group in ends.items():  # with the length of its state no rollout is longer than the limit
            assert all(len(json.loads(state)[1]) + len(ids) <= config.max_new_tokens for ids, _ in group)
        assert max(lengths) <= config.max_new_tokens
    assert nonzero >= count / 2


@needs_trl
@pytest.mark.slow
def test_a_server_gives_each_process_the_completions_of_its_own_states(ranks):
    """TRL's own code for servers, with a fake client: the completion of a state is computed from the state."""
    assert all(r["own_states"] for r in ranks)
    assert ranks[0]["synchronized"] >= 2  # new weights in each iteration


RUN = ["-m", "vine_mini.integrations.trl", "--preset", "arithmetic", "--steps", "3", "--prompts", "4", "--group", "2", "--k", "1"]
RUN += ["--minibatch_size", "8", "--epochs", "1", "--device", "cpu", "--save_every", "1"]


@needs_trl
@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_one_line_and_the_run_resumes(tmp_path):
    """The policy of the run is one that the other commands load."""
    run, log = tmp_path / "run", (tmp_path / "log").open("w+")
    start = [*launcher, free_port(), *RUN, "--iterations", "500", "--out", str(run)]
    process = subprocess.Popen(start, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        limit = time.monotonic() + 120
        while not (run / "policy").exists() and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.2)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        [second] = [pid for pid in workers if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()]
        os.kill(int(second), signal.SIGKILL)
        assert process.wait(60) != 0
    finally:
        process.kill()
    log.seek(0)
    assert f"go on with --resume {run}" in log.read()
    done = read_rows(run / "metrics.jsonl")[-1]["iteration"]
    saved = json.loads((run / "policy" / "trainer_state.json").read_text())["global_step"]
    assert 1 <= saved <= done <= saved + 1
    more = [*launcher, free_port(), "-m", "vine_mini.integrations.trl", "--resume", str(run), "--iterations", str(saved + 2)]
    ended = subprocess.run(more, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = read_rows(run / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, saved + 3))
    assert {"reward", "length", "truncated", "kl", "rollouts", "seconds_rollouts"} <= rows[-1].keys()
    assert (run / "curves.png").exists() and read_rows(run / "samples.jsonl")[-1]["iteration"] == saved + 2
    assert models.load_policy(str(run / "policy"), "cpu")


@needs_trl
@pytest.mark.slow
def test_a_stop_saves_the_iteration_and_a_finished_run_says_so(tmp_path):
    run, log = tmp_path / "run", (tmp_path / "log").open("w+")
    start = [sys.executable, *RUN, "--save_every", "1000", "--iterations", "500", "--out", str(run)]
    process = subprocess.Popen(start, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        limit = time.monotonic() + 120
        while len(read_rows(run / "metrics.jsonl")) < 2 and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
    log.seek(0)
    assert f"saved; --resume {run} goes on" in log.read()
    done = read_rows(run / "metrics.jsonl")[-1]["iteration"]
    assert (run / "policy" / "model.safetensors").exists() and (run / "vllm.txt").read_text() == "none\n"
    before = (run / "metrics.jsonl").read_text()
    more = [sys.executable, "-m", "vine_mini.integrations.trl", "--resume", str(run), "--iterations"]
    ended = subprocess.run(
        [*more, str(done)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2 and f"{run} has its {done} iterations already" in ended.stderr
    assert (run / "metrics.jsonl").read_text() == before
    ended = subprocess.run(
        [*more, str(done + 1)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert [row["iteration"] for row in read_rows(run / "metrics.jsonl")] == list(range(1, done + 2))
    # the other commands read the run folder as they read one of `train`
    policy = ["--preset", str(run / "config.yaml"), "--policy", str(run / "policy")]
    assert cli.main(["evaluate", *policy, "--problems", "4", "--n", "1", "--out", str(tmp_path / "pass.json")]) == 0
    assert cli.main(["sample", *policy, "--n", "1"]) == 0
    small = ["--group", "2", "--k", "1", "--fresh", "2", "--critic_iterations", "0", "--out", str(tmp_path / "credit")]
    assert cli.main(["credit", "--run", str(run), *small]) == 0
    assert (tmp_path / "pass.json").stat().st_size and list((tmp_path / "credit").glob("*.html"))
    (run / "policy" / "trainer_state.json").write_text('{"global_step": ')  # a damaged disk
    ended = subprocess.run(
        [*more, str(done + 2)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2 and f"{run} has no checkpoint of TRL" in ended.stderr and "Traceback" not in ended.stderr


@needs_trl
@pytest.mark.parametrize(
    "path", sorted((ROOT / "vine_mini/integrations/trl/accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_reads_the_example_configurations(path):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == int(re.findall(r"\d+", path.read_text())[0]) and config.mixed_precision == "no"
    if config.fsdp_config:
        from accelerate import FullyShardedDataParallelPlugin

        fields = {name.removeprefix("fsdp_") for name in config.fsdp_config} - {"version", "offload_params"}
        assert fields <= {"auto_wrap_policy", "reshard_after_forward", "state_dict_type"}
        FullyShardedDataParallelPlugin(fsdp_version=2, **{name: config.fsdp_config[f"fsdp_{name}"] for name in fields})


@needs_trl
def test_other_signatures_are_refused(monkeypatch):
    trl.check_trl()
    monkeypatch.setattr(trl.GRPOTrainer, "_tokenize_prompts", lambda self, prompts, images: None)
    with pytest.raises(UserError, match="_tokenize_prompts has the arguments"):
        trl.check_trl()


@pytest.mark.parametrize("version", ["none", "1.15.2"])
def test_without_the_tested_trl_there_is_one_line(monkeypatch, capsys, version):
    monkeypatch.setattr(trl, "GRPOTrainer", object)
    monkeypatch.setattr(trl, "version", version)
    assert command.main(["--preset", "arithmetic"]) == 2
    assert capsys.readouterr().err == (
        f"vine_mini.integrations.trl: this needs TRL 1.16 (installed: {version}): pip install 'trl==1.16.*'\n"
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(algorithm="grpo"), "algorithm does not exist on TRL"),
        (dict(max_ratio=3.0), "max_ratio does not exist on TRL: set it to 10.0"),
        (dict(eval_every=5), "eval_every does not exist"),
        (dict(adam_8bit=True), "adam_8bit does not exist on TRL: set it to False"),
        (dict(importance_cap=2.0, bf16=True), "importance_cap needs --vllm"),
        (dict(vllm="colocated"), "vllm = colocated: give colocate, or the address"),
        (dict(group=1, minibatch_size=32), "a group has at least 2"),
        (dict(device="cuda:1"), "on TRL it is auto or cpu"),
    ],
)
def test_fields_that_do_not_carry_over_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        command.TrlConfig(**changes)


def test_an_update_has_the_same_responses_on_any_number_of_processes():
    config = command.TrlConfig(
        prompts=32, group=4, minibatch_size=64, epochs=2, micro_batch_tokens=1000, max_new_tokens=60, lr=1.0
    )
    for ranks in (1, 2, 4, 8):
        a = command.grpo_arguments(config, ranks, longest_prompt=40)
        rows = a["per_device_train_batch_size"]
        assert rows * 100 <= 1000 and rows * a["gradient_accumulation_steps"] * ranks == 64
        assert rows * a["steps_per_generation"] * ranks == 128 and a["max_steps"] == 60 * 2 * 2
    assert command.grpo_arguments(config, 1, longest_prompt=5000)["per_device_train_batch_size"] == 1
    with pytest.raises(UserError, match="prompts = 32 cannot be divided equally among 3 processes"):
        command.grpo_arguments(config, 3, 40)
    vllm = command.grpo_arguments(command.TrlConfig(vllm="http://host:8000"), 1, 40)
    assert vllm["use_vllm"] and vllm["vllm_mode"] == "server" and vllm["vllm_server_base_url"] == "http://host:8000"
    here = command.grpo_arguments(command.TrlConfig(vllm="colocate"), 1, 40)
    assert here["vllm_mode"] == "colocate" and here["vllm_importance_sampling_mode"] == "token_truncate"
    low, high = here["vllm_importance_sampling_clip_min"], here["vllm_importance_sampling_clip_max"]
    assert low < high and low == pytest.approx(1, abs=1e-5) and high == pytest.approx(1, abs=1e-5)  # all weigh 1
    capped = command.grpo_arguments(command.TrlConfig(vllm="colocate", bf16=True, importance_cap=2.0), 1, 40)
    assert (capped["vllm_importance_sampling_clip_min"], capped["vllm_importance_sampling_clip_max"]) == (None, 2.0)


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_lost_or_late_is_an_error_of_seconds(monkeypatch, answers):
    requests = pytest.importorskip("requests")
    urllib3 = pytest.importorskip("urllib3")
    monkeypatch.setattr(trl, "ANSWER_SECONDS", 0.2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()  # takes the connection and says nothing
        session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(
            max_retries=urllib3.Retry(total=5, read=5, backoff_factor=0.1, allowed_methods=["POST"])
        )
        session.mount("http://", adapter)
        client = SimpleNamespace(session=session, base_url=f"http://127.0.0.1:{server.getsockname()[1]}", model="m")
        trainer = SimpleNamespace(prompts={"2 + 2?": [1]}, config=SimpleNamespace(max_new_tokens=8))
        start = time.monotonic()
        with pytest.raises(OSError):
            trl.VinePPOTrainer._check_server(trainer, client)
        assert time.monotonic() - start < 2


def test_a_lost_process_ends_with_one_line(monkeypatch, tmp_path):
    lines = []
    (tmp_path / "policy").mkdir()
    monkeypatch.setattr(os, "write", lambda _, line: lines.append(line.decode()))
    monkeypatch.setattr(os, "_exit", lambda code: sys.exit(code))
    before = signal.getsignal(signal.SIGTERM)
    try:
        for error in (
            ConnectionError("refused\nby host"),
            RuntimeError("[gloo] Connection closed"),
            torch.distributed.DistError("x"),
        ):
            with pytest.raises(SystemExit), command._lost(tmp_path):
                raise error
        for defect in (ZeroDivisionError, FileNotFoundError):  # a defect, also of the user's task, keeps its traceback
            with pytest.raises(defect), command._lost(tmp_path):
                raise defect
        with pytest.raises(SystemExit), command._lost(tmp_path / "new"):
            raise ConnectionError("refused")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert lines[0] == f"process 0 ends: refused by host; go on with --resume {tmp_path}\n" and len(lines) == 4
    assert lines[3] == f"process 0 ends: refused; {tmp_path / 'new'} has no checkpoint yet\n"


def test_the_tokens_of_the_plan_by_hand():
    """6 responses of 10 tokens in 4 steps. 10, 7.5, 5 and 2.5 tokens of a response come after the states before its steps."""
    config = TrainConfig(prompts=3, group=2, minibatch_size=6, k=3)
    assert tokens(config, response=10, steps=4) == (6 * 10, 6 * 3 * 25) and tokens(config, 10, 1) == (6 * 10, 6 * 3 * 10)


def test_the_plan_is_close_to_the_measured_iteration_of_one_device():
    """results/speed/train_step: random Llama, 16 x 4 responses of 64 tokens, 4 steps, K = 3. Its update gives the CPU's rate."""
    lines = (ROOT / "results/speed/train_step/train_step.md").read_text().split("\n")
    grpo, vine = ([float(x) for x in line.split("|")[2:6]] for line in lines if ", vine_mini" in line)
    sample, update, rollouts = (grpo[0] + vine[0]) / 2, (grpo[3] + vine[3]) / 2, vine[1]  # GRPO samples and updates as VinePPO
    weights = 6 * (4 * 256**2 + 3 * 256 * 1024) + 2 * 512 * 256
    cpu = Device(flops=6 * weights * 64 * 96 / update, bandwidth=10e9, training=1.0, number=4)
    config = TrainConfig(prompts=16, group=4, k=3, epochs=1, kl_coef=0.0, sample_batch_size=64)
    planned = seconds(weights, 2 * 6 * 256 * 4, config, cpu, shape=(32, 64, 4))
    assert 1 / 1.5 < planned[0] / sample < 1.5 and 1 / 1.5 < planned[1] / rollouts < 1.5


def test_the_plan_names_its_assumptions_and_halves_with_the_gpus():
    text = plan(command.TrlConfig(task="gsm8k", model="m", k=9, prompts=64, group=8))
    assert "TFLOP/s" in text and "does not fit" in text
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.split("\n")
        if line.startswith(("| 1B", "| 7B", "| 70B"))
    ]
    assert [row[1] for row in rows[:7]] == ["1", "2", "4", "8", "16", "32", "64"] and len(rows) == 21
    assert float(rows[0][6]) == pytest.approx(2 * float(rows[1][6]), rel=0.05)
    # 64 GPUs cannot write 200 tokens one after the other in less than the time of 200 steps: 2 bytes of each weight per step.
    fewest = 200 * 2 * 1.1e9 / 3.35e12 / 0.6
    assert float(rows[6][5]) >= round(fewest, 1) > 0.1
