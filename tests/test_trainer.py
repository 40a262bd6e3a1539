"""The loop: rules that hold for every algorithm, on the shipped policy and on a random Llama."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import supports

from vine_mini import algorithms, models
from vine_mini import trainer as trainer_module
from vine_mini.algorithms import ALGORITHMS, Algorithm
from vine_mini.app.config import SHIPPED, TrainConfig
from vine_mini.app.memory import memory_estimate
from vine_mini.app.setup import build_trainer
from vine_mini.losses import masked_mean
from vine_mini.tasks import arithmetic
from vine_mini.trainer import Trainer
from vine_mini.types import Batch, Episodes, Trajectory, UserError, collate

SMALL = TrainConfig(
    steps=2, prompts=4, group=4, minibatch_size=8, micro_batch_tokens=1024, k=2, iterations=2, eval_problems=4, eval_samples=2
)


def batch_of(trainer, algorithm=None, episodes=None) -> Batch:
    """The batch of one iteration, as `Trainer.train` makes it, without whitening."""
    episodes = episodes or trainer.sample_episodes()
    scores, _ = trainer.score(episodes)
    credit = ALGORITHMS[algorithm].credit if algorithm else trainer.algorithm.credit
    advantages, returns, _ = credit(episodes, scores["values"], trainer.roll_out, trainer.config)
    return Batch(**vars(episodes.tokens), **scores, advantages=advantages, returns=returns)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", [name for name, algorithm in ALGORITHMS.items() if not algorithm.choose_examples])
def test_whole_iterations_of_each_algorithm(name):
    trainer = build_trainer(replace(SMALL, algorithm=name))
    start, reference = weights(trainer.policy), weights(trainer.reference)
    rows = [metrics for metrics, _, _ in trainer.train()]
    assert [row["iteration"] for row in rows] == [1, 2]
    for row in rows:
        assert row["first_ratio"] == pytest.approx(1.0, abs=1e-4) and row["first_approx_kl"] < 1e-8  # rule 1
        assert row["sampler_gap"] < 1e-4
        assert row["skipped"] == 0 and row["grad_norm"] > 0
        assert {"seconds_sample", "seconds_rollouts", "seconds_score", "seconds_update"} <= set(row)
    assert rows[0]["kl"] > 0
    assert not torch.equal(weights(trainer.policy), start)
    assert torch.equal(weights(trainer.reference), reference)
    if name == "ppo":
        assert trainer.critic.head.weight.abs().max() > 0
        assert rows[0]["value_error"] > 0


def test_the_same_seed_gives_the_same_run():
    def run(**changes):
        trainer = build_trainer(replace(SMALL, **changes))
        return [(m["reward"], m["loss"], [t.response_ids for t in e.trajectories]) for m, e, _ in trainer.train()]

    assert run() == run()
    assert run() != run(seed=1)


def gradients(trainer, batch, micro):
    trainer.config = replace(trainer.config, micro_batch_tokens=micro)
    trainer.policy.zero_grad()
    trainer.critic.zero_grad()
    stats = trainer._accumulate_gradients(batch, torch.arange(len(batch)))
    parameters = [*trainer.policy.parameters(), *trainer.critic.parameters()]
    return torch.cat([p.grad.flatten() for p in parameters]), stats


def test_gradients_do_not_depend_on_the_micro_batch():
    """Rule 4, in float64, to 1e-10: responses of unequal lengths, KL and PPO's critic included."""
    trainer = build_trainer(replace(SMALL, algorithm="ppo", kl_coef=0.1, min_steps=1))
    episodes = trainer.sample_episodes()
    for network in (trainer.policy, trainer.reference, trainer.critic):
        network.double()
    torch.nn.init.normal_(trainer.critic.head.weight)
    tokens = replace(episodes.tokens, response_mask=episodes.tokens.response_mask.double())
    batch = batch_of(trainer, episodes=replace(episodes, tokens=tokens))
    with torch.no_grad():  # move off the first pass, so that ratios, clipping and KL all matter
        for p in trainer.policy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype).to(p.device))
    whole, stats = gradients(trainer, batch, 100_000)
    assert stats["kl"] > 1e-4 and stats["clip_frac"] > 0
    for micro in (1, 150):
        parts, their = gradients(trainer, batch, micro)
        assert (parts - whole).abs().max() < 1e-10
        assert their == pytest.approx(stats, abs=1e-10)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_gradient_checkpointing_recomputes_and_changes_nothing(algorithm):
    results, calls = [], []
    for flag in (False, True):
        trainer = build_trainer(replace(SMALL, algorithm=algorithm, gradient_checkpointing=flag))
        batch = batch_of(trainer)
        forwards = []
        networks = [trainer.policy.base_model] + ([trainer.critic.backbone] if trainer.critic else [])
        for network in networks:
            network.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=forwards: calls.append(1))
        results.append(trainer.update(batch))
        calls.append(len(forwards))
        assert not any(network.training for network in networks)
    assert calls[1] == 2 * calls[0]  # policy and critic alike
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-6)


