"""Weights reduced as they come, against the formulas over all of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from pyro_vae.evidence import Estimate
from pyro_vae.evidence.estimates.diagnostics import jackknife
from pyro_vae.evidence.estimates.moments import JACKKNIFE_BLOCKS, Moments


def weights(num: int, spread: float = 1.5, size: int = 6, offset: float = -700.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num)
    likelihood = spread * torch.randn(num, size, dtype=torch.float64, generator=generator) + offset
    return likelihood, spread * torch.randn(num, size, dtype=torch.float64, generator=generator)


def in_chunks(likelihood: Tensor, ratio: Tensor, size: int) -> Estimate:
    moments = Moments(*likelihood.shape)
    for parts in zip(likelihood.split(size), ratio.split(size), strict=True):
        moments.add(*parts)
    return Estimate.from_moments(moments)


@pytest.mark.parametrize("num", [1, 2, 30, 777, 3000])
def test_the_formulas_over_all_weights(num):
    likelihood, ratio = weights(num)
    found = in_chunks(likelihood, ratio, 100)
    log_w = likelihood + ratio
    w = (log_w - log_w.max(0).values).exp()
    torch.testing.assert_close(found.log_px, w.mean(0).log() + log_w.max(0).values)
    torch.testing.assert_close(found.ess, w.sum(0) ** 2 / (w**2).sum(0))
    torch.testing.assert_close(found.largest_share, w.max(0).values / w.sum(0))
    torch.testing.assert_close(
        (found.elbo, found.rate, found.distortion), tuple(x.mean(0) for x in (log_w, -ratio, -likelihood))
    )
    assert found.draws.tolist() == [num] * 6
    if num > 1:
        torch.testing.assert_close(found.elbo_std_error, log_w.std(0) / math.sqrt(num))
        delta = w.std(0) / w.mean(0) / math.sqrt(num)
        good = found.reliable
        torch.testing.assert_close(found.std_error[good], delta[good])
    assert bool(found.std_error[~found.reliable].isnan().all())
    assert bool(found.jackknife_error[~found.reliable].isnan().all())


@pytest.mark.parametrize("spread", [1e-9, 0.3, 3.0, 300.0])
@pytest.mark.parametrize("size", [1, 7, 300, 2000])
def test_chunks_change_rounding_only(size, spread):
    likelihood, ratio = weights(2000, spread)
    ours, whole = in_chunks(likelihood, ratio, size), in_chunks(likelihood, ratio, 10_000)
    for field in dataclasses.fields(Estimate):
        a, b = getattr(ours, field.name), getattr(whole, field.name)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, equal_nan=True)


def test_the_jackknife_leaves_out_one_block_at_a_time():
    """Against a loop over what is left, and, with as many blocks as draws, the formula's own draws."""
    log_w, _ = weights(1000, 0.5)
    found = in_chunks(log_w, torch.zeros_like(log_w), 64)
    blocks = log_w.reshape(JACKKNIFE_BLOCKS, 20, 6)
    left = torch.stack(
        [torch.cat([blocks[:g], blocks[g + 1 :]]).flatten(0, 1).logsumexp(0) for g in range(JACKKNIFE_BLOCKS)]
    )
    expected = ((left - left.mean(0)).square().sum(0) * 49 / 50).sqrt()
    torch.testing.assert_close(found.jackknife_error, expected, rtol=1e-8, atol=0)
    ratio = found.jackknife_error / found.std_error
    # An error from 50 blocks is known to 1 / sqrt(98).
    assert abs(float(ratio.mean()) - 1) < 4 / math.sqrt(98 * 6)


@pytest.mark.parametrize("num", [75, 128, 1024])
def test_the_jackknife_of_blocks_that_are_not_equal(num):
    """Equal weights have no error, and log-normal ones the scatter of 3,000 repetitions."""
    equal = torch.full((num, 4), -80.0, dtype=torch.float64)
    assert float(Estimate.from_weights(equal, torch.zeros_like(equal)).jackknife_error.max()) < 1e-12
    log_w = 0.5 * torch.randn(num, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = Estimate.from_weights(log_w, torch.zeros_like(log_w))
    good = found.reliable
    assert float(good.double().mean()) > 0.8
    scatter = float(found.log_px[good].std())
    assert float(found.jackknife_error[good].square().mean().sqrt()) == pytest.approx(
        scatter, rel=4 / math.sqrt(2 * 2700) + 0.01
    )


def test_the_jackknife_of_a_dominating_block_is_no_rounding():
    blocks = torch.tensor([[0.0], [0.0], [600.0]], dtype=torch.float64)
    # Without the largest block the estimate falls by 600 - log 2, else it stays.
    fall = 600 - math.log(2)
    expected = math.sqrt(2 / 3 * (2 * (fall / 3) ** 2 + (2 * fall / 3) ** 2))
    assert float(jackknife(blocks, torch.ones(3))) == pytest.approx(expected)


def test_jackknife_and_delta_errors_are_the_scatter():
    """Log-normal weights: both errors against the standard deviation over 3,000 repetitions."""
    log_w = 0.7 * torch.randn(400, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = Estimate.from_weights(log_w, torch.zeros_like(log_w))
    scatter = float(found.log_px.std())
    for errors in (found.std_error, found.jackknife_error):
        mean_square = float(errors[found.reliable].square().mean().sqrt())
        assert mean_square == pytest.approx(scatter, rel=4 / math.sqrt(2 * 3000) + 0.02)


def test_memory_does_not_grow_with_the_draws():
    """100,000 draws of one datum: the 3 sqrt(K) largest, 50 blocks, and what a chunk holds."""
    moments = Moments(100_000, 1)
    most = 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        chunk = torch.randn(1000, 1, generator=generator)
        moments.add(chunk, torch.zeros_like(chunk))
        state = [x for x in vars(moments._sums or object).values() if isinstance(x, Tensor)]
        held = sum(x.numel() for x in state) + sum(x.numel() for parts in moments._pending for x in parts)
        most = max(most, held)
    assert most < 950 + 50 + 3 * 2000 + 20
    assert float(Estimate.from_moments(moments).log_px) == pytest.approx(0.5, abs=4 * 1.31 / math.sqrt(100_000))


def test_weights_that_are_no_sum_of_the_parts():
    """An enumerated site: log w and the terms of the ELBO are given apart."""
    likelihood, ratio = weights(100)
    log_w = likelihood + ratio + 3
    moments = Moments(100, 6)
    moments.add(likelihood, ratio, log_w)
    found, plain = Estimate.from_moments(moments), Estimate.from_weights(likelihood, ratio)
    torch.testing.assert_close(found.log_px, plain.log_px + 3)
    torch.testing.assert_close(found.elbo, plain.elbo)
    torch.testing.assert_close(found.elbo_std_error, plain.elbo_std_error)


def test_missing_and_surplus_draws_are_refused():
    likelihood, ratio = weights(10)
    moments = Moments(11, 6)
    moments.add(likelihood, ratio)
    with pytest.raises(ValueError, match="expected 11 draws, got 10"):
        Estimate.from_moments(moments)
    with pytest.raises(ValueError, match="expected 11 draws, got more"):
        moments.add(likelihood, ratio)
    with pytest.raises(ValueError, match="num_data: expected at least 1, got 0"):
        Moments(5, 0)
