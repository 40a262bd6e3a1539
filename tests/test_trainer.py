"""The loop: rules that hold for every algorithm, on the shipped policy and on a random Llama."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch

from vine_mini import algorithms
from vine_mini.config import ALGORITHM_NAMES, TrainConfig
from vine_mini.sharing import supports
from vine_mini.trainer import Trainer
from vine_mini.types import Trajectory, UserError, collate

SMALL = TrainConfig(
    steps=2, prompts=4, group=4, minibatch_size=8, micro_batch_tokens=1024, k=2, iterations=2, eval_problems=4, eval_samples=2
)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ALGORITHM_NAMES)
def test_whole_iterations_of_each_algorithm(name):
    trainer = Trainer(replace(SMALL, algorithm=name))
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
        trainer = Trainer(replace(SMALL, **changes))
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
    trainer = Trainer(replace(SMALL, algorithm="ppo", kl_coef=0.1, min_steps=1))
    episodes = trainer.sample_episodes()
    for network in (trainer.policy, trainer.reference, trainer.critic):
        network.double()
    torch.nn.init.normal_(trainer.critic.head.weight)
    batch = episodes.batch
    batch.response_mask = batch.response_mask.double()
    trainer.score(batch, episodes.trajectories)
    batch.advantages, _ = algorithms.ppo(episodes, trainer.config)
    with torch.no_grad():  # move off the first pass, so that ratios, clipping and KL all matter
        for p in trainer.policy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype))
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
        trainer = Trainer(replace(SMALL, algorithm=algorithm, gradient_checkpointing=flag))
        episodes = trainer.sample_episodes()
        trainer.score(episodes.batch, episodes.trajectories)
        episodes.batch.advantages, _ = algorithms.ALGORITHMS[algorithm](episodes, trainer.config)
        forwards = []
        networks = [trainer.policy.base_model] + ([trainer.critic.backbone] if trainer.critic else [])
        for network in networks:
            network.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=forwards: calls.append(1))
        results.append(trainer.update(episodes.batch))
        calls.append(len(forwards))
        assert not any(network.training for network in networks)
    assert calls[1] == 2 * calls[0]  # policy and critic alike
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-6)


def test_bf16_samples_the_quick_way_even_if_an_evaluation_comes_first():
    """Evaluation runs under autocast. The question whether a model can share prefixes, first asked there, got a false no."""
    trainer = Trainer(replace(SMALL, bf16=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.evaluate()
    assert supports(trainer.sampler())


def test_bf16_moves_float32_weights_that_bf16_could_not_hold():
    """At lr 1e-6 an AdamW step is far below a bf16 weight's spacing (2^-8 of it): pure bf16 would stand still."""
    trainer = Trainer(replace(SMALL, bf16=True, lr=1e-6, warmup=0.0))
    start = weights(trainer.policy)
    assert start.dtype == weights(trainer.reference).dtype == torch.float32
    next(trainer.train())
    end = weights(trainer.policy)
    moved = (end != start).float().mean()
    in_bf16 = (start.bfloat16() + (end - start).bfloat16() != start.bfloat16())[start.abs() > 1e-3].float().mean()
    assert moved > 0.5 and in_bf16 < 0.01


def test_a_minibatch_whose_ratio_exploded_is_skipped():
    trainer = Trainer(SMALL)
    episodes = trainer.sample_episodes()
    trainer.score(episodes.batch, episodes.trajectories)
    episodes.batch.advantages, _ = algorithms.grpo(episodes, SMALL)
    start = weights(trainer.policy)
    episodes.batch.old_logprobs = episodes.batch.old_logprobs - 3 * episodes.batch.response_mask  # e^3 = 20 > 10
    assert trainer.update(episodes.batch)["skipped"] == 1.0
    assert torch.equal(weights(trainer.policy), start)


def test_an_exploding_kl_has_finite_gradients():
    """exp(100) is infinite in float32, and the clamp after it used to make the gradient NaN."""
    trainer = Trainer(replace(SMALL, algorithm="grpo", kl_coef=1.0))
    episodes = trainer.sample_episodes()
    trainer.score(episodes.batch, episodes.trajectories)
    episodes.batch.advantages, _ = algorithms.grpo(episodes, trainer.config)
    episodes.batch.ref_logprobs = episodes.batch.ref_logprobs + 100 * episodes.batch.response_mask
    stats = trainer.update(episodes.batch)
    assert stats["skipped"] == 0 and stats["kl"] == pytest.approx(10.0)


