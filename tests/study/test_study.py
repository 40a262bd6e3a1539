"""The study: which runs each claim needs, how runs become findings, and the command itself on tiny runs."""

import json
import math
import os
import pickle
import signal
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
from kills import locked_by_another_process

from vine_mini.app.config import TrainConfig
from vine_mini.app.files import read_rows
from vine_mini.cli import main
from vine_mini.health import Diverged
from vine_mini.study import claims, config
from vine_mini.study import runs as study_runs
from vine_mini.study.claims import Finding
from vine_mini.study.command import pooled
from vine_mini.study.config import BY_EPISODES, CLAIMS, HOT, PAPERS, SETTINGS, StudyConfig, jobs, seeds_of
from vine_mini.study.prices import Clock, measure_missing, name_of, with_prices
from vine_mini.study.runs import run_missing
from vine_mini.tasks import arithmetic
from vine_mini.types import UserError


def a_run(task, algorithm, seed, test, *, train=None, kl=None, config=None, **changes):
    """A run whose checks have the given test accuracies."""
    checks = [
        dict(iteration=i, seconds=10.0 * i, episodes=128 * i, updates=4 * i, tokens=1000 * i, test=x, greedy=1.0)
        | dict(train=(train or test)[i], kl=(kl or [0.01 * j for j in range(len(test))])[i])
        for i, x in enumerate(test)
    ]
    return dict(task=task, seed=seed, config=config or SETTINGS[task][algorithm] | changes, checks=checks)


def runs(vine, ppo, **changes):
    """Five seeds of two algorithms on one task; the accuracies of seed s are s / 100 higher."""
    return [
        a_run("decisive", name, s, [x + s / 100 for x in test], **changes)
        for s in range(5)
        for name, test in (("vineppo", vine), ("ppo", ppo))
    ]


def test_accuracy_and_efficiency_by_hand():
    made = runs([0.1, 0.5, 0.7, 0.8], [0.1, 0.3, 0.4, 0.5])
    [found] = claims.accuracy(made)
    assert found.interval == pytest.approx((30.0, 30.0, 30.0)) and len(found.values) == 5 and found.verdict == "holds"
    [swapped] = claims.accuracy(runs([0.1, 0.3, 0.4, 0.5], [0.1, 0.5, 0.7, 0.8]))
    assert swapped.verdict == "does not hold" and swapped.part == found.part == "equal seconds"
    made += [a_run("decisive", "vineppo", s, [0.1, 0.4, 0.6 + s / 100], config=PAPERS["decisive"]) for s in range(5)]
    ppo = BY_EPISODES["decisive"]["ppo"]
    made += [a_run("decisive", "ppo", s, [x + s / 100 for x in (0.1, 0.3, 0.4, 0.5)], config=ppo) for s in range(5)]
    equal, found = claims.accuracy(made)  # at 230 and 256 episodes: .56 - .38 - .002 s and .6 - .4
    assert equal.values == pytest.approx([19.0 - s / 10 for s in range(5)]) and equal.part == "equal episodes"
    by_part = {f.part: f for f in claims.efficiency(made)}
    assert len(by_part) == 8 and all("in 5 of 5 runs" in f.what for f in by_part.values())
    for unit in ("updates", "seconds"):  # PPO needs all of its run; VinePPO with K = 1 needs a third of it, and with K = 9 a half
        few, papers = by_part[f"{unit}, K = 1"], by_part[f"{unit}, K = 9"]
        assert 2.718281828 ** few.interval[0] == pytest.approx(3.0) and few.verdict == papers.verdict == "holds"
        assert 2.718281828 ** papers.values[0] == pytest.approx(2.0)
        # 95 % of PPO's 0.5 lies at 2.75 of its 3 checks, and for VinePPO at 0.9375 of its first
        assert 2.718281828 ** by_part[f"{unit}, K = 1, 95 %"].values[0] == pytest.approx(2.75 / 0.9375)
    slow = runs([0.1, 0.2, 0.2, 0.2], [0.1, 0.3, 0.4, 0.5])
    for run in slow:  # VinePPO is never there, after a tenth of the updates and twice the seconds
        for check in run["checks"]:
            check["updates"] *= 10 if run["config"]["algorithm"] == "ppo" else 1
            check["seconds"] *= 2 if run["config"]["algorithm"] == "vineppo" else 1
    updates, _, seconds, _ = claims.efficiency(slow)
    assert (
        2.718281828 ** updates.interval[0] == pytest.approx(10.0)
        and updates.verdict == "not shown"
        and "in 0 of 5" in updates.what
    )
    assert 2.718281828 ** seconds.interval[0] == pytest.approx(0.5) and seconds.verdict == "does not hold"


