"""Sampling: token ids go in, trajectories come out.

`sample` continues prompts. `rollouts` continues states of trajectories. Both turn their arguments into requests. `plain.py`
completes requests in the simplest way and is the reference. `fast/` gives the same tokens, up to rounding, in less time.
"""

import math

import torch

from vine_mini.health import Diverged
from vine_mini.sampling.fast import complete as complete_fast
from vine_mini.sampling.fast.probe import way
from vine_mini.sampling.plain import Request
from vine_mini.sampling.plain import complete as complete_plain
from vine_mini.types import Sampling, Trajectory


def sample(
    model, prompts: list[list[int]], sampling: Sampling, *, seed: int, progress=None, plain: bool = False
) -> list[Trajectory]:
    """One response to each prompt, in the order of the prompts.

    Args:
        model: a Hugging Face causal LM in eval mode.
        prompts: token ids, of any lengths but none empty. Equal prompts are read once.
        seed: of the random numbers. All numbers are drawn before sampling starts: number t of row i decides token t of
            response i. Another batch size therefore gives the same tokens, except where rounding changes a logit.
        progress: called now and then with the number of responses completed since the last call.
        plain: sample in the plain way. Architectures that the fast way does not support always take the plain way.
    Raises:
        ValueError: for a model in train mode, an empty prompt, or a limit below 1.
        Diverged: for log-probs that are not finite.
    """
    trunks = {tuple(prompt): n for n, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    requests = [Request(trunks[tuple(prompt)], len(prompt), sampling.max_new_tokens) for prompt in prompts]
    return _complete(model, list(map(list, trunks)), requests, sampling, seed, progress, plain)


def rollouts(
    model,
    trajectories: list[Trajectory],
    cuts: list[list[int]],
    sampling: Sampling,
    *,
    k: int,
    seed: int,
    progress=None,
    plain=False,
) -> list[list[list[Trajectory]]]:
    """k rollouts from the state before token c of each trajectory, for each c in its cuts (VinePPO, section 4).

    Args:
        cuts: for each trajectory the token indices of its states. Index 0 is the state that holds the prompt alone.
        sampling: as for the trajectories. A rollout from cut c has at most max_new_tokens - c tokens.
        Other arguments and errors are those of `sample`.
    Returns:
        [trajectory][cut][k] of Trajectory. The `prompt_ids` of a rollout are the token ids of its state.
    """
    trunks = [t.prompt_ids + t.response_ids for t in trajectories]
    requests = [
        Request(n, len(t.prompt_ids) + c, sampling.max_new_tokens - c)
        for n, (t, row) in enumerate(zip(trajectories, cuts, strict=True))
        for c in row
        for _ in range(k)
    ]
    done = iter(_complete(model, trunks, requests, sampling, seed, progress, plain))
    return [[[next(done) for _ in range(k)] for _ in row] for row in cuts]


def _complete(model, trunks, requests, sampling, seed, progress, plain) -> list[Trajectory]:
    """Checks the requests, draws the random numbers and takes the fast way or the plain way."""
    if model.training:
        raise ValueError("call model.eval() before sampling: dropout would change the distribution")
    if any(r.start < 1 for r in requests):
        raise ValueError("an empty prompt has no last token to continue from")
    if any(r.budget < 1 for r in requests):
        raise ValueError("max_new_tokens must leave every response at least one token")
    if not requests:
        return []
    uniforms = torch.rand(len(requests), max(r.budget for r in requests), generator=torch.Generator().manual_seed(seed))
    complete = complete_plain if plain or way(model) != "fast" else complete_fast
    done = complete(model, trunks, requests, uniforms, sampling, progress or (lambda n: None))
    if not all(math.isfinite(sum(t.logprobs)) for t in done):
        raise Diverged("the policy's logits are not numbers: it has diverged; lower --lr")
    return done
