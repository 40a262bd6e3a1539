"""The `credit` command: its numbers, its page, and what it refuses."""

import errno
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from vine_mini.advantages import group_relative
from vine_mini.app.config import SHIPPED
from vine_mini.app.runs import step_texts
from vine_mini.cli import main
from vine_mini.credit_page import command as credit
from vine_mini.credit_page import page, picture, resting
from vine_mini.credit_page.config import CreditConfig
from vine_mini.credit_page.measure import Change
from vine_mini.credit_page.page import Credit, Page, Rollout
from vine_mini.evaluate import standard_errors
from vine_mini.steps import cut_steps
from vine_mini.types import Episodes, Trajectory, collate

HOSTILE = '<script>document.title = "taken"</script></details></td></table>"><img src=x onerror=alert(1)>&lt;\u202egnorw\x00'
SMALL = ["--k", "3", "--group", "4", "--critic_iterations", "0", "--fresh", "4"]


def small_page(**changes) -> Page:
    rollouts = [[Rollout("3*4=12\n#### 12", 1.0, True), Rollout(HOSTILE, 0.0, False)], [Rollout("", 0.0, True)] * 2]
    credits = [Credit("vineppo", [-0.5, 0.0], [0.5, 0.0], [0.3, 0.2]), Credit("grpo", [-1.25, -1.25])]
    whole = Page("How many?", "12", "Policy x.", "", 1.0, 1.0, True, [0.0, 1.0], 0, ["1+2=4\n", HOSTILE], rollouts, 0, credits)
    return replace(whole, **changes)


@pytest.fixture(scope="module")
def explained():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vine_mini.tasks.arithmetic.TRAIN_SIZE", 100)
        return next(credit.explain(CreditConfig(k=5, group=6, truth=7, critic_iterations=1, problem=5)))


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("ppo") / "run"
    settings = "--algorithm ppo --iterations 2 --prompts 4 --group 1 --minibatch_size 4 --eval_problems 2 --eval_samples 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vine_mini.tasks.arithmetic.TRAIN_SIZE", 100)
        assert main(["train", *settings.split(), "--lam", "0.9", "--top_p", "0.8", "--out", str(run)]) == 0
    return run


def test_each_column_telescopes_or_repeats(explained):
    vineppo, ppo, grpo, truth = explained.credits
    n = len(explained.steps)
    for column, k in ((vineppo, 5), (truth, 7)):
        assert sum(column.advantages) == pytest.approx(explained.reward - column.values[0])
        assert all(round(v * k, 6) == round(v * k) for v in column.values)
        assert all(0 < error < 0.5 for error in column.errors)  # also where none of k were right
    assert len(ppo.values) == len(ppo.advantages) == n and ppo.errors is None
    rewards = torch.tensor([explained.group_rewards])
    assert grpo.advantages == [pytest.approx(group_relative(rewards)[0, explained.response].item())] * n


def test_values_are_the_shares_of_right_rollouts(explained):
    assert [len(state) for state in explained.rollouts] == [5] * len(explained.steps)
    shares = [sum(r.reward for r in state) / 5 for state in explained.rollouts]
    assert shares == explained.credits[0].values


def test_the_first_wrong_response_is_shown(explained):
    assert explained.response == explained.group_rewards.index(0.0) and explained.reward == 0.0
    config = CreditConfig(k=1, group=6, critic_iterations=0, problem=5, response=1)
    assert next(credit.explain(config)).response == 1


def test_the_steps_are_the_response(explained, tokenizer):
    assert "".join(explained.steps).endswith("<eos>") and explained.steps[0].endswith("\n")
    ids = tokenizer("".join(explained.steps).removesuffix("<eos>"))["input_ids"] + [tokenizer.eos_token_id]
    assert explained.steps == step_texts(ids, cut_steps(ids, tokenizer, answer_mark="####"), tokenizer)


@pytest.mark.slow
def test_steps_of_a_number_of_tokens(tokenizer):
    found = next(credit.explain(CreditConfig(k=1, group=3, critic_iterations=1, step_tokens=7)))
    lengths = [len(tokenizer(text)["input_ids"]) for text in found.steps]
    assert lengths[:-1] == [7] * (len(lengths) - 1) and "a step every 7 tokens" in found.made
    assert all(len(column.advantages) == len(lengths) for column in found.credits)


def test_the_errors_are_the_standard_errors_of_the_values(explained):
    rewards = [[rollout.reward for rollout in state] for state in explained.rollouts]
    assert explained.credits[0].errors == standard_errors(rewards)


def test_values_do_not_depend_on_the_critic(explained):
    found = next(credit.explain(CreditConfig(k=5, group=6, critic_iterations=0, problem=5)))
    assert found.rollouts == explained.rollouts and found.credits[0] == explained.credits[0]


