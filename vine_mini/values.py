"""Monte Carlo values: what a state is worth is measured by finishing it K times (VinePPO, section 4).

Two ways to pay less for the same credit, neither in the paper: `k_first` of `monte_carlo_values`, and `where_values_move`.
"""

from collections.abc import Callable, Hashable, Sequence
from math import comb


def monte_carlo_values(
    states: Sequence, rollout: Callable, reward: Callable, *, k: int, k_first: int | None = None
) -> list[float]:
    """V_MC(s) = mean return of k independent completions of s, for each state.

    Unbiased for every k >= 1 when `rollout` samples from the policy exactly as the trajectories were sampled, with
    what is left of their length budget. The variance is V(1 - V) / k for 0/1 rewards. Completions are used for the
    value only, never for an update.

    With `k_first`, only states whose first k_first completions disagree get the other k - k_first. Rewards must then be
    0 or 1. The mean would be drawn towards 0 and 1 by stopping there, by (1 - k_first/k) V(1-V) (V^(j-1) - (1-V)^(j-1))
    with j = k_first; `stopped_early` is the estimate that stays unbiased.

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
    if k_first is not None:
        value = {s: stopped_early(sum(row), k, k_first) if len(row) == k else value[s] for s, row in returns.items()}
    return [value[tuple(state)] for state in states]


def _returns(states, rollout, reward, k: int) -> dict:
    completions = rollout(states, k) if states else []  # [state][k]
    found = {}
    for state, group in zip(states, completions, strict=True):
        if len(group) != k:
            raise ValueError(f"rollout returned {len(group)} completions of a state, not k = {k}")
        found[state] = [reward(state, completion) for completion in group]
    return found


def stopped_early(successes: float, k: int, k_first: int) -> float:
    """An unbiased value after k completions of which the first k_first were not all equal.

    The chance that the first completion succeeded, given where the sampling stopped: of all orders of successes and
    failures that lead there, the share that begins with a success. (Rao and Blackwell: the first completion alone is
    unbiased, so its mean given the end is, too, with less variance. Girshick, Mosteller and Savage 1946.) Sampling that
    stopped at k_first equal completions is worth 0 or 1 by the same rule.
    """
    s, later = int(successes), k - k_first
    begun_well = comb(later, s - k_first) if s >= k_first else 0  # orders whose first k_first all succeed: excluded
    begun_badly = comb(later, s) if s <= later else 0  # or all fail
    return (comb(k - 1, s - 1) - begun_well) / (comb(k, s) - begun_well - begun_badly)


def where_values_move(n_states: list[int], rewards: list[float], estimate: Callable, *, k: int) -> list[dict[int, float]]:
    """Values at the states that matter: the ends of each trajectory first, then the middle of every part whose ends differ.

    A part of several steps is halved while the values at its ends differ by more than one standard error of their
    difference. Parts that are not become one step: their tokens share V(after) - V(before), and the advantages still sum
    to R - V(s_0).

    Cost: a trajectory whose value moves at m of its n steps asks for about m log2(n) states instead of n; one that goes
    as its first state promised asks for one. Variance: a part's advantage has the noise of two values, as a step's has,
    but a step inside a part also gets the credit of its neighbours, which it did not earn. Bias: moves that cancel within
    a part are not seen, and a part is left whole where noise hides its move; what is missed is about one standard error.

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
            error = (_squared_error(before, k) + (0 if end else _squared_error(after, k))) ** 0.5
            if b - a > 1 and abs(after - before) > error:
                middle = (a + b) // 2
                asked.append((row, middle))
                halves += [(row, a, middle), (row, middle, b)]
        parts = halves
    return [{i: v for i, v in sorted(row.items()) if i < n} for row, n in zip(known, n_states, strict=True)]


def _squared_error(value: float, k: int) -> float:
    """Variance of a value of k rollouts; half a success and half a failure are added, since none of k is not never."""
    p = (value * k + 0.5) / (k + 1)
    return p * (1 - p) / k
