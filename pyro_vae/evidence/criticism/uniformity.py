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
        grid: The points :math:`j / (L + 1) = P(\text{rank} < j)` for j from 1 to L, shape ``(L,)``. Ranks are from 0 to L.
        lower: Lower edge of the band at each j: the smallest share of ranks below j, shape ``(L,)``.
        upper: Upper edge of the band at each j: the largest share of ranks below j, shape ``(L,)``.
        level: Exact probability that the shares of S uniform ranks are inside the band at every point; at least the requested
            level.
    """

    grid: Array
    lower: Array
    upper: Array
    level: float

    def share_below(self, values: Array) -> Array:
        """Compute the share of values below each point of the grid, ``(L,)``.

        Args:
            values: Transformed ranks, (rank + 1/2) / (L + 1), shape ``(S,)``, in (0, 1).
        """
        return (values[:, None] < self.grid).mean(0)


def simultaneous_band(num: int, num_draws: int, level: float = 0.95) -> Band:
    r"""Compute a band for S uniform ranks with equal pointwise tails.

    .. math:: P\big(\text{lower}_j \le \tfrac1S \#\{s: r_s < j\} \le \text{upper}_j \ \text{for all } j\big) \ge \text{level}

    where :math:`r_s` is rank s of S, and j runs over the points of the grid. The number of ranks below j is binomial. All
    points get the same tail probability: the largest for which the ranks stay inside the whole band with a probability of at
    least ``level``. This probability is computed, not simulated: the counts are a Poisson process conditioned on the total
    count, and a recursion carries the probability of staying inside from point to point.

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
    """Compute an exact p-value that ranks are uniform on 0 to L.

    The test statistic is the smallest binomial tail probability over the points of the grid. It equals the tail probability of
    the narrowest band that the ranks just leave. The distribution of the statistic is computed exactly, as in
    :func:`simultaneous_band`: for uniform ranks, P(p <= a) is at most a. Rounding errors are about 1e-13, so smaller p-values
    cannot be told apart.

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
    """Compute both binomial tails of each count c at each point.

    The tails are P(count <= c) and P(count >= c), shape ``(L, S + 1)`` each for L points and S ranks.
    """
    grid = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    values = np.arange(num + 1)
    return stats.binom.cdf(values, num, grid), stats.binom.sf(values - 1, num, grid)


def _limits(num: int, num_draws: int, tail: float) -> tuple[Counts, Counts]:
    """Find, at each point, the counts with both tails above ``tail``."""
    below, above = _tails(num, num_draws)
    return (below <= tail).sum(1), (above > tail).sum(1) - 1


def _probability_inside(num: int, num_draws: int, tail: float) -> float:
    """Compute the probability that uniform ranks stay inside at every point."""
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