def test_the_kl_pulls_towards_the_reference():
    """With no reward at all, a policy that was moved away comes back."""
    trainer = Trainer(replace(SMALL, algorithm="rloo", kl_coef=1.0, lr=1e-4))
    with torch.no_grad():
        for p in trainer.policy.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    episodes = trainer.sample_episodes()
    episodes.rewards.zero_()
    trainer.score(episodes.batch, episodes.trajectories)
    episodes.batch.advantages, _ = algorithms.rloo(episodes, trainer.config)
    kls = [trainer.update(episodes.batch)["kl"] for _ in range(4)]
    assert kls[0] > 0.01 and kls[-1] < 0.8 * kls[0]


def test_without_kl_no_reference_is_kept():
    trainer = Trainer(replace(SMALL, kl_coef=0.0))
    metrics, _, _ = next(trainer.train())
    assert trainer.reference is None and "kl" not in metrics


def test_warmup_rises_linearly():
    trainer = Trainer(replace(SMALL, lr=1.0, warmup=0.5))  # 2 iterations x 2 epochs x 2 minibatches: 4 steps of warmup
    seen = []
    for _ in range(8):
        seen.append(trainer.optimizers[0].param_groups[0]["lr"])
        trainer.optimizers[0].step()
        trainer.schedules[0].step()
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_problems_come_once_an_epoch():
    config = replace(SMALL, steps=1, max_number=4, prompts=8, iterations=10_000)
    trainer = Trainer(config)
    trainer.prompts, trainer.train_problems = trainer.prompts[:24], trainer.train_problems[:24]
    epochs = []
    for _ in range(2):
        seen = []
        for _ in range(3):
            seen += [p.question for p in trainer.sample_episodes().problems[:: config.group]]
            trainer.iteration += 1
        assert len(set(seen)) == 24
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_vineppo_credit_is_the_change_of_value(tokenizer):
    """A policy replaced by a table: its rollouts succeed as often as the text so far deserves."""
    trainer = Trainer(replace(SMALL, prompts=1, group=2, minibatch_size=2, k=4))
    episodes = trainer.sample_episodes()
    eos = tokenizer.eos_token_id
    good, bad = tokenizer("\n1+1=2\n2+1=3\n#### 3")["input_ids"][1:], tokenizer("\n1+1=2\n2+1=4\n#### 4")["input_ids"][1:]
    prompt = episodes.trajectories[0].prompt_ids
    episodes.trajectories = [Trajectory(prompt, [*ids, eos], [0.0] * (len(ids) + 1), True) for ids in (good, bad)]
    episodes.rewards = torch.tensor([[1.0, 0.0]])
    episodes.problems = [replace(p, answer="3") for p in episodes.problems]
    episodes.batch = collate(episodes.trajectories)
    right, wrong = ([*tokenizer("#### 3")["input_ids"], eos], True), ([*tokenizer("#### 4")["input_ids"], eos], True)
    cut_off = (tokenizer("#### 3")["input_ids"], False)
    asked = []

    def fork(trajectories, cuts, k):
        asked.append(cuts)
        outcomes = {0: [right, wrong, wrong, cut_off], 6: [right, right, right, wrong]}  # V = 1/4 at first, 3/4 after a step
        return [[[Trajectory([1], ids, [0.0] * len(ids), end) for ids, end in outcomes[c]] for c in row] for row in cuts]

    episodes.fork = fork
    advantages, cost = algorithms.vineppo(episodes, trainer.config)
    assert asked == [[[0, 6], []]]  # both trajectories share both states: they are forked once
    assert cost["states"] == 4 and cost["unique_states"] == 2 and cost["rollouts_truncated"] == pytest.approx(1 / 8)
    for row, last in ((0, 0.25), (1, -0.75)):
        n = len(episodes.trajectories[row].response_ids)
        credit = advantages[row][episodes.batch.response_mask[row].bool()].tolist()
        assert credit == [0.5] * 6 + [last] * (n - 6)  # the end token included (rule 3)