def test_generalization_and_kl_compare_at_equal_accuracy():
    steep, flat = [0.0, 0.2, 0.4, 0.6], [0.0, 0.1, 0.2, 0.3]
    made = [a_run("decisive", "vineppo", s, steep, train=steep, train_size=128) for s in range(5)]
    made += [a_run("decisive", "ppo", s, flat, train=steep, train_size=128) for s in range(5)]
    [found] = claims.generalization(made)
    assert found.interval[0] == pytest.approx(100 * sum(0.5 * 0.05 * i for i in range(1, 13)) / 12) and found.verdict == "holds"
    made = [a_run("decisive", "vineppo", s, steep, kl=[0.0, 0.1, 0.2, 0.3]) for s in range(5)]
    made += [a_run("decisive", "ppo", s, steep, kl=[0.0, 0.2, 0.4, 0.6]) for s in range(5)]
    [found] = claims.kl(made)
    expected = sum(0.5 * 0.05 * i for i in range(1, 13)) / 12
    assert found.interval[0] == pytest.approx(expected) and found.verdict == "holds" and found.part == "K = 1"
    made += [a_run("decisive", "vineppo", s, steep, kl=[0.0, 0.0, 0.0, 0.0], config=PAPERS["decisive"]) for s in range(5)]
    assert [f.interval[0] for f in claims.kl(made)] == pytest.approx([2 * expected, expected])


def test_rollouts_and_temperature_by_hand():
    made = [
        a_run("chains", "vineppo", s, [0.0, 0.1 * k, 0.2 * k], config=PAPERS["chains"] | dict(k=k))
        for s in range(5)
        for k in (1, 3)
    ]
    [found] = claims.rollouts(made)  # at 128 and 256 episodes: 20 and 40 points
    assert found.interval[0] == pytest.approx(30.0) and "K = 3 - K = 1" in found.what
    hot = dict(temperature=config.HOT[1])
    made = [
        a_run("chains", name, s, [0.0, end, end], **change)
        for s in range(5)
        for name, end, change in (("vineppo", 0.9, {}), ("vineppo", 0.8, hot), ("ppo", 0.9, {}), ("ppo", 0.5, hot))
    ]
    [found] = claims.temperature(made)
    assert [2.718281828**x for x in found.interval] == pytest.approx([(0.8 / 0.9) / (0.5 / 0.9)] * 3) and found.verdict == "holds"


def test_runs_are_paired_by_seed_and_missing_seeds_show_nothing():
    made = runs([0.1, 0.5, 0.7, 0.8], [0.1, 0.3, 0.4, 0.5])
    [found] = claims.accuracy([run for run in made if run["seed"] != 2 or run["config"]["algorithm"] == "ppo"])
    assert len(found.values) == 4 and found.values == pytest.approx([30.0] * 4)
    steep, never = [0.0, 0.2, 0.4, 0.6], [0.0, 0.0, 0.0, 0.0]
    made = [a_run("decisive", "vineppo", s, steep, kl=[0.0, 0.1, 0.2, 0.3]) for s in range(5)]
    made += [a_run("decisive", "ppo", s, steep if s else never, kl=[0.0, 0.2, 0.4, 0.6]) for s in range(5)]
    [found] = claims.kl(made)  # seed 0 of PPO reaches no level
    assert len(found.values) == 4 and found.seeds == 5 and found.interval[1] > 0 and found.verdict == "not shown"
    assert [
        claims.overall([Finding("t", "", "", values) for values in of])
        for of in (
            [[1.0, 1.1], [2.0, 2.01]],
            [[1.0, 1.1], [-1.0, -1.1]],
            [[1.0, 1.1], [1.0, -1.1]],
        )
    ] == ["holds", "does not hold", "not shown"]


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_run_of_a_claim_has_settings_that_train_accepts(claim):
    usual = {task: [*of.values()] for task, of in SETTINGS.items()}
    for of in usual.values():
        of += [c | dict(temperature=t) for c in of for t in config.HOT] + [c | config.FEW_PROBLEMS for c in of]
    for job in jobs(claim, StudyConfig(seeds=2)):
        settings = {name: x for name, x in (job["shared"] | job["config"]).items() if name != "train_size"}
        TrainConfig(**settings)
        assert name_of(job).startswith(job["task"])
        papers = job["config"].get("mc_lam") == 0
        assert list(job["limits"]) == ["episodes" if papers or job["config"] not in usual[job["task"]] else "seconds"]


