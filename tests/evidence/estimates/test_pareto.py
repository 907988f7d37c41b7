"""The fit of the tail against ArviZ's, and against distributions whose tail is known."""

from __future__ import annotations

import math
import warnings
from importlib.metadata import version

import numpy as np
import pytest
import torch

from pyro_vae.evidence import Estimate, pareto_k
from pyro_vae.evidence.estimates.pareto import fit_tail, tail_length


def arviz_psis(log_w):
    """Pareto k of each column, and the log of the smoothed mean weight, of ArviZ's own fit."""
    import arviz

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        smoothed, k = arviz.psislw(log_w.T.numpy().copy(), normalize=False)
    mean = torch.from_numpy(smoothed).logsumexp(-1) - math.log(len(log_w))
    return torch.from_numpy(np.atleast_1d(k)), mean


@pytest.mark.skipif(
    int(version("arviz").split(".")[0]) >= 1,
    reason="ArviZ 1.3 fits another tail: k up to 0.06 larger, none for nearly equal weights; ours is that of 0.x",
)
@pytest.mark.parametrize("num", [25, 26, 100, 1000, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 20.0, 400.0])
def test_the_same_as_arviz(num, spread):
    """From narrow weights to one that outweighs all others; far from 0, where rounding would show."""
    generator = torch.Generator().manual_seed(num)
    log_w = spread * torch.randn(num, 12, dtype=torch.float64, generator=generator) - 300
    k, smoothed = arviz_psis(log_w)
    torch.testing.assert_close(pareto_k(log_w), k, rtol=1e-9, atol=1e-9)
    ours = Estimate.from_weights(log_w, torch.zeros_like(log_w))
    torch.testing.assert_close(ours.smoothed, smoothed, rtol=0, atol=1e-9)
    assert (ours.smoothed - ours.log_px).abs().max() > 1e-6


def test_ties_at_the_cutoff_leave_shorter_tails():
    """As in ArviZ 0.x, of each datum its own: weights equal to the cutoff are no tail, and fewer than five are none."""
    log_w = torch.zeros(100, 3, dtype=torch.float64)
    log_w[:12, 0] = torch.linspace(1, 3, 12).double()
    log_w[:30, 1] = torch.linspace(1, 3, 30).double()
    log_w[:3, 2] = 2.0
    k = pareto_k(log_w)
    assert k.isfinite().tolist() == [True, True, False]
    if int(version("arviz").split(".")[0]) < 1:
        torch.testing.assert_close(k[:2], arviz_psis(log_w[:, :2])[0])


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.2, 0.4])
def test_smoothing_keeps_the_mean_of_generalized_pareto_weights(k):
    r"""E[w] = 1 / (1 - k): the smoothed mean over 400 data of 2,000 draws, within the pull of the fit to 1/2."""
    uniform = torch.rand(2000, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    w = -(1 - uniform).log() if k == 0 else ((1 - uniform).pow(-k) - 1) / k
    found = Estimate.from_weights(w.log(), torch.zeros_like(w))
    raw, smoothed = (x.exp().mean() * (1 - k) for x in (found.log_px, found.smoothed))
    error = float((found.log_px.exp() * (1 - k)).std()) / math.sqrt(400)
    assert abs(float(raw) - 1) < 4 * error
    assert abs(float(smoothed) - 1) < 4 * error + 0.01


def test_smoothing_lowers_the_scatter_of_heavy_tails():
    """Weights with infinite variance (k = 0.6): the root mean square error about the known mean is smaller."""
    k = 0.6
    uniform = torch.rand(1000, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    w = ((1 - uniform).pow(-k) - 1) / k
    found = Estimate.from_weights(w.log(), torch.zeros_like(w))
    raw, smoothed = ((x + math.log(1 - k)).square().mean().sqrt() for x in (found.log_px, found.smoothed))
    assert smoothed < 0.9 * raw


def test_data_are_fitted_alone():
    log_w = 2 * torch.randn(500, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    log_w[:, 1::2] = log_w[:, 1::2].round()
    whole = pareto_k(log_w)
    torch.testing.assert_close(torch.cat([pareto_k(log_w[:, i : i + 1]) for i in range(40)]), whole, rtol=1e-12, atol=0)


def test_the_length_of_the_tail():
    assert [tail_length(n) for n in (1, 20, 21, 225, 1000, 100_000)] == [1, 4, 5, 45, 95, 949]
    with pytest.raises(ValueError, match="expected the 96 largest weights, got 7"):
        fit_tail(torch.zeros(7, 2), 1000)
