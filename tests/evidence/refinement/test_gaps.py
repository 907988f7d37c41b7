"""The inference gap in two parts, against their closed forms in the linear-Gaussian model."""

from __future__ import annotations

import dataclasses
import math

import pyro
import pytest
import torch

from pyro_vae.evidence import importance_sampling
from pyro_vae.evidence.refinement.gaps import Gaps, gaps
from tests.evidence.refinement.test_refined import BEST_DIAGONAL, ORACLE, diagonal, divergence
from tests.oracles import within


@pytest.mark.parametrize(("shift", "stretch"), [(0.8, 1.0), (0.0, 1.6)])
@pytest.mark.parametrize(("family", "best"), [(ORACLE.guide, 0.0), (diagonal, BEST_DIAGONAL)])
def test_both_gaps_are_closed_forms(family, best, shift, stretch):
    """A full covariance reaches the posterior: no approximation gap. A diagonal one leaves that of mean field."""
    x = ORACLE.draw(8)
    found = gaps(ORACLE.model, family(shift, stretch), x, num_samples=2000)
    whole = divergence(family(shift, stretch), x)
    left = 0.02 * (whole - best)  # what refinement may leave, as its own tests hold it to
    exact = found.log_px_error.isnan()
    inference_error = torch.where(exact, 0.05, found.inference_error)
    assert within(found.inference, whole, inference_error)
    assert bool(((found.amortization - (whole - best)).abs() < 4 * found.amortization_error + left).all())
    approximation_error = torch.where(exact, 0.05, found.approximation_error)
    assert bool(((found.approximation - best).abs() < 4 * approximation_error + left + 1e-9).all())
    torch.testing.assert_close(found.approximation + found.amortization, found.inference)
    assert bool(found.kept.all())


def test_the_exact_guide_has_no_gap():
    x = ORACLE.draw(5)
    found = gaps(ORACLE.model, ORACLE.guide(), x, num_samples=50, steps=20)
    for gap in (found.inference, found.approximation, found.amortization):
        assert float(gap.abs().max()) < 1e-10
    assert not bool(found.kept.any())
    assert found.summary().num_kept == 0


def test_errors_are_those_of_repetitions():
    """Mean square of (estimate - exact) / error over seeds is 1 where nothing is left to refinement: steps = 0."""
    x = ORACLE.draw(5)
    whole = divergence(diagonal(0.5, 1.0), x)
    squares = []
    for seed in range(25):
        found = gaps(ORACLE.model, diagonal(0.5, 1.0), x, num_samples=100, steps=0, seed=seed)
        squares.append((found.amortization / found.amortization_error).square())
        torch.testing.assert_close(found.elbo_refined + found.approximation, found.log_px)
    squares = torch.cat(squares)
    assert within(squares.mean(), 1.0, squares.std() / math.sqrt(len(squares)))
    assert within(found.elbo, ORACLE.log_px(x) - whole, found.elbo_error)


def test_a_better_log_px_can_be_given():
    x = ORACLE.draw(4)
    guide = diagonal(0.5, 0.5)
    given = importance_sampling(ORACLE.model, ORACLE.guide(), x, num_samples=30)
    found = gaps(ORACLE.model, guide, x, num_samples=100, steps=50, log_px=given)
    torch.testing.assert_close(found.log_px, ORACLE.log_px(x))
    assert within(found.inference, divergence(guide, x), found.inference_error)
    with pytest.raises(ValueError, match="log_px: expected an estimate for the 3 given data, got one for 4 data"):
        gaps(ORACLE.model, guide, x[:3], num_samples=10, steps=0, log_px=given)


def test_summary_and_cat():
    x = ORACLE.draw(6)
    pyro.set_rng_seed(4)
    parts = [gaps(ORACLE.model, ORACLE.guide(0.4, 1.1), x[i : i + 3], num_samples=50, steps=30) for i in (0, 3)]
    found = Gaps.cat(parts)
    summary = found.summary()
    assert len(found.kept) == summary.num_data == 6
    for name in ("inference", "approximation", "amortization"):
        gap, error = getattr(found, name), getattr(found, f"{name}_error")
        assert getattr(summary, name) == pytest.approx(float(gap.mean()))
        assert getattr(summary, f"{name}_std_error") == pytest.approx(float(gap.std()) / math.sqrt(6))
        if not bool(error.isnan().any()):
            assert getattr(summary, f"{name}_mc_error") == pytest.approx(float(error.square().sum().sqrt()) / 6)
    assert summary.approximation + summary.amortization == pytest.approx(summary.inference)
    unknown = dataclasses.replace(found, log_px_error=torch.full_like(found.log_px, math.nan)).summary()
    assert unknown.inference_mc_error is None
    assert unknown.amortization_mc_error > 0
    with pytest.raises(ValueError, match="cat: expected at least one part"):
        Gaps.cat([])
    with pytest.raises(ValueError, match="num_samples: expected at least 2"):
        gaps(ORACLE.model, ORACLE.guide(), x, num_samples=1)
