"""Sampling: token ids in, `Trajectory` out."""

import torch

from vine_mini import decoding, slots
from vine_mini.decoding import Fork
from vine_mini.sharing import supports
from vine_mini.types import Trajectory, UserError


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
    plain: bool = False,
) -> list[Trajectory]:
    """One response for each prompt.

    Args:
        model: a Hugging Face causal LM, in eval mode (dropout would make the samples' log-probs wrong).
        prompts: token ids, of any lengths; none empty. Equal ones are read once.
        max_new_tokens: the length limit, one for all or one for each prompt; at least 1.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_p: sample from the smallest set of tokens whose probability reaches top_p. The returned log-probs are those
            of the whole distribution, so below 1.0 they are not the sampler's.
        eos_token_id: the id or ids that end a response.
        seed: of the random numbers. Number t of row i is drawn beforehand, so the tokens do not depend on the batch size.
            (Up to rounding: a batch of another size can differ in a logit's last bits, which rarely moves a token.)
        batch_size: responses decoded at once (default: 512), which bounds the memory of the cache.
        progress: called with the number of responses done, every now and then.
        plain: the plain way, which the quick one is tested against; architectures that cannot share prefixes take it anyway.
    Returns:
        Trajectories in the order of the prompts.
    """
    trunks = {tuple(p): n for n, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
    budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(budgets) != len(prompts):
        raise ValueError(f"{len(budgets)} limits in max_new_tokens for {len(prompts)} prompts")
    forks = [Fork(trunks[tuple(p)], len(p), budget) for p, budget in zip(prompts, budgets, strict=True)]
    settings = dict(temperature=temperature, top_p=top_p, eos_token_id=eos_token_id, seed=seed)
    return complete(model, [list(t) for t in trunks], forks, batch_size=batch_size, progress=progress, plain=plain, **settings)


def complete(
    model, trunks, forks: list[Fork], *, temperature, top_p, eos_token_id, seed, batch_size, progress, plain
) -> list[Trajectory]:
    """One continuation of each fork's prefix; `sample` and `vines.rollouts` are both this. Arguments as in `sample`."""
    eos = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    if model.training:
        raise ValueError("call model.eval() before sampling: dropout would change the distribution")
    if any(f.start < 1 for f in forks):
        raise ValueError("an empty prompt has no last token to continue from")
    if any(f.budget < 1 for f in forks):
        raise ValueError("max_new_tokens must leave every response at least one token")
    if temperature < 0 or not 0 < top_p <= 1 or not eos or (batch_size is not None and batch_size < 1):
        raise ValueError(f"temperature {temperature} >= 0, 0 < top_p {top_p} <= 1, some eos id and batch_size >= 1 needed")
    if not forks:
        return []
    uniforms = torch.rand(len(forks), max(f.budget for f in forks), generator=torch.Generator().manual_seed(seed))
    way = decoding if plain or not supports(model) else slots
    settings = dict(temperature=temperature, top_p=top_p, eos=eos, batch_size=batch_size or 512)
    done = way.complete(model, trunks, forks, uniforms, progress=progress or (lambda n: None), **settings)
    if any(x != x for _, logprobs, _ in done for x in logprobs):
        raise UserError("the policy's logits are not numbers: it has diverged; lower --lr")
    return [Trajectory(trunks[f.trunk][: f.start], *result) for f, result in zip(forks, done, strict=True)]
