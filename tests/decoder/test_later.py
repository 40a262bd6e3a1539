"""The encodings that came after the paper: each against loops written from its definition, or against a limit that is known.

official.json holds what the official code of Abacus, and its class FIRE, compute.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Cohere2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.cohere2.modeling_cohere2 import create_sliding_window_causal_mask
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from vine_mini.decoder import later
from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.decoder.positions import alibi_bias, alibi_slopes, apply_rotary, freqs_cis, rope
from vine_mini.decoder.table import ENCODINGS, Encoding, check_shapes

H, T = 4, 7
T_I = torch.arange(T)[:, None] - torch.arange(T)  # t - i
DISTANCE, CAUSAL = T_I[None], T_I >= 0
OFFICIAL = json.loads(Path(__file__).with_name("official.json").read_text())


def decoder(encoding, like=None, **settings):
    """A small decoder in float64, with the weights of `like` where it has them."""
    torch.manual_seed(0)
    if ENCODINGS[encoding].table:
        settings["max_position_embeddings"] = 40
    model = Decoder(DecoderConfig(vocab_size=23, hidden_size=32, encoding=encoding, **settings)).double().eval()
    if like is not None:
        model.load_state_dict(like.state_dict(), strict=False)
    return model


def logits(model, ids=None, **inputs):
    ids = torch.randint(0, 23, (2, T), generator=torch.Generator().manual_seed(1)) if ids is None else ids
    return model(input_ids=ids, use_cache=False, **inputs).logits


def same_where_seen(a, b):
    torch.testing.assert_close(a[..., CAUSAL], b[..., CAUSAL], check_dtype=False)


# --- position ids ----------------------------------------------------------------------------------------------------------


def test_randomized_positions_are_a_sorted_random_subset():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([later.randomized(5, 20, generator) for _ in range(400)])
    assert (drawn.diff(dim=1) > 0).all() and drawn.min() == 0 and drawn.max() == 19
    counts = drawn.flatten().bincount(minlength=20)
    assert (counts > 60).all() and (counts < 145).all()  # 100 expected, standard deviation below 10
    assert later.randomized(6, 6).tolist() == [[0, 1, 2, 3, 4, 5]]
    with pytest.raises(ValueError, match="there are 5"):
        later.randomized(6, 5)


@pytest.mark.parametrize("name", ["rope", "alibi", "t5", "sinusoidal", "learned", "kerple", "fire", "hybrid-window", "p-rope"])
def test_position_ids_are_places_in_a_longer_sequence_whose_other_tokens_are_hidden(name):
    model = decoder(name)
    torch.nn.init.normal_(next(iter(model.model.encoding.values()), torch.empty(1)), std=0.3)
    places = torch.tensor([0, 3, 4, 9, 17, 18, 25])
    short = torch.randint(0, 23, (2, T), generator=torch.Generator().manual_seed(1))
    long = torch.randint(0, 23, (2, 30))
    long[:, places] = short
    visible = torch.zeros(30, dtype=torch.bool).index_fill(0, places, True) & torch.ones(30, 30).tril().bool()
    mask = torch.zeros(1, 1, 30, 30, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    expected = logits(model, long, attention_mask=mask)[:, places]
    torch.testing.assert_close(logits(model, short, position_ids=places[None]), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(model, short, position_ids=places.expand(2, -1)), expected, rtol=1e-5, atol=1e-5)
    rows = torch.stack([places, torch.arange(T)])  # another row of ids for each sequence
    both = logits(model, short, position_ids=rows)
    torch.testing.assert_close(both[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[1], logits(model, short)[1], rtol=1e-5, atol=1e-5)


def test_llama_turns_by_the_same_position_ids():
    q, places = torch.randn(1, 2, 6, 16), torch.tensor([[0, 3, 4, 9, 17, 40]])
    halves = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])
    cos, sin = LlamaRotaryEmbedding(LlamaConfig(hidden_size=32, num_attention_heads=2))(q, places)
    llama, _ = apply_rotary_pos_emb(q[..., halves], q[..., halves], cos, sin)
    torch.testing.assert_close(apply_rotary(q, freqs_cis(places, 16))[..., halves], llama)


def test_randomized_positions_give_the_logits_of_a_llama_with_the_same_position_ids():
    """A whole Llama of Hugging Face with our weights; only its MLPs are ours, because Llama's are gated."""
    ours, d = decoder("rope-random"), 8
    shape = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=23)
    llama = LlamaForCausalLM(LlamaConfig(**shape, rms_norm_eps=1e-6)).double().eval()
    halves = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])  # Llama pairs j with j + d / 2
    with torch.no_grad():
        for mine, theirs in zip(ours.model.layers, llama.model.layers, strict=True):
            q, k, v = mine.attention.qkv.weight.view(3, 4, d, 32)
            theirs.self_attn.q_proj.weight.copy_(q[:, halves].flatten(0, 1))
            theirs.self_attn.k_proj.weight.copy_(k[:, halves].flatten(0, 1))
            theirs.self_attn.v_proj.weight.copy_(v.flatten(0, 1))
            theirs.self_attn.o_proj.weight.copy_(mine.attention.out.weight)
            theirs.mlp = torch.nn.Sequential(mine.up, torch.nn.ReLU(), mine.down)
        llama.model.embed_tokens.weight.copy_(ours.model.embed.weight)
        llama.lm_head.weight.copy_(ours.lm_head.weight)
    ids = torch.randint(0, 23, (2, T), generator=torch.Generator().manual_seed(1))
    places = torch.cat([later.randomized(T, 60, torch.Generator().manual_seed(seed)) for seed in (2, 3)])
    assert (places[0] != places[1]).any()
    theirs = logits(llama, ids, position_ids=places, attention_mask=torch.ones_like(ids))  # or gaps would begin new sequences
    torch.testing.assert_close(logits(ours, ids, position_ids=places), theirs, rtol=1e-5, atol=1e-5)


