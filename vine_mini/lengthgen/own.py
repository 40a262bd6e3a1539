"""Finds an encoding or a task by its name. A name with the ending .py is the path of a user's own file.

An encoding's file sets ENCODING to an `Encoding`, in the form of the lines of `decoder/table.py`:

    from vine_mini.decoder.table import Encoding
    ENCODING = Encoding("square root", bias=lambda distance, t, config, w: -distance.clamp(min=0).sqrt()[:, None])

A token may depend on the tokens up to its own, and not on how many follow. Otherwise a model could read off where its answer
ends, and its accuracy would be wrong. An encoding must also compute the same with a KV cache, where `queries_keys` is given new
tokens only. Before any training, `check_causal` tries both on a few tokens, and `check_longest` reads the longest sequence. No
check tries `ids`, which gets all sequences padded to one width. Parameters of an encoding learn at the full rate, unless it has
`slow=True`.

A task's file has two functions, in the form of those in `tasks.py`, and uses tokens of `vocabulary.py` only. This one is addition
whose numbers all begin with their lowest digit, as abacus needs it (`--encodings abacus`):

    def make(length, rng):    # -> (prompt, target)
        a, b = rng.randrange(10**length), rng.randrange(10**length)
        words = [" ".join(str(number)[::-1]) for number in (a, b, a + b)]
        return f"Compute {words[0]} + {words[1]} ? ", words[2]

    def check(prompt, answer):    # -> whether the whole answer is right
        numbers = prompt.removeprefix("Compute ").removesuffix(" ? ").split("+")
        a, b = (int(number.replace(" ", "")[::-1]) for number in numbers)
        return answer.replace(" ", "") == str(a + b)[::-1]

A file joins the table under its path. A saved model keeps the path as a name. Loading the model never runs the file. Results name
the file too. A command that reads results runs it only if the command names it as well: `lengthgen rank FOLDER mine.py`.
"""

from copy import copy
from dataclasses import replace
from os.path import expanduser  # `Path.expanduser` raises where there is no such user
from pathlib import Path
from random import Random
from typing import Any

import torch

from vine_mini.decoder.model import Decoder, DecoderConfig
from vine_mini.decoder.table import ENCODINGS, Encoding, check_shapes
from vine_mini.lengthgen.tasks import TASKS, Task
from vine_mini.lengthgen.vocabulary import encode
from vine_mini.loading import load_file, told
from vine_mini.types import UserError

PLACES = "vectors queries_keys bias content_bias parameters layer_parameters".split()  # functions of an `Encoding`, and ids
TRAIN, TEST, UPDATES = (2, 10), (11, 20), 2000  # the defaults of a user's own task


def short(name: str) -> str:
    """A name without the folder and the ending of a file."""
    return Path(name).stem


def _check_path(what: str, name: str, table: dict) -> None:
    """Raises UserError for a name that is not in the table and no path of a Python file either."""
    if not name.endswith(".py"):
        choices = ", ".join(known for known in table if not known.endswith(".py"))
        raise UserError(f"unknown {what} {name!r}: choose from {choices}, or give the path of a .py file")


def find_encoding(name: str) -> None:
    """Puts the encoding of a file into the table. Raises UserError for an unknown name or a file that has no `Encoding`."""
    if name in ENCODINGS:
        return
    _check_path("position encoding", name, ENCODINGS)
    found = load_file(name, "position encoding", ["ENCODING"]).ENCODING
    if not isinstance(found, Encoding):
        raise UserError(f"{name}: ENCODING must be an Encoding of vine_mini.decoder.table, not {type(found).__name__}")
    path = Path(expanduser(name)).resolve()
    functions: dict[str, Any] = {p: told(getattr(found, p), path) for p in PLACES if getattr(found, p) is not None}
    if found.ids is not None:
        functions["ids"] = told(found.ids, path, torch.Tensor, lambda ids: ids.dim() == 2)
    ENCODINGS[name] = replace(found, **functions)


def load_own(words: list[str]) -> list[str]:
    """Runs the Python files among the words of a command, each with a task or an encoding. -> the other words

    A file that only results name is never run: whoever made the results chose it.
    """
    for name in [word for word in words if word.endswith(".py")]:
        module = load_file(name, "task or position encoding", [])
        find_encoding(name) if hasattr(module, "ENCODING") else find_task(name)
    return [word for word in words if not word.endswith(".py")]


