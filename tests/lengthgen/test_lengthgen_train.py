"""Training and measuring decoders, the commands from end to end, and what they say to bad input."""

import json
import math
import shutil
import subprocess
import sys
import time
import zlib
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import mean
from textwrap import dedent

import pytest
import torch
from kills import killed_before_change

from vine_mini import cli, loading
from vine_mini.app import intervals
from vine_mini.app.config import TrainConfig
from vine_mini.app.files import write_text
from vine_mini.app.setup import build_trainer
from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.decoder.table import ENCODINGS, Encoding
from vine_mini.health import Diverged
from vine_mini.lengthgen import commands, languages, own, ranking, report, tasks, vocabulary
from vine_mini.lengthgen import sweep as sweep_module
from vine_mini.lengthgen.config import FullSizeConfig, LengthgenConfig, decoder_config
from vine_mini.lengthgen.results import load_model, load_results, load_so_far
from vine_mini.lengthgen.sweep import _run, check_positions, sweep
from vine_mini.lengthgen.train import (
    EVAL_SEED,
    Draw,
    _can_hold_out,
    collate,
    evaluate,
    evaluation_examples,
    example,
    longest_sequence,
    make_optimizer,
    own_ids,
    target_logits,
    train,
    widths,
)
from vine_mini.models import load_policy, save_policy
from vine_mini.sampling import sample
from vine_mini.types import Sampling, Trajectory, UserError

SMALL = {"hidden": 32, "layers": 2, "heads": 2, "examples": 12, "updates": 3}


def flags(settings):
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