def test_the_window_is_that_of_cohere2():
    config = Cohere2Config(hidden_size=32, num_attention_heads=4, sliding_window=3, attn_implementation="eager")
    theirs = create_sliding_window_causal_mask(config, torch.zeros(1, T, 32), attention_mask=None, past_key_values=None)
    torch.testing.assert_close((later.window(DISTANCE, 3)[0, 0] == 0) & CAUSAL, theirs[0, 0] == 0)


ADDITIONS = ["Compute 7 2 6 + 5 7 ? The answer is 3 8 7 .", "Compute 4 + 9 ? The answer is 3 1 . <eos> <pad> <pad> <pad>"]


def marked():
    words = [row.split() for row in ADDITIONS]
    is_digit = torch.tensor([[w.isdigit() for w in row] for row in words])
    return is_digit, torch.tensor([[k > row.index("?") for k in range(len(row))] for row in words])


def test_abacus_counts_the_digits_of_each_number():
    is_digit, _ = marked()
    assert later.abacus_ids(is_digit).tolist() == [
        [0, 1, 2, 3, 0, 1, 2, 0, 0, 0, 0, 1, 2, 3, 0],
        [0, 1, 0, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0],
    ]


def test_abacus_counts_a_number_with_which_a_sequence_begins():
    assert later.abacus_ids(torch.tensor([[True, True, False, True]])).tolist() == [[1, 2, 0, 1]]


def test_abacus_ids_are_those_of_the_official_code():
    is_digit = torch.tensor([[c == "1" for c in mask] for mask in OFFICIAL["abacus"]])
    assert later.abacus_ids(is_digit).tolist() == [*OFFICIAL["abacus"].values()] and is_digit.any() and not is_digit.all()


def test_coupled_digits_of_the_same_significance_share_an_id():
    """726 + 57 and 4 + 9. The prompt is in plain order, the answer begins with its lowest digit."""
    is_digit, is_answer = marked()
    assert later.coupled_ids(is_digit, is_answer).tolist() == [
        [0, 3, 2, 1, 0, 2, 1, 0, 0, 0, 0, 1, 2, 3, 0],
        [0, 1, 0, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0],
    ]


def test_shifted_ids_stay_below_the_largest():
    ids = torch.tensor([[0, 3, 2, 1, 0], [0, 1, 0, 1, 0]])
    starts = {later.shifted(ids, 6)[0, 1].item() for _ in range(100)}
    assert starts == {3, 4, 5}
    moved = later.shifted(ids, 6) - ids
    assert (moved[ids == 0] == 0).all() and len(moved[ids > 0].unique()) == 1
    assert torch.equal(later.shifted(ids, 4), ids)  # they just fit
    with pytest.raises(ValueError, match="ids up to 3 do not fit below 3"):
        later.shifted(ids, 3)


# --- queries and keys ------------------------------------------------------------------------------------------------------


def test_p_rope_lies_between_nope_and_rope():
    qk, t = torch.randn(2, 1, 2, 5, 16, dtype=torch.float64), torch.arange(5)[None]
    assert torch.equal(rope(qk, t, p=1), rope(qk, t)) and torch.equal(rope(qk, t, p=0), qk)
    half, whole = rope(qk, t, p=0.5), rope(qk, t)
    assert torch.equal(half[..., :8], whole[..., :8])  # the first pairs are the fast ones
    assert torch.equal(half[..., 8:], qk[..., 8:]) and not torch.equal(whole[..., 8:], qk[..., 8:])


