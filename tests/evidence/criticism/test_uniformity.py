from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pyro_vae.evidence.criticism.uniformity import simultaneous_band, uniformity_p


def uniform_counts(num: int, num_draws: int, repeats: int, seed: int = 0) -> np.ndarray:
    """Counts of each rank, shape ``(repeats, L + 1)``."""
    return np.random.default_rng(seed).multinomial(num, np.full(num_draws + 1, 1 / (num_draws + 1)), size=repeats)


def inside(band, counts: np.ndarray) -> np.ndarray:
    shares = counts.cumsum(-1)[..., :-1] / counts.sum(-1, keepdims=True)
    return ((shares >= band.lower) & (shares <= band.upper)).all(-1)


@pytest.mark.parametrize(("num", "num_draws"), [(3, 2), (5, 3), (6, 2)])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_level_and_p_values_by_enumeration(num, num_draws, level):
    """Every way in which a few ranks can fall, with its probability."""
    ways = [np.bincount(w, minlength=num_draws + 1) for w in itertools.product(range(num_draws + 1), repeat=num)]
    band = simultaneous_band(num, num_draws, level)
    assert inside(band, np.stack(ways)).mean() == pytest.approx(band.level)
    assert band.level >= level
    p = np.array([uniformity_p(w, num_draws) for w in ways])
    for value in np.unique(p):
        assert (p <= value + 1e-9).mean() == pytest.approx(value)


@pytest.mark.parametrize(("num", "num_draws"), [(100, 9), (1000, 99), (250, 999)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_the_band_holds_at_all_points_at_once(num, num_draws, level):
    band = simultaneous_band(num, num_draws, level)
    share = inside(band, uniform_counts(num, num_draws, 4000)).mean()
    assert abs(share - band.level) < 4 * math.sqrt(level * (1 - level) / 4000)
    assert level <= band.level < level + 0.25 * (1 - level)
    assert (band.lower <= band.grid).all()
    assert (band.grid <= band.upper).all()


def test_p_values_are_uniform():
    p = np.sort([uniformity_p(counts, 99) for counts in uniform_counts(1000, 99, 500)])
    distance = np.abs(p - (np.arange(500) + 0.5) / 500).max()
    assert distance < 1.95 / math.sqrt(500)  # Kolmogorov and Smirnov's 0.1 % point


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_a_curve_leaves_the_band_where_its_p_value_is_small(level):
    band = simultaneous_band(200, 19, level)
    counts = uniform_counts(200, 19, 300, seed=1)
    p = np.array([uniformity_p(c, 19) for c in counts])
    assert ((p <= 1 - band.level + 1e-9) == ~inside(band, counts)).all()


def test_ranks_that_are_not_uniform():
    rng = np.random.default_rng(0)
    ranks = rng.binomial(99, rng.beta(2, 2, size=1000))
    assert uniformity_p(np.bincount(ranks, minlength=100), 99) < 1e-6
    assert uniformity_p(np.array([1000] + [0] * 99), 99) < 1e-12
