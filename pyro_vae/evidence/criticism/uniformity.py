"""Are ranks uniform? A band around their distribution function that holds at all points at once, and an exact p-value."""

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
    r"""A simultaneous band for the distribution function of S uniform ranks in 0 to L.

    Attributes:
        grid: Where it is given, :math:`j / (L + 1)` for j of 1 to L, which is :math:`P(\text{rank} < j)`; shape ``(L,)``.
        lower: Lower end of the share of ranks below j, likewise.
        upper: Upper end, likewise.
        level: The probability that S uniform ranks stay inside at every point: exact, and at least the one asked for.
    """

    grid: Array
    lower: Array
    upper: Array
    level: float

    def share_below(self, values: Array) -> Array:
        """The share of values below each point of the grid, shape ``(L,)``.

        Args:
            values: Ranks as numbers in (0, 1), (rank + 1/2) / (L + 1), shape ``(S,)``.
        """
        return (values[:, None] < self.grid).mean(0)


def simultaneous_band(num: int, num_draws: int, level: float = 0.95) -> Band:
    r"""The band of equal pointwise tails that S uniform ranks do not leave with a given probability.

    At each point the count of ranks below it is binomial. All points get one tail probability, the largest at which
    the band as a whole holds with the level asked for. That is computed, not simulated: counts of uniform values are
    a Poisson process given its total, and what stays inside is carried from point to point.

    Args:
        num: S, how many ranks.
        num_draws: L, of the draws among which each is ranked.
        level: Between 0 and 1.

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
    """p-value of the hypothesis that ranks are uniform on 0 to L, by the band that they just leave.

    The statistic is the smallest binomial tail probability over the points of the grid; its distribution is exact, as
    in :func:`simultaneous_band`: at most a share a of uniform ranks have a p-value of a or less. Rounding leaves an error of
    about 1e-13, so that a smaller p-value is that of any.

    Args:
        counts: How many ranks have each value, shape ``(L + 1,)``.
        num_draws: L.
    """
    num = int(counts.sum())
    below, above = _tails(num, num_draws)
    reached = counts.cumsum()[:-1]
    points = np.arange(num_draws)
    tail = min(below[points, reached].min(), above[points, reached].min())
    return 1 - _probability_inside(num, num_draws, float(tail) * (1 + 1e-9))  # an equal tail is as extreme


@lru_cache(maxsize=4)
def _tails(num: int, num_draws: int) -> tuple[Array, Array]:
    """P(count <= c) and P(count >= c) at each point of the grid for each c, shape ``(L, S + 1)``."""
    grid = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    values = np.arange(num + 1)
    return stats.binom.cdf(values, num, grid), stats.binom.sf(values - 1, num, grid)


def _limits(num: int, num_draws: int, tail: float) -> tuple[Counts, Counts]:
    """The least and the largest count at each point whose two tails are both above ``tail``."""
    below, above = _tails(num, num_draws)
    return (below <= tail).sum(1), (above > tail).sum(1) - 1


def _probability_inside(num: int, num_draws: int, tail: float) -> float:
    """The probability that uniform ranks stay within the limits at every point."""
    lower, upper = _limits(num, num_draws, tail)
    if bool((lower > upper).any()):
        return 0.0
    step = stats.poisson.pmf(np.arange(num + 1), num / (num_draws + 1))
    inside, first = np.ones(1), 0  # unnormalized probability of each count from `first` on
    for least, most in zip(lower.tolist(), upper.tolist(), strict=True):
        moved = np.convolve(inside, step[: most - first + 1])[: most - first + 1]
        inside, first = moved[least - first :], least
    rest = num - first - np.arange(len(inside))  # what the last cell must take, so that the total is S
    return min(1.0, float(inside @ step[rest]) / float(stats.poisson.pmf(num, num)))
