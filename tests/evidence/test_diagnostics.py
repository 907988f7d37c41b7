from __future__ import annotations

import math

import pytest
import torch

from pyro_vae.evidence import active_units, equal_weights, pareto_k, pareto_k_threshold


@pytest.mark.parametrize("k", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_pareto_k_of_generalized_pareto_draws(k):
    """Draws with density ~ (1 + k w)^(-1/k - 1): the mean fitted k is the true one, up to the fit's known pull to 1/2."""
    uniform = torch.rand(4000, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = ((1 - uniform).pow(-k) - 1) / k
    fitted = pareto_k(w.log())
    tail = 3 * math.sqrt(4000)
    # ArviZ shrinks by 10 prior observations of 1/2 among the tail's 190 (Vehtari et al. 2024, appendix G).
    expected = (tail * k + 10 * 0.5) / (tail + 10)
    assert abs(float(fitted.mean()) - expected) < 4 * float(fitted.std()) / math.sqrt(200) + 0.01
    assert 0.02 < float(fitted.std()) < 0.2


def test_pareto_k_needs_a_tail_and_two_dimensions():
    assert pareto_k(torch.randn(10, 2)).tolist() == [math.inf, math.inf]
    with pytest.raises(ValueError, match=r"expected shape \(K, B\)"):
        pareto_k(torch.randn(10))


def test_pareto_k_leaves_its_input_alone():
    log_w = torch.randn(200, 3, dtype=torch.float64)
    before = log_w.clone()
    shifted = pareto_k(log_w + 1000)
    torch.testing.assert_close(log_w, before, rtol=0, atol=0)
    torch.testing.assert_close(shifted, pareto_k(log_w))


@pytest.mark.parametrize(("num", "threshold"), [(10, 0.0), (100, 0.5), (1000, 2 / 3), (10**4, 0.7), (10**6, 0.7)])
def test_threshold(num, threshold):
    assert pareto_k_threshold(num) == pytest.approx(threshold)


def test_threshold_of_one_draw():
    assert pareto_k_threshold(1) == -math.inf


def test_equal_weights_up_to_rounding():
    base = torch.tensor([-90.0, -90.0, 5.0])
    log_w = base + torch.zeros(50, 3)
    log_w[3, 1] -= 0.5
    log_w[7, 2] = torch.nextafter(log_w[7, 2], torch.tensor(100.0))
    assert equal_weights(log_w).tolist() == [True, False, True]
    assert equal_weights(log_w[:1]).tolist() == [False, False, False]


def test_active_units():
    means = torch.randn(500, 3) * torch.tensor([1.0, 0.0, 0.05])
    assert active_units(means).tolist() == [True, False, False]
    assert active_units(means, threshold=1e-3).tolist() == [True, False, True]