def test_equal_head_scales_are_a_temperature_of_the_attention():
    nope = decoder("nope")
    scaled = decoder("head-scale", like=nope)
    for layer, plain in zip(scaled.model.layers, nope.model.layers, strict=True):
        torch.nn.init.constant_(layer.attention.encoding["scale"], 1 / 0.8)
        plain.attention.scale /= 0.8
    torch.testing.assert_close(logits(scaled), logits(nope))
    torch.nn.init.constant_(scaled.model.layers[0].attention.encoding["scale"][1:2], 3.0)
    assert not torch.allclose(logits(scaled), logits(nope))


def test_log_length_multiplies_the_logits_of_a_query():
    qk = torch.randn(2, 1, 2, 9, 4)
    q, k = later.log_length(qk, torch.arange(9)[None], 4)
    assert torch.equal(k, qk[1])
    for t in range(9):
        torch.testing.assert_close(q[0, :, t], qk[0, 0, :, t] * math.log(t + 1) / math.log(4))


# --- bias from the distance ------------------------------------------------------------------------------------------------


def test_kerple_is_its_formula_and_alibi_in_the_limit():
    p, a = torch.tensor([0.5, 2.0, 1.0, 3.0]), torch.tensor([1.0, 0.1, 4.0, 0.7])
    got = later.kerple_log(DISTANCE, p, a)
    for h, t, i in ((0, 6, 0), (1, 5, 3), (2, 4, 4), (3, 6, 5)):
        assert got[0, h, t, i].item() == pytest.approx(-p[h].item() * math.log(1 + a[h].item() * (t - i)))
    small = torch.full((H,), 1e-7, dtype=torch.float64)
    same_where_seen(later.kerple_log(DISTANCE, alibi_slopes(H) / small, small), alibi_bias(DISTANCE, H))


def test_fire_written_a_second_time():
    w = {name: torch.randn(shape) for name, shape in (("first", 32), ("first_bias", 32), ("second", (32, H)))}
    w |= {"c": torch.tensor(0.7), "L": torch.tensor(3 / later.FIRE_UNIT)}
    got = later.fire(DISTANCE, torch.arange(T)[None], w)
    for t in range(T):
        for i in range(t + 1):
            x = math.log(0.7 * (t - i) + 1) / math.log(0.7 * max(3, t) + 1)
            for h in range(H):
                f = sum(
                    max(0, w["first"][u].item() * x + w["first_bias"][u].item()) * w["second"][u, h].item() for u in range(32)
                )
                assert got[0, h, t, i].item() == pytest.approx(f, abs=1e-4)


def test_fire_is_the_official_class_with_the_same_weights():
    """c = 0.7, L = 3 tokens. Its denominators are larger by 1e-6, and its MLP has an output bias, here 0."""
    k = torch.arange(32.0, dtype=torch.float64)
    w = {"first": k.cos(), "first_bias": (2 * k).sin(), "second": torch.outer(k, torch.arange(1.0, H + 1)).cos()}
    w |= {"c": torch.tensor(0.7).double(), "L": torch.tensor(3 / later.FIRE_UNIT).double()}
    got = later.fire(DISTANCE, torch.arange(T)[None], w)[0][:, CAUSAL]  # [H, pairs]
    torch.testing.assert_close(got, torch.tensor(OFFICIAL["fire"]).double(), atol=1e-4, rtol=0)


def test_fire_starts_with_a_threshold_of_32_tokens_and_stays_finite():
    w = ENCODINGS["fire"].parameters(DecoderConfig(hidden_size=32)) | {"second": torch.randn(32, H)}
    at = {t: later.fire(torch.tensor([[[3]]]), torch.tensor([[t]]), w) for t in (10, 32, 33)}
    assert torch.equal(at[10], at[32]) and not torch.equal(at[10], at[33])
    for c in (0.0, 1.5):  # psi is then 0 everywhere; and log(1 + c x) of a future key, which is masked, would have no value
        assert later.fire(torch.tensor([[[-2, 0, 3]]]), torch.tensor([[0]]), w | {"c": torch.tensor(c)}).isfinite().all()


def test_fire_can_be_alibi():
    """psi(x) is nearly c x for a small c. With L above all positions the argument is (t - i) / L, and one unit is linear."""
    first, second = torch.zeros(32, dtype=torch.float64), torch.zeros(32, H, dtype=torch.float64)
    first[0], second[0] = 1, -100 * alibi_slopes(H)
    w = {
        "first": first,
        "first_bias": 0 * first,
        "second": second,
        "c": torch.tensor(1e-9).double(),
        "L": torch.tensor(100 / later.FIRE_UNIT).double(),
    }
    same_where_seen(later.fire(DISTANCE, torch.arange(T)[None], w), alibi_bias(DISTANCE, H))


