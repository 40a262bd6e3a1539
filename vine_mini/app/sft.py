"""Supervised fine-tuning: a policy learns to imitate solutions. Reinforcement learning then starts from this policy."""

import random
import shlex
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from vine_mini import tasks
from vine_mini.app.cost import check_cost
from vine_mini.app.files import free_name, whole, write_diverged
from vine_mini.app.setup import policy_name, task_name
from vine_mini.health import Diverged, finite, located
from vine_mini.logprobs import response_logprobs
from vine_mini.losses import masked_mean
from vine_mini.models import autocast, build_tiny, context_length, default_lr, eos_ids, load_policy, pick_device, save_policy
from vine_mini.types import Trajectory, UserError, collate


def imitate(config, folder: Path):
    """Runs supervised fine-tuning, from `config.model` or from a small new Llama with a tokenizer made for the task.

    Returns (model, tokenizer, mean loss of the last hundredth of the updates in nats a token, peak learning rate).
    Raises Diverged. FOLDER-diverged, or with a number at the end, then holds diverged.json and the policy after the last update.
    Ctrl-C, SIGTERM and any other error likewise leave the policy in FOLDER-stopped.
    """
    device = pick_device(config.device)
    train, test = tasks.load_problems(config)
    rng = random.Random(config.seed)
    task = tasks.get(config.task)
    tasks.demonstration(task, train[0], config.error_rate, rng)  # fails before long work where the task refuses the settings
    new = config.hidden * (8 * config.layers * config.hidden + config.vocab_size)  # parameters of a new model
    _check_cost(config, new if config.model is None else 0, len(test))
    model, tokenizer, usual_lr, what = _start(config, train, rng, device)
    _check_cost(config, model.num_parameters(), len(test))
    prompts = tasks.prompt_ids(train, tokenizer, config)
    # One draw of each demonstration. With mistakes (`error_rate`), another draw may be a little longer.
    texts = [tasks.demonstration(task, p, config.error_rate, random.Random(0)) for p in train]
    longest = 1 + max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    if longest > config.max_new_tokens:
        raise UserError(f"the longest demonstration has {longest} tokens: raise --max_new_tokens (now {config.max_new_tokens})")
    tasks.check_prompts(prompts + tasks.prompt_ids(test, tokenizer, config), context_length(model), config.max_new_tokens)
    ends = eos_ids(model, tokenizer)
    eos = ends[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id

    lr = usual_lr if config.lr is None else config.lr
    if config.lr is None:
        print(f"lr = {lr:g}, the default for {what}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    total = max(config.updates, 2)
    rise = max(0.05, 1.5 / total)  # at exactly one update it would divide by 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=rise)
    losses = []
    try:
        for n in (bar := tqdm(range(config.updates), desc="sft", dynamic_ncols=True)):
            rows = []
            for i in rng.choices(range(len(train)), k=config.batch_size):
                text = tasks.demonstration(task, train[i], config.error_rate, rng)
                ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]  # the end of the sequence is learned too
                rows.append(Trajectory(prompts[i], ids, [0.0] * len(ids), finished=True))
            batch = collate(rows, device)
            with located(f"update {n + 1}", batch, torch.arange(len(batch)), {"loss": losses}):
                losses.append(_gradients(model, batch, config, device))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
    except BaseException as error:
        if losses or isinstance(error, Diverged):  # else nothing was learned
            _keep(model, tokenizer, folder, error, f"stopped at update {len(losses)} of {config.updates}")
        raise
    tail = losses[-max(1, len(losses) // 100) :]
    return model, tokenizer, sum(tail) / max(len(tail), 1), lr


def _keep(model, tokenizer, folder: Path, error: BaseException, when: str) -> None:
    """Saves the policy of a training that an error has ended."""
    folder = free_name(folder.with_name(f"{folder.name}-{'diverged' if isinstance(error, Diverged) else 'stopped'}"))
    with whole(folder) as fresh:
        save_policy(model, tokenizer, fresh)
    if isinstance(error, Diverged):
        write_diverged(folder, error)
    else:
        print(f"\n{when}; policy: {folder} (to train it further: --model)")


def _gradients(model, batch, config, device) -> float:
    """Computes the clipped gradients of the loss on a batch. -> the loss in nats a token"""
    denominator, total = batch.response_mask.sum(), 0.0
    for micro in batch.micro_batches(torch.arange(len(batch)), config.micro_batch_tokens):
        m = batch.rows(micro)
        with autocast(device, config.bf16):
            logprobs = finite("a log-prob", response_logprobs(model, m.input_ids, m.attention_mask, m.response_mask))
        loss = finite("the loss", masked_mean(-logprobs, m.response_mask, denominator))
        loss.backward()
        total += loss.item()
    finite("the gradient", clip_grad_norm_(model.parameters(), 1.0))
    return total


def _check_cost(config, parameters: int, tests: int) -> None:
    evaluation = min(tests, config.eval_problems or tests) * config.eval_samples
    check_cost(config, parameters, 3 * config.updates * config.batch_size + evaluation, max(config.batch_size, evaluation))


def _start(config, train, rng, device):
    """The model and the tokenizer to tune, the default of the learning rate, and what the default is for."""
    if config.model is not None:
        model, tokenizer = load_policy(policy_name(config), device)
        return model, tokenizer, 10 * default_lr(model), "a model of this size"
    task = tasks.get(config.task)
    texts = [p.question + "\n" + tasks.demonstration(task, p, config.error_rate, rng) for p in train]
    shape = dict(hidden=config.hidden, layers=config.layers, vocab_size=config.vocab_size)
    model, tokenizer = build_tiny(texts, **shape, seed=config.seed)
    return model.to(device), tokenizer, 3e-3, "a new model"


def model_card(config, loss: float, results: str) -> str:
    """The README.md in the policy's folder: what the policy is, the command that made it, and its evaluation (`results`)."""
    default = type(config)  # before the task's own numbers come in
    changed = {name: x for name, x in vars(config).items() if name != "out" and x not in (None, getattr(default, name))}
    joined = {name: f"{'=' if str(x).startswith('-') else ' '}{shlex.quote(str(x))}" for name, x in changed.items()}
    flags = " ".join(f"--{name}{x}" for name, x in joined.items())
    start = "from scratch" if config.model is None else f"from {config.model}"
    most = f"at most {config.eval_problems} " if config.eval_problems else ""
    license = "license: mit\n" if config.model is None else ""  # else the start policy's own license holds
    how = f" with mistakes (--error_rate {config.error_rate})" if config.error_rate else ""
    return f"""---
library_name: transformers
{license}---
# Policy for the task `{task_name(config)}`

Trained {start} to imitate demonstrations{how}. It is a start for reinforcement learning. The command was

    python -m vine_mini sft {flags}

The loss at the end is {loss:.4f} nats a token. On {most}test problems (mean ± standard error):

```
{results}
```
"""
