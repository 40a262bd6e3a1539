"""Intervals for means of few runs, paired by seed. Pure functions."""

import math
import statistics
from functools import cache
from itertools import pairwise

import torch


@cache
def t_quantile(p: float, df: int) -> float:
    """The p-quantile of Student's t distribution, for 0.5 < p < 1. Bisection on its distribution function."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, df: int) -> float:
    """The distribution function of Student's t at t >= 0: 1/2 + the integral of the density, with x = sqrt(df) tan(angle)."""
    angle = torch.linspace(0, math.atan(t / df**0.5), 2001, dtype=torch.float64)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.pi**0.5
    return 0.5 + scale * torch.trapezoid(angle.cos() ** (df - 1), angle).item()


def interval(values: list[float], comparisons: int = 1) -> tuple[float, float, float]:
    """The mean and its 95 % confidence interval, of independent runs. -> mean, low, high

    With several comparisons each interval is wider, so that all of them hold together at the level (Bonferroni).
    """
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    half = t_quantile(1 - 0.025 / comparisons, n - 1) * statistics.stdev(values) / n**0.5
    return mean, mean - half, mean + half


def verdict(interval: tuple[float, float, float]) -> str:
    """The verdict on the claim that a difference is positive."""
    _, low, high = interval
    return "holds" if low > 0 else "does not hold" if high < 0 else "not shown"


def first_at(xs: list[float], ys: list[float], level: float) -> float | None:
    """The first x at which y reaches the level, on straight lines between the points; None if it never does."""
    for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True)):
        if y0 >= level:
            return x0
        if y1 >= level:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return None


def at_levels(xs: list[float], ys: list[float], levels: list[float]) -> list[float | None]:
    """y where x first reaches each level, on straight lines; None where it never does."""
    found = []
    for level in levels:
        for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True)):
            if x0 <= level <= x1:
                found.append(y0 + (y1 - y0) * (level - x0) / (x1 - x0) if x1 > x0 else y0)
                break
        else:
            found.append(None)
    return found
