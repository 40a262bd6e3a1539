"""Monte Carlo values: what a state is worth is measured by finishing it K times (VinePPO, section 4)."""

from collections.abc import Callable, Hashable, Sequence


def monte_carlo_values(states: Sequence, rollout: Callable, reward: Callable, *, k: int) -> list[float]:
    """V_MC(s) = mean return of k independent completions of s, for each state.

    Unbiased for every k >= 1 when `rollout` samples from the policy exactly as the trajectories were sampled, with
    what is left of their length budget. The variance is V(1 - V) / k for 0/1 rewards. Completions are used for the
    value only, never for an update.

    Args:
        states: token ids of each state, as any sequence of hashables. Equal states are rolled out once and share the value.
        rollout: (unique states as tuples, k) -> one list of k completions for each of them.
        reward: (state, completion) -> return of that completion; must be 0 for one that was cut by the limit.
        k: completions per state.
    Returns:
        One float for each of `states`, in their order.
    """
    if k < 1:
        raise ValueError(f"k = {k}: a value needs at least one rollout")
    unique: list[tuple[Hashable, ...]] = list(dict.fromkeys(tuple(state) for state in states))
    completions = rollout(unique, k) if unique else []  # [state][k]
    value = {}
    for state, group in zip(unique, completions, strict=True):
        if len(group) != k:
            raise ValueError(f"rollout returned {len(group)} completions of a state, not k = {k}")
        value[state] = sum(reward(state, completion) for completion in group) / k
    return [value[tuple(state)] for state in states]
