"""`credit --problems`: where failed responses fall, on the user's own problems and responses, and by two policies."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from math import hypot
from types import SimpleNamespace

import pytest

from vine_mini.advantages import step_advantages
from vine_mini.app.config import SHIPPED
from vine_mini.cli import main
from vine_mini.credit_page import falls, measure, page, resting
from vine_mini.credit_page.config import CreditConfig
from vine_mini.credit_page.measure import Change, Credit, Rollout
from vine_mini.credit_page.resting import read_own
from vine_mini.evaluate import standard_errors
from vine_mini.tasks import arithmetic, jsonl
from vine_mini.values import monte_carlo_values

SMALL = ["--k", "3", "--group", "3", "--fresh", "6", "--critic_iterations", "0"]
QUESTION = "Mia has 7 pens, buys 5, loses 3. How many pens now?"
WRONG = {"question": QUESTION, "answer": 9, "response": "7+5=12\n12-3=1\n#### 1"}


def fall(problem=0, response=0, size=-0.5, error=0.1, text="7+5=2\n", step=0, other=None) -> falls.Fall:
    rollouts = [Rollout("", 1.0, True, "7+5=12\n")] * 3 + [Rollout("", 0.0, True, "7+5=2\n"), Rollout("", 1.0, True, "7+5=2")]
    change = Change(step, Credit("fresh", [size, 0.0], [-size, 0.0], [error, 0.0]), rollouts)
    judged = other and Change(step, Credit("other", [other, 0.0], [-other, 0.0], [error, 0.0]), [])
    return falls.Fall(problem, response, QUESTION, step, 3, text, size - 0.2, change, judged)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7+5=12", "+"),
        ("2 * $3 - 1 = 5\n#### 5", "* -"),
        ("(1+2)*(3)", "* +"),
        ("She has -5 eggs", "a number, no operation"),
        ("48/2 = <<48/2=24>>24", "/"),
        ("So it is well-known.", "no number"),
    ],
)
def test_kinds_of_lines(text, kind):
    assert falls.kind_of(text) == kind


def test_what_the_policy_writes_instead():
    often, taken = fall().instead
    assert (often.text, often.count, often.value, often.taken) == ("7+5=12", 3, 1.0, False)
    assert (taken.text, taken.count, taken.value, taken.taken) == ("7+5=2", 2, 0.5, True)
    assert [often.error, taken.error] == standard_errors([[1.0] * 3, [0.0, 1.0]])


def test_a_fall_is_significant_beyond_two_standard_errors_and_below_zero():
    assert fall(size=-0.21).significant and not fall(size=-0.2).significant and not fall(size=0.5).significant


def test_means_are_over_all_chosen_steps_with_errors_over_problems():
    """Two problems with the sums of deviations -0.2 and +0.2: variance of the mean 2 (0.04 + 0.04) / 3^2."""
    found = [fall(0, 0, -0.4), fall(0, 1, -0.4), fall(1, 0, -0.1, other=-0.3)]
    [plus, minus] = falls.table(found, Counter({"+": 6, "-": 4}), lambda f: f.kind)
    assert (plus.lines, plus.falls, plus.significant) == (6, 3, 2)
    assert plus.size == (pytest.approx(-0.3), pytest.approx((2 * (0.2**2 + 0.2**2)) ** 0.5 / 3))
    assert plus.other == (pytest.approx(-0.3), None) and plus.difference == (pytest.approx(-0.2), None)  # one problem
    assert (minus.falls, minus.size, minus.other) == (0, None, None)  # no fall, so no mean size of 0
    assert falls.share_of(found, "+") == (1.0, None)  # the two significant ones are of one problem


def test_a_share_of_all_falls_has_an_error():
    """All falls of three problems are of one kind. Half a problem of this kind and half a problem of another are added."""
    found = [fall(0), fall(0), fall(1), fall(2)]
    p = 3.5 / 4
    assert falls.share_of(found, "+") == (1.0, pytest.approx((p * (1 - p) / 3) ** 0.5))
    assert falls.share_of(found, "*") == (0.0, pytest.approx((p * (1 - p) / 3) ** 0.5))


def test_the_error_of_a_change_is_that_of_two_independent_means():
    found = Credit("fresh", [-0.5, 0.2, 0.1], [0.7, 0.2, 0.4], [0.3, 0.4, 0.1])
    assert found.advantage_errors == [0.5, hypot(0.4, 0.1), 0.1]


def test_fresh_rollouts_take_away_the_bias_of_choosing_the_largest():
    """Six states of value 1/2: no step changes anything. The largest of the falls looks large, and not by fresh rollouts."""
    rng = random.Random(0)

    def rewards(states, k):
        return [[float(rng.random() < 0.5) for _ in range(k)] for _ in range(states)]

    def measured(drawn):
        values = monte_carlo_values(drawn)
        return Credit("x", step_advantages(values, 0.0), values, standard_errors(drawn))

    chosen, fresh, alarms, n = 0.0, 0.0, 0, 2000
    for _ in range(n):
        credit = measured(rewards(6, 9))
        credit.advantages.pop()  # the last step falls to the reward in truth
        step = measure.largest_change(credit, fall=True)
        if step is None:
            continue
        again = Change(step, measured(rewards(2, 64)), [])
        chosen, fresh, alarms = chosen + credit.advantages[step], fresh + again.size, alarms + (again.size < -2 * again.error)
    assert chosen / n < -0.25  # one of 9 rollouts alone is 0.11
    assert abs(fresh / n) < 4 * (2 * 0.25 / 64 / n) ** 0.5  # false alarm: 6e-5
    assert alarms / n == pytest.approx(falls.FALSE_ALARMS, abs=4 * (0.023 / n) ** 0.5)


def test_the_largest_change():
    credit = Credit("x", [-0.1, -0.4, 0.3])
    assert measure.largest_change(credit, fall=True) == 1 and measure.largest_change(credit, fall=False) == 2
    assert measure.largest_change(Credit("x", [0.0, 0.1]), fall=True) is None


def test_the_command_aggregates(tmp_path, capsys):
    out = tmp_path / "falls"
    assert main(["credit", "--problems", "3:6", *SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert (
        "failed responses have a step" in said
        and "Sampled" in said
        and sorted(p.name for p in out.iterdir())
        == [
            "falls.html",
            "falls.json",
        ]
    )
    report = json.loads((out / "falls.json").read_text())
    assert report["responses"] == 9 and report["failed"] >= len(report["falls"]) > 0
    assert [f["size"] for f in report["falls"]] == sorted(f["size"] for f in report["falls"])
    assert {f["problem"] for f in report["falls"]} <= {3, 4, 5} and "problems 3 to 5" in report["made"]
    assert (
        sum(row["falls"] for row in report["by_kind"]) == sum(row["falls"] for row in report["by_step"]) == len(report["falls"])
    )
    for each in report["falls"]:
        rollouts = each["change"]["rollouts"]
        assert len(rollouts) == 6 == sum(x["count"] for x in each["instead"])
        values = each["change"]["measured"]["values"]
        assert values[0] == pytest.approx(sum(r["reward"] for r in rollouts) / 6)
        assert each["size"] == pytest.approx((values[1] if len(values) > 1 else 0.0) - values[0])
        assert each["kind"] == falls.kind_of(each["text"])
    assert {"responses", "choice", "fresh"} == set(report["spent"][0])


def test_a_problem_alone_gives_what_it_gives_among_others(tmp_path):
    found = []
    for name, numbers in (("one", "4:5"), ("more", "3:5")):
        assert main(["credit", "--problems", numbers, *SMALL, "--out", str(tmp_path / name)]) == 0
        report = json.loads((tmp_path / name / "falls.json").read_text())
        found.append([f for f in report["falls"] if f["problem"] == 4])
    assert found[0] == found[1]


def write(tmp_path, *rows):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_own_responses_and_another_policy(tmp_path, capsys):
    right = WRONG | {"response": "7+5=12\n12-3=9\n#### 9"}
    own = write(tmp_path, WRONG, right, "", {"question": "Tom has 3 cards, gets 2. How many cards now?", "answer": "5"})
    policies = ["--model", "arithmetic", "--other", str(SHIPPED / "arithmetic")]  # with random numbers of its own
    assert main(["credit", "--responses", own, *policies, *SMALL, "--out", str(tmp_path / "page")]) == 0
    first, second = json.loads((tmp_path / "page" / "credit.json").read_text())
    assert (
        first["group_rewards"] == [0.0, 1.0] and first["response"] == 0 and "".join(first["steps"]).startswith(WRONG["response"])
    )
    assert [c["name"] for c in first["credits"]] == ["vineppo", "other", "grpo"] and second["response"] == 1
    assert "responses" not in first["spent"][0] and first["spent"][1]["other"]["tokens"] > 0
    assert "Other policy" in (tmp_path / "page" / "credit.html").read_text()
    more = ["--problems", "0:", *policies, *SMALL]
    assert main(["credit", "--responses", own, *more, "--out", str(tmp_path / "falls")]) == 0
    report = json.loads((tmp_path / "falls" / "falls.json").read_text())
    assert report["responses"] == 5 and all(f["other"] for f in report["falls"])  # two own ones, three sampled ones
    assert "difference" in (tmp_path / "falls" / "falls.html").read_text()


def test_one_own_response_has_no_group(tmp_path):
    assert (
        main(["credit", "--responses", write(tmp_path, WRONG | {"finished": False}), *SMALL, "--out", str(tmp_path / "x")]) == 0
    )
    [only] = json.loads((tmp_path / "x" / "credit.json").read_text())
    assert [c["name"] for c in only["credits"]] == ["vineppo"] and not only["finished"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"question": "\\ud800", "answer": 1}', "line 2: needs a text field 'question'"),
        ("[" * 100_000, "line 2: not JSON"),
        ({"question": "x"}, "line 2: needs a text field 'answer'"),
        (WRONG | {"response": 5}, "line 2: needs a text field 'response'"),
        (WRONG | {"finished": "yes"}, "line 2: 'finished' says"),
        (WRONG | {"answer": 8}, "line 2: the same question has another answer"),
        (WRONG | {"response": "1" * 300}, "line 2: the response has"),
    ],
)
def test_own_lines_that_are_wrong_are_one_line(row, reason, tmp_path, capsys):
    assert main(["credit", "--responses", write(tmp_path, WRONG, row), *SMALL, "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err.strip()
    assert reason in said and "\n" not in said and not (tmp_path / "x").exists()


def test_an_empty_file_and_a_range_beyond_it(tmp_path, capsys):
    assert main(["credit", "--responses", write(tmp_path), *SMALL]) == 2
    assert "holds no questions" in capsys.readouterr().err
    assert main(["credit", "--responses", write(tmp_path, WRONG), "--problems", "0:2", *SMALL]) == 2
    assert "there are 1 problems" in capsys.readouterr().err
    assert main(["credit", "--responses", write(tmp_path, WRONG), "--response", "1", *SMALL]) == 2
    assert "there are 1 responses" in capsys.readouterr().err


def test_no_failed_response_is_one_line(tmp_path, capsys):
    right = WRONG | {"response": "7+5=12\n12-3=9\n#### 9"}
    assert main(["credit", "--responses", write(tmp_path, right), "--problems", "0:1", *SMALL]) == 2
    assert "all 1 responses are right" in capsys.readouterr().err


def test_equal_questions_are_one_group(tmp_path):
    [own] = read_own(tmp_path / write(tmp_path, WRONG, WRONG | {"answer": "9"}), arithmetic)
    assert own.problem.answer == "9" and len(own.responses) == 2


def test_another_tokenizer_is_refused(monkeypatch):
    from vine_mini.credit_page import resting
    from vine_mini.types import UserError

    def trainer(words):
        return SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: words))

    monkeypatch.setattr(resting, "resting_trainer", lambda *_: trainer({"a": 1}))
    with pytest.raises(UserError, match="another tokenizer"):
        resting.other_trainer(SimpleNamespace(other="x"), [], trainer({"a": 0}))


def test_what_the_falls_page_says():
    found = [fall(text="<script>7*2=1</script>", other=-0.1), fall(1, size=-0.1)]
    tables = falls.table(found, Counter({"*": 1, "+": 3}), lambda f: f.kind)
    parts = dict(made="Policy x.", responses=3, failed=2, problems=2, success=(0.3, 0.1), k=9, fresh=64, other="y")
    report = page.FallsReport(
        **parts, by_kind=tables, by_step=tables, falls=found, spent=[{"fresh": {"tokens": 1200, "seconds": 0.5}}]
    )
    html = page.render_falls(report)
    assert "2 steps without any fall, at most about 0.0 would" in " ".join(html.split())  # 0.023 of 2
    assert "about 0.5 would" in page.render_falls(replace(report, falls=20 * [found[1]]))
    assert "<script>" not in html and "Sampled 1,200 tokens in 0.5 s" in html and "1 of 1 significant falls" in html
    without = replace(report, by_kind=falls.table(found, Counter({"*": 1, "-": 3}), lambda f: f.kind))
    assert re.search(r"\| - +\| 3 +\| 0 +\| 0 +\| +\| +\|", page.summary_of_falls(without))  # no fall, so no mean size
    assert page.finding_of_falls(report) == (
        "1 of 2 failed responses have a step at which the value falls by more than two standard errors. "
        "100 ± ? % of these falls are at lines with *, which are 25 % of the lines. This kind has the most of them, so its share is on average too large."
    )


def test_own_answers_are_graded_as_those_of_the_task(tmp_path):
    path = tmp_path / "own.jsonl"
    for answer, response in (("New  York ", "#### New York"), ("1,000", "#### 1000"), ("so\n#### Paris", "#### Paris")):
        path.write_text(json.dumps({"question": "Which?", "answer": answer, "response": response}))
        [own] = read_own(path, jsonl)
        assert jsonl.reward(own.problem, response) == 1.0, answer


def test_fresh_rollouts_are_others_than_those_that_chose_the_step():
    trainer = resting.resting_trainer(CreditConfig(steps=2, critic_iterations=0), [])
    episodes = resting.group_of(trainer, CreditConfig(steps=2, group=2), 0, [])
    found = {}
    for name in ("choice", "fresh", "fresh again"):
        [(rollouts, _)] = measure.monte_carlo(trainer, episodes, [0], [[0]], 6, name.split()[0], 0)
        found[name] = [r.text for r in rollouts[0]]
    assert found["fresh"] == found["fresh again"] != found["choice"]
