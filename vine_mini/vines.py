"""Vines: K completions that fork off at chosen states of trajectories (VinePPO, section 4; TRPO's "vine" method).

A trajectory is the trunk of all the vines that fork off it: it is read once. How, is told in `slots`.
"""

from vine_mini.decoding import Fork
from vine_mini.sampling import complete
from vine_mini.types import Trajectory


def rollouts(
    model,
    trajectories: list[Trajectory],
    cuts: list[list[int]],
    *,
    k: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    eos_token_id: int | list[int],
    seed: int,
    top_p: float = 1.0,
    batch_size: int | None = None,
    progress=None,
    plain: bool = False,
) -> list[list[list[Trajectory]]]:
    """k completions of the state before token c of each trajectory, for each c in its cuts.

    Args:
        trajectories: where the vines fork off.
        cuts: for each trajectory the token indices of its states; 0 is the prompt alone.
        k: completions per state.
        max_new_tokens: the limit of a whole response; a completion gets what the state's tokens left of it.
        temperature, eos_token_id, top_p: the same as the trajectories'. All others as in `sampling.sample`.
    Returns:
        [trajectory][cut][k] of Trajectory whose `prompt_ids` are the state's ids.
    """
    forks = [
        Fork(n, len(t.prompt_ids) + c, max_new_tokens - c)
        for n, (t, row) in enumerate(zip(trajectories, cuts, strict=True))
        for c in row
        for _ in range(k)
    ]
    settings = dict(temperature=temperature, top_p=top_p, eos_token_id=eos_token_id, seed=seed)
    trunks = [t.prompt_ids + t.response_ids for t in trajectories]
    flat = complete(model, trunks, forks, batch_size=batch_size, progress=progress, plain=plain, **settings)
    one_by_one = iter(flat)
    return [[[next(one_by_one) for _ in range(k)] for _ in row] for row in cuts]
