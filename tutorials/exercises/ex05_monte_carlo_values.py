"""ex05: what is a state worth? Finish it K times and see (tutorial 03)."""


def monte_carlo_values(states, rollout, reward, *, k):
    """V(s) = the mean return of k completions of s (VinePPO, section 4).

    Args:
        states: list of states, each a tuple of token ids. The same state may come up several times: it is rolled out once, and
            all its places in the list share the value.
        rollout: `rollout(some_states, k)` -> for each of them a list of k completions, new ones in every call.
        reward: `reward(state, completion)` -> 1.0 or 0.0. A completion that was cut by the limit is a failure like any other.
        k: completions for each state.
    Returns:
        list of floats, one for each entry of `states`, in their order.

    (The grader prints made-up completions as letters, a row for each different state: r right, w wrong, t cut by the limit.)

    Example: states [(1,), (7, 8), (1,)], k = 4; two completions of (1,) are right and three of (7, 8)  ->  [0.5, 0.75, 0.5]
        from 8 completions in all.
    """
    raise NotImplementedError("ex05: monte_carlo_values")