def test_credit_of_the_other_algorithms_by_hand():
    """Two problems, two responses each, of unequal lengths: every algorithm's advantages, token by token."""
    lengths = [2, 4, 1, 3]
    trajectories = [Trajectory([5] * (1 + i), [7] * n, [0.0] * n, True) for i, n in enumerate(lengths)]
    batch = collate(trajectories)
    batch.values = 0.25 * batch.response_mask
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    episodes = algorithms.Episodes([], trajectories, rewards, batch, None, None)
    std = 0.5**0.5
    expected = {
        "grpo": [0.5 / std, -0.5 / std, 0.0, 0.0],
        "rloo": [1.0, -1.0, 0.0, 0.0],
        "reinforce": [1.0, 0.0, 1.0, 1.0],
        "ppo": [0.75, -0.25, 0.75, 0.75],  # lambda 1: the return, which comes at the last token, less the value
    }
    for name, of_rows in expected.items():
        advantages, _ = algorithms.ALGORITHMS[name](episodes, SMALL)
        for row, (value, n) in enumerate(zip(of_rows, lengths, strict=True)):
            assert advantages[row][batch.response_mask[row].bool()].tolist() == pytest.approx([value] * n, abs=1e-6)
        assert (advantages * (1 - batch.response_mask)).abs().sum() == 0
    torch.testing.assert_close(batch.returns, rewards.flatten()[:, None] * batch.response_mask)
    advantages, _ = algorithms.ppo(episodes, replace(SMALL, lam=0.0))  # only the last token sees the reward
    assert advantages[1][batch.response_mask[1].bool()].tolist() == [0.0, 0.0, 0.0, -0.25]


@pytest.mark.parametrize(
    "name, whitened", [("vineppo", True), ("ppo", True), ("reinforce", True), ("grpo", False), ("rloo", False)]
)
def test_which_advantages_are_whitened(name, whitened):
    _, episodes, raw = next(Trainer(replace(SMALL, algorithm=name)).train())
    mask = episodes.batch.response_mask.bool()
    used = episodes.batch.advantages[mask]
    if whitened:
        assert used.mean().abs() < 1e-5 and (used.std() - 1).abs() < 1e-3
    else:
        assert torch.equal(used, raw[mask])


def test_truncated_responses_fail():
    trainer = Trainer(replace(SMALL, max_new_tokens=5))
    metrics, episodes, _ = next(trainer.train())
    assert metrics["truncated"] == 1.0 and episodes.rewards.sum() == 0 and metrics["rollouts_truncated"] == 1.0


def test_what_cannot_work_is_refused():
    for changes, says in (
        ({"max_new_tokens": 4000}, "the model sees only"),
        ({"prompts": 20_000, "minibatch_size": 16}, "only 300 training problems"),
        ({"task": "gsm8k", "data": "nowhere"}, "cannot read"),
    ):
        with pytest.raises(UserError, match=says):
            Trainer(replace(SMALL, **changes))


def test_evaluation_counts(tokenizer):
    trainer = Trainer(SMALL)
    result = trainer.evaluate()
    assert set(result) == {"pass@1", "greedy", "maj@2", "any@2", "length", "truncated", "kl"}
    assert result["any@2"][0] >= result["maj@2"][0] >= 0 and result["any@2"][0] >= result["pass@1"][0]
    assert result["kl"][0] == pytest.approx(0, abs=1e-6)
    other = copy.deepcopy(trainer)
    with torch.no_grad():
        for p in other.policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert other.evaluate()["kl"][0] > 1e-4


def test_the_memory_estimate_counts_weights_and_moments_exactly():
    trainer = Trainer(replace(SMALL, algorithm="ppo"))
    parts = trainer.memory()
    next(trainer.train())
    for network, optimizer, name in zip(
        (trainer.policy, trainer.critic), trainer.optimizers, ("policy: weights, AdamW", "critic: weights, AdamW"), strict=True
    ):
        held = [*network.parameters(), *(x for slots in optimizer.state.values() for x in slots.values())]
        assert parts[name] == pytest.approx(sum(x.numel() * x.element_size() for x in held), rel=0.01)
    smaller = Trainer(replace(SMALL, algorithm="ppo", micro_batch_tokens=100, sample_batch_size=4)).memory()
    assert smaller["peak"] < parts["peak"] < sum(parts.values())


def test_each_call_of_fork_draws_its_own_random_numbers():
    episodes = Trainer(SMALL).sample_episodes()
    cuts = [[0] for _ in episodes.trajectories]
    first, second = (episodes.fork(episodes.trajectories, cuts, 3) for _ in range(2))
    pairs = [
        (a.response_ids, b.response_ids) for x, y in zip(first, second, strict=True) for a, b in zip(x[0], y[0], strict=True)
    ]
    assert sum(a == b for a, b in pairs) < len(pairs) / 2
    again = Trainer(SMALL).sample_episodes().fork(episodes.trajectories, cuts, 3)
    assert [t.response_ids for t in again[0][0]] == [t.response_ids for t in first[0][0]]