def test_algorithms_without_a_policy_between_iterations_have_the_one_of_the_last_iteration():
    run = a_run("chains", "restem", 0, [0.1, 0.4, 0.6])
    assert [claims.accuracy_at(run, "episodes", n) for n in (127, 128, 250, 256)] == [0.1, 0.4, 0.4, 0.6]
    run = a_run("chains", "rloo", 0, [0.1, 0.4, 0.6])
    assert claims.accuracy_at(run, "episodes", 256) == pytest.approx((0.6 + 0.6 - 0.2 * 25.6 / 128) / 2)


def test_at_equal_episodes_restem_is_compared_at_the_end_of_its_own_iteration():
    """It was compared with a VinePPO that had seen 512 episodes more. Checks are at 0, 128 and 256 episodes, and at 200 for RestEM."""
    vine = a_run("chains", "vineppo", 0, [0.1, 0.4, 0.6], config=PAPERS["chains"])
    restem = a_run("chains", "restem", 0, [0.1, 0.3, 0.5], config=BY_EPISODES["chains"].get("restem"))
    for check, episodes in zip(restem["checks"], (0, 200, 400), strict=True):
        check["episodes"] = episodes
    assert claims.common_end((vine, restem), "episodes") == 200
    assert claims.common_end((restem, vine), "episodes") == 200 and claims.common_end((vine, vine), "episodes") == 256
    seconds = claims.common_end((vine, restem), "seconds")
    assert seconds == min(run["checks"][-1]["seconds"] for run in (vine, restem))
    [found] = [f for f in claims.accuracy([vine, restem]) if f.part == "equal episodes"]
    expected = (0.4 + 0.2 * 52 / 128 + 0.4 + 0.2 * 72 / 128) / 2 - 0.3  # at 180 and 200 episodes
    assert found.values == pytest.approx([100 * expected])


def test_settings_at_equal_episodes_are_the_best_of_the_grid_there():
    """The grid ran once, with a clock of 60 seconds. Its rewards between 2,048 and 2,560 episodes are those of 512 responses."""
    grid = [run for run in read_rows(Path(__file__).parents[2] / "results/credit/fight/runs.jsonl") if run["seed"] == 100]
    for task, setting in (("decisive", "decisive"), ("chains", "chain12")):
        for name in ("ppo", "grpo", "rloo", "restem"):
            rewards = {}
            for run in grid:
                if run["setting"] == setting and run["config"]["algorithm"] == name:
                    # the rewards of an iteration are those of the policy before it
                    late = [p[3] for p in run["curve"] if 2048 < p[1] <= 2560] or [run["curve"][2][3]]
                    rewards[tuple(run["config"][n] for n in ("lr", "epochs"))] = sum(late) / len(late)
            assert len(rewards) == 6
            best = max(rewards, key=rewards.__getitem__)
            chosen = BY_EPISODES[task].get(name, SETTINGS[task][name])
            assert tuple(chosen[n] for n in ("lr", "epochs")) == best


def test_the_better_of_two_settings_counts_at_equal_episodes():
    """Better where VinePPO's runs end, at 128 episodes, and not where their own end."""
    both = SETTINGS["decisive"]["rloo"], BY_EPISODES["decisive"]["rloo"]
    for first, second, better in (([0.5], [0.3], 0), ([0.5], [0.7], 1), ([0.5, 0.5], [0.3, 0.9], 0), ([0.5, 0.9], [0.7, 0.7], 1)):
        made = [a_run("decisive", "vineppo", s, [0.1, 0.2], config=PAPERS["decisive"]) for s in range(2)]
        for setting, late in zip(both, (first, second), strict=True):
            made += [a_run("decisive", "rloo", s, [0.1, *late], config=setting) for s in range(2)]
        assert claims.best_at_episodes(made, "decisive", "rloo") == both[better]
        assert claims.best_at_episodes(made[2:], "decisive", "rloo") == both[0]  # compared with nothing
    assert claims.best_at_episodes([], "decisive", "dpo") == SETTINGS["decisive"]["dpo"]