def check_named(names: list[str], where: str) -> None:
    """Raises UserError for a Python file among the names that results hold, unless the user has named it too.

    `where` says where the command takes such a name. From another working directory, the user's path of the file is another one.
    """
    tables: list[dict] = [TASKS, ENCODINGS]
    for name in [name for name in names if name.endswith(".py") and not any(name in table for table in tables)]:
        for table in tables:
            if named := [known for known in table if known.endswith(".py") and Path(known).name == Path(name).name]:
                table[name] = table[named[0]]
                break
        else:
            raise UserError(f"it names the file {name}, which would run: add {name} {where} if you trust it")


def path_of(name: str) -> str:
    """The path under which the user has given the file that results name."""
    same = (Path(known) for known in (*TASKS, *ENCODINGS) if Path(known).name == Path(name).name)
    return next(str(path) for path in same if path.expanduser().is_file())


@torch.no_grad()
def check_causal(config: DecoderConfig) -> None:
    """Raises ValueError where the logits of a token are not finite, or change with the tokens after it or with a cache."""
    config = copy(config)
    config.num_hidden_layers = min(config.num_hidden_layers, 2)  # more layers show no more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Decoder(config).eval()
        for name, parameter in model.named_parameters():
            if ".encoding." in name:  # a zero would hide what it multiplies; the others keep their signs
                changed = parameter * (0.5 + torch.rand_like(parameter))
                parameter.copy_(torch.where(parameter == 0, torch.randn_like(parameter), changed))
    T = min(64, config.max_position_embeddings or 64)
    ids, part = torch.arange(T)[None] % config.vocab_size, T // 2 + 1
    whole = model(ids).logits  # [1, T, V]
    if not whole.isfinite().all():
        raise ValueError("its logits are not finite")
    if (model(ids[:, :part]).logits - whole[:, :part]).abs().max() > 1e-3:
        raise ValueError("the logits of a token change when other tokens follow it: use positions, not the length of a sequence")
    cache, rows = None, []
    for t in range(T):
        out = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache, rows = out.past_key_values, [*rows, out.logits]
    if (torch.cat(rows, dim=1) - whole).abs().max() > 1e-3:
        raise ValueError("with a KV cache its logits differ: use the positions and distances that it is given")


@torch.no_grad()
def check_longest(name: str, config: DecoderConfig, tokens: int) -> None:
    """Raises UserError where the encoding of a file fails at this number of tokens, the longest sequence of a run."""
    try:
        check_shapes(ENCODINGS[name], config, tokens)
        if not Decoder(config).eval()(torch.arange(tokens)[None] % config.vocab_size).logits.isfinite().all():
            raise ValueError("the logits are not finite")
    except Exception as error:  # a user's function may fail in any way
        raise UserError(f"{name}, with {tokens} tokens: {' '.join(str(error).split())}") from error


def find_task(name: str) -> None:
    """Puts the task of a file into the table. Raises UserError for an unknown name, or a file whose functions do not agree."""
    if name in TASKS:
        return
    _check_path("task", name, TASKS)
    path = Path(expanduser(name)).resolve()
    module = load_file(name, "task", ["make", "check"])

    def checked(length, rng):
        made = module.make(length, rng)
        if not (isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(text, str) for text in made) and made[0]):
            raise UserError(f"{name}: make({length}) must return two texts, a prompt and a target")
        prompt, target = made
        try:
            encode(f"{prompt} {target}")
        except KeyError as error:
            raise UserError(f"{name}: make({length}) writes {error}, which is no token of lengthgen's vocabulary") from error
        return prompt, target

    make, check = told(checked, path), told(lambda prompt, answer: bool(module.check(prompt, answer)), path)
    for length in (*TRAIN, *TEST):
        made = make(length, Random(length))
        if made != make(length, Random(length)):
            raise UserError(f"{name}: make({length}) must draw with the rng that it is given, and nothing else")
        if not check(*made):
            raise UserError(f"{name}: check does not accept the target that make({length}) has written")
    TASKS[name] = Task(make, check, TRAIN, TEST, "length", UPDATES)
