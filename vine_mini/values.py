"""Monte Carlo values: what a state is worth is measured by finishing it K times (VinePPO, section 4).

Two ways to pay less for the same credit, neither in the paper: `k_first` of `monte_carlo_values`, and `where_values_move`.
"""

import math
from collections.abc import Callable, Hashable, Sequence


def monte_carlo_values(
    states: Sequence, rollout: Callable, reward: Callable, *, k: int, k_first: int | None = None
) -> list[float]:
    """V_MC(s) = mean return of k independent completions of s, for each state.

    Unbiased for every k >= 1 when `rollout` samples from the policy exactly as the trajectories were sampled, with
    what is left of their length budget. The variance is V(1 - V) / k for 0/1 rewards. Completions are used for the
    value only, never for an update.

    With `k_first` = j, only states whose first j completions disagree get the other k - j (rewards 0 or 1). Cost: k - j is
    saved with probability V^j + (1-V)^j. Bias: the mean is drawn towards the nearer of 0 and 1, by
    (1 - j/k) V(1-V) (V^(j-1) - (1-V)^(j-1)): at most 0.064 for k = 9, j = 3. Mean squared error against a plain K of the
    same cost, k = 9, j = 3: 0.004 against 0.012 at V = 0.95, but 0.034 against 0.027 at V = 0.8. So it pays where most
    states are nearly decided. (The unbiased estimate for this rule exists, but has more variance than a smaller K.)

    Args:
        states: token ids of each state, as any sequence of hashables. Equal states are rolled out once and share the value.
        rollout: (unique states as tuples, k) -> one list of k completions for each of them, new ones in every call.
        reward: (state, completion) -> return of that completion; must be 0 for one that was cut by the limit.
        k: completions per state.
        k_first: at least 1 and below k, or None for all k at once.
    Returns:
        One float for each of `states`, in their order.
    """
    if k < 1:
        raise ValueError(f"k = {k}: a value needs at least one rollout")
    if k_first is not None and not 1 <= k_first < k:
        raise ValueError(f"k_first = {k_first}: must be at least 1 and below k = {k}")
    unique: list[tuple[Hashable, ...]] = list(dict.fromkeys(tuple(state) for state in states))
    returns = _returns(unique, rollout, reward, k if k_first is None else k_first)
    if k_first is not None:
        undecided = [state for state in unique if 0 < sum(returns[state]) < k_first]
        for state, more in _returns(undecided, rollout, reward, k - k_first).items():
            returns[state] += more
    value = {state: sum(row) / len(row) for state, row in returns.items()}
    return [value[tuple(state)] for state in states]


def _returns(states, rollout, reward, k: int) -> dict:
    completions = rollout(states, k) if states else []  # [state][k]
    found = {}
    for state, group in zip(states, completions, strict=True):
        if len(group) != k:
            raise ValueError(f"rollout returned {len(group)} completions of a state, not k = {k}")
        found[state] = [reward(state, completion) for completion in group]
    return found


def where_values_move(n_states: list[int], rewards: list[float], estimate: Callable, *, k: int) -> list[dict[int, float]]:
    """Values at the states that matter: the ends of each trajectory first, then the middle of every part whose ends differ.

    A part of several steps is halved while the values at its ends differ by more than one standard error of their
    difference. Parts that are not become one step: their tokens share V(after) - V(before), and the advantages still sum
    to R - V(s_0).

    Cost: a trajectory whose value moves at m of its n steps asks for about m log2(n) states instead of n; one that goes
    as its first state promised asks for one. Variance: a part's advantage has the noise of two values, as a step's has,
    but a step inside a part also gets the credit of its neighbours, which it did not earn. Bias: a part is left whole where
    noise hides its net move, up to about one standard error; and moves of any size that cancel within a part are not seen.

    Args:
        n_states: for each trajectory the number of its states, s_0 .. s_{n-1}.
        rewards: for each trajectory R, the value after its last step, known exactly.
        estimate: list of (trajectory, state index) -> their values. Called once a round, about log2(n) times.
        k: rollouts behind each value.
    Returns:
        For each trajectory: state index -> value, state 0 always among them, in ascending order.
    """
    known: list[dict[int, float]] = [{n: R} for n, R in zip(n_states, rewards, strict=True)]
    asked = [(row, 0) for row in range(len(n_states))]
    parts = [(row, 0, n) for row, n in enumerate(n_states)]
    while asked:
        for (row, i), value in zip(asked, estimate(asked), strict=True):
            known[row][i] = value
        asked, halves = [], []
        for row, a, b in parts:
            before, after, end = known[row][a], known[row][b], b == n_states[row]
            error = math.hypot(standard_error(before, k), 0 if end else standard_error(after, k))
            if b - a > 1 and abs(after - before) > error:
                middle = (a + b) // 2
                asked.append((row, middle))
                halves += [(row, a, middle), (row, middle, b)]
        parts = halves
    return [{i: v for i, v in sorted(row.items()) if i < n} for row, n in zip(known, n_states, strict=True)]


def standard_error(value: float, k: int) -> float:
    """Of a value that is the mean of k zeros and ones.

    Half a success and half a failure are added: none of k is not never, and sqrt(V(1 - V) / k) would be 0 there.
    """
    p = (value * k + 0.5) / (k + 1)
    return math.sqrt(p * (1 - p) / k)
