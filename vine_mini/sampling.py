"""Sampling with a KV cache: token ids in, `Trajectory` out.

Three ideas make it quick and repeatable:
- equal prompts of a batch are read once; their cache is then copied to every row that needs it;
- a row that ends leaves the batch, so later steps cost only what is still alive;
- the random number of row i at step t is drawn beforehand, so the tokens do not depend on the batch size. (Up to
  rounding: a batch of another size can differ in a logit's last bits, which rarely moves a token.)
"""

import torch
from transformers import DynamicCache

from vine_mini.logprobs import position_ids
from vine_mini.types import Trajectory, UserError


@torch.no_grad()
def sample(
    model,
    prompts: list[list[int]],
    *,
    max_new_tokens: int | list[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_token_id: int | list[int],
    seed: int,
    batch_size: int | None = None,
    progress=None,
) -> list[Trajectory]:
    """One response for each prompt.

    Args:
        model: a Hugging Face causal LM, in eval mode (dropout would make the samples' log-probs wrong).
        prompts: token ids, of any lengths; none empty.
        max_new_tokens: the length limit, one for all or one for each prompt; at least 1.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_p: sample from the smallest set of tokens whose probability reaches top_p. The returned log-probs are those
            of the whole distribution, so below 1.0 they are not the sampler's.
        eos_token_id: the id or ids that end a response.
        seed: of the random numbers.
        batch_size: rows decoded at once (default: all), which bounds the memory of the cache.
        progress: called with the number of responses done, after each batch.
    Returns:
        Trajectories in the order of the prompts.
    """
    budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    eos = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    _check(model, prompts, budgets, temperature, top_p, eos, batch_size)
    if not prompts:
        return []
    uniforms = torch.rand(len(prompts), max(budgets), generator=torch.Generator().manual_seed(seed))
    # Rows of like length share a batch: less padding, and equal prompts meet.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i], i))
    size = batch_size or len(order)
    trajectories: list = [None] * len(prompts)
    for rows in (order[i : i + size] for i in range(0, len(order), size)):
        done = _decode(model, [prompts[i] for i in rows], [budgets[i] for i in rows], uniforms[rows], temperature, top_p, eos)
        for i, trajectory in zip(rows, done, strict=True):
            trajectories[i] = trajectory
        if progress:
            progress(len(rows))
    return trajectories


def _decode(model, prompts, budgets, uniforms, temperature, top_p, eos) -> list[Trajectory]:
    device, B, steps = model.device, len(prompts), max(budgets)
    uniforms, eos = uniforms.to(device), torch.tensor(eos, device=device)
    logits, mask, cache = _prefill(model, prompts)  # [B, V], [B, L]
    ends_at = torch.tensor(budgets, device=device)  # [B]
    next_position = mask.sum(dim=1, keepdim=True)  # [B, 1]
    tokens = torch.zeros(B, steps, dtype=torch.long, device=device)
    logprobs = torch.zeros(B, steps, device=device)
    finished = torch.zeros(B, dtype=torch.bool, device=device)
    length = torch.zeros(B, dtype=torch.long, device=device)
    alive = torch.arange(B, device=device)  # the row that each line of the shrinking batch writes to
    for t in range(steps):
        token, logprob = choose(logits, uniforms[alive, t], temperature, top_p)  # [A], [A]
        tokens[alive, t], logprobs[alive, t], length[alive] = token, logprob, t + 1
        is_eos = torch.isin(token, eos)
        finished[alive] = is_eos
        keep = (~is_eos & (ends_at[alive] > t + 1)).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(alive):
            alive, token, mask, next_position = alive[keep], token[keep], mask[keep], next_position[keep]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        logits = _forward(model, token[:, None], mask, next_position + t, cache)
    if torch.isnan(logprobs).any():
        raise UserError("the policy's logits are not numbers: it has diverged; lower --lr")
    columns = tokens.tolist(), logprobs.tolist(), length.tolist(), finished.tolist()
    return [Trajectory(list(p), ids[:n], lp[:n], end) for p, ids, lp, n, end in zip(prompts, *columns, strict=True)]


def _prefill(model, prompts):
    """Reads each different prompt once. -> next-token logits [B, V], mask [B, L], cache of B rows"""
    unique = {tuple(p): i for i, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
    L = max(map(len, unique))
    ids = torch.tensor([[0] * (L - len(p)) + list(p) for p in unique], device=model.device)  # [U, L], padded on the left
    mask = torch.tensor([[0] * (L - len(p)) + [1] * len(p) for p in unique], device=model.device)
    cache = DynamicCache(config=model.config)
    logits = _forward(model, ids, mask, position_ids(mask), cache)
    copies = torch.tensor([unique[tuple(p)] for p in prompts], device=model.device)
    cache.batch_select_indices(copies)
    return logits[copies], mask[copies], cache


def _forward(model, ids, mask, positions, cache):
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    return out.logits[:, -1].float()


def choose(logits, uniform, temperature: float, top_p: float):
    """Pick one token a row. logits [A, V], uniform [A] in [0, 1) -> token [A], its log-prob [A].

    The uniform number is looked up in the cumulative distribution, so the same number gives the same token. Greedy
    tokens (temperature 0) get the log-prob they have at temperature 1.
    """
    logprobs = (logits / (temperature or 1.0)).log_softmax(dim=-1)
    if temperature == 0:
        token = logprobs.argmax(dim=-1)
    else:
        probs = logprobs.exp()
        if top_p < 1.0:
            ranked, index = probs.sort(dim=-1, descending=True)
            outside = ranked.cumsum(dim=-1) - ranked >= top_p  # what came before already reaches top_p
            probs = probs.masked_fill(outside.gather(1, index.argsort(dim=-1)), 0.0)
        cdf = probs.cumsum(dim=-1)
        total = cdf[:, -1:]  # 1 up to rounding, less with top_p
        target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
        token = torch.searchsorted(cdf, target, right=True)[:, 0]  # first token whose cdf is above the target
        token = token.clamp(max=logits.shape[-1] - 1)  # logits that are not numbers have none; `_decode` reports them
    return token, logprobs.gather(1, token[:, None])[:, 0]


def _check(model, prompts, budgets, temperature, top_p, eos, batch_size):
    if model.training:
        raise ValueError("call model.eval() before sampling: dropout would change the distribution")
    if any(len(p) == 0 for p in prompts):
        raise ValueError("an empty prompt has no last token to continue from")
    if len(budgets) != len(prompts) or any(b < 1 for b in budgets):
        raise ValueError("max_new_tokens must be at least 1, one number for all or one for each prompt")
    if temperature < 0 or not 0 < top_p <= 1 or not eos or (batch_size is not None and batch_size < 1):
        raise ValueError(f"temperature {temperature} >= 0, 0 < top_p {top_p} <= 1, some eos id and batch_size >= 1 needed")