def test_bf16_samples_the_quick_way_even_if_an_evaluation_comes_first():
    """Evaluation runs under autocast. The question whether a model can share prefixes, first asked there, got a false no."""
    trainer = build_trainer(replace(SMALL, bf16=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.evaluate()
    assert supports(trainer.sampler())


def test_bf16_moves_float32_weights_that_bf16_could_not_hold():
    """At lr 1e-6 an AdamW step is far below a bf16 weight's spacing (2^-8 of it): pure bf16 would stand still."""
    trainer = build_trainer(replace(SMALL, bf16=True, lr=1e-6, warmup=0))
    start = weights(trainer.policy)
    assert start.dtype == torch.float32
    next(trainer.train())
    end = weights(trainer.policy)
    moved = (end != start).float().mean()
    in_bf16 = (start.bfloat16() + (end - start).bfloat16() != start.bfloat16())[start.abs() > 1e-3].float().mean()
    assert moved > 0.5 and in_bf16 < 0.01


def test_a_minibatch_whose_ratio_exploded_is_skipped():
    trainer = build_trainer(SMALL)
    batch = batch_of(trainer, "grpo")
    start = weights(trainer.policy)
    old = batch.old_logprobs - 3 * batch.response_mask  # e^3 = 20 > 10
    assert trainer.update(replace(batch, old_logprobs=old))["skipped"] == 1.0
    assert torch.equal(weights(trainer.policy), start)


def test_an_exploding_kl_has_finite_gradients():
    """exp(100) is infinite in float32, and the clamp after it used to make the gradient NaN."""
    trainer = build_trainer(replace(SMALL, algorithm="grpo", kl_coef=1.0))
    batch = batch_of(trainer)
    stats = trainer.update(replace(batch, ref_logprobs=batch.ref_logprobs + 100 * batch.response_mask))
    assert stats["skipped"] == 0 and stats["kl"] == pytest.approx(10.0)


def test_the_kl_pulls_towards_the_reference():
    """With no reward at all, a policy that was moved away comes back."""
    trainer = build_trainer(replace(SMALL, algorithm="rloo", kl_coef=1.0, lr=1e-4, warmup=0))
    with torch.no_grad():
        for p in trainer.policy.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p.device))
    episodes = trainer.sample_episodes()
    episodes.rewards.zero_()
    batch = batch_of(trainer, episodes=episodes)
    kls = [trainer.update(batch)["kl"] for _ in range(4)]
    assert kls[0] > 0.01 and kls[-1] < 0.8 * kls[0]


def test_without_kl_no_reference_is_kept():
    trainer = build_trainer(replace(SMALL, kl_coef=0.0))
    metrics, _, _ = next(trainer.train())
    assert trainer.reference is None and "kl" not in metrics


def test_warmup_rises_linearly():
    trainer = build_trainer(replace(SMALL, lr=1e-5, warmup=4))
    batch, seen = batch_of(trainer), []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    for _ in range(2):
        trainer.update(batch)
    assert seen == pytest.approx([x * 1e-5 for x in (0.25, 0.5, 0.75, 1, 1, 1, 1, 1)])


def test_a_learning_rate_that_is_left_out_follows_from_the_policy():
    assert build_trainer(SMALL).config.lr == 1e-4 and build_trainer(replace(SMALL, lr=3e-5)).config.lr == 3e-5
    assert models.default_lr(SimpleNamespace(num_parameters=lambda: 10_000_000)) == 1e-6


