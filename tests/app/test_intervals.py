"""Intervals against tables of Student's t, and against simulated coverage."""

import math
import random

import pytest

from vine_mini.app.intervals import at_levels, first_at, interval, t_cdf, t_quantile, verdict


@pytest.mark.parametrize(
    "p, df, value", [(0.975, 4, 2.7764), (0.975, 1, 12.7062), (0.95, 9, 1.8331), (0.995, 2, 9.9248), (0.995, 30, 2.7500)]
)
def test_quantiles_from_the_table(p, df, value):
    assert t_quantile(p, df) == pytest.approx(value, abs=2e-4) and t_cdf(value, df) == pytest.approx(p, abs=1e-5)


def test_an_interval_covers_as_often_as_it_says():
    """Five numbers of a normal distribution, 2,000 times: 95 % of the intervals hold its mean, within four standard errors."""
    rng = random.Random(0)
    hits = sum(low < 1.0 < high for _, low, high in (interval([rng.gauss(1, 3) for _ in range(5)]) for _ in range(2000)))
    assert abs(hits / 2000 - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5


def test_several_comparisons_widen_the_interval():
    values = [0.1, 0.3, 0.2, 0.4, 0.0]
    (mean, low, high), (same, lower, higher) = interval(values), interval(values, comparisons=5)
    assert mean == same == pytest.approx(0.2) and lower < low < high < higher
    assert low == pytest.approx(0.2 - 2.7764 * 0.025**0.5 / 5**0.5, abs=1e-4)
    assert interval([1.0]) == (1.0, -math.inf, math.inf)


def test_verdicts():
    assert [verdict(x) for x in ((1, 0.1, 2), (-1, -2, -0.1), (0.1, -1, 1))] == ["holds", "does not hold", "not shown"]


def test_where_a_curve_reaches_a_level():
    assert first_at([0, 10, 20], [0.0, 0.5, 0.4], 0.25) == 5.0 and first_at([0, 10], [0.3, 0.2], 0.3) == 0
    assert first_at([0, 10], [0.0, 0.5], 0.6) is None
    assert at_levels([0.1, 0.3, 0.2, 0.5], [1.0, 2.0, 5.0, 8.0], [0.2, 0.4, 0.6]) == [
        pytest.approx(1.5),
        pytest.approx(7.0),
        None,
    ]
