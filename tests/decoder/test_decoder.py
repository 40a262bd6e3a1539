"""The encodings against slow formulas and against transformers' own modules; the decoder as a Hugging Face model."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_rotary
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.decoder.positions import alibi_bias, alibi_slopes, apply_rotary, freqs_cis, sinusoidal, t5_bucket
from vine_mini.decoder.table import ENCODINGS, PAPER

VARIANTS = {
    **{
        name: {"encoding": name} | ({"max_position_embeddings": 40} if e.table else {})
        for name, e in ENCODINGS.items()
        if not e.ids
    },
    "hybrid": {"encoding": "hybrid", "nope_every": 2},
    "alibi hybrid": {"encoding": "alibi", "nope_every": 3},
    "wide heads": {"encoding": "rope25", "head_dim": 16},  # 4 x 16 = 64 dimensions in 32
    "wide fox": {"encoding": "fox", "head_dim": 16},
}
IN_REFERENCE = (*PAPER, "rope25", "hybrid", "kerple", "fox", "cope", "log-length")
DEFINED_HERE = [name for name, variant in VARIANTS.items() if variant["encoding"] in IN_REFERENCE]  # the others: test_later


def tiny(dtype=torch.float32, **settings):
    """A small model. What its encoding learns is moved from its initial zeros."""
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=23, hidden_size=32, eos_token_id=0, pad_token_id=1, **settings)).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoding" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def test_sinusoidal_is_the_formula():
    got = sinusoidal(torch.tensor([[0, 3, 17]]), 8)
    for column, p in enumerate((0, 3, 17)):
        for i in range(4):
            angle = p / 10000 ** (2 * i / 8)
            assert got[0, column, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert got[0, column, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_rope_is_a_rotation_of_each_pair_by_position_times_frequency():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    got = apply_rotary(x, freqs_cis(positions, 4))
    for b in range(2):
        for t in range(5):
            for j in range(2):
                angle = positions[b, t].item() * 10000 ** (-2 * j / 4)
                c, s = math.cos(angle), math.sin(angle)
                turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
                expected = x[b, :, t, 2 * j : 2 * j + 2] @ turn.T
                torch.testing.assert_close(got[b, :, t, 2 * j : 2 * j + 2], expected, rtol=0, atol=1e-5)
    assert torch.equal(got[..., 4:], x[..., 4:])  # the share that is not turned


def test_rope_logits_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    at = [[(apply_rotary(q, freqs_cis(torch.tensor([[t + o]]), 16)) * apply_rotary(k, freqs_cis(torch.tensor([[o]]), 16))).sum().item()
           for o in (0, 5, 40)] for t in (0, 3, 9)]  # fmt: skip
    for row in at:
        assert row == pytest.approx([row[0]] * 3, abs=1e-4)
    assert len({round(row[0], 3) for row in at}) == 3


def test_rope_is_that_of_gptj_and_after_a_permutation_that_of_llama():
    q = torch.randn(1, 2, 6, 16)
    positions = torch.arange(6)[None]
    ours = apply_rotary(q, freqs_cis(positions, 16))
    sin, cos = create_sinusoidal_positions(6, 16)[None].chunk(2, dim=-1)
    torch.testing.assert_close(ours, gptj_rotary(q.transpose(1, 2), sin, cos).transpose(1, 2))
    config = LlamaConfig(hidden_size=32, num_attention_heads=2)
    halves = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])  # Llama pairs j with j + 8
    cos, sin = LlamaRotaryEmbedding(config)(q, positions)
    llama, _ = apply_rotary_pos_emb(q[..., halves], q[..., halves], cos, sin)
    torch.testing.assert_close(ours[..., halves], llama)


def test_partial_rope_is_that_of_gpt_neox():
    from transformers.models.gpt_neox import modeling_gpt_neox as neox

    q = torch.randn(1, 2, 6, 16)
    positions = torch.arange(6)[None]
    config = GPTNeoXConfig(hidden_size=32, num_attention_heads=2, rotary_pct=0.5)
    cos, sin = neox.GPTNeoXRotaryEmbedding(config)(q, positions)
    halves = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2), torch.arange(8, 16)])
    theirs, _ = neox.apply_rotary_pos_emb(q[..., halves], q[..., halves], cos, sin)
    torch.testing.assert_close(apply_rotary(q, freqs_cis(positions, 8))[..., halves], theirs)


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 12])
def test_alibi_is_that_of_bloom_up_to_what_softmax_forgets(heads):
    mask = torch.ones(1, 7, dtype=torch.long)
    theirs = build_alibi_tensor(mask, heads, torch.float32).view(1, heads, 1, 7)  # slope x key index
    t = torch.arange(7)
    ours = alibi_bias((t[:, None] - t)[None], heads)  # [1, H, 7, 7]
    causal = torch.full((7, 7), -torch.inf).triu(1)
    torch.testing.assert_close((ours + causal).softmax(-1), (theirs + causal).softmax(-1))
    for t, i in ((6, 0), (3, 3), (5, 1)):
        assert ours[0, 0, t, i].item() == pytest.approx(-alibi_slopes(heads)[0].item() * (t - i))


def test_alibi_slopes():
    assert alibi_slopes(8).tolist() == [2**-k for k in range(1, 9)]
    twelve = sorted([2**-k for k in range(1, 9)] + [2 ** -(k + 0.5) for k in range(4)])
    assert sorted(alibi_slopes(12).tolist()) == pytest.approx(twelve)


def test_t5_buckets_are_those_of_t5():
    distance = torch.arange(-5, 400)
    attention = T5Attention(T5Config(), has_relative_attention_bias=True)
    theirs = attention._relative_position_bucket(-distance, bidirectional=False, num_buckets=32, max_distance=128)
    assert torch.equal(t5_bucket(distance), theirs)
    first = [t5_bucket(distance).tolist().index(b) - 5 for b in range(16, 32)]
    assert first == [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


def reference(model, ids):
    """The decoder as loops over positions and heads, in float64, written from the definition. ids [T] -> logits [T, V]"""
    c = model.config
    w = {name: p.double() for name, p in model.state_dict().items()}
    T, H, d = len(ids), c.num_attention_heads, c.head_dim
    norm = lambda x: x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    h = w["model.embed.weight"][ids]
    positions = torch.arange(T)[None]
    rotated = {"rope": d, "hybrid": d, "rope25": d // 4}.get(c.encoding)
    if c.encoding == "sinusoidal":
        h = h + sinusoidal(positions, c.hidden_size)[0].double()
    if c.encoding == "learned":
        h = h + w["model.encoding.table"][:T]
    for layer in range(c.num_hidden_layers):
        encoded = not c.nope_every or (layer + 1) % c.nope_every
        prefix = f"model.layers.{layer}."
        q, k, v = (norm(h) @ w[prefix + "attention.qkv.weight"].T).view(T, 3, H, d).unbind(1)
        out = torch.zeros(T, H, d, dtype=torch.float64)
        for head in range(H):
            for t in range(T):
                logits = []
                for i in range(t + 1):
                    a, b = q[t, head].clone(), k[i, head].clone()
                    if rotated and encoded:
                        for j in range(rotated // 2):
                            for x, p in ((a, t), (b, i)):
                                turn = p * 10000 ** (-2 * j / rotated)
                                one, two = x[2 * j].item(), x[2 * j + 1].item()
                                x[2 * j] = one * math.cos(turn) - two * math.sin(turn)
                                x[2 * j + 1] = one * math.sin(turn) + two * math.cos(turn)
                    logit = (a @ b).item() / math.sqrt(d)
                    if c.encoding == "alibi" and encoded:
                        logit -= 2 ** (-8 * (head + 1) / H) * (t - i)
                    if c.encoding == "t5" and encoded:
                        logit += w["model.encoding.table"][t5_bucket(torch.tensor(t - i)), head].item()
                    own = lambda name: w[prefix + "attention.encoding." + name]  # noqa: B023, E731
                    if c.encoding == "kerple":
                        p, scale = w["model.encoding.log_p"][head].exp(), w["model.encoding.log_a"][head].exp()
                        logit -= (p * (1 + scale * (t - i)).log()).item()
                    if c.encoding == "fox":
                        for j in range(i + 1, t + 1):
                            gate = k[j].flatten() @ own("gate")[:, head] + own("gate_bias")[head]
                            logit -= (1 + (-gate).exp()).log().item()
                    if c.encoding == "cope":
                        gates = [1 / (1 + (-(q[t, head] @ k[j, head]) / d**0.5).exp()) for j in range(i, t + 1)]
                        place = min(sum(gates).item(), len(own("table")) - 1)
                        low, rest = int(place), place % 1
                        row = (1 - rest) * own("table")[low] + rest * own("table")[min(low + 1, len(own("table")) - 1)]
                        logit += (q[t, head] @ row).item() / d**0.5
                    if c.encoding == "log-length":
                        logit *= math.log(t + 1) / math.log(32)
                    logits.append(logit)
                weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
                out[t, head] = weights @ v[: t + 1, head]
        h = h + out.reshape(T, -1) @ w[prefix + "attention.out.weight"].T
        h = h + (norm(h) @ w[prefix + "up.weight"].T).relu() @ w[prefix + "down.weight"].T
    return norm(h) @ w["lm_head.weight"].T


@pytest.mark.parametrize("name", DEFINED_HERE)
def test_the_decoder_is_its_definition(name):
    model = tiny(torch.float64, **VARIANTS[name])
    ids = torch.randint(0, 23, (9,))
    got = model(input_ids=ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(got, reference(model, ids), rtol=1e-4, atol=1e-5)  # angles and sinusoids are float32


def test_left_padding_changes_nothing(variant):
    model = tiny(**variant)
    ids = torch.randint(2, 23, (3, 8))
    plain = model(input_ids=ids).logits
    padded = torch.cat([torch.randint(2, 23, (3, 5)), ids], dim=1)
    mask = torch.ones(3, 13, dtype=torch.long)
    mask[:, :5] = 0
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[:, 5:], plain, rtol=1e-4, atol=1e-5)


def test_cached_decoding_changes_nothing_even_with_left_padding(variant):
    model = tiny(**variant)
    ids = torch.randint(2, 23, (2, 10))
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    whole = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    out = model(input_ids=ids[:, :6], attention_mask=mask[:, :6], use_cache=True)
    pieces = [out.logits]
    for t in range(6, 10):
        out = model(input_ids=ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=out.past_key_values)
        pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1)[1], whole[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(pieces, dim=1)[0, 4:], whole[0, 4:], rtol=1e-4, atol=1e-5)


def test_keeping_the_last_positions_changes_nothing(variant):
    model = tiny(**variant)
    ids = torch.randint(2, 23, (2, 10))
    whole = model(input_ids=ids, output_attentions=True)
    some = model(input_ids=ids, logits_to_keep=3, output_attentions=True)
    torch.testing.assert_close(some.logits, whole.logits[:, -3:])
    torch.testing.assert_close(some.attentions[-1], whole.attentions[-1][:, :, -3:])
    torch.testing.assert_close(whole.logits, model(input_ids=ids).logits)  # attention weights shown or not


def test_attention_weights_are_causal_distributions(variant):
    weights = tiny(**variant)(input_ids=torch.randint(0, 23, (2, 7)), output_attentions=True).attentions
    assert len(weights) == 3 and weights[0].shape == (2, 4, 7, 7)
    for layer in weights:
        torch.testing.assert_close(layer.sum(-1), torch.ones(2, 4, 7))
        assert layer.triu(1).eq(0).all()


def test_gradients_reach_every_parameter(variant):
    model = tiny(**variant).train()
    model(input_ids=torch.arange(20)[None]).logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_folders_keep_the_model(variant, tmp_path):
    model = tiny(**variant)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is Decoder
    ids = torch.randint(0, 23, (2, 9))
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_generate_writes_what_the_logits_say(variant):
    model = tiny(**variant)
    prompts = torch.randint(2, 23, (2, 5))
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    got = model.generate(prompts, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    for row in range(2):
        ids = prompts[row][mask[row].bool()]
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids[None]).logits[0, -1].argmax()[None]])
        assert got[row, 5:].tolist() == ids[-6:].tolist()


@pytest.mark.parametrize(
    "bad, says",
    [
        ({"encoding": "absolute"}, "choose from nope"),
        ({"encoding": "rope25", "num_attention_heads": 8}, "pairs"),
        ({"encoding": "rope25", "num_attention_heads": 32}, "head size is 1"),
        ({"encoding": "learned"}, "max_position_embeddings"),
        ({"encoding": "nope", "max_position_embeddings": 9}, "max_position_embeddings"),
        ({"encoding": "sinusoidal", "nope_every": 2}, "nope_every"),
        ({"num_attention_heads": 5}, "heads"),
    ],
)
def test_meaningless_configurations_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        tiny(**bad)


def test_a_sequence_past_the_learned_table_is_refused():
    with pytest.raises(ValueError, match="ends at 40"):
        tiny(**VARIANTS["learned"])(input_ids=torch.zeros(1, 41, dtype=torch.long))


def test_labels_give_the_loss_and_return_dict_the_tuple():
    model = tiny()
    ids = torch.randint(0, 23, (2, 6))
    labels = ids.clone()
    labels[:, :3] = -100
    out = model(input_ids=ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten())
    torch.testing.assert_close(out.loss, expected)
    as_tuple = model(input_ids=ids, use_cache=False, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], out.logits)


@pytest.mark.parametrize("rotated", [0, 1, 3])
def test_rope_turns_pairs(rotated):
    with pytest.raises(ValueError, match=f"= {rotated}, must be even and at least 2"):
        freqs_cis(torch.arange(3)[None], rotated)
