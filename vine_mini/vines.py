"""Vines: K completions that fork off at chosen states of trajectories (VinePPO, section 4; TRPO's "vine" method).

This is the plain way: each state is a prompt for the sampler, and its k copies share one reading of it.
"""

from vine_mini.sampling import sample
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
) -> list[list[list[Trajectory]]]:
    """k completions of the state before token c of each trajectory, for each c in its cuts.

    Args:
        trajectories: where the vines fork off.
        cuts: for each trajectory the token indices of its states; 0 is the prompt alone.
        k: completions per state.
        max_new_tokens: the limit of a whole response; a completion gets what the state's tokens left of it.
        temperature, eos_token_id, seed, top_p, batch_size, progress: as in `sampling.sample`, and the same as the trajectories'.
    Returns:
        [trajectory][cut][k] of Trajectory whose `prompt_ids` are the state's ids.
    """
    states = [(t, c) for t, row in zip(trajectories, cuts, strict=True) for c in row]
    flat = sample(
        model,
        [t.prompt_ids + t.response_ids[:c] for t, c in states for _ in range(k)],
        max_new_tokens=[max_new_tokens - c for _, c in states for _ in range(k)],
        temperature=temperature,
        top_p=top_p,
        eos_token_id=eos_token_id,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    one_by_one = iter(flat)
    return [[[next(one_by_one) for _ in range(k)] for _ in row] for row in cuts]