def test_files_of_a_study_that_are_something_else(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text, says in (
        ("runs.jsonl", '{"task": "chains"}\n', "runs.jsonl has a line that is no run, without 'seed'"),
        ("prices-quick.json", "{", "prices-quick.json holds no prices"),
        ("prices-quick.json", '{"a": 3}', "prices-quick.json holds no prices"),
        ("prices-quick.json", '{"a": {"sample": "much"}}', "prices-quick.json holds no prices"),
        ("prices-quick.json", "[" * 100_000, "prices-quick.json holds no prices"),
        ("prices-quick.json", '{"a": {"sample": 1}}', "prices-quick.json holds no prices"),
        ("prices-quick.json", '{"a": {"sample": NaN, "score": 1, "rollouts": 1, "update": 1}}', "json holds no prices"),
    ):
        (tmp_path / name).write_text(text)
        assert main(["study", "kl", "--quick", "--out", "."]) == 2
        assert says in capsys.readouterr().err and (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()


def a_job_of(claim):
    return jobs(claim, StudyConfig(quick=True))[0] | dict(prices=dict(sample=1.0, score=1.0, rollouts=1.0, update=1.0))


CHECK = dict(iteration=0, updates=0, tokens=0, seconds=0.0, episodes=0, test=0.5, train=None, kl=0.0, greedy=0.5)
STATE, CHOICE = dict(problem=0, step=0, steps=1, truth=0.5, values={"critic": 0.4, "K = 9": 0.5}), dict(problem=0, truth=[0.1, 0.9], values={"critic": [0.1, 0.2], "K = 9": [0.1, 0.2]}, rollouts=16)  # fmt: skip
REPORT = dict(iteration=1, states=[STATE], choices=[CHOICE])


@pytest.mark.parametrize("claim, odd", [
    *(("kl", dict(checks=checks)) for checks in (None, 7, [], [7], [{}], {"a": 1}, [CHECK | dict(test="x")], [CHECK | dict(kl=None)], [CHECK | dict(test=math.nan)], [CHECK | dict(seconds=3)],
                                                [CHECK, CHECK | dict(iteration=2), CHECK | dict(iteration=1)])),
    *(("values", dict(reports=reports)) for reports in (None, 7, [7], [{}], [REPORT | dict(states=[])], [REPORT | dict(states=[{}])], [REPORT | dict(choices=[{}])], [REPORT | dict(iteration="x")],
                                                        [REPORT | dict(states=[STATE | dict(truth="x")])], [REPORT | dict(states=[STATE | dict(values={})])],
                                                        [REPORT | dict(choices=[CHOICE | dict(rollouts=0)])], [REPORT | dict(choices=[CHOICE | dict(truth=[])])])),
])  # fmt: skip
def test_a_run_with_odd_numbers_is_refused_before_anything_is_measured(claim, odd, tmp_path, capsys, monkeypatch):
    """Eleven of eleven such rows ended in a traceback, after the other runs had been made."""
    monkeypatch.chdir(tmp_path)
    log = tmp_path / ("values.jsonl" if claim == "values" else "runs.jsonl")
    log.write_text(json.dumps(a_job_of(claim) | odd) + "\n")
    assert main(["study", claim, "--quick", "--out", "."]) == 2
    says = capsys.readouterr().err
    assert f"{log.name}, run 1, is not what the study wrote" in says and says.count("\n") == 1 and [*tmp_path.iterdir()] == [log]


def test_what_a_study_wrote_is_read(tmp_path):
    runs = [
        a_job_of("kl") | dict(checks=[CHECK, CHECK | dict(iteration=1, train=None)]),
        a_job_of("values") | dict(reports=[REPORT]),
    ]
    (tmp_path / "log").write_text("".join(json.dumps(run) + "\n" for run in runs))
    learned, analysed = study_runs.finished_runs(tmp_path / "log").values()
    assert learned == runs[0] and analysed["reports"][0]["errors"]["critic"]["error"][0] == pytest.approx(0.1)


def test_a_run_that_diverges_leaves_what_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr("vine_mini.study.runs.ProcessPoolExecutor", ThreadPoolExecutor)

    def run(job):
        error = Diverged("iteration 2, minibatch 1: the loss is not finite")
        error.found = {"ids": [[1, 2]]}
        raise pickle.loads(pickle.dumps(error))  # as it comes out of a process

    with pytest.raises(Diverged, match=r"minibatch 1: the loss is not finite; .*diverged\.json has the ids"):
        run_missing([dict(seed=0)], tmp_path / "runs.jsonl", str, run, 1)
    assert json.loads((tmp_path / "diverged.json").read_text())["ids"] == [[1, 2]]


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told(tmp_path):
    with pytest.raises(UserError, match="was killed, perhaps for lack of memory: lower --workers"):
        run_missing([dict(seed=0)], tmp_path / "runs.jsonl", str, die, 1)


def test_a_log_that_a_crash_has_cut_and_a_run_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("vine_mini.study.runs.ProcessPoolExecutor", ThreadPoolExecutor)
    log = tmp_path / "runs.jsonl"
    log.write_text('{"n": 0}\n{"n": 1', encoding="utf-8")
    made = run_missing([{"n": 0}, {"n": 1}], log, lambda job: str(job["n"]), lambda job: job, 1)
    assert made == [{"n": 0}, {"n": 1}] and read_rows(log) == made and run_missing(made, log, str, lambda job: job, 1) == made

    def run(job):
        if job["n"] == 3:
            raise UserError("three")
        return job

    with pytest.raises(UserError, match="three"):
        run_missing([{"n": n} for n in range(2, 9)], log, str, run, 1)
    assert {"n": 2} in read_rows(log)


def test_values_by_hand():
    def report(critic, nine):
        tops = {"critic": {"top": (0.3, 0.0), "chance": (0.2, 0.0)}, "K = 9": {"top": (0.8, 0.0)}}
        by_place = {"critic": [0.1, None, critic], "K = 9": [0.4, 0.3, nine, None]}
        return dict(
            iteration=7,
            by_place=by_place,
            errors={"critic": {"error": (critic, 0.0)}, "K = 9": {"error": (nine, 0.0)}},
            agreement=tops,
        )

    made = [dict(task="chains", seed=s, reports=[report(0.3, 0.1), report(0.2 + s / 100, 0.3)]) for s in range(5)]
    made[0]["reports"][1]["agreement"] = {}
    found = claims.values(made)
    assert len(found) == 2 * 5 and Counter(f.part for f in found) == {"error": 2, "along a response": 4, "best next step": 4}
    error, critic, nine, top, chance = (f.interval[0] for f in found[:5])
    assert (error, critic, nine, top, chance) == pytest.approx((0.2, 0.2, 0.3, 50.0, 20.0)) and "iteration 7" in found[0].what
    assert found[5].verdict == "does not hold" and found[6].interval[0] == pytest.approx(0.12) and len(found[8].values) == 4


def test_what_several_runs_measured_about_values_becomes_one_report():
    """The error of a mean is between the runs, and the best constant is that of each run."""
    states = [[(0.0, 0.2), (1.0, 0.8), (0.0, 0.0)], [(1.0, 0.5), (1.0, 0.5), (0.0, 0.5)]]  # of two runs: truth, value
    reports = [
        dict(iteration=7 + run, choices=[], states=[dict(problem=i, step=0, steps=1, truth=t, values={"critic": v}) for i, (t, v) in enumerate(of)])
        for run, of in enumerate(states)
    ]  # fmt: skip
    report = pooled(reports)
    assert report.iteration == 8 and len(report.states) == 6 and report.agreement == {}
    mean, error = report.errors["critic"]["error"]
    assert mean == pytest.approx((0.4 / 3 + 0.5) / 2) and error == pytest.approx((0.5 - 0.4 / 3) / 2)
    assert report.errors["best constant"]["error"] == pytest.approx((1 / 3, 0.0))  # 0 in one run and 1 in the other


def test_the_intervals_of_a_claim_are_corrected_for_their_number():
    made = runs([0.1, 0.5, 0.7, 0.8], [0.1, 0.3, 0.4, 0.5])
    made[0]["checks"][1]["test"] -= 0.1  # one seed of VinePPO is slower
    for s in range(5):
        made.append(a_run("decisive", "grpo", s, [0.1, 0.2, 0.3, 0.4]))
    found, corrected = claims.kl(made), claims.judge("kl", made)
    assert [f.comparisons for f in claims.judge("efficiency", made)] == [1] * 4  # updates and seconds, at two levels, are parts
    assert all(f.comparisons == 2 for f in corrected) and [f.values for f in found] == [f.values for f in corrected]
    assert corrected[0].interval[1] < found[0].interval[1] < found[0].interval[2] < corrected[0].interval[2]
    assert set(claims.MEASURES) == set(CLAIMS) == set(claims.PAPER)


def test_nothing_is_shown_before_all_seeds_have_run():
    made = runs([0.1, 0.5, 0.7, 0.8], [0.1, 0.3, 0.4, 0.5])
    assert [claims.judge("accuracy", made, seeds)[0].verdict for seeds in (5, 6)] == ["holds", "not shown"]


def test_claims_share_runs():
    study = StudyConfig()
    keys = {claim: [json.dumps(job, sort_keys=True) for job in jobs(claim, study)] for claim in CLAIMS}
    assert set(keys["kl"]) == set(keys["efficiency"]) <= set(keys["accuracy"]) and set(keys["accuracy"]) & set(keys["rollouts"])
    for claim, of in keys.items():
        assert len(set(of)) == len(of)
        for task in config.TASKS:  # which may have different numbers of settings, each with all seeds
            seeds = Counter(job["seed"] for job in jobs(claim, study) if job["task"] == task)
            assert len(seeds) == seeds_of(claim, study) and len(set(seeds.values())) == 1
    assert all(job["config"]["algorithm"] == "ppo" for job in jobs("values", study))


def test_the_clock_counts_work_and_not_time():
    clock = Clock({"sample": 0.1, "score": 0.01, "rollouts": 0.2, "update": 5.0})
    trajectories = [SimpleNamespace(response_ids=[1] * n) for n in (3, 7)]
    for updates in (2, 4):
        clock.count(SimpleNamespace(updates=updates), {"rollout_tokens": 20}, SimpleNamespace(trajectories=trajectories))
    assert clock.seconds == pytest.approx(2 * (1.0 + 0.1 + 4.0 + 10.0)) and clock.tokens == 2 * 30
    clock = Clock({"sample": 0.0, "score": 0.0, "rollouts": 0.0, "update": 0.0, "validate": 7.0})
    clock.count(SimpleNamespace(updates=1), {"validations": 3}, SimpleNamespace(trajectories=trajectories))
    assert clock.seconds == 21.0  # choosing an epoch by validation problems takes time too


def test_prices_are_medians_of_what_an_iteration_takes_for_its_work(tmp_path):
    episodes, made = SimpleNamespace(trajectories=[SimpleNamespace(response_ids=[1] * 10)]), []

    class Trainer:
        updates = 0

        def train(self):
            for seconds in (100.0, 1.0, 3.0, 2.0, 9.0, 0.1):  # the first one warms up
                self.updates += 2
                yield dict(seconds_sample=seconds, seconds_score=0.5, seconds_update=seconds), episodes, None

    def make(job):
        made.append(job)
        return Trainer()

    found = [dict(task="t", config=dict(algorithm=name), seed=seed) for seed in (0, 1) for name in ("ppo", "grpo")]
    assert with_prices(found, tmp_path / "prices.json") == []
    for _ in range(2):
        measure_missing(found, make, tmp_path / "prices.json")
        priced = with_prices(found, tmp_path / "prices.json")
        assert priced[0]["prices"] == {"sample": 0.2, "score": 0.05, "rollouts": 0.0, "update": 1.0}
        assert [{**job, "prices": None} for job in priced] == [{**job, "prices": None} for job in found] and len(made) == 2
    text = (tmp_path / "prices.json").read_text()
    (tmp_path / "prices.json").write_text(text.replace("0.2", "0.4").replace("1.0", "2.0"))  # the machine was half as fast
    found.append(dict(task="t", config=dict(algorithm="rloo"), seed=0))
    measure_missing(found, make, tmp_path / "prices.json")
    prices = {job["config"]["algorithm"]: job["prices"] for job in with_prices(found, tmp_path / "prices.json")}
    assert prices["rloo"] == {"sample": 0.4, "score": 0.1, "rollouts": 0.0, "update": 2.0} and len(made) == 5
    assert prices["ppo"] == {"sample": 0.4, "score": 0.05, "rollouts": 0.0, "update": 2.0}  # as it was


def test_runs_are_made_once_whatever_a_crash_has_cut(tmp_path, monkeypatch):
    """A half-written last line stopped the study, and the next line would have been appended to it."""
    monkeypatch.setattr("vine_mini.study.runs.ProcessPoolExecutor", ThreadPoolExecutor)
    made, log = [], tmp_path / "runs.jsonl"

    def run(job):
        made.append(job["seed"])
        return job | dict(result=0.5)

    def key(job):
        return str(job["seed"])

    jobs = [dict(seed=seed) for seed in range(4)]
    expected = [job | dict(result=0.5) for job in jobs]
    assert sorted(run_missing(jobs, log, key, run, 1), key=key) == expected
    whole = "".join(sorted(log.read_text().splitlines(keepends=True)))
    for cut in range(len(whole)):
        made.clear()
        log.write_text(whole[:cut])
        assert sorted(run_missing(jobs, log, key, run, 1), key=key) == expected
        assert made == list(range(whole[:cut].count("\n"), 4)) and len(log.read_text()) == len(whole)
    log.write_text("nonsense\n")
    with pytest.raises(UserError, match=r"runs\.jsonl, line 1: not JSON"):
        run_missing(jobs, log, key, run, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["runs.jsonl"]


def test_two_studies_do_not_make_the_same_runs(tmp_path):
    with locked_by_another_process(tmp_path), pytest.raises(UserError, match="is in use by process"):
        run_missing([dict(seed=0)], tmp_path / "runs.jsonl", str, dict, 1)
    assert not (tmp_path / "runs.jsonl").exists()


def test_two_studies_do_not_measure_prices_at_once(tmp_path, monkeypatch, capsys):
    """The one disturbed the clock of the other, and the later file of prices replaced the earlier one."""
    monkeypatch.setattr("vine_mini.study.command.measure_missing", lambda *_: pytest.fail("prices were measured"))
    with locked_by_another_process(tmp_path):
        assert main(["study", "kl", "--out", str(tmp_path)]) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    """Prices and runs were written into the folder of a training run."""
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "lock").touch()
    assert main(["study", "kl", "--quick", "--out", str(tmp_path)]) == 2
    assert "holds something else than a study: choose another --out" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "lock"}


def test_the_prices_of_quick_are_not_those_of_a_study(tmp_path, monkeypatch):
    """They include the warm-up, and stood in the file that a study in the same folder read."""
    measured = []
    monkeypatch.setattr("vine_mini.study.command.measure_missing", lambda jobs, make, path, n: measured.append((path.name, n)))
    monkeypatch.setattr("vine_mini.study.command.run_missing", lambda *_: [])
    for more in (["--quick"], []):
        assert main(["study", "kl", "--out", str(tmp_path), *more]) == 0
    assert measured == [("prices-quick.json", 0), ("prices.json", 3)]


@pytest.mark.slow
def test_the_command_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vine_mini.study.runs.ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(arithmetic, "TRAIN_SIZE", 300)
    monkeypatch.setitem(config.SHARED, "prompts", 4)
    for task in ("decisive", "chains"):
        monkeypatch.setitem(config.TASKS, task, dict(task="arithmetic", steps=3, max_new_tokens=40))
        few = dict(prompts=4, group=4)
        small = {name: of | dict(minibatch_size=8) | (few if "prompts" in of else {}) for name, of in SETTINGS[task].items()}
        monkeypatch.setitem(SETTINGS, task, small)
        monkeypatch.setitem(PAPERS, task, PAPERS[task] | dict(minibatch_size=8))
        monkeypatch.setitem(config.BY_EPISODES, task, {})
    for job_size in ("limits", "problems"):
        assert job_size in jobs("kl", StudyConfig(quick=True))[0]
    whole = jobs

    def tiny(claim, of):
        return [job | dict(limits=dict(seconds=0.2), problems=4) for job in whole(claim, of)]

    monkeypatch.setattr("vine_mini.study.command.jobs", tiny)
    assert main(["study", "--quick", "--claims", "accuracy", "values", "--workers", "1"]) == 0
    lines = Path("runs/claims-quick/runs.jsonl").read_text().splitlines()
    assert (
        len(lines) == 2 * 2 * (len(SETTINGS["chains"]) + 1)
        and len(Path("runs/claims-quick/values.jsonl").read_text().splitlines()) == 4
    )
    checks = json.loads(lines[0])["checks"]
    assert checks[0]["iteration"] == 0 and checks[-1]["tokens"] > 0 and all(0 <= c["test"] <= 1 for c in checks)
    Path("runs/claims-quick/runs.jsonl").write_text("\n".join(lines[:3]) + "\n")
    assert main(["study", "--quick", "--claims", "accuracy", "efficiency", "kl", "rollouts", "values", "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert [c for c in ("accuracy", "efficiency", "values", "rollouts") if f"| {c} " not in text] == [], text
    again = Path("runs/claims-quick/runs.jsonl").read_text().splitlines()
    assert again[:3] == lines[:3] and set(lines) <= set(again)  # a run repeats exactly: its seconds follow from its work
    for name in ("claims", "accuracy", "curves", "values-chains", "values-decisive"):
        assert Path(f"runs/claims-quick/{name}.png").stat().st_size > 20_000
    assert Path("runs/claims-quick/checks.csv").read_text().startswith("task,seed,config,iteration")
    every = Path("runs/claims-quick/runs.jsonl").read_text()
    assert main(["study", "--quick", "--claims", "accuracy", "rollouts", "--workers", "1"]) == 0
    assert Path("runs/claims-quick/runs.jsonl").read_text() == every  # nothing was missing
    assert main(["study", "--claims", "everything"]) == 2 and "unknown claim 'everything'" in capsys.readouterr().err


def a_job(**changes):
    shared = dict(task="arithmetic", steps=2, prompts=4, group=4, eval_samples=1, max_new_tokens=40)
    job = dict(task="chains", seed=0, limits=dict(episodes=96), evaluations=3, problems=4, shared=shared)
    return job | dict(config=dict(algorithm="grpo", minibatch_size=16, epochs=1), prices=defaultdict(lambda: 1e-3)) | changes


def test_a_run_ends_after_its_episodes_with_checks_at_equal_distances(monkeypatch):
    monkeypatch.setattr(study_runs, "Clock", FreeClock)
    run = study_runs.learn(a_job())
    assert [check["episodes"] for check in run["checks"]] == [0, 32, 64, 96] and run["checks"][0]["train"] is None


def test_a_run_on_few_problems_has_no_others(monkeypatch):
    monkeypatch.setattr(study_runs, "Clock", FreeClock)
    job = a_job(config=a_job()["config"] | dict(train_size=8), limits=dict(episodes=16), evaluations=1)
    trainer = study_runs.trainer_of(job)
    assert len(trainer.prompts) == len(trainer.train_problems) == 8 < 100
    assert study_runs.learn(job)["checks"][-1]["train"] is not None


def test_with_few_problems_a_check_measures_the_training_problems_too():
    """The accuracy on a problem is the problem itself here."""

    def evaluate(problems=None, with_kl=True):
        return {"pass@1": (mean(problems or trainer.test_problems), 0.0), "kl": (0.01, 0.0), "greedy": (1.0, 0.0)}

    trainer = SimpleNamespace(evaluate=evaluate, train_problems=[0.1, 0.3, 0.8], test_problems=[0.5, 0.7], iteration=3, updates=6)
    trainer.config = SimpleNamespace(eval_problems=2, prompts=4, group=2)
    found = study_runs.check(trainer, FreeClock({}), few=True)
    assert (found["test"], found["train"], found["episodes"]) == (pytest.approx(0.6), pytest.approx(0.2), 24)
    assert study_runs.check(trainer, FreeClock({}), few=False)["train"] is None


def test_temperatures_are_compared_at_the_seconds_that_all_runs_have():
    """PPO's runs go on for 40 s and get better; VinePPO's end after 20 s. At 18 and 20 s all four share the accuracies below."""
    made, hot = [], dict(temperature=HOT[0])
    for name, usual, heated in (
        ("vineppo", [0.1, 0.3, 0.4], [0.1, 0.3, 0.4]),
        ("ppo", [0.1, 0.3, 0.4, 0.8, 0.8], [0.1, 0.1, 0.2, 0.2, 0.2]),
    ):
        made += [a_run("decisive", name, s, usual) for s in range(2)]
        made += [a_run("decisive", name, s, heated, **hot) for s in range(2)]
    [found] = [f for f in claims.temperature(made) if f.part == f"temperature {HOT[0]}"]
    at_20 = math.log((0.38 + 0.4) / 2), math.log((0.18 + 0.2) / 2)
    assert found.values == pytest.approx([at_20[0] - at_20[1]] * 2)


class FreeClock:
    """Counts no prices."""

    seconds = tokens = 0

    def __init__(self, prices):
        pass

    def count(self, *_):
        pass
