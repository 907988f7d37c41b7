from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.evidence import active_units, equal_weights, kl_per_unit, pareto_k, pareto_k_threshold


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


def _normal(batch=(), dim=3, loc=0.0):
    torch.manual_seed(0)
    return torch.randn(*batch, dim, dtype=torch.float64) + loc, torch.rand(*batch, dim, dtype=torch.float64) + 0.3


def test_kl_per_unit_is_the_closed_form_of_normals():
    (mu, s), (m, r) = _normal((7,)), _normal(loc=1.0)
    found = kl_per_unit(dist.Normal(mu, s).to_event(1), dist.Normal(m, r).to_event(1))
    torch.testing.assert_close(found, (r / s).log() + (s**2 + (mu - m) ** 2) / (2 * r**2) - 0.5)


def test_kl_per_unit_is_an_integral_over_each_unit():
    """Of Laplace from normal, on a grid: nothing there knows of normals."""
    mu, s = _normal((2,))
    q, p = dist.Laplace(mu, s), dist.Normal(torch.zeros(3).double(), torch.ones(3).double())
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)[:, None, None]
    values = q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid))
    found = kl_per_unit(q.to_event(1), p.to_event(1))
    torch.testing.assert_close(found, torch.trapezoid(values, grid.flatten(), dim=0), rtol=1e-6, atol=1e-6)


def test_kl_per_unit_adds_up_to_the_kl():
    q, p = (dist.Normal(*_normal(batch)).to_event(1) for batch in ((5,), ()))
    torch.testing.assert_close(kl_per_unit(q, p).sum(-1), torch.distributions.kl_divergence(q, p))


def test_units_that_depend_on_each_other_have_no_kl_of_their_own():
    mu, s = _normal((5,))
    normal = dist.Normal(mu, s).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(3, 2), 1.0)).to_event(1)
    for other in (
        dist.MultivariateNormal(mu, torch.eye(3).double()),
        dist.TransformedDistribution(normal, dist.transforms.Permute(torch.tensor([2, 1, 0]))),
        dist.Delta(mu).to_event(1),  # no density
        dist.Normal(mu, s).to_event(2),
        dist.Normal(mu, s),
        mixture,  # independent units, but no closed form
    ):
        assert kl_per_unit(other, normal) is None
        assert kl_per_unit(normal, other) is None
