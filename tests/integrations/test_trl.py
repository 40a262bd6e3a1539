"""VinePPO on TRL. What needs TRL is skipped without it. `trl_worker.py` is a process of the runs that are tested here."""

import json
import re
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from trl_runs import COMMAND, ROOT, RUN, SMALL, begin, finish, launcher, needs_trl, wait_until

from vine_mini import cli, models, tasks
from vine_mini.advantages import whiten
from vine_mini.algorithms import vineppo
from vine_mini.app.config import SHIPPED, TrainConfig
from vine_mini.app.files import read_rows
from vine_mini.integrations import trl
from vine_mini.integrations.trl import __main__ as command
from vine_mini.trainer import Trainer
from vine_mini.types import Trajectory, UserError


@pytest.fixture(scope="module", params=[1, 2])
def ranks(request, tmp_path_factory):
    """-> what each process of a run wrote"""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    start = [sys.executable] if request.param == 1 else launcher()
    done = finish([*start, "tests/integrations/trl_worker.py", str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]
    assert [r["ranks"] for r in results] == [request.param] * request.param
    return [r | {"folder": str(folder)} for r in results]


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
        episodes = own.as_episodes([problems[row["problem"]] for row in rows[:: config.group]], trajectories)
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


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_fsdp_gives_the_weights_of_ddp(ranks, tmp_path):
    """FSDP of accelerate, on two CPUs. The processes write responses of unequal lengths, with Hugging Face generation."""
    done = finish([*launcher(), "tests/integrations/trl_worker.py", str(tmp_path), "fsdp"])
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert all(r["ranks"] == 2 and r["kinds"] == ["DTensor"] for r in results)  # a part of each matrix
    assert len({r["weights"] for r in results}) == 1
    assert [r["lengths"] for r in results] == [r["lengths"] for r in ranks]
    assert any(max(a) != max(b) for a, b in zip(*(r["lengths"] for r in results), strict=True))
    divided, whole = (torch.load(f"{folder}/weights.pt") for folder in (tmp_path, ranks[0]["folder"]))
    assert divided.keys() == whole.keys()
    gaps = torch.cat([(divided[name] - whole[name]).abs().flatten() for name in whole])
    # AdamW divides by the root of the mean squared gradient. Where that is nearly 0 it makes rounding larger, in single weights.
    assert (gaps > 1e-6).float().mean() < 1e-4 and gaps.max() < 1e-4  # the learning rate is 1e-3


TWELVE = '''"""Twelve chains of one operation. The task names no temperature of evaluations, which TRL does not need."""
from vine_mini.tasks.arithmetic import ANSWER_MARK, TEMPLATE, extract_answer, generate, reward
DEFAULTS = {"max_new_tokens": 24}
def problems(config):
    found = generate("train", 16, steps=(1, 1), max_number=20, seed=0)
    return found[:12], found[12:]
'''


@needs_trl
def test_a_run_whose_first_iteration_fails_leaves_nothing(tmp_path, capsys):
    """The corrected task was refused, because the folder already held something."""
    (tmp_path / "none.py").write_text(f"{TWELVE}def reward(problem, text): return None\n")
    words = ["--task", str(tmp_path / "none.py"), "--policy", "arithmetic", *SMALL, "--out", str(tmp_path / "run")]
    assert command.main(words) == 2
    assert "must return a number from 0 to 1, not None" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["none.py"]


def test_neighbouring_seeds_have_other_orders():
    """The second epoch of seed 0 had the order of the first epoch of seed 1."""
    order = trl.Order()
    order.sampler = SimpleNamespace(generator=torch.Generator())

    def drawn(seed, epoch):
        order.on_epoch_begin(SimpleNamespace(seed=seed), SimpleNamespace(epoch=epoch), None)
        return tuple(torch.randperm(100, generator=order.sampler.generator).tolist())

    assert len({drawn(seed, epoch) for seed in range(4) for epoch in (0.0, 1.0, 2.0)}) == 12 and drawn(1, 0.0) == drawn(1, 0.0)


@needs_trl
def test_a_run_resumed_in_its_second_epoch_is_the_uninterrupted_run(tmp_path):
    (tmp_path / "twelve.py").write_text(TWELVE)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    words = ["--task", str(tmp_path / "twelve.py"), "--policy", "arithmetic", "--lr", "1e-3", *SMALL]
    assert command.main([*words, "--save_every", "4", "--iterations", "5", "--out", str(whole)]) == 0
    shutil.copytree(whole, resumed, symlinks=True)
    (resumed / "policy").unlink()
    (resumed / "policy").symlink_to("checkpoints/checkpoint-4")  # an epoch has 3 iterations
    assert command.main(["--resume", str(resumed)]) == 0
    asked = [[row["question"] for row in read_rows(run / "samples.jsonl")] for run in (whole, resumed)]
    assert asked[0] == asked[1]
    weights = [(run / "policy" / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1] != (whole / "checkpoints/checkpoint-4/model.safetensors").read_bytes()


@needs_trl
@pytest.mark.slow
def test_a_stop_saves_the_iteration_and_a_finished_run_says_so(tmp_path, capsys):
    run, log = tmp_path / "run", (tmp_path / "log").open("w+")
    process = begin([sys.executable, *COMMAND, *RUN, "--save_every", "1000", "--iterations", "500", "--out", str(run)], log)
    try:
        wait_until(lambda: len(read_rows(run / "metrics.jsonl")) > 1, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
    log.seek(0)
    assert f"saved; --resume {run} goes on" in log.read()
    done = read_rows(run / "metrics.jsonl")[-1]["iteration"]
    assert (run / "policy" / "model.safetensors").exists() and (run / "vllm.txt").read_text() == "none\n"
    before = (run / "metrics.jsonl").read_text()
    more = ["--resume", str(run), "--iterations"]
    assert command.main([*more, str(done)]) == 2
    assert f"{run} has its {done} iterations already" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_text() == before
    ended = finish([sys.executable, *COMMAND, *more, str(done + 1)])
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
    capsys.readouterr()
    assert command.main([*more, str(done + 2)]) == 2
    assert f"{run} has no checkpoint of TRL" in capsys.readouterr().err


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
    here = command.grpo_arguments(command.TrlConfig(vllm="colocate", max_new_tokens=60), 1, 40)
    assert here["vllm_max_model_length"] == 100  # the policy's own context may be far longer
    assert here["vllm_mode"] == "colocate" and here["vllm_importance_sampling_mode"] == "token_truncate"
    low, high = here["vllm_importance_sampling_clip_min"], here["vllm_importance_sampling_clip_max"]
    assert low < high and low == pytest.approx(1, abs=1e-5) and high == pytest.approx(1, abs=1e-5)  # all weigh 1
    capped = command.grpo_arguments(command.TrlConfig(vllm="colocate", bf16=True, importance_cap=2.0), 1, 40)
    assert (capped["vllm_importance_sampling_clip_min"], capped["vllm_importance_sampling_clip_max"]) == (None, 2.0)