def test_problems_come_once_an_epoch():
    config = replace(SMALL, steps=1, max_number=4, prompts=8, iterations=10_000)
    whole = build_trainer(config)
    trainer = Trainer(config, whole.policy, whole.tokenizer, whole.train_problems[:24], whole.test_problems)
    epochs = []
    for _ in range(2):
        seen = []
        for _ in range(3):
            seen += [p.question for p in trainer.sample_episodes().problems[:: config.group]]
            trainer.iteration += 1
        assert len(set(seen)) == 24
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_neighbouring_seeds_meet_different_prompts():
    """Seeds that were added to the epoch or the iteration gave seed 0 in a later epoch the whole order of seed 1."""

    def prompts(seed, epoch):
        trainer = build_trainer(replace(SMALL, seed=seed, prompts=100, group=1, minibatch_size=100, max_new_tokens=1))
        trainer.iteration = epoch * 3  # 300 problems
        return [p.question for p in trainer.sample_episodes().problems]

    assert prompts(0, 1) != prompts(1, 0)


def test_a_task_with_steps_of_its_own(tokenizer, monkeypatch):
    trainer = build_trainer(replace(SMALL, prompts=1, group=2, minibatch_size=2))
    ids = tokenizer("1+1=2\n2+1=3\n#### 3")["input_ids"]
    trajectories = [Trajectory(trainer.prompts[0], ids, [0.0] * len(ids), True)] * 2
    episodes = trainer.as_episodes(trainer.train_problems[:1], trajectories)
    monkeypatch.setattr(arithmetic, "step_starts", lambda text: [0, text.index("="), text.index("3")], raising=False)
    trainer = build_trainer(trainer.config)
    own = trainer.as_episodes(trainer.train_problems[:1], trajectories)
    texts = [tokenizer.decode(ids[a:b]) for a, b in zip(own.cuts[0], [*own.cuts[0][1:], None], strict=True)]
    assert len(episodes.cuts[0]) == 2 and texts == ["1+1", "=2\n2+1=", "3\n#### 3"]


def test_vineppo_credit_is_the_change_of_value(tokenizer):
    """A policy replaced by a table: its rollouts succeed as often as the text so far deserves."""
    trainer = build_trainer(replace(SMALL, prompts=1, group=2, minibatch_size=2, k=4, mc_lam=0.0, mc_mu=0.0))
    eos, prompt = tokenizer.eos_token_id, trainer.prompts[0]
    good, bad = tokenizer("\n1+1=2\n2+1=3\n#### 3")["input_ids"][1:], tokenizer("\n1+1=2\n2+1=4\n#### 4")["input_ids"][1:]
    trajectories = [Trajectory(prompt, [*ids, eos], [0.0] * (len(ids) + 1), True) for ids in (good, bad)]
    episodes = trainer.as_episodes([replace(trainer.train_problems[0], answer="3")], trajectories)
    assert episodes.rewards.tolist() == [[1.0, 0.0]] and episodes.cuts == [[0, 6]] * 2
    right, wrong = ([*tokenizer("#### 3")["input_ids"], eos], True), ([*tokenizer("#### 4")["input_ids"], eos], True)
    cut_off = (tokenizer("#### 3")["input_ids"], False)
    asked = []

    def roll_out(trajectories, cuts, k):
        asked.append((cuts, k))
        outcomes = {0: [right, wrong, wrong, cut_off], 6: [right, right, right, wrong]}  # V = 1/4 at first, 3/4 after a step
        return [[[Trajectory([1], ids, [0.0] * len(ids), end) for ids, end in outcomes[c]] for c in row] for row in cuts]

    advantages, returns, cost = algorithms.vineppo(episodes, None, roll_out, trainer.config)
    assert asked == [([[0, 6], []], 4)]  # both trajectories share both states: each state is rolled out once
    assert cost["states"] == 4 and cost["unique_states"] == 2 and cost["rollouts_truncated"] == pytest.approx(1 / 8)
    assert returns is None
    # V(s_0) is the mean of four rollouts, of which one is right, and of the other response's reward: 1/5 and 2/5.
    for row, first, last in ((0, 3 / 4 - 1 / 5, 1 / 4), (1, 3 / 4 - 2 / 5, -3 / 4)):
        n = len(trajectories[row].response_ids)
        credit = advantages[row][episodes.tokens.response_mask[row].bool()].tolist()
        assert credit == pytest.approx([first] * 6 + [last] * (n - 6))  # the end token included (rule 3)
    whole = algorithms.vineppo(episodes, None, roll_out, replace(trainer.config, mc_lam=1.0, mc_mu=1.0))[0]
    for row, expected in ((0, 1 - 1 / 5), (1, -2 / 5)):
        credit = whole[row][episodes.tokens.response_mask[row].bool()].tolist()
        assert credit == pytest.approx([expected] * len(credit))  # the other end of the dial: R - V(s_0) everywhere