@pytest.mark.parametrize(
    ("gamma", "lam", "by_hand"),
    [
        (1.0, 1.0, [1 - 0.25, 1 - (0.5 + 0.75) / 2]),  # the reward less the mean guess
        (1.0, 0.0, [0.5 - 0.25, ((0.75 - 0.5) + (1 - 0.75)) / 2]),  # the next guess less this one
        (0.5, 1.0, [0.25 - 0.25, ((0.5 - 0.5) + (1 - 0.75)) / 2]),
    ],
)
def test_the_critic_s_credit_by_hand(gamma, lam, by_hand):
    """Three tokens with values 1/4, 1/2, 3/4 before them, steps of one and of two tokens, reward 1; the group's second."""
    resting = SimpleNamespace(config=SimpleNamespace(gamma=gamma, lam=lam))
    group = [Trajectory([5, 6], [7], [0.0], True), Trajectory([5, 6], [7, 8, 9], [0.0] * 3, True)]
    episodes = Episodes([], group, torch.tensor([[0.0, 1.0]]), [[0], [0, 1]], collate(group), None, None)
    values = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.5, 0.75]])
    found = credit._whole_group(resting, episodes, 1, "ppo", values)
    assert found.values == [0.25, 0.5] and found.advantages == pytest.approx(by_hand)


def test_the_policy_rests_while_its_critic_learns():
    config = CreditConfig(critic_iterations=1)
    trainer = resting.resting_trainer(config, [])
    trainer.config = replace(trainer.config, micro_batch_tokens=1)  # micro-batches of one response
    policy, critic = ({k: x.clone() for k, x in m.state_dict().items()} for m in (trainer.policy, trainer.critic))
    assert "128 responses" in resting.train_critic(trainer, 1)
    assert trainer.updates == 4  # two epochs of two minibatches; the ratios of many micro-batches added up, and all were skipped
    assert all(torch.equal(x, policy[k]) for k, x in trainer.policy.state_dict().items())
    assert not all(torch.equal(x, critic[k]) for k, x in trainer.critic.state_dict().items())


def test_the_page_names_no_path_of_this_machine(explained):
    assert explained.made.startswith("The shipped policy, problem 5 of the test problems of arithmetic, ")


def test_the_page_says_how_the_critic_s_credit_is_made():
    assert "reward minus the value before the token" in page.render(small_page(critic="It is."))
    assert "γ = 0.9 and λ = 1" in page.render(small_page(critic="It is.", gamma=0.9))


@pytest.mark.slow
def test_the_run_of_a_critic_brings_it_along(ppo_run, tmp_path, capsys):
    run = ppo_run
    found = next(credit.explain(CreditConfig(run=str(run), k=2, group=3, critic_iterations=5)))
    assert "run's own, after 2 iterations" in found.critic and found.lam == 0.9
    assert resting.resting_trainer(CreditConfig(run=str(run)), []).config.top_p == 0.8  # it samples as the run did
    assert found.made.startswith(f"The policy of {run}, problem ")
    assert main(["credit", "--run", str(run), *SMALL, "--out", str(tmp_path / "page")]) == 0
    assert "PPO" in capsys.readouterr().out
    assert main(["credit", "--run", str(run), "--policy", "elsewhere", "--out", str(tmp_path / "x")]) == 2