def test_a_window_hides_far_keys_and_nope_layers_see_them():
    assert (later.window(DISTANCE, 3)[0, 0] == 0).tolist() == (T_I < 3).tolist()
    ids = torch.randint(2, 23, (1, 20))
    other = torch.cat([ids[:, :-1].roll(1), ids[:, -1:]], dim=1).index_fill(1, torch.arange(8, 20), 0)
    same_end = ids.index_fill(1, torch.arange(8, 20), 0)  # the last twelve tokens agree
    near, far = (decoder("hybrid-window", num_hidden_layers=1, nope_every=n) for n in (0, 1))
    torch.testing.assert_close(logits(near, other)[:, -1], logits(near, same_end)[:, -1])
    assert not torch.allclose(logits(far, other)[:, -1], logits(far, same_end)[:, -1])


# --- bias from the content -------------------------------------------------------------------------------------------------


def test_forget_bias_adds_the_gates_between_key_and_query():
    log_f = -torch.rand(2, H, T)
    got = later.forget_bias(log_f, 3)  # the last three queries
    for t in range(T - 3, T):
        for i in range(t + 1):
            torch.testing.assert_close(got[:, :, t - T + 3, i], log_f[:, :, i + 1 : t + 1].sum(-1), atol=1e-6, rtol=0)
    slopes = alibi_slopes(H)
    constant = later.forget_bias((-slopes)[None, :, None].expand(1, H, T), T)
    same_where_seen(constant, alibi_bias(DISTANCE, H))


def test_fox_starts_half_open_is_alibi_with_constant_gates_and_nope_with_open_ones():
    alibi, nope = decoder("alibi"), decoder("nope")
    fox = decoder("fox", like=alibi)
    gate = fox.model.layers[0].attention.encoding
    assert (torch.randn(5, H * 8).to(gate["gate"]) @ gate["gate"] + gate["gate_bias"] == 0).all()
    for layer in fox.model.layers:
        layer.attention.encoding["gate_bias"].data = -alibi_slopes(H).expm1().log()  # its sigmoid is e^-slope
    torch.testing.assert_close(logits(fox), logits(alibi), rtol=1e-5, atol=1e-5)
    for layer in fox.model.layers:
        torch.nn.init.constant_(layer.attention.encoding["gate_bias"], 60.0)  # f = 1
    torch.testing.assert_close(logits(fox), logits(nope))
    torch.nn.init.normal_(fox.model.layers[0].attention.encoding["gate"], std=30.0)  # some gates close
    assert not torch.allclose(logits(fox), logits(nope))


def test_cope_with_all_gates_open_is_a_table_of_relative_positions():
    q, table = torch.randn(2, H, T, 8), torch.randn(10, 8)
    got = later.cope_bias(CAUSAL.float().expand(2, H, T, T), q, table)
    expected = torch.stack([torch.stack([q[:, :, t] @ table[max(t - i + 1, 0)] for i in range(T)], -1) for t in range(T)], 2)
    same_where_seen(got, expected)


def test_cope_interpolates_between_rows():
    gates, q, table = torch.rand(1, 1, T, T).tril(), torch.randn(1, 1, T, 8), torch.randn(4, 8)
    got = later.cope_bias(gates, q, table)
    for t in range(T):
        for i in range(t + 1):
            p = min(gates[0, 0, t, i : t + 1].sum().item(), 3)
            e = table[math.floor(p)] * (1 - p % 1) + table[math.ceil(p)] * (p % 1)
            assert got[0, 0, t, i].item() == pytest.approx((q[0, 0, t] @ e).item(), abs=1e-4)


def test_encodings_that_start_as_nope():
    nope = decoder("nope")
    for name in ("t5", "fire", "cope", "head-scale"):
        torch.testing.assert_close(logits(decoder(name, like=nope)), logits(nope))


# --- the table -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place, wanted",
    [
        ("vectors", "[B, T, D] = [1, 3, 32]"),
        ("queries_keys", "[2, 1, 4, 3, 8]"),
        ("bias", "[1, 4, 3, 3]"),
        ("content_bias", "[1, 4, 3, 3]"),
    ],
)
def test_a_wrong_shape_is_told_with_the_right_one(place, wanted):
    config = DecoderConfig(hidden_size=32)
    encoding = replace(Encoding("mine"), **{place: lambda *_: torch.zeros(2, 5)})
    with pytest.raises(ValueError) as raised:
        check_shapes(encoding, config)
    assert f"{place} of mine returns the shape [2, 5]: must be" in str(raised.value) and wanted in str(raised.value)


def test_a_configuration_draws_nothing_from_the_random_numbers():
    torch.manual_seed(0)
    before = torch.rand(3)
    torch.manual_seed(0)
    DecoderConfig(encoding="learned", max_position_embeddings=9), DecoderConfig(encoding="fire")
    assert torch.equal(torch.rand(3), before)
