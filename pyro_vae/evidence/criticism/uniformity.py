"""Tests that ranks are uniform: a simultaneous band and an exact p-value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Band:
    r"""Simultaneous band for the distribution function of S uniform ranks.

    Attributes:
        grid: The points :math:`j / (L + 1) = P(\text{rank} < j)` for j from 1 to L, shape ``(L,)``.
        lower: Lower end of the share of ranks below j, shape ``(L,)``.
        upper: Upper end of the share of ranks below j, shape ``(L,)``.
        level: Exact probability that S uniform ranks stay inside at every point; at least the requested level.
    """

    grid: Array
    lower: Array
    upper: Array
    level: float

    def share_below(self, values: Array) -> Array:
        """Share of values below each point of the grid, shape ``(L,)``.

        Args:
            values: Transformed ranks, (rank + 1/2) / (L + 1), shape ``(S,)``, in (0, 1).
        """
        return (values[:, None] < self.grid).mean(0)


def simultaneous_band(num: int, num_draws: int, level: float = 0.95) -> Band:
    r"""Compute the band with equal pointwise tails for S uniform ranks.

    .. math:: P\big(\text{lower}_j \le \tfrac1S \#\{s: r_s < j\} \le \text{upper}_j \ \text{for all } j\big) \ge \text{level}

    The number of ranks below a point is binomial. All points get the same tail probability, the largest for which the whole
    band has a probability of at least ``level``. This probability is computed, not simulated: the counts are a Poisson process
    conditioned on its total, and the probability of staying inside is carried from point to point.

    Args:
        num: Number of ranks, S.
        num_draws: Number of draws L among which each truth is ranked.
        level: Probability in (0, 1).

    Returns:
        The band at the L points of the grid, with its exact level.

    References:
        Säilynoja, Bürkner, Vehtari, "Graphical Test for Discrete Uniformity and Its Applications in Goodness-of-Fit
        Evaluation and Multiple Sample Comparison", 2022, section 2; Moscovich, Nadler, "Fast Calculation of Boundary
        Crossing Probabilities for Poisson Processes", 2017, for the recursion.
    """
    low, high = -700.0, 0.0  # logs of tail probabilities: all inside, none inside
    for _ in range(60):
        middle = (low + high) / 2
        inside = _probability_inside(num, num_draws, np.exp(middle)) >= level
        low, high = (middle, high) if inside else (low, middle)
    tail = float(np.exp(low))
    lower, upper = _limits(num, num_draws, tail)
    grid = np.arange(1, num_draws + 1) / (num_draws + 1)
    return Band(grid, lower / num, upper / num, _probability_inside(num, num_draws, tail))


def uniformity_p(counts: Counts, num_draws: int) -> float:
    """Exact p-value of uniform ranks on 0 to L.

    The statistic is the smallest binomial tail probability over the points of the grid: the tail of the band that the ranks
    just leave. Its distribution is computed exactly, as in :func:`simultaneous_band`: for uniform ranks, P(p <= a) is at most
    a. Rounding errors are about 1e-13; smaller p-values cannot be told apart.

    Args:
        counts: Number of ranks with each value, shape ``(L + 1,)``.
        num_draws: Number of draws L among which each truth is ranked.

    Returns:
        The p-value, in [0, 1].
    """
    num = int(counts.sum())
    below, above = _tails(num, num_draws)
    reached = counts.cumsum()[:-1]
    points = np.arange(num_draws)
    tail = min(below[points, reached].min(), above[points, reached].min())
    return 1 - _probability_inside(num, num_draws, float(tail) * (1 + 1e-9))  # an equal tail is as extreme


@lru_cache(maxsize=4)
def _tails(num: int, num_draws: int) -> tuple[Array, Array]:
    """Binomial tails at each point, shape ``(L, S + 1)``.

    P(count <= c) and P(count >= c) for each count c.
    """
    grid = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    values = np.arange(num + 1)
    return stats.binom.cdf(values, num, grid), stats.binom.sf(values - 1, num, grid)


def _limits(num: int, num_draws: int, tail: float) -> tuple[Counts, Counts]:
    """Smallest and largest count at each point with both tails above ``tail``."""
    below, above = _tails(num, num_draws)
    return (below <= tail).sum(1), (above > tail).sum(1) - 1


def _probability_inside(num: int, num_draws: int, tail: float) -> float:
    """Probability that uniform ranks stay within the limits at every point."""
    lower, upper = _limits(num, num_draws, tail)
    if bool((lower > upper).any()):
        return 0.0
    step = stats.poisson.pmf(np.arange(num + 1), num / (num_draws + 1))
    inside, first = np.ones(1), 0  # unnormalized probability of each count from `first` on
    for least, most in zip(lower.tolist(), upper.tolist(), strict=True):
        moved = np.convolve(inside, step[: most - first + 1])[: most - first + 1]
        inside, first = moved[least - first :], least
    rest = num - first - np.arange(len(inside))  # ranks left for the last cell, so that the total is S
    return min(1.0, float(inside @ step[rest]) / float(stats.poisson.pmf(num, num)))