@pytest.mark.slow
def test_a_critic_trained_with_moments_in_8_bits_comes_along(ppo_run, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    run = shutil.copytree(ppo_run, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("adam_8bit: false", "adam_8bit: true"))
    resumed = []
    monkeypatch.setattr(resting.checkpoint, "resume", lambda trainer, _: resumed.append(trainer.config.adam_8bit))
    resting.resting_trainer(CreditConfig(run=str(run)), [])
    assert resumed == [True]


def test_a_full_disk_leaves_no_half_of_the_pages(tmp_path, monkeypatch, capsys):
    def full(page, path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(credit, "plot_credit", full)
    assert main(["credit", "--problem", "5", *SMALL, "--out", str(tmp_path / "page")]) == 2
    out, err = capsys.readouterr()
    assert "fresh rollouts" in out and "cannot be written: No space left on device" in err and not [*tmp_path.iterdir()]


def test_the_command_writes_a_page_and_a_picture(tmp_path, capsys):
    out = tmp_path / "credit"
    assert main(["credit", "--problem", "5", *SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "VinePPO" in said and str(out / "credit.html") in said
    first, *more = json.loads((out / "credit.json").read_text())
    others = sorted(f"response-{each['response']}.html" for each in more)
    assert len(others) == 3 and all(f'href="{name}"' in (out / "credit.html").read_text() for name in others)
    assert first["credits"][0]["advantage_errors"] and first["spent"][0]["responses"]["tokens"] > 0
    assert sorted(p.name for p in out.iterdir()) == ["credit.html", "credit.json", "credit.png", *others]
    assert (out / "credit.png").read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again"
    assert main(["credit", "--problem", "5", *SMALL, "--out", str(again)]) == 0
    one, two = (re.sub(r"[\d.]+ s\b", "", (folder / "credit.html").read_text()) for folder in (out, again))
    assert one == two  # the same seed, the same page, but for the seconds


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_well_formed_and_what_a_model_wrote_stays_text():
    html = page.render(small_page(question=HOSTILE, answer=HOSTILE))
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert {"script", "img"}.isdisjoint(tag for tag, _ in tags.tags)
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
    assert tags.text.count('<script>document.title = "taken"</script>') == 4
    assert "\u202e" not in html and "\x00" not in html and "⟨U+202E⟩" in html and "⟨U+0000⟩" in html


def test_the_page_loads_nothing():
    html = page.render(small_page(steps=["1+2=4", "4*3=12"], rollouts=[[Rollout("12", 1.0, True)]] * 2))
    assert not re.search(r"https?:|//|src=|href=|url\(|@import", html)
    assert "default-src 'none'" in html


def change(step, size, error) -> Change:
    return Change(
        step, Credit("fall", [size, 0.0], [-size, 0.0], [error, 0.0]), [Rollout("3*4=12\n#### 12", 1.0, True, "3*4=12\n")]
    )


def test_the_bold_sentence_names_fall_and_rise_with_errors():
    found = page.finding(small_page(fall=change(0, -0.5, 0.1), rise=change(1, 0.1, 0.05001), fresh=64))
    assert found == (
        "The largest fall of VinePPO's value is at step 1 of 2: −0.50 ± 0.10 by 64 fresh rollouts, beyond two standard errors. "
        "The largest rise is at step 2 of 2: +0.10 ± 0.05 by 64 fresh rollouts, not beyond two standard errors, so it may be noise."
    )
    assert page.finding(small_page()) == "VinePPO's value does not change at any step."
    wrong_sign = page.finding(small_page(fall=change(0, 0.5, 0.1)))
    assert wrong_sign.endswith("+0.50 ± 0.10 by 0 fresh rollouts, so it is not shown to be a fall. No step is a rise.")
    assert "so the advantage is 0" in page.render(small_page(group_rewards=[0.0, 0.0]))
    html = page.render(small_page(fall=change(0, -0.5, 0.1), fresh=64))
    assert "The largest fall: what 64 fresh rollouts write here" in html and "<b>" not in html.split('class="finding"')[0][-5:]


def test_colours_are_pale_within_two_standard_errors_and_grpo_has_its_own_scale():
    vine, sigma = Credit("vineppo", [-0.5, -0.25], [0.75, 0.25], [0.1, 0.1]), Credit("grpo", [-0.75] * 2)
    assert not Credit("vineppo", [-0.28], [0.28], [0.14]).sure(0) and Credit("vineppo", [-0.29], [0.29], [0.14]).sure(0)
    assert [vine.sure(0), vine.sure(1)] == [True, True] and page.strength(vine, 0) == 1.0 and page.strength(vine, 1) == 0.5
    vine = replace(vine, errors=[0.3, 0.3])
    assert page.strength(vine, 0) == page.PALE and page.strength(sigma, 0) == 0.5 and sigma.sure(0)
    pale = [page.render(small_page(credits=[replace(vine, errors=of), sigma])) for of in ([0.1, 0.1], [0.1, 0.2], [0.3, 0.3])]
    assert [html.count(' pale"') for html in pale] == [0, 2, 4]  # the text and VinePPO's number of a step


def test_equal_rollouts_are_one_line():
    same, other = Rollout("a\n\n#### 1", 1.0, True), Rollout("b", 0.0, False)
    assert page.grouped([other, same, same]) == [(2, same), (1, other)]
    assert page.flat(same.text) == "a ⏎ #### 1" and page.flat("\n") == "(nothing)"
    html = page.render(small_page())
    assert html.count("2 ×") == 1 and "3*4=12 ⏎ #### 12" in html and 'colspan="5"' in html


def test_rewards_of_0_and_1_are_called_wrong_and_right():
    html = page.render(small_page())
    assert "<title>Credit: problem 0, response 0, wrong</title>" in html and "<dd>wrong, ended by itself</dd>" in html
    assert 'aria-label="response 0, wrong">○</b>' in html and "1 of 2 right; this is number 0" in html
    assert "2 rollouts from before this step: 1 right" in html and "share of right responses" in html


def test_rewards_between_0_and_1_are_shown_as_numbers():
    """A task with partial credit: neither right nor wrong."""
    rollouts = [[Rollout("a", 0.75, True), Rollout("b", 0.5, False)], [Rollout("c", 1.0, True), Rollout("d", 0.0, True)]]
    found = small_page(group_rewards=[0.25, 1.0, 0.0], rollouts=rollouts)
    html = page.render(found)
    assert "<title>Credit: problem 0, response 0, reward 0.25</title>" in html and "<dd>reward 0.25, ended by itself</dd>" in html
    assert 'aria-label="response 0, reward 0.25">◐</b>' in html and "mean reward 0.42; this is number 0" in html
    assert "2 rollouts from before this step: mean reward 0.62" in html and "2 rollouts from before this step: 1 right" in html
    assert "reward 0.5, cut by the limit" in html and "The value V is the mean reward" in html
    assert "half a reward of 0" in html and "half a reward of 0" not in page.render(small_page())


@pytest.mark.slow
def test_a_task_with_partial_credit(tmp_path, capsys):
    task = tmp_path / "close.py"
    task.write_text(
        """
from vine_mini.tasks import arithmetic
from vine_mini.tasks.arithmetic import ANSWER_MARK, DEFAULTS, TEMPLATE, extract_answer, problems


def reward(problem, text):
    given = extract_answer(text)
    return 0.0 if given is None else 1.0 if given == problem.answer else 0.25
"""
    )
    found = next(
        credit.explain(CreditConfig(task=str(task), model=str(SHIPPED / "arithmetic"), k=3, group=6, critic_iterations=1))
    )
    assert 0.25 in found.group_rewards and found.reward == 0.25  # the first that is not fully right
    vineppo = found.credits[0]
    assert sum(vineppo.advantages) == pytest.approx(0.25 - vineppo.values[0]) and all(0.25 <= v <= 1 for v in vineppo.values)
    assert "of close, temperature" in found.made and str(tmp_path) not in found.made.replace(str(SHIPPED), "")
    picture.plot_credit(found, tmp_path / "credit.png")
    assert "(reward 0.25, ended by itself)" in page.summary(found) and (tmp_path / "credit.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--problem", "500"], "there are 500 problems"),
        (["--problem", "-1"], "problem = -1"),
        (["--response", "8"], "there are 8 responses"),
        (["--group", "1"], "at least 2"),
        (["--k", "0"], "k = 0"),
        (["--truth", "-1"], "truth = -1"),
        (["--run", "nowhere"], "there is no nowhere/config.yaml"),
        (["--policy", "./nowhere"], "no model folder nowhere"),
        (["--temperature", "0"], "temperature"),
        (["--critic", "x"], "--critic"),
        (["--problems", "5:5"], "the range is empty"),
        (["--problems", "7:5"], "the range is empty"),
        (["--problems", "0:501"], "there are 500 problems"),
        (["--problems", "500:"], "there are 500 problems"),
        (["--problems", "all"], "as 0:200"),
        (["--problems", "0:9", "--truth", "9"], "leave out --response and --truth"),
        (["--responses", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["--other", "./nowhere", "--critic_iterations", "0"], "no model folder nowhere"),
        (["--fresh", "0"], "fresh = 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["credit", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert reason in said and "\n" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_that_is_damaged_or_belongs_to_another_is_one_line(ppo_run, tmp_path, capsys):
    run = shutil.copytree(ppo_run, tmp_path / "run")

    def refused(*more) -> str:
        assert main(["credit", "--run", str(run), "--out", str(tmp_path / "x"), *more]) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said and not (tmp_path / "x").exists()
        return said

    assert "give one of them" in refused("--preset", "arithmetic")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("lam: 0.9", "lam: abc"))
    assert "lam" in refused()
    (run / "config.yaml").write_text(config)
    state = run / "policy" / "training_state.safetensors"
    small = {"critic.head.weight": torch.zeros(1, 3)}
    save_file(small, state)
    assert "is damaged" in refused()
    save_file(small, state, {"counters": '{"iteration": 1, "updates": 1, "seconds": {}, "tensors": 1}'})
    assert "belongs to another model" in refused()
    (run / "policy").rename(run / "elsewhere")
    assert "nothing was saved there yet" in refused()


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert main(["credit", "--out", str(tmp_path)]) == 2
    assert "already holds something" in capsys.readouterr().err


def test_other_commands_know_the_flag_policy_too(tmp_path, capsys):
    policy = str(SHIPPED / "arithmetic")
    assert main(["sample", "--policy", policy, "--n", "1"]) == 0
    assert "--- 1:" in capsys.readouterr().out