def test_equal_responses_to_other_problems_are_other_states(tokenizer):
    trainer = build_trainer(replace(SMALL, k=1))
    eos = tokenizer.eos_token_id
    trajectories = [Trajectory(trainer.prompts[i // 2], [5, eos], [0.0] * 2, True) for i in range(4)]
    episodes = trainer.as_episodes(trainer.train_problems[:2], trajectories)
    asked = []

    def roll_out(trajectories, cuts, k):
        asked.append(cuts)
        return [[[Trajectory([1], [eos], [0.0], True)] for _ in row] for row in cuts]

    algorithms.vineppo(episodes, None, roll_out, trainer.config)
    assert asked == [[[0], [], [0], []]]


def test_equal_prompts_with_other_answers_are_other_states(tokenizer):
    """A user's own data may ask the same question twice. Rollouts used to be graded with the first answer alone."""
    trainer = build_trainer(replace(SMALL, prompts=2, group=1, minibatch_size=2, k=1))
    ids = [*tokenizer("#### 3")["input_ids"], tokenizer.eos_token_id]
    trajectories = [Trajectory(trainer.prompts[0], ids, [0.0] * len(ids), True) for _ in range(2)]
    problems = [replace(trainer.train_problems[0], answer=answer) for answer in "34"]
    episodes = trainer.as_episodes(problems, trajectories)

    def roll_out(trajectories, cuts, k):  # every rollout says 3: values are 1 for the first problem and 0 for the second
        assert cuts == [[0], [0]]
        return [[[trajectories[0]] for _ in row] for row in cuts]

    advantages, _, stats = algorithms.vineppo(episodes, None, roll_out, trainer.config)
    assert stats["unique_states"] == 2 and advantages.abs().sum() == 0
    assert episodes.rewards.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_max_states_leaves_later_values_out(tokenizer, reward, monkeypatch):
    """As in the official code: later values are the reward, so the first step without one gets R - V, and the rest nothing."""
    trainer = build_trainer(
        replace(SMALL, steps=4, prompts=1, group=1, minibatch_size=1, k=2, mc_lam=0.0, mc_mu=0.0, max_states=2)
    )
    text = "1+1=2\n2+1=3\n3+1=4\n4+1=5\n#### 5"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    monkeypatch.setattr("vine_mini.tasks.grade", lambda task, problem, r, *_: reward if len(r.response_ids) > 1 else 0.5)
    episodes = trainer.as_episodes([trainer.train_problems[0]], [Trajectory(trainer.prompts[0], ids, [0.0] * len(ids), True)])
    [cuts] = episodes.cuts

    def roll_out(trajectories, asked, k):
        assert asked == [cuts[:2]]
        return [[[Trajectory([1], [3], [0.0], True)] * k for _ in row] for row in asked]

    advantages, _, stats = algorithms.vineppo(episodes, None, roll_out, trainer.config)
    of_steps = [advantages[0][episodes.tokens.response_mask[0].bool()][cut].item() for cut in cuts]
    assert len(cuts) == 4 and stats["rollouts"] == 4 and of_steps == [0.0, reward - 0.5, 0.0, 0.0]


def test_problems_with_replacement():
    """Drawn independently: an iteration may hold a problem twice, and each iteration has its own seed."""
    trainer = build_trainer(replace(SMALL, prompts=100, group=1, minibatch_size=1, with_replacement=True, max_new_tokens=4))
    first = [p.question for p in trainer.sample_episodes().problems]
    assert first == [p.question for p in trainer.sample_episodes().problems] and 50 < len(set(first)) < 100
    trainer.iteration = 1
    assert first != [p.question for p in trainer.sample_episodes().problems]


def test_the_kl_of_a_response_is_the_one_of_its_tokens_times_the_mean_length():
    trainer = build_trainer(replace(SMALL, kl_coef=0.1, algorithm="rloo"))
    batch = batch_of(trainer)
    denominator, logprobs = batch.response_mask.sum(), batch.old_logprobs - 0.1 * batch.response_mask
    config = replace(trainer.config, minibatch_size=len(batch))
    plain, stats = algorithms.clipped_loss_with_kl(logprobs, batch, replace(config, kl_coef=0.0), denominator)
    per_token, _ = algorithms.clipped_loss_with_kl(logprobs, batch, config, denominator)
    summed, _ = algorithms.clipped_loss_with_kl(logprobs, batch, replace(config, kl_per_response=True), denominator)
    assert (per_token - plain).item() == pytest.approx(0.1 * stats["kl"], rel=1e-4)
    assert (summed - plain).item() == pytest.approx(0.1 * stats["kl"] * denominator.item() / len(batch), rel=1e-4)


def test_credit_of_the_other_algorithms_by_hand():
    """Two problems, two responses each, of unequal lengths: every algorithm's advantages, token by token."""
    lengths = [2, 4, 1, 3]
    trajectories = [Trajectory([5] * (1 + i), [7] * n, [0.0] * n, True) for i, n in enumerate(lengths)]
    tokens, rewards = collate(trajectories), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    mask, values = tokens.response_mask, 0.25 * tokens.response_mask
    episodes = Episodes([], trajectories, rewards, [[0]] * 4, tokens, None, None)
    std = 0.5**0.5
    expected = {
        "grpo": [0.5 / std, -0.5 / std, 0.0, 0.0],
        "rloo": [1.0, -1.0, 0.0, 0.0],
        "reinforce": [1.0, 0.0, 1.0, 1.0],
        "ppo": [0.75, -0.25, 0.75, 0.75],  # lambda 1: the return, which comes at the last token, less the value
    }
    for name, of_rows in expected.items():
        advantages, returns, _ = ALGORITHMS[name].credit(episodes, values, None, SMALL)
        for row, (value, n) in enumerate(zip(of_rows, lengths, strict=True)):
            assert advantages[row][mask[row].bool()].tolist() == pytest.approx([value] * n, abs=1e-6)
        assert (advantages * (1 - mask)).abs().sum() == 0
        assert (returns is not None) == ALGORITHMS[name].needs_critic
        if returns is not None:
            torch.testing.assert_close(returns, rewards.flatten()[:, None] * mask)
    advantages, _, _ = algorithms.ppo(episodes, values, None, replace(SMALL, lam=0.0))  # only the last token sees the reward
    assert advantages[1][mask[1].bool()].tolist() == [0.0, 0.0, 0.0, -0.25]


def test_an_algorithm_of_ones_own_is_one_record(monkeypatch):
    """Another credit and another loss, named nowhere else: it trains, evaluates and needs no reference."""

    def credit(episodes, values, roll_out, config):
        mask = episodes.tokens.response_mask
        return (2 * episodes.rewards - 1).reshape(-1, 1).to(mask) * mask, None, {"own": 1.0}

    def loss(logprobs, batch, config, denominator):
        value = masked_mean(-batch.advantages * logprobs, batch.response_mask, denominator)
        ratio = masked_mean((logprobs - batch.old_logprobs).exp(), batch.response_mask, denominator)
        return value, {"ratio": ratio.item(), "approx_kl": 0.0}

    monkeypatch.setitem(ALGORITHMS, "own", Algorithm(credit, loss, needs_reference=False))
    trainer = build_trainer(replace(SMALL, algorithm="own"))
    start = weights(trainer.policy)
    rows = [metrics for metrics, _, _ in trainer.train()]
    assert trainer.reference is None and rows[0]["own"] == 1.0 and rows[0]["first_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert not torch.equal(weights(trainer.policy), start) and memory_estimate(trainer)["reference"] == 0
    assert 0 <= trainer.evaluate()["pass@1"][0] <= 1


def test_a_task_of_ones_own_is_one_file(tmp_path):
    """No other file knows of it: problems, prompt, grading with partial credit, answer mark and limits."""
    path = tmp_path / "parity.py"
    path.write_text(
        """
from vine_mini.types import Problem

TEMPLATE = "{question}\\n"
ANSWER_MARK = "="
DEFAULTS = {"max_new_tokens": 12, "eval_temperature": 0.5}


def problems(config):
    every = [Problem(f"Mia has {n} pens.", f"={n % 2}", str(n % 2)) for n in range(40)]
    return every[8:], every[:8]


def extract_answer(text):
    return text.strip()[-1:] or None


def reward(problem, response):
    return 1.0 if extract_answer(response) == problem.answer else 0.25 * (len(response) % 2)
"""
    )
    model = str(SHIPPED / arithmetic.__name__.split(".")[-1])
    config = TrainConfig(
        task=str(path), model=model, prompts=4, group=4, minibatch_size=8, k=2, iterations=1, eval_samples=2, eval_problems=4
    )
    assert config.max_new_tokens == 12 and config.eval_temperature == 0.5
    trainer = build_trainer(config)
    [(metrics, episodes, _)] = list(trainer.train())
    assert set(episodes.rewards.flatten().tolist()) <= {0.0, 0.25, 1.0} and metrics["rollouts"] > 0
    assert trainer.evaluate()["pass@1"][1] is not None


@pytest.mark.parametrize(
    "name, whitened", [("vineppo", True), ("ppo", True), ("reinforce", True), ("grpo", False), ("rloo", False)]
)
def test_which_advantages_are_whitened(name, whitened):
    trainer, batches = build_trainer(replace(SMALL, algorithm=name)), []
    update = trainer.update
    trainer.update = lambda batch: batches.append(batch) or update(batch)
    _, episodes, raw = next(trainer.train())
    mask = episodes.tokens.response_mask.bool()
    used = batches[0].advantages[mask]
    if whitened:
        assert used.mean().abs() < 1e-5 and (used.std() - 1).abs() < 1e-3
    else:
        assert torch.equal(used, raw[mask])


def test_truncated_responses_fail():
    trainer = build_trainer(replace(SMALL, max_new_tokens=5))
    metrics, episodes, _ = next(trainer.train())
    assert metrics["truncated"] == 1.0 and episodes.rewards.sum() == 0 and metrics["rollouts_truncated"] == 1.0


def test_what_cannot_work_is_refused():
    for changes, says in (
        ({"max_new_tokens": 4000}, "the model sees only"),
        ({"prompts": 20_000, "minibatch_size": 16}, "only 300 training problems"),
        ({"task": "gsm8k", "data": "nowhere"}, "cannot read"),
    ):
        with pytest.raises(UserError, match=says):
            build_trainer(replace(SMALL, **changes))


def test_an_evaluation_has_all_measures_and_the_kl_grows_when_the_policy_moves(tokenizer):
    trainer = build_trainer(SMALL)
    result = trainer.evaluate()
    assert set(result) == {"pass@1", "greedy", "maj@2", "pass@2", "length", "truncated", "kl"}
    assert result["pass@2"][0] >= result["maj@2"][0] >= 0 and result["pass@2"][0] >= result["pass@1"][0]
    assert result["kl"][0] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for p in trainer.policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p.device))
    assert trainer.evaluate()["kl"][0] > 1e-4


def test_rollouts_draw_their_own_random_numbers():
    """Other calls in an iteration, and other iterations, draw other numbers; the same call repeats."""
    hot = replace(SMALL, temperature=2.0)  # the shipped policy repeats itself at temperature 1
    trainer = build_trainer(hot)
    trajectories = trainer.sample_episodes().trajectories
    cuts = [[0] for _ in trajectories]

    def texts(trainer, *name):
        return [r.response_ids for row in trainer.roll_out(trajectories, cuts, 3, *name) for group in row for r in group]

    first, named, again = texts(trainer), texts(trainer, "truth"), texts(build_trainer(hot))
    trainer.iteration += 1
    later = texts(trainer)
    assert first == again
    for other in (named, later):
        assert sum(a == b for a, b in zip(first, other, strict=True)) < len(first) / 2


def test_bf16_reference_and_importance_weights():
    """The reference is in bfloat16 as well, and the KL starts at 0. The weights are near 1, since rounding is small."""
    trainer = build_trainer(replace(SMALL, bf16=True, importance_cap=2.0))
    assert torch.bfloat16 in {p.dtype for p in trainer.reference.parameters()}
    scores, stats = trainer.score(trainer.sample_episodes())
    assert torch.equal(scores["ref_logprobs"], scores["old_logprobs"])
    used = scores["weights"][scores["weights"] > 0].cpu()
    assert used.max() <= 2 and used.mean() == pytest.approx(1, abs=0.05) and used.std() > 0
    assert 0 < stats["sampler_gap"] < 0.005 and stats["importance_capped"] < 0.05
    metrics, _, _ = next(trainer.train())
    assert metrics["importance_capped"] < 0.05 and metrics["sampling"] == "fast"


def test_each_distinct_response_is_graded_once(monkeypatch):
    """Greedy rollouts of a problem are equal, whatever state they start from."""
    trainer = build_trainer(replace(SMALL, k=8))
    episodes, graded, reward = trainer.sample_episodes(), [], trainer.task.reward
    monkeypatch.setattr(trainer.task, "reward", lambda problem, text: graded.append((problem, text)) or reward(problem, text))
    trainer.sampling = replace(trainer.sampling, temperature=0.0)
    _, _, stats = trainer.algorithm.credit(episodes, None, trainer.roll_out, trainer.config)
    assert len(graded) == len(set(graded)) <= stats["unique_states"] < stats["rollouts"] / 7


def test_sampler_and_trainer_agree_at_another_temperature():
    """Log-probs at temperature 1 would be others by a tenth of a nat and more."""
    trainer = build_trainer(replace(SMALL, temperature=0.6, iterations=1))
    metrics, episodes, _ = next(trainer.train())
    assert metrics["sampler_gap"] < 1e-4 and metrics["first_ratio"] == pytest.approx(1.0, abs=1e-4)
    logprobs = [x for t in episodes.trajectories for x in t.logprobs]
    assert metrics["entropy"] == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-5)


def test_settings_reach_the_functions_that_they_are_for(monkeypatch):
    """Each has another value than its default, so a constant in its place is found."""
    seen = {}

    def spy(module, name, *keys):
        whole = getattr(module, name)

        def call(*args, **more):
            seen[name] = [more[key] for key in keys] if keys else args
            return whole(*args, **more)

        monkeypatch.setattr(module, name, call)

    spy(algorithms, "clipped_policy_loss", "clip")
    spy(trainer_module, "value_loss", "clip")
    spy(trainer_module, "clip_grad_norm_")
    spy(trainer_module, "evaluate")
    settings = dict(clip=0.11, value_clip=0.13, max_grad_norm=0.7, max_ratio=1e9, iterations=1)
    settings |= dict(weight_decay=0.03, sample_batch_size=7, step_tokens=5)
    trainer = build_trainer(replace(SMALL, algorithm="ppo", eval_temperature=0.35, top_p=0.9, **settings))
    assert (trainer.sampling.top_p, trainer.sampling.batch_size, trainer.cut([5] * 7)) == (0.9, 7, [0, 5])
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.03}
    next(trainer.train())
    trainer.evaluate()
    assert seen["clipped_policy_loss"] == [0.11] and seen["value_loss"] == [0.13]
    assert seen["clip_grad_norm_"][1] == 0.7
    problems, prompts, sampling = seen["evaluate"][3:]
    assert (problems, prompts) == (trainer.test_problems, trainer.test_prompts)
    assert (sampling.temperature, sampling.top_p) == (0.35, 1.0)  # an evaluation uses no top-p


def test_a_minibatch_is_skipped_above_the_limit_of_the_user():
    for limit, skipped in ((1.5, True), (3.0, False)):
        trainer = build_trainer(replace(SMALL, max_ratio=limit))
        for p in trainer.policy.parameters():
            p.grad = torch.zeros_like(p)
        assert trainer._step({"ratio": 2.0}) is not skipped
