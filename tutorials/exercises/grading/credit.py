"""Exercises on credit: Monte Carlo values, step advantages, spreading to tokens."""

from itertools import pairwise

from grading.engine import Exercise
from vine_mini import advantages, values

# ex05: Monte Carlo values. The rewards are [state][K].


def best_of_k(rewards):
    """the value is the largest reward of the rollouts instead of the mean reward."""
    return [float(max(row)) for row in rewards]


def majority(rewards):
    """the value says whether most rollouts are right. The value must be the share of right rollouts."""
    return [float(sum(row) > len(row) / 2) for row in rewards]


def first_of_k(rewards):
    """only the first rollout of each state is used. The value is the mean over all its rollouts."""
    return [float(row[0]) for row in rewards]


def divided_by_k_minus_one(rewards):
    """the sum is divided by K - 1, as in a variance. A mean divides by K."""
    return [sum(row) / max(1, len(row) - 1) for row in rewards]


def divided_by_the_first_k(rewards):
    """every sum is divided by the K of the first state. Each state has its own number of rollouts."""
    return [sum(row) / len(rewards[0]) for row in rewards]


def whole_numbers(rewards):
    """the division gives whole numbers (//). A value between 0 and 1 then becomes 0."""
    return [float(sum(row) // len(row)) for row in rewards]


def mean_over_all_states(rewards):
    """one mean is taken over the rollouts of all states. Each state needs the mean of its own rollouts."""
    flat = [reward for row in rewards for reward in row]
    return [sum(flat) / len(flat) for _ in rewards]


def mean_over_states(rewards):
    """the mean is taken over the states, for each rollout number, instead of over the rollouts of each state."""
    return [sum(column) / len(column) for column in zip(*rewards, strict=False)]


def hopeless_states_dropped(rewards):
    """states without a right rollout are left out. The value of such a state is 0, and every state needs an entry."""
    return [sum(row) / len(row) for row in rewards if sum(row) > 0]


def failures_left_out(rewards):
    """rollouts with reward 0 are left out of the mean, for example because the limit cut them. Failures count as well."""
    return [sum(row) / max(1, sum(reward > 0 for reward in row)) for row in rewards]


def equal_rewards_counted_once(rewards):
    """equal rewards are counted once (a set). Every rollout counts."""
    return [sum(set(row)) / len(set(row)) for row in rewards]


def equal_states_once(rewards):
    """states with equal rewards have one entry together (a dictionary). Each state needs an entry of its own."""
    return list({tuple(row): sum(row) / len(row) for row in rewards}.values())


def smoothed(rewards):
    """a success and a failure are added to the rollouts. Then the value is biased. Only its error bar needs the addition."""
    return [(sum(row) + 1) / (len(row) + 2) for row in rewards]


def _value_cases():
    return {
        "one state, two of four rollouts right": dict(rewards=[[1.0, 0.0, 0.0, 1.0]]),
        "one state, no rollout right": dict(rewards=[[0.0, 0.0, 0.0]]),
        "three states": dict(rewards=[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        "states with equal rewards": dict(rewards=[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        "K = 1": dict(rewards=[[1.0], [0.0]]),
        "another K for each state": dict(rewards=[[0.0, 1.0], [1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0, 1.0]]),
        "rewards between 0 and 1": dict(rewards=[[0.25, 0.0, 0.5, 0.25], [0.75, 1.0, 0.75, 0.5]]),
    }


# ex06: step advantages


def sign_turned(values, reward):
    """the two values of a step are exchanged. An advantage is the value after the step minus the value before it."""
    return [b - a for b, a in zip(values, [*values[1:], reward], strict=True)]


def reward_forgotten(values, reward):
    """the reward is left out of the last step. The last advantage is then minus the last value."""
    return advantages.step_advantages(values, 0.0)


def reward_on_every_step(values, reward):
    """the reward is paid at every step. The reward is paid once, at the last step."""
    return [a + reward for a in advantages.step_advantages(values, 0.0)]


def against_the_return(values, reward):
    """each step gets R - V(before it). The step then gets credit for all later steps as well."""
    return [reward - v for v in values]


def against_the_question(values, reward):
    """each value is compared with V(s_0), the value of the prompt, instead of the value before the step."""
    return [v - values[0] for v in [*values[1:], reward]]


def last_step_dropped(values, reward):
    """the last step has no advantage. n values give n advantages, and the last one is R - V(s_{n-1})."""
    return [b - a for a, b in pairwise(values)]


def last_step_by_its_value(values, reward):
    """the last step is recognised by its value (==). A step before it may have the same value."""
    after = [reward if v == values[-1] else values[i + 1] for i, v in enumerate(values)]
    return [a - v for a, v in zip(after, values, strict=True)]


def zero_is_missing(values, reward):
    """a next value of 0 is taken for a missing one (`or`), so the reward stands in its place. 0 is a value like any other."""
    return [(after or reward) - v for v, after in zip(values, [*values[1:], None], strict=True)]


def _step_cases():
    return {
        "two steps, a right answer": dict(values=[0.5, 0.75], reward=1.0),
        "three steps, a wrong answer": dict(values=[0.5, 0.75, 0.25], reward=0.0),
        "one step": dict(values=[0.125], reward=1.0),
        "a value that comes again at the end": dict(values=[0.5, 0.25, 0.5], reward=1.0),
        "a value of 0 on the way": dict(values=[0.5, 0.0, 0.25], reward=1.0),
        "a reward of 1/4": dict(values=[0.5, 0.75], reward=0.25),
        "a reward below 0": dict(values=[-0.5, 0.75], reward=-1.0),
        "six steps": dict(values=[3 / 9, 5 / 9, 5 / 9, 8 / 9, 1 / 9, 0.0], reward=0.0),
    }


# ex07: spread to tokens


def only_the_first_token(step_advantages, cuts, length):
    """only the first token of each step gets the advantage. All tokens of the step get it."""
    spread = [0.0] * length
    for a, cut in zip(step_advantages, cuts, strict=True):
        spread[cut] = a
    return spread


def shared_among_the_tokens(step_advantages, cuts, length):
    """the advantage is divided by the number of tokens of the step. Each token gets the whole advantage."""
    ends = [*cuts[1:], length]
    return [a / (e - s) for a, s, e in zip(step_advantages, cuts, ends, strict=True) for _ in range(e - s)]


def end_gets_nothing(step_advantages, cuts, length):
    """the last token, the end of the sequence, gets 0. This token belongs to the last step."""
    return [*advantages.spread_to_tokens(step_advantages, cuts, length)[:-1], 0.0]


def cut_belongs_to_the_step_before(step_advantages, cuts, length):
    """the token at a cut goes to the step before it. A cut is the first token of a step."""
    spread = advantages.spread_to_tokens(step_advantages, cuts, length)
    return [spread[0], *spread[:-1]]


def stops_at_the_last_cut(step_advantages, cuts, length):
    """the last step ends where it starts, so the list is too short. The last step ends at `length`."""
    pairs = zip(step_advantages, pairwise(cuts), strict=False)
    return [a for a, (start, end) in pairs for _ in range(end - start)]


def looked_up_by_the_advantage(step_advantages, cuts, length):
    """a step is looked up by its advantage (list.index, a dictionary). Two steps may have equal advantages."""
    ends = [*cuts[1:], length]
    spread = []
    for a in step_advantages:
        first = step_advantages.index(a)
        spread += [a] * (ends[first] - cuts[first])
    return spread


def zeros_filled(step_advantages, cuts, length):
    """an advantage of 0 is taken for a missing one, so the step gets the advantage of the step before. 0 is an advantage too."""
    spread = only_the_first_token(step_advantages, cuts, length)
    for t in range(1, length):
        spread[t] = spread[t] or spread[t - 1]
    return spread


def _spread_cases():
    return {
        "two steps": dict(step_advantages=[0.25, -0.5], cuts=[0, 2], length=5),
        "one step": dict(step_advantages=[1.0], cuts=[0], length=3),
        "steps of one token": dict(step_advantages=[0.5, -0.25, 0.75], cuts=[0, 1, 2], length=3),
        "equal advantages": dict(step_advantages=[0.5, -0.25, 0.5, 0.1], cuts=[0, 2, 3, 6], length=8),
        "an advantage of 0": dict(step_advantages=[0.5, 0.0, -0.25], cuts=[0, 2, 4], length=6),
        "four steps": dict(step_advantages=[0.1, 0.2, -0.3, 0.4], cuts=[0, 3, 4, 9], length=11),
    }


# ex20: lam and mu


def lam_forgotten(values, reward, *, lam, mu):
    """lam is left out: the value right after the step is used alone."""
    return advantages.step_advantages(values, reward, mu=mu)


def mu_forgotten(values, reward, *, lam, mu):
    """mu is left out: the value right before the step is the baseline."""
    return advantages.step_advantages(values, reward, lam=lam)


def lam_and_mu_exchanged(values, reward, *, lam, mu):
    """lam and mu are exchanged. lam averages the values after a step, and mu those before it."""
    return advantages.step_advantages(values, reward, lam=mu, mu=lam)


def weights_exchanged(values, reward, *, lam, mu):
    """lam and 1 - lam are exchanged, and mu and 1 - mu. At 0 only the nearest value counts."""
    return advantages.step_advantages(values, reward, lam=1 - lam, mu=1 - mu)


def baseline_after_the_step(values, reward, *, lam, mu):
    """the baseline contains the value after the step. It must not depend on the step."""
    return _credit(values, reward, lam, mu, baseline=values[1:] + [reward])


def reward_is_averaged(values, reward, *, lam, mu):
    """Q of the last step is lam R. It is R: no value follows."""
    return _credit(values, reward, lam, mu, last=lam * reward)


def sum_without_a_share(values, reward, *, lam, mu):
    """the factor 1 - lam is missing. The weights of an average sum to 1."""
    return _credit(values, reward, lam, mu, share=1.0)


def averaged_from_the_start(values, reward, *, lam, mu):
    """Q runs forwards in time. Q_i averages the values after step i, so it starts at the end."""
    q, out = None, []
    for after, a in zip([*values[1:], reward], advantages.step_advantages(values, reward, mu=mu), strict=True):
        q = after if q is None else (1 - lam) * after + lam * q
        out.append(a - after + q)
    return out


def _credit(values, reward, lam, mu, *, last=None, share=None, baseline=None):
    q, after = [reward if last is None else last], 1 - lam if share is None else share
    for value in reversed(values[1:]):
        q.append(after * value + lam * q[-1])
    baseline = values if baseline is None else baseline
    b = [baseline[0]]
    for value in baseline[1:]:
        b.append((1 - mu) * value + mu * b[-1])
    return [x - y for x, y in zip(reversed(q), b, strict=True)]


def _lam_cases():
    four = dict(values=[0.5, 0.75, 0.25, 0.625], reward=1.0)
    return {
        "two steps": dict(values=[0.5, 0.75], reward=1.0, lam=0.5, mu=0.5),
        "lam 0.5, mu 0": four | dict(lam=0.5, mu=0.0),
        "lam 0, mu 0.5": four | dict(lam=0.0, mu=0.5),
        "lam and mu 0": four | dict(lam=0.0, mu=0.0),
        "lam and mu 1": four | dict(lam=1.0, mu=1.0),
        "lam 0.75, mu 0.25": four | dict(lam=0.75, mu=0.25),
        "a reward of 1/4": four | dict(reward=0.25, lam=0.25, mu=0.5),
        "one step": dict(values=[0.125], reward=1.0, lam=0.5, mu=0.5),
    }


EXERCISES = [
    Exercise(
        "ex05_monte_carlo_values",
        "monte_carlo_values",
        values.monte_carlo_values,
        _value_cases,
        [
            best_of_k,
            majority,
            first_of_k,
            divided_by_k_minus_one,
            divided_by_the_first_k,
            whole_numbers,
            mean_over_all_states,
            mean_over_states,
            hopeless_states_dropped,
            failures_left_out,
            equal_rewards_counted_once,
            equal_states_once,
            smoothed,
        ],
    ),
    Exercise(
        "ex06_step_advantages",
        "step_advantages",
        advantages.step_advantages,
        _step_cases,
        [
            sign_turned,
            reward_forgotten,
            reward_on_every_step,
            against_the_return,
            against_the_question,
            last_step_dropped,
            last_step_by_its_value,
            zero_is_missing,
        ],
    ),
    Exercise(
        "ex07_spread_to_tokens",
        "spread_to_tokens",
        advantages.spread_to_tokens,
        _spread_cases,
        [
            only_the_first_token,
            shared_among_the_tokens,
            end_gets_nothing,
            cut_belongs_to_the_step_before,
            stops_at_the_last_cut,
            looked_up_by_the_advantage,
            zeros_filled,
        ],
    ),
    Exercise(
        "ex20_lam_and_mu",
        "step_advantages",
        advantages.step_advantages,
        _lam_cases,
        [
            lam_forgotten,
            mu_forgotten,
            lam_and_mu_exchanged,
            weights_exchanged,
            baseline_after_the_step,
            reward_is_averaged,
            sum_without_a_share,
            averaged_from_the_start,
        ],
    ),
]