@pytest.fixture
def run(capsys):
    def go(*words):
        code = cli.main(["lengthgen", *map(str, words)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return go


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of four encodings and two seeds, too short to have learned anything."""
    path = tmp_path_factory.mktemp("runs") / "copy"
    config = LengthgenConfig(
        encodings=["nope", "rope", "hybrid", "learned"],
        seeds=[0, 1],
        train_lengths=[2, 4],
        processes=1,
        **SMALL | {"nope_every": 2},
    )
    sweep(config, path)
    return path


@pytest.fixture(autouse=True)
def built_in_tables():
    """Takes a test's own files out of the tables again."""
    yield
    for table in (ENCODINGS, tasks.TASKS):
        for name in [name for name in table if name.endswith(".py")]:
            del table[name]


# --- examples and loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task, few", [("sum", [2]), ("parity", [4, 5, 6]), ("scan", [1, 2, 21])])
def test_lengths_with_too_few_prompts_to_hold_some_out(task, few):
    lengths = tasks.TASKS[task].lengths(*tasks.TASKS[task].train)
    assert [n for n in lengths if not _can_hold_out(task, n)] == few


@pytest.mark.parametrize("task", ["copy", "addition", "scan", "pcfg"])
def test_training_never_meets_a_held_out_prompt(task):
    """But for the lengths that have too few prompts to hold one out (some of SCAN's have four)."""
    config = LengthgenConfig(task=task)
    lengths = tasks.TASKS[task].lengths(*config.train_lengths)
    rng = Random(0)
    drawn = {example(config, rng.choice(lengths), rng, held_out=False)[0] for _ in range(1000)}
    assert len(drawn) > 100 and all(zlib.crc32(prompt.encode()) % 10 for prompt in drawn)
    tested = [[prompt for prompt, _ in evaluation_examples(config, n, 30)] for n in lengths]
    mixed = [any(zlib.crc32(prompt.encode()) % 10 for prompt in prompts) for prompts in tested]
    assert all(mixed) if task == "copy" else sum(mixed) < len(mixed) / 2  # 16 prompts a length cannot spare a tenth
    if task == "addition":
        assert sum(mixed) <= 1  # one digit: a hundred prompts


def test_few_examples_are_held_out_where_many_are():
    """`lengthgen attention` has ten sequences of each length, and two of them were often equal."""
    for task, length in (("scan", 12), ("copy-v2", 5), ("parity", 8)):
        prompts = [prompt for prompt, _ in evaluation_examples(LengthgenConfig(task=task), length, 10)]
        assert len(prompts) == 10 and all(zlib.crc32(prompt.encode()) % 10 == 0 for prompt in prompts), task
    assert evaluation_examples(LengthgenConfig(task="scan"), 12, 300)[:10] == evaluation_examples(
        LengthgenConfig(task="scan"), 12, 10
    )


def test_prompts_that_cannot_be_held_out_do_not_count_as_held_out():
    """None of the 16 prompts of length 2 is held out. The last of 200 draws was taken for one."""
    prompts = {prompt for prompt, _ in evaluation_examples(LengthgenConfig(task="copy"), 2, 200)}
    rng = Random(EVAL_SEED + 2)
    for _ in range(3):
        example(LengthgenConfig(task="copy"), 2, rng, held_out=True)
    assert [p for p, _ in evaluation_examples(LengthgenConfig(task="copy"), 2, 3)] == [
        example(LengthgenConfig(task="copy"), 2, rng, held_out=None)[0] for _ in range(3)
    ] and len(prompts) > 10


def test_collate_marks_target_and_end():
    ids, mask = collate([("Copy: a [SEP] ", "a"), ("Copy: a b [SEP] ", "a b")], "cpu")
    assert [vocabulary.decode(row) for row in ids.tolist()] == [
        "Copy : a [SEP] a <eos> <pad> <pad>",
        "Copy : a b [SEP] a b <eos>",
    ]
    assert mask.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("encoding", ["nope", "t5", "rope", "learned"])
def test_target_logits_are_those_of_each_row_alone(encoding):
    """Rows of different lengths in one batch, padded on the right, and only the last columns computed."""
    config = LengthgenConfig(task="addition")
    torch.manual_seed(0)
    model = Decoder(decoder_config(config, encoding)).eval()
    examples = [example(config, n, Random(n), None) for n in (1, 5, 8)]
    ids, mask = collate(examples, "cpu")
    alone = []
    for prompt, target in examples:
        p, t = vocabulary.encode(prompt), [*vocabulary.encode(target), vocabulary.EOS]
        alone.append(model(input_ids=torch.tensor([p + t])).logits[0, len(p) - 1 : -1])
    torch.testing.assert_close(target_logits(model, ids, mask), torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_one_forward_pass_measures_what_greedy_decoding_writes():
    """Half trained, so that some answers are right: the same count from decoding each prompt token by token."""
    config = LengthgenConfig(
        task="copy",
        updates=250,
        batch_size=16,
        train_lengths=[2, 3],
        test_lengths=[4, 5],
        lr=3e-3,
        examples=40,
        hidden=32,
        heads=2,
    )
    model = train(config, "alibi", 0)
    accuracy = evaluate(model, config)
    for length in (2, 3, 4, 5):
        examples = evaluation_examples(config, length, 40)
        prompts = [vocabulary.encode(prompt) for prompt, _ in examples]
        written = sample(model, prompts, Sampling(20, (vocabulary.EOS,), temperature=0.0), seed=0)
        right = [
            t.finished and tasks.TASKS["copy"].check(p, vocabulary.decode(t.response_ids[:-1]))
            for (p, _), t in zip(examples, written, strict=True)
        ]
        assert accuracy[length] == pytest.approx(sum(right) / 40)
    assert 0 < sum(accuracy.values()) < 4


def test_with_a_scratchpad_the_answer_counts_and_not_the_steps(monkeypatch):
    config = LengthgenConfig(task="parity", scratchpad="co", test_lengths=[9, 9], train_lengths=[8, 8], examples=6)
    shown = {}

    def writes(model, prompts, *_, **__):
        answers = [model(vocabulary.decode(p)) for p in prompts]
        return [
            Trajectory(
                p, [*vocabulary.encode(a), vocabulary.EOS], [0.0] * (len(vocabulary.encode(a)) + 1), shown.get("ends", True)
            )
            for p, a in zip(prompts, answers, strict=True)
        ]

    def parity(prompt):
        return "Yes" if prompt[prompt.index("[") :].count("1") % 2 == 0 else "No"

    monkeypatch.setattr("vine_mini.lengthgen.train.sample", writes)
    right = lambda p: f"Thinking step by step: comp 7 . Thus, The answer is {parity(p)}."  # noqa: E731
    assert evaluate(right, config) == {8: 1.0, 9: 1.0}
    assert evaluate(lambda p: f"The answer is {parity(p)}.", config) == {8: 0.0, 9: 0.0}
    assert evaluate(lambda p: right(p) + " Thus, The answer is Yes.", config) == {8: 0.0, 9: 0.0}
    shown["ends"] = False  # cut by the limit
    assert evaluate(right, config) == {8: 0.0, 9: 0.0}


def test_training_repeats_exactly_and_seeds_differ():
    config = LengthgenConfig(encodings=["nope"], **SMALL)
    one, again, other = (train(config, "nope", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_encodings_become_configurations():
    config = LengthgenConfig(nope_every=3)
    hybrid = Decoder(decoder_config(config, "hybrid"))
    assert [layer.nope for layer in hybrid.model.layers] == [False, False, True]
    assert [layer.nope for layer in Decoder(decoder_config(config, "rope")).model.layers] == [False, False, False]
    assert decoder_config(config, "learned").max_position_embeddings == 256
    assert decoder_config(config, "rope").max_position_embeddings is None


def test_heads_as_wide_as_the_paper_s_give_a_quarter_eight_frequencies():
    wide = decoder_config(LengthgenConfig(encodings=["rope25"]), "rope25")
    qk = torch.randn(2, 1, 4, 5, wide.head_dim)
    turned = ENCODINGS["rope25"].queries_keys(qk, torch.arange(5)[None], wide, {})
    assert (turned != qk).any(dim=3).any(dim=0)[0, 0].tolist() == [True] * 16 + [False] * 48  # 8 pairs of 64 dimensions
    with pytest.raises(UserError, match="turns pairs"):
        LengthgenConfig(encodings=["rope25"], head_dim=4)
    LengthgenConfig(encodings=["nope", "rope", "rope25"], head_dim=6)  # 2 of 6 dimensions are turned


def test_parameters_on_logits_have_no_weight_decay_and_t5_s_learn_slowly():
    config = LengthgenConfig(lr=1e-3, weight_decay=0.05)
    for name, small in {"nope": 0, "t5": 32 * 4, "fire": 2 * 32 + 32 * 4 + 2, "fox": 3 * (256 * 4 + 4), "learned": 0}.items():
        model = Decoder(decoder_config(config, name))
        matrices, numbers = make_optimizer(model, config).param_groups
        sizes = [sum(p.numel() for p in group["params"]) for group in (matrices, numbers)]
        assert sizes == [sum(p.numel() for p in model.parameters()) - small, small]
        assert (matrices["lr"], matrices["weight_decay"]) == (1e-3, 0.05)
        assert (numbers["lr"], numbers["weight_decay"]) == (pytest.approx(1e-4 if name == "t5" else 1e-3), 0.0)
    for full, rate in ((LengthgenConfig(encoding_lr=0.5, lr=1e-3), 5e-4), (FullSizeConfig(), 3e-5)):  # the paper has one rate
        assert make_optimizer(Decoder(decoder_config(config, "t5")), full).param_groups[1]["lr"] == pytest.approx(rate)


def test_a_table_of_biases_moves_by_at_most_about_half_its_rates():
    """The bound of `make_optimizer`: a tenth of lr x updates / 2, here with the largest steps that AdamW makes."""
    config = LengthgenConfig(encodings=["t5"], train_lengths=[2, 3], **SMALL | {"updates": 20, "lr": 1e-2})
    table = train(config, "t5", 0).model.encoding["table"]
    assert 0 < table.abs().max() < 1.3 * 0.1 * 1e-2 * 20 / 2


EXAMPLE = dedent(own.__doc__[own.__doc__.index("    def make") : own.__doc__.index("A file joins")])  # of a task


def test_ids_by_digits_are_for_tasks_with_such_digits(run, tmp_path):
    for words, says in {
        ("--encodings", "coupled"): "coupled is for answers that begin with their lowest digit: give --task addition-reversed",
        ("--encodings", "abacus", "--task", "addition-reversed"): "give a task of your own",
    }.items():
        code, _, err = run(*words, "--out", tmp_path / "run")
        assert code == 2 and says in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["rope-random", "t5-random", "learned-random", "coupled", "abacus"])
def test_encodings_with_ids_of_their_own_train_and_repeat(name, tmp_path):
    mine = tmp_path / "backwards.py"
    mine.write_text(EXAMPLE)
    task = {"coupled": "addition-reversed", "abacus": str(mine)}.get(name, "addition")
    config = LengthgenConfig(task=task, encodings=[name], train_lengths=[1, 2], test_lengths=[3, 3], **SMALL)
    model, again = train(config, name, 0), train(config, name, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert evaluate(model, config) == evaluate(model, config)
    ids, mask = collate([("Compute 1 2 + 9 ? ", "The answer is 2 1.")], "cpu")
    width = widths(name, config)[1]
    got = own_ids(model, ids, mask, Draw(config.max_positions, width, torch.Generator().manual_seed(0)))[0]
    words = [vocabulary.VOCABULARY[i] for i in ids[0]]
    if name.endswith("random"):
        assert (got.diff() > 0).all() and got.max() < config.max_positions
        twice, draw = [x.repeat(2, 1) for x in (ids, mask)], Draw(config.max_positions, width, torch.Generator().manual_seed(0))
        first, second = own_ids(model.eval(), *twice, draw)  # an evaluation draws for each example
        assert torch.equal(first, got) and not torch.equal(second, got)
        assert len(own_ids(model.train(), *twice, draw)) == 1  # training draws once for a batch
    else:
        offset = got.max().item() - 2
        expected = [1, 2, 1, 1, 2] if name == "abacus" else [2, 1, 1, 1, 2]
        assert got[[w.isdigit() for w in words]].tolist() == [e + offset for e in expected]
        assert not got[[not w.isdigit() for w in words]].any()


def test_random_ids_do_not_tell_how_many_tokens_follow():
    """If they were drawn for each sequence's own length, their spacing would tell the model where the answer ends."""
    config = LengthgenConfig(task="copy", encodings=["rope-random"], train_lengths=[2, 6], test_lengths=[7, 12], **SMALL)
    model = Decoder(decoder_config(config, "rope-random")).eval()
    seen, longer = widths("rope-random", config)
    assert (seen, longer) == (2 * 6 + 4, 2 * 12 + 4)  # "Copy", ":", items, "[SEP]", items, the end

    def drawn(length, width):
        ids, mask = collate([(f"Copy: {'a ' * length}[SEP] ", " ".join("a" * length))], "cpu")
        return own_ids(model, ids, mask, Draw(config.max_positions, width, torch.Generator().manual_seed(3)))[0]

    assert torch.equal(drawn(3, seen), drawn(6, seen)[: 2 * 3 + 4])
    assert torch.equal(drawn(7, longer), drawn(12, longer)[: 2 * 7 + 4])


def test_a_training_example_beyond_the_table_is_one_line(tmp_path, monkeypatch):
    config = LengthgenConfig(encodings=["learned"], train_lengths=[2, 6], test_lengths=[7, 8], max_positions=12, **SMALL)
    says = "learned, seed 0: the learned table ends at 12 positions; the sequence is longer: give a larger --max_positions"
    with pytest.raises(UserError, match=says):
        _run((config, "learned", 0, "cpu", tmp_path / "run"), lambda n: None)


def test_training_draws_the_lengths_of_scan_by_example_when_asked(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "vine_mini.lengthgen.train.example", lambda config, n, *_, **__: drawn.append(n) or ("Solve: walk[SEP] ", "Walk")
    )
    for by_example in (False, True):
        config = LengthgenConfig(task="scan", by_example=by_example, **SMALL | {"updates": 60, "layers": 1}, batch_size=1)
        train(config, "nope", 0)
    lengths = tasks.TASKS["scan"].lengths(1, 25)
    commands = [len(languages.scan_commands()[n]) for n in lengths]
    expected = sum(n * c for n, c in zip(lengths, commands, strict=True)) / sum(commands)
    assert abs(mean(drawn[:60]) - mean(lengths)) < 3.5 and abs(mean(drawn[60:]) - expected) < 3  # 3.5 and 4 standard errors


# --- a user's own encoding or task -----------------------------------------------------------------------------------------

OWN = """
from vine_mini.decoder.table import Encoding
ENCODING = Encoding("square root", bias=lambda distance, t, config, w: -distance.clamp(min=0).sqrt()[:, None])
"""


BIAS = "-distance.clamp(min=0).sqrt()"


def test_an_encoding_from_a_file_is_one_of_the_encodings(run, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(OWN)
    words = ["--train_lengths", 2, 3, "--test_lengths", 4, 4, "--seeds", 0, 1, "--processes", 1, *flags(SMALL)]
    code, text, err = run("--encodings", "nope", mine, *words, "--out", tmp_path / "run")
    assert code == 0, err
    assert "| mine" in text and (tmp_path / "run" / "models" / "mine-1" / "model.safetensors").exists()
    code, text, _ = run("attention", tmp_path / "run", "--examples", 1)
    assert code == 0 and "mine" in text
    del ENCODINGS[str(mine)]
    with pytest.raises(ValueError, match="unknown position encoding"):  # a saved model's configuration runs no file
        DecoderConfig(encoding=str(mine))
    model = Decoder(decoder_config(LengthgenConfig(), str(mine))).eval()
    assert not torch.equal(model(input_ids=torch.tensor([[1, 2, 3]])).logits, model(input_ids=torch.tensor([[2, 1, 3]])).logits)


@pytest.mark.parametrize(
    "bias, says",
    [
        (
            f"{BIAS}[:, None][..., : None if distance.shape[-1] < 70 else -1]",
            "bias of mine returns the shape [1, 1, 86, 85]: must be",
        ),
        (f"{BIAS}[:, None] * (1 if distance.shape[-1] < 70 else float('nan'))", "the logits are not finite"),
        (f"{BIAS}[:, None] if distance.shape[-1] < 70 else [1.0]", "bias of mine returns the shape []: must be"),
        (f"{BIAS}[:, None] + (0 if distance.shape[-1] < 70 else 1 / 0)", "line 3: ZeroDivisionError"),
    ],
)
def test_an_encoding_that_fails_at_long_inputs_is_refused_before_it_is_trained(run, bias, says, tmp_path):
    """The first one ended the training with a traceback, the second one got 0 % without a word, the last one was trained again."""
    mine = tmp_path / "mine.py"
    mine.write_text(OWN.replace(f"{BIAS}[:, None]", bias).replace("square root", "mine"))
    words = ["--train_lengths", 2, 3, "--test_lengths", 40, 41, "--processes", 1, *flags(SMALL)]
    code, _, err = run("--encodings", mine, *words, "--out", tmp_path / "run")
    assert code == 2 and f"{mine}, with 86 tokens: " in err and says in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in ENCODINGS if not name.endswith(".py")])
def test_every_encoding_of_the_table_passes_the_check_of_ones_own(name):
    own.check_causal(decoder_config(LengthgenConfig(), name))
    own.check_longest(name, decoder_config(LengthgenConfig(), name), 100)
    if ENCODINGS[name].table:
        own.check_causal(decoder_config(LengthgenConfig(encodings=["nope"], max_positions=3), name))  # a short table


def test_an_encoding_of_ones_own_chooses_its_nope_layers(monkeypatch):
    mine = Encoding("mine", bias=lambda distance, t, config, w: -distance[:, None].float(), nope_every=2)
    monkeypatch.setitem(ENCODINGS, "mine.py", mine)
    shape = decoder_config(LengthgenConfig(encodings=["mine.py"], layers=4), "mine.py")
    assert [layer.nope for layer in Decoder(shape).model.layers] == [False, True, False, True]
    with pytest.raises(UserError, match=r"mine\.py with nope_every = 2 needs as many layers; there are 1"):
        LengthgenConfig(encodings=["mine.py"], layers=1)


def test_two_parameters_of_one_name_are_refused(monkeypatch):
    """One of them took the other's initial values."""
    both = dict(parameters=lambda config: {"scale": torch.zeros(1)}, layer_parameters=lambda config: {"scale": torch.ones(1)})
    monkeypatch.setitem(ENCODINGS, "mine.py", Encoding("mine", **both))
    with pytest.raises(UserError, match="mine has two parameters of the name scale: rename one of them"):
        LengthgenConfig(encodings=["mine.py"])


def test_the_check_of_ones_own_keeps_the_signs_of_parameters(monkeypatch):
    slope = {"slope": torch.ones(1), "zero": torch.zeros(1)}

    def bias(distance, t, config, w):
        return (w["slope"].log() * w["zero"] * distance)[:, None]

    monkeypatch.setitem(ENCODINGS, "mine.py", Encoding("mine", bias=bias, parameters=lambda config: slope))
    shape = decoder_config(LengthgenConfig(encodings=["nope"]), "mine.py")
    own.check_causal(shape)

    def sees_the_length(distance, t, config, w):
        return bias(distance / distance.shape[-1], t, config, w)

    monkeypatch.setitem(ENCODINGS, "mine.py", Encoding("mine", bias=sees_the_length, parameters=lambda config: slope))
    with pytest.raises(ValueError, match="when other tokens follow it"):
        own.check_causal(shape)


def test_a_task_from_a_file_is_one_of_the_tasks(run, tmp_path):
    mine = tmp_path / "backwards.py"
    mine.write_text(EXAMPLE)
    words = ["--encodings", "nope", "abacus", "--seeds", 0, "--train_lengths", 2, 3, "--processes", 1, *flags(SMALL)]
    code, text, err = run("--task", mine, *words, "--out", tmp_path / "run")
    assert code == 0, err
    assert "backwards, length = length: exact match" in text and "paper" not in text.lower()
    mine.write_text(EXAMPLE + "# changed")
    code, _, err = run("--task", mine, *words[:4], 1, *words[5:], "--out", tmp_path / "run")
    assert code == 2 and f"{mine} as it was before it was changed" in err and err.count("\n") == 1
    config = LengthgenConfig(**load_results(tmp_path / "run")["settings"])
    del tasks.TASKS[str(mine)]  # as in a new process
    row = _run((config, "nope", 0, "cpu", tmp_path / "run"), lambda n: None)
    assert row["accuracy"] == load_results(tmp_path / "run")["runs"][0]["accuracy"]


def test_a_file_that_results_name_runs_only_if_the_command_names_it(run, folder, tmp_path, monkeypatch):
    """A results.json of somebody else ran a file."""
    monkeypatch.chdir(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    renamed = [r | {"encoding": "evil.py"} if r["encoding"] == "rope" else r for r in results["runs"]]
    names = ["evil.py" if name == "rope" else name for name in results["settings"]["encodings"]]
    for made, text in (
        (results | {"task": "evil.py", "settings": results["settings"] | {"task": "evil.py"}}, EXAMPLE),
        (results | {"runs": renamed, "settings": results["settings"] | {"encodings": names}}, OWN),
    ):
        Path("evil.py").write_text("import pathlib\npathlib.Path('RAN').touch()\n" + text)
        Path("results.json").write_text(json.dumps(made))
        for command in ("rank", "attention", "probe"):
            code, _, err = run(command, tmp_path)
            assert code == 2 and "names the file evil.py, which would run: add evil.py after the folder" in err
        code, _, err = run("--encodings", "nope", "--out", tmp_path)
        assert code == 2 and "add evil.py to --encodings or as --task, or choose another --out, if you trust it" in err
        assert not Path("RAN").exists()
        code, _, err = run("rank", tmp_path, "evil.py", "--encodings", "nope", "hybrid")
        assert code == 0 and Path("RAN").exists(), err
        Path("RAN").unlink()
        for path in ("evil.py", "../evil.py"):
            loading._run.cache_clear()
            tasks.TASKS.pop(path, None), ENCODINGS.pop(path, None)
        Path("sub").mkdir(exist_ok=True)
        with monkeypatch.context() as m:  # of two ways to write the path, it understood one
            m.chdir("sub")
            code, _, err = run("rank", "..", "../evil.py", "--encodings", "nope", "hybrid")
            assert code == 0 and Path("RAN").exists(), err
        for path in ("evil.py", "../evil.py"):
            tasks.TASKS.pop(path, None), ENCODINGS.pop(path, None)
        loading._run.cache_clear()


def test_another_file_of_the_same_name_replaces_no_model(run, tmp_path, monkeypatch):
    """models/ has file names alone. A file of the name of an encoding in the folder replaced its model, and spoilt the folder."""
    monkeypatch.chdir(tmp_path)
    for path in ("mine.py", "v2/mine.py", "alibi.py"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(OWN)
    words = ["--seeds", 0, "--train_lengths", 2, 3, "--processes", 1, *flags(SMALL), "--out", "run"]
    code, _, err = run("--encodings", "mine.py", "alibi", *words)
    assert code == 0, err
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for other, known in (("v2/mine.py", "mine.py"), ("./mine.py", "mine.py"), ("alibi.py", "alibi")):
        code, _, err = run("--encodings", other, *words)
        assert code == 2 and f"run holds runs with {known}, and {other} has the same file name: write {known}, rename" in err
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_a_changed_file_measures_no_older_models(run, tmp_path, monkeypatch):
    """The distances of attention were those of the changed file, and replaced the right ones."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    words = ["--seeds", 0, 1, "--train_lengths", 2, 3, "--processes", 1, *flags(SMALL), "--out", "run"]
    code, _, err = run("--encodings", "nope", "mine.py", *words)
    assert code == 0, err
    code, text, err = run("rank", "run", "mine.py", "--encodings", "nope", "mine.py")
    assert code == 0 and "| mine " in text and "Not ranked" not in text, err
    assert run("attention", "run", "mine.py", "--examples", 1)[0] == 0
    table = Path("run/attention.md").read_text()
    Path("mine.py").write_text(OWN + "# changed")
    for command in ("attention", "probe"):
        code, _, err = run(command, "run", "mine.py", "--examples", 2)
        assert code == 2 and "run holds runs with another mine.py: its models need the file as it was" in err
    assert Path("run/attention.md").read_text() == table
    assert run("rank", "run", "mine.py", "--encodings", "nope", "mine.py")[0] == 0  # it needs the figures alone


@pytest.mark.parametrize(
    "text, says",
    [
        (OWN.replace("bias=", "parameters=lambda config: {'a': 0.1}, bias="), "the parameter a of square root must be a tensor"),
        (None, "there is no position encoding file"),
        ("x = 1", "lacks ENCODING: a position encoding needs ENCODING"),
        ("ENCODING = 3", "must be an Encoding of vine_mini.decoder.table, not int"),
        (OWN.replace("[:, None])", ")"), "returns the shape [1, 3, 3]: must be [B, H, Q, K] = [1, 4, 3, 3]"),
        (
            OWN.replace("bias=lambda distance, t, config, w: -", "bias=lambda *_: None and "),
            "returns the shape []: must be [B, H",
        ),
        ("ENCODING = (", "line 1: SyntaxError"),
        (OWN.replace(BIAS, "(-distance / distance.shape[-1])"), "the logits of a token change when other tokens follow it"),
        (OWN.replace(BIAS, "(0 * distance / 0)"), "its logits are not finite"),
        (OWN.replace(BIAS, "distance * (distance[:, :1] - distance).sign()"), "with a KV cache its logits differ"),
        (OWN.replace("sqrt", "root"), "has no attribute 'root'"),
    ],
)
def test_a_bad_encoding_file_gets_one_line(run, text, says, tmp_path):
    mine = tmp_path / "mine.py"
    if text:
        mine.write_text(text)
    code, out, err = run("--encodings", mine, "--out", tmp_path / "run")
    assert code == 2 and says in err and err.count("\n") == 1 and not out and not (tmp_path / "run").exists()


LATE = """
import torch
from vine_mini.decoder.table import Encoding
ROWS = torch.zeros(70)
ENCODING = Encoding("late", bias=lambda distance, t, config, w: ROWS[distance.clamp(min=0).long()][:, None])
"""
IDS_OF_THREE = "from vine_mini.decoder.table import Encoding\nENCODING = Encoding('a', ids=lambda *_: 3, table=True)"


@pytest.mark.parametrize(
    "text, says",
    [
        (LATE, "mine.py, line 5: IndexError: index 70 is out of bounds"),
        (IDS_OF_THREE, "mine.py: <lambda>() returned int"),
        (OWN.replace(BIAS, "exit(4)"), "mine.py, line 3: SystemExit: 4"),
    ],
)
def test_an_encoding_file_that_fails_gets_one_line_and_may_be_corrected(run, text, says, tmp_path):
    """A table that was too short for the longest inputs ended in a traceback, and the corrected file was refused."""
    mine, out = tmp_path / "mine.py", tmp_path / "run"
    words = ["--train_lengths", 2, 3, "--test_lengths", 40, 40, "--seeds", 0, "--processes", 1, *flags(SMALL), "--out", out]
    mine.write_text(text)
    code, _, err = run("--encodings", mine, *words)
    assert code == 2 and says in err.splitlines()[-1] and "Traceback" not in err
    assert not out.exists()
    mine.write_text(OWN)
    del ENCODINGS[str(mine)]  # as in a new process
    loading._run.cache_clear()
    code, _, err = run("--encodings", mine, *words)
    assert code == 0 and len(load_results(out)["runs"]) == 1, err


def test_a_file_without_a_finished_run_may_be_changed_beside_other_runs(tmp_path, monkeypatch):
    mine = tmp_path / "mine.py"
    mine.write_text(OWN)
    config = LengthgenConfig(encodings=["nope", str(mine)], seeds=[0], train_lengths=[2, 3], processes=1, **SMALL)
    whole = sweep_module.train

    def train(config, encoding, *rest):
        if encoding != "nope":
            raise UserError("mine fails")
        return whole(config, encoding, *rest)

    monkeypatch.setattr(sweep_module, "train", train)
    with pytest.raises(UserError, match="mine fails"):
        sweep(config, tmp_path / "run")
    mine.write_text(OWN + "# corrected")
    monkeypatch.undo()
    assert len(sweep(config, tmp_path / "run")["runs"]) == 2
    mine.write_text(OWN)
    with pytest.raises(UserError, match="as it was before it was changed"):
        sweep(config, tmp_path / "run")


def test_a_folder_in_use_is_told_without_a_progress_bar(tmp_path, capsys, monkeypatch):
    config = LengthgenConfig(encodings=["nope"], seeds=[0], processes=1, **SMALL)
    (tmp_path / "run").mkdir()

    @contextmanager
    def locked(folder):
        raise UserError(f"{folder} is in use")
        yield

    monkeypatch.setattr(sweep_module, "locked", locked)
    with pytest.raises(UserError, match="is in use"):
        sweep(config, tmp_path / "run")
    assert capsys.readouterr().err == "" and (tmp_path / "run" / "results.json").exists()  # which is the other process's


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "there is no task file"),
        ("def make(length, rng): ...", "lacks check: a task needs make, check"),
        ("def make(length, rng): return 'Zebra', 'a'\ncheck = None", "make(2) writes 'Zebra', which is no token"),
        ("def make(length, rng): return 'Copy', 'a'\ndef check(p, a): return False", "check does not accept"),
        ("def make(length, rng): return 1 / 0\ncheck = None", "line 1: ZeroDivisionError: division by zero"),
        ("def make(length, rng): return 'Copy', 'a'\ndef check(p, a):\n  return p[9]", "line 3: IndexError"),
        ("def make(length, rng): return 'Copy'\ncheck = None", "make(2) must return two texts, a prompt and a target"),
        ("def make(length, rng): ...\ncheck = None", "make(2) must return two texts, a prompt and a target"),
        ("def make(length, rng): return 'Copy', 7\ncheck = None", "make(2) must return two texts, a prompt and a target"),
        ("def make(length, rng): return '', 'a'\ncheck = None", "make(2) must return two texts, a prompt and a target"),
        (
            "from itertools import count\nn = count()\ndef make(length, rng): return 'Copy', 'ab'[next(n) % 2]\ncheck = None",
            "must draw with the rng that it is given, and nothing else",
        ),
        ("def make(length, rng): return 'Copy', 'a'[:21 - length] or 1 / 0\ndef check(p, a): return 1", "ZeroDivisionError"),
    ],
)
def test_a_bad_task_file_gets_one_line(run, text, says, tmp_path):
    mine = tmp_path / "mine.py"
    if text:
        mine.write_text(text)
    code, out, err = run("--task", mine, "--test_lengths", 21, 22, "--encodings", "learned", "--out", tmp_path / "run")
    assert code == 2 and says in err and err.count("\n") == 1 and not out and not (tmp_path / "run").exists()


# --- a decoder as a policy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["nope", "hybrid", "t5"])
def test_vineppo_trains_it(encoding, tokenizer, tmp_path):
    """Saved, loaded through the Auto classes, sampled, scored, rolled out and updated like any other policy."""
    torch.manual_seed(0)
    more = {"encoding": "rope", "nope_every": 2} if encoding == "hybrid" else {"encoding": encoding}
    model = Decoder(
        DecoderConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=0,
            **more,
        )
    )
    save_policy(model, tokenizer, tmp_path / "policy")
    config = TrainConfig(
        model=str(tmp_path / "policy"),
        prompts=4,
        group=2,
        k=2,
        minibatch_size=8,
        iterations=1,
        epochs=1,
        max_new_tokens=12,
        step_tokens=4,
        gradient_checkpointing=True,
    )
    trainer = build_trainer(config)
    [(metrics, episodes, _)] = list(trainer.train())
    assert metrics["ratio"] == pytest.approx(1, abs=1e-4) and metrics["sampler_gap"] < 1e-4
    assert len(episodes.trajectories) == 8


# --- commands --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_leaves_results_table_picture_and_models(run, tmp_path):
    out = tmp_path / "run"
    code, text, _ = run(
        "--encodings",
        "nope",
        "t5",
        "--seeds",
        0,
        3,
        "--train_lengths",
        2,
        3,
        "--test_lengths",
        4,
        5,
        "--processes",
        2,
        "--out",
        out,
        *flags(SMALL),
    )
    assert (
        code == 0 and "copy, length = items in the input: exact match in %" in text and "paper" not in text and str(out) in text
    )
    results = json.loads((out / "results.json").read_text())
    assert [(r["encoding"], r["seed"]) for r in results["runs"]] == [("nope", 0), ("nope", 3), ("t5", 0), ("t5", 3)]
    assert list(results["runs"][0]["accuracy"]) == ["2", "3", "4", "5"]
    assert (out / "accuracy.png").stat().st_size > 5000 and (out / "table.md").read_text().strip() in text
    model, tokenizer = load_policy(str(out / "models" / "t5-3"), "cpu")  # the weights of that run, in a folder like any other
    assert model.config.encoding == "t5" and tokenizer("Copy: a")["input_ids"] == vocabulary.encode("Copy: a")
    again = train(LengthgenConfig(**results["settings"]), "t5", 3)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_a_sweep_that_was_interrupted_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    config = LengthgenConfig(encodings=["nope", "alibi"], seeds=[0, 1], train_lengths=[2, 3], processes=1, **SMALL)
    trained = []

    interruptions = [KeyboardInterrupt(), BrokenProcessPool()]

    def counted(config, name, seed, *rest):
        if len(trained) == 2 and interruptions:
            raise interruptions.pop(0)
        trained.append((name, seed))
        return train(config, name, seed, *rest)

    monkeypatch.setattr("vine_mini.lengthgen.sweep.train", counted)
    for says in ("2 of 4 runs are kept", "lack of memory"):
        with pytest.raises((KeyboardInterrupt, UserError)) as raised:
            sweep(config, out)
        assert says in capsys.readouterr().err + str(raised.value)
    assert trained == [("nope", 0), ("alibi", 0)]
    with pytest.raises(UserError, match="2 of 4 runs are missing"):
        load_results(out)
    sweep(config, out)
    assert trained[2:] == [("nope", 1), ("alibi", 1)]
    monkeypatch.undo()
    whole = sweep(LengthgenConfig(**load_results(out)["settings"] | {"processes": 1}), tmp_path / "whole")
    assert [r["accuracy"] for r in whole["runs"]] == [r["accuracy"] for r in load_results(out)["runs"]]
    results_before = load_results(out)["settings"]
    with pytest.raises(UserError, match="holds a run with updates = 3"):
        sweep(LengthgenConfig(**load_results(out)["settings"] | {"updates": 4}), out)
    more = LengthgenConfig(**load_results(out)["settings"] | {"encodings": ["rope"], "seeds": [0], "processes": 1})
    runs = [(r["encoding"], r["seed"]) for r in sweep(more, out)["runs"]]
    assert runs == [("nope", 0), ("nope", 1), ("alibi", 0), ("alibi", 1), ("rope", 0)]
    assert load_so_far(out)["settings"] | {"seeds": [], "encodings": []} == results_before | {"seeds": [], "encodings": []}
    assert load_so_far(out)["settings"]["seeds"] == [0]  # the seed that all three encodings have
    mine = tmp_path / "mine.py"
    mine.write_text(OWN)
    own_one = LengthgenConfig(**load_so_far(out)["settings"] | {"encodings": [str(mine)], "seeds": [0], "processes": 1})
    assert (str(mine), 0) in [(r["encoding"], r["seed"]) for r in sweep(own_one, out)["runs"]]
    mine.write_text(OWN + "# changed")
    with pytest.raises(UserError, match="as it was before it was changed"):
        sweep(own_one, out)


def test_an_interrupted_sweep_without_a_finished_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("vine_mini.lengthgen.sweep.train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        sweep(LengthgenConfig(processes=1, **SMALL), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sweep_that_is_killed_before_any_change_goes_on_with_the_same_command(run, tmp_path, monkeypatch):
    """Before its first results were in place, the folder was neither continued nor used again."""
    model = train(LengthgenConfig(encodings=["nope"], seeds=[0], **SMALL), "nope", 0)
    monkeypatch.setattr("vine_mini.lengthgen.sweep.train", lambda *_: model)
    monkeypatch.setattr("vine_mini.lengthgen.sweep.evaluate", lambda model, config, _: dict.fromkeys(config.lengths(), 0.5))
    monkeypatch.setattr("vine_mini.lengthgen.pictures.plot_accuracy", lambda results, path: write_text(path, "picture"))
    flags = ["--encodings", "nope", "--seeds", 0, "--updates", 3, "--processes", 1, "--out", tmp_path / "run"]
    n, ended = 0, [True]
    while ended:
        with killed_before_change(n, tmp_path) as ended:
            run(*flags)
        code, _, err = run(*flags)
        assert code == 0, err
        assert {p.name for p in (tmp_path / "run").iterdir()} == {"results.json", "models", "table.md", "accuracy.png"}
        assert [p.name for p in (tmp_path / "run" / "models").iterdir()] == ["nope-0"]
        assert len(load_results(tmp_path / "run")["runs"]) == 1
        shutil.rmtree(tmp_path / "run")
        n += 1
    assert n > 20 and list(tmp_path.iterdir()) == []


def test_training_that_diverges_is_told(run, tmp_path):
    code, _, err = run(
        "--lr", 1e30, "--encodings", "nope", "--seeds", 0, "--updates", 5, "--processes", 1, "--out", tmp_path / "run"
    )
    path = tmp_path / "run-diverged" / "nope-0" / "diverged.json"
    assert code == 2 and "nope, seed 0, update 2: the gradient is not finite" in err and str(path) in err and "lower --lr" in err
    assert not (tmp_path / "run").exists()
    found = json.loads(path.read_text())
    assert (
        len(found["metrics"]["loss"]) == 2 and len(found["ids"]) == 32 and vocabulary.decode(found["ids"][0]).startswith("Copy")
    )


@pytest.mark.slow
def test_a_run_that_diverges_does_not_stop_its_neighbours(run, tmp_path, monkeypatch):
    whole = sweep_module.train

    def train(config, encoding, *rest):
        if encoding == "alibi":
            raise Diverged("alibi, seed 0: training diverged at update 3; lower --lr (now 0.002)")
        return whole(config, encoding, *rest)

    monkeypatch.setattr(sweep_module, "train", train)
    words = ("--encodings", "nope", "alibi", "t5", "--seeds", 0, "--updates", 2, "--processes", 1, "--out", tmp_path / "run")
    code, _, err = run(*words)
    assert code == 2 and "diverged at update 3" in err
    made = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
    assert [each["encoding"] for each in made] == ["nope", "t5"]


@pytest.mark.slow
def test_lost_results_beside_models_are_made_again(run, tmp_path):
    words = ("--encodings", "nope", "--seeds", 0, "--updates", 2, "--processes", 1, "--out", tmp_path / "run")
    assert run(*words)[0] == 0
    config = load_results(tmp_path / "run")["settings"]
    (tmp_path / "run" / "results.json").unlink()
    sweep_module.sweep(LengthgenConfig(**config), tmp_path / "run")
    assert len(load_results(tmp_path / "run")["runs"]) == 1


def test_broken_or_foreign_models_are_refused(run, folder, tmp_path):
    for change in ("truncated", "deeper", "other"):
        copy = tmp_path / change
        shutil.copytree(folder, copy)
        model = copy / "models" / "nope-0"
        if change == "truncated":
            weights = (model / "model.safetensors").read_bytes()
            (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        elif change == "deeper":  # transformers would fill the third layer with random numbers
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        else:
            shutil.rmtree(model)
            shutil.copytree(copy / "models" / "rope-0", model)
        code, _, err = run("attention", copy, "--examples", 1)
        last = err.strip().splitlines()[-1]
        assert code == 2 and "nope-0" in last and ("cannot be loaded" in last or "not the model" in last), change


def test_an_unknown_token_in_a_prompt_is_told(folder, capsys):
    assert cli.main(["sample", "--model", str(folder / "models" / "nope-0"), "--question", "Zoe has 25 pens"]) == 2
    assert "no tokens for the prompt" in capsys.readouterr().err
    arguments = ["--prompt", "{question}", "--question", "Copy: a a [SEP]", "--temperature", "0", "--max_new_tokens", "5"]
    assert cli.main(["sample", "--model", str(folder / "models" / "nope-0"), *arguments]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads Linux's /proc")
def test_workers_end_with_a_parent_that_is_killed():
    """They used to stay for ever, waiting for more to do."""
    code = """
import multiprocessing, os, time
from vine_mini.lengthgen.sweep import _start_worker
def work(counter, pids):
    _start_worker(counter)
    pids.put(os.getpid())
    time.sleep(60)
fork = multiprocessing.get_context("fork")
pids = fork.SimpleQueue()
fork.Process(target=work, args=(fork.Value("q", 0), pids)).start()
print(pids.get(), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    worker = Path(f"/proc/{int(done.stdout)}")
    for _ in range(50):
        if not worker.exists() or "(zombie)" in (worker / "status").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the worker is still there")


@pytest.mark.slow
def test_attention_probe_and_rank_read_a_run(run, folder, tmp_path):
    code, text, _ = run("attention", folder, "--examples", 2)
    assert code == 0 and "nope, other seed" in text and (folder / "attention.png").stat().st_size > 5000
    distances = json.loads((folder / "attention.json").read_text())
    for name in ("nope", "rope", "hybrid", "learned"):
        assert 0 < distances["means"]["Jensen-Shannon"][name]["all layers"] < 0.6932
        assert distances["means"]["official code"][name]["all layers"] > 0
        seeds = distances["of each seed"]["Jensen-Shannon"][name]
        assert len(seeds) == 2 and mean(seeds) == pytest.approx(distances["means"]["Jensen-Shannon"][name]["all layers"])
    code, text, _ = run("probe", folder, "--examples", 3)
    assert code == 0 and "after layer 2" in text and (folder / "probe.png").stat().st_size > 5000
    probed = json.loads((folder / "probe.json").read_text())["networks"]
    assert [len(probed[name]) for name in ("trained", "untrained", "constructed")] == [2, 2, 1]
    assert probed["constructed"][0]["after layer 1"]["t"]["longer"] > 1 - 1e-6
    config = LengthgenConfig(**load_results(folder)["settings"])
    stored = report.by_length(load_results(str(folder)))["nope"]
    models = [load_model(folder, config, "nope", seed) for seed in config.seeds]
    again = [evaluate(model, config) for model in models]
    assert stored == {length: [shares[length] for shares in again] for length in config.lengths()}
    code, text, _ = run("rank", folder, "--out", tmp_path / "rank")
    assert code == 0 and "mean reciprocal rank" in text and (tmp_path / "rank" / "rank.png").stat().st_size > 5000
    code, text, _ = run("rank", folder, "--encodings", "hybrid", "learned", "nope", "--out", tmp_path / "rank")
    head = [cell.strip() for cell in text.splitlines()[0].split("|")[2:-1]]
    assert code == 0 and head == ["hybrid", "learned", "nope", "rope"] and "0.687" not in text and "Not ranked: rope." in text
    code, text, err = run("rank", folder, "--encodings", "hybrid", "fire")
    assert code == 2 and "have only hybrid of these encodings in common" in err
    table = report.accuracy_table(load_results(folder)).splitlines()
    assert table[2].split("|")[-2].strip() == "minus nope, 95 % interval"
    gaps = [100 * (report.extrapolation(load_results(folder))["rope"][s] - by) for s, by in stored_means(folder).items()]
    rope = next(line for line in table if line.startswith("| rope "))
    assert rope.split("|")[-2].split()[0] == f"{sum(gaps) / 2:+.1f}"


def stored_means(folder):
    return report.extrapolation(load_results(folder))["nope"]


def test_defaults_fit_the_task():
    assert LengthgenConfig(task="scan", train_lengths=[1, 30]).test_lengths == [31, 48]
    assert LengthgenConfig(task="lego", train_lengths=[2, 14]).test_lengths == [15, 26]
    assert LengthgenConfig(train_lengths=[2, 10]).test_lengths == [11, 20]
    assert LengthgenConfig(test_lengths=[21, 23]).lengths() == list(range(2, 24))


@pytest.mark.parametrize("more", [{"task": "copy"}, {"task": "parity", "scratchpad": "co"}])
def test_a_learned_table_may_be_exactly_as_long_as_the_longest_sequence(more):
    config = LengthgenConfig(encodings=["learned"], train_lengths=[2, 3], test_lengths=[4, 6], **SMALL | more)
    config.max_positions = longest_sequence(config, config.lengths())
    check_positions(config)
    model = Decoder(decoder_config(config, "learned")).eval()
    evaluate(model, config)  # nothing is past the end of the table
    config.max_positions -= 1
    with pytest.raises(UserError, match=f"give --max_positions {config.max_positions + 1}"):
        check_positions(config)


def test_theory_command(run, tmp_path):
    code, text, _ = run("theory", "--length", 15, "--out", tmp_path / "theory")
    assert code == 0 and "Theorem 2" in text and (tmp_path / "theory" / "theory.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "words, says",
    [
        (["--task", "multiply"], "unknown task 'multiply': choose from copy"),
        (["--encodings", "absolute"], "unknown position encoding 'absolute': choose from nope"),
        (["--encodings", "nope", "nope"], "each of them once"),
        (["--scratchpad", "long", "--task", "addition"], "unknown scratchpad 'long'"),
        (["--scratchpad", "full"], "gives copy no scratchpad"),
        (["--by_example"], "the lengths of copy have equally many examples"),
        (["--train_lengths", "9", "3"], "train_lengths = 9 3: the shortest"),
        (["--train_lengths", "5"], "two numbers"),
        (["--test_lengths", "20", "11"], "test_lengths = 20 11"),
        (["--test_lengths", "8", "20"], "above the longest train length, 20"),
        (["--task", "scan", "--test_lengths", "34", "35"], "no example of such a length"),
        (["--task", "lego", "--test_lengths", "9", "27"], "lego ends at 26"),
        (["--max_positions", "30"], "past the 30 of learned"),
        (["--hidden", "7"], "vectors of sinusoidal returns the shape [1, 3, 8]: must be [B, T, D] = [1, 3, 7]"),
        (["--updates", "0"], "updates = 0"),
        (["--lr", "nan"], "lr = nan"),
        (["--seeds", "-1"], "seeds"),
        (["--device", "warp"], "'warp'"),
        (["--encodings", "hybrid", "--nope_every", "9"], "nope_every = 9"),
        (["--colour", "red"], "unrecognized"),
        (
            ["--max_positions", "999999999", "--encodings", "rope-random"],
            "max_positions = 999999999: must be at least 1 and at most",
        ),
        (["train"], "unknown command 'train': choose from study"),
        (["theory", "63"], "unrecognized arguments: 63"),
        (["--out", ""], "--out is empty"),
        (["--heads", "0"], "heads = 0"),
        (["--head_dim", "7"], "head_dim = 7: RoPE turns pairs"),
        (["--heads", "64", "--head_dim", "65536"], "days and"),
        (["rank"], "name at least one folder"),
        (["rank", "--encodings", "nope", "rope", "lg"], "runs first: lengthgen rank FOLDER --encodings ..."),
        (["attention", "--examples", "5", "lg"], "runs first: lengthgen attention FOLDER --examples ..."),
        (["--task", "~nouser-there/x.py"], "there is no task file"),
        (["--encodings", "~nouser-there/x.py"], "there is no position encoding file"),
        (["rank", "nowhere"], "nowhere has no results.json"),
        (["attention", "nowhere"], "nowhere has no results.json"),
        (["attention"], "name one folder"),
        (["probe", "nowhere"], "nowhere has no results.json"),
        (["probe"], "name one folder"),
        (["probe", "nowhere", "--examples", "1"], "examples = 1"),
        (["attention", "nowhere", "--examples", "0"], "examples = 0"),
        (["--task", "lego", "--scratchpad", "v"], "would write nothing"),
        (["--task", "lego", "--train_lengths", "2", "26"], "which leaves none to test"),
        (["--encodings", "hybrid", "--nope_every", "1"], "nope_every = 1"),
        (["theory", "--length", "1"], "length = 1"),
    ],
)
def test_bad_input_gets_one_line(run, words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert code == 2 and says in err and err.count("\n") == 1 and not out
    assert not list(Path().rglob("*"))  # nothing half-written


def test_a_table_of_positions_counts_in_the_estimate(monkeypatch):
    counted = []

    def check_cost(config, parameters, *_):
        counted.append(parameters)
        raise UserError("enough")

    monkeypatch.setattr("vine_mini.lengthgen.commands.check_cost", check_cost)
    for encoding, positions in (("nope", 10**6), ("learned", 256), ("learned", 10**6)):
        with pytest.raises(UserError, match="enough"):
            commands.train(LengthgenConfig(encodings=[encoding], hidden=32, max_positions=positions))
    none, few, many = counted
    assert few - none == 256 * 32 and many - none == 10**6 * 32


def test_foreign_and_unfinished_results_are_refused(run, folder, tmp_path):
    foreign = tmp_path / "results.json"
    for text in ("", "[]", "{}", '{"runs": [{"accuracy": {"x": 1}}]}'):
        foreign.write_text(text)
        assert run("rank", tmp_path)[0] == 2
    results = json.loads((folder / "results.json").read_text())
    for broken in (
        results | {"runs": results["runs"][:-1]},
        results | {"runs": [*results["runs"][:-1], results["runs"][0]]},
        results | {"task": "reverse"},
        results | {"settings": results["settings"] | {"colour": "red"}},
        results | {"settings": results["settings"] | {"test_lengths": [5, 9]}},
        results | {"settings": results["settings"] | {"examples": 10.5}},
        results | {"settings": results["settings"] | {"train_lengths": None}},
        results | {"files": 7},
        results | {"runs": [r | {"seed": 5} if r["seed"] == 1 else r for r in results["runs"]]},
    ):
        foreign.write_text(json.dumps(broken))
        code, _, err = run("rank", tmp_path)
        assert code == 2 and err.count("\n") == 1
    code, _, err = run("rank", folder, folder)
    assert code == 2 and "two results are of copy" in err


# --- ranks -----------------------------------------------------------------------------------------------------------------


def test_mean_reciprocal_rank_by_hand():
    first, second = {"a": 0.9, "b": 0.5, "c": 0.1}, {"a": 0.2, "b": 0.8, "c": 0.0}
    for tasks_ in ([[first], [second]], [[first, first, first], [second]]):  # a task with more seeds counts as much
        assert ranking.mean_reciprocal_rank(tasks_) == pytest.approx({"a": 0.75, "b": 0.75, "c": 1 / 3})
    tied = [[{"a": 0.0, "b": 0.9, "c": 0.0}]]
    assert ranking.mean_reciprocal_rank(tied) == pytest.approx({"a": 1 / 2.5, "b": 1.0, "c": 1 / 2.5})
    assert ranking.mean_reciprocal_rank([[{"c": 0.0, "b": 0.9, "a": 0.0}]]) == pytest.approx(ranking.mean_reciprocal_rank(tied))


def test_intervals_are_over_families_of_tasks():
    values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    names = list("abcdefgh")
    mean, low, high = ranking.family_interval(values, names)
    expected = intervals.interval(values)  # the jackknife of a plain mean is Student's t
    assert (mean, low, high) == pytest.approx(expected)
    variants = [value for value in values for _ in range(3)], [name for name in names for _ in range(3)]
    assert ranking.family_interval(*variants) == pytest.approx(expected)  # three equal variants tell no more than one task
    assert ranking.family_interval(values[:7], names[:7])[1:] == (-math.inf, math.inf)
    assert ranking.family_interval([*values[:7], 9.0], [*names[:7], "a"])[1:] == (-math.inf, math.inf)  # seven families
    first, second = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}
    ranks = ranking.rank_intervals([[first, second]] * 4 + [[first]] * 4, names)  # 3/4 four times, 1 four times
    assert ranks["a"] == pytest.approx(intervals.interval([0.75] * 4 + [1.0] * 4)[1:])
    assert [ranking.family(task) for task in ("copy-2x", "copy", "a-b/my-task.py")] == ["copy", "copy", "a-b/my-task.py"]


def test_the_interval_over_the_study_s_families_covers_nine_times_in_ten():
    families = [name for name, size in zip("abcdefghij", (5, 3, 2, *[1] * 7), strict=True) for _ in range(size)]
    rng, inside = Random(0), 0
    for _ in range(1000):
        effect = {name: rng.gauss() for name in families}
        _, low, high = ranking.family_interval([effect[name] + 0.5 * rng.gauss() for name in families], families)
        inside += low <= 0 <= high
    assert 895 <= inside <= 950


def test_scan_is_averaged_over_lengths_and_over_its_commands(run, tmp_path):
    path = Path(__file__).parents[2] / "results" / "lengthgen" / "study"
    results = load_so_far(path / "scan")  # its further seeds may be under way
    (tmp_path / "results.json").write_text(json.dumps(results))
    for each in results["runs"]:
        each["accuracy"] = {n: float(n == 26 or n <= 25) for n in each["accuracy"]}
    assert report.extrapolation(results)["nope"][0] == pytest.approx(1 / 9)
    assert report.extrapolation(results, by_example=True)["nope"][0] == pytest.approx(512 / 3136)  # of the paper's test set
    assert "| 26-48, by example" in report.accuracy_table(results) and "by example" not in report.accuracy_table(
        load_so_far(path / "sort")
    )
    code, text, _ = run("rank", tmp_path, path / "sort")
    assert code == 0 and "| scan, by example " in text and "95 % interval" not in text  # two families are too few
    eight = [load_so_far(path / name) for name in "copy reverse scan sum parity sort lego polynomial".split()]
    assert "95 % interval" in ranking.rank_table(eight)
    assert "95 % interval" not in ranking.rank_table([*eight[:-1], load_so_far(path / "copy-2x")])  # of the same family


def test_the_paper_s_means_rank_as_its_figure_says():
    """0.696, 0.574 and 0.475 are those of the unrounded means; rounded, T5 and RoPE tie on PCFG, which takes 1/3 of 1/17 from T5."""
    from vine_mini.lengthgen.paper import ACCURACY, COLUMNS, MEAN_RECIPROCAL_RANK

    ranks = ranking.mean_reciprocal_rank([[dict(zip(COLUMNS, row, strict=True))] for row in ACCURACY.values()])
    assert ranks["nope"] == pytest.approx(0.696, abs=1e-3) and ranks["t5"] == pytest.approx(0.574 - 1 / 51, abs=1e-3)
    assert ranks["alibi"] == pytest.approx(0.475, abs=1e-3)
    assert [*ranks] == sorted(ranks, key=ranks.get, reverse=True)
    assert list(MEAN_RECIPROCAL_RANK) == sorted(MEAN_RECIPROCAL_RANK, reverse=True)


def test_tables_average_lengths_and_seeds(folder):
    results = load_results(str(folder))
    for k, run in enumerate(results["runs"]):
        run["accuracy"] = {2: 1.0, 3: 1.0, 4: 1.0, 5: 0.6, 6: 0.2 + 0.1 * (k % 2), 7: 0.0, 8: 0.0}
    table = report.accuracy_table(results)
    assert "| nope    | 100.0 ± 0.0 | 60.0 ± 0.0 | 25.0 ± 7.1" in table and "2 seeds, 3 updates on 32 examples each" in table
    assert report.extrapolation(results)["nope"] == pytest.approx({0: 0.2, 1: 0.225})


def test_the_recipe_of_training(monkeypatch):
    """Betas (0.9, 0.98); gradients of norm 1; the rate rises over 6 % of the updates, then falls linearly to 5 %."""
    rates, norms, step = [], [], torch.optim.AdamW.step

    def record(self, *args, **more):
        group = self.param_groups[0]
        rates.append(group["lr"])
        assert group["betas"] == (0.9, 0.98)
        norms.append(torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]).norm())
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    train(LengthgenConfig(encodings=["nope"], train_lengths=[2, 3], **SMALL | {"updates": 50, "lr": 1.0}), "nope", 0)
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0]) and max(rates) == pytest.approx(1.0)
    assert rates[3] == pytest.approx(1.0) and rates[-1] == pytest.approx(1 - 0.95 * 46 / 47)
    assert rates[20] == pytest.approx(1 - 0.95 * 17 / 47)
    assert max(norms) <= 1.0 + 1e-4 and max(norms) > 0.999  # the first gradients are larger


def test_results_of_the_version_before_say_what_to_change(tmp_path):
    found = json.loads((Path(__file__).parents[2] / "results/lengthgen/study/copy/results.json").read_text())
    found["settings"]["steps"] = found["settings"].pop("updates")
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match='older version wrote it: rename "steps" to "updates"'):
        load_results(tmp_path)
