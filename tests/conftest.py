"""Small models and tokenizers that the tests make themselves: nothing is downloaded."""

import copy
import os
from functools import cache
from pathlib import Path

import pytest

DEVICE = os.environ.get("TEST_DEVICE", "cpu")  # where the models of the tests are; `benchmarks.gpu` sets cuda
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # commands would find a GPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests ask no network; TRL would send telemetry

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from vine_mini import models
from vine_mini.app import setup
from vine_mini.app.config import SHIPPED
from vine_mini.sampling import way
from vine_mini.tasks import arithmetic

torch.set_num_threads(1)  # models this small are slower with more, above all on a busy machine
VOCAB = 61
SHARED = Path(__file__).parents[2] / "shared"
_COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
ARCHITECTURES = {
    "llama": (LlamaConfig, dict(num_key_value_heads=2)),
    "qwen2": (Qwen2Config, dict(num_key_value_heads=2)),
    "qwen3": (Qwen3Config, dict(num_key_value_heads=2, head_dim=16)),
    "mistral": (MistralConfig, dict(num_key_value_heads=2, sliding_window=6)),
    "gpt2": (GPT2Config, dict(n_positions=128)),
    "gpt_neox": (GPTNeoXConfig, dict(rotary_pct=0.5)),
    "phi": (PhiConfig, dict(partial_rotary_factor=0.5)),
    "gemma": (GemmaConfig, dict(num_key_value_heads=1, head_dim=8)),
}


def tiny_model(architecture: str, *, dropout: float = 0.0):
    """A random model with logits far enough apart that rounding cannot change the most likely token."""
    config_class, own = ARCHITECTURES[architecture]
    settings = {**_COMMON, **own}
    if architecture == "gpt2":
        settings |= dict(n_embd=32, n_layer=2, n_head=4, attn_pdrop=dropout, resid_pdrop=dropout, embd_pdrop=dropout)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            del settings[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**settings)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
    return model.eval().to(DEVICE)


def made_once(make):
    """`arithmetic.problems` that remembers: it draws 5,000 problems to find 500 test problems, as every tenth is one."""
    made = {}

    def problems(config, make_problem=None):
        key = config.steps, config.min_steps, config.max_number, make_problem, arithmetic.TRAIN_SIZE, arithmetic.TEST_SIZE
        if config.data is not None or key not in made:
            made[key] = make(config, make_problem)
        return tuple(map(list, made[key]))

    return problems


class LoadedOnce:
    """`models` for `build_trainer`: each shipped policy is read and tried out once, and then copied."""

    shipped = staticmethod(cache(models.load_policy))

    def load_policy(self, name, device):
        return copy.deepcopy(self.shipped(name, device)) if SHIPPED in Path(name).parents else models.load_policy(name, device)

    def __getattr__(self, name):
        return getattr(models, name)


arithmetic.problems, setup.models = made_once(arithmetic.problems), LoadedOnce()


@pytest.fixture(autouse=True)
def few_problems(request, monkeypatch):
    """Making and tokenizing ten thousand problems takes a second. Only tests that a policy learns need more than a handful."""
    if not any(name in request.node.nodeid for name in ("test_learning.py", "test_it_learns")):
        monkeypatch.setattr(arithmetic, "TRAIN_SIZE", 300)
    yield
    torch.set_num_threads(1)  # a test may have changed it


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch):
    """A picture takes most of a second; one test that looks at it is enough."""
    monkeypatch.setattr("vine_mini.app.runs.plot_run", lambda *_: None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n, the tests of a file that makes something once for all of them run in one process. The others are dealt out singly.

    The groups of pytest-xdist 3.8 would do this, but they have no effect under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if 'scope="module"' in (config.rootpath / file).read_text(encoding="utf-8") else nodeid

    return Scheduler(config, log)


def slow(*case):
    """One of the parameters of a test, for `pytest -m slow` alone."""
    return pytest.param(*case, marks=pytest.mark.slow)


# The models that differ most: grouped and single heads, a window, rotary and learned positions. The others are slow tests.
USUAL = [name if name in ("llama", "mistral", "gpt2", "gemma") else slow(name) for name in ARCHITECTURES]


@pytest.fixture(params=USUAL)
def any_model(request):
    return tiny_model(request.param)


@pytest.fixture
def llama():
    return tiny_model("llama")


def ragged_prompts(n: int = 5, longest: int = 9) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def supports(model) -> bool:
    """Whether the fast way is right for this model."""
    return way(model) == "fast"


@cache
def shipped_tokenizer():
    return models.load_policy(str(SHIPPED / "arithmetic"), "cpu")[1]


@pytest.fixture
def tokenizer():
    return shipped_tokenizer()


@pytest.fixture
def gsm8k_folder():
    """The real train.jsonl and test.jsonl."""
    folder = SHARED / "gsm8k"
    if not (folder / "train.jsonl").exists():
        pytest.skip("the real GSM8K files are not here")
    return folder
