from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions import LIKELIHOODS, POSTERIORS, PRIORS
from tests.oracles import all_binary


def test_bernoulli_mass_sums_to_one():
    x = all_binary(4)
    p = LIKELIHOODS["bernoulli"]((4,))(torch.randn(4, dtype=torch.float64))
    assert float(p.log_prob(x).exp().sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", ["continuous-bernoulli", "normal"])
def test_densities_integrate_to_one(name):
    params = torch.tensor([-1.3, 0.0, 0.4, 8.0], dtype=torch.float64)
    low, high = (0.0, 1.0) if name == "continuous-bernoulli" else (-20.0, 30.0)
    grid = torch.linspace(low, high, 200_001, dtype=torch.float64)[:, None]
    p = LIKELIHOODS[name]((1,)).double()(params[:, None, None])
    area = torch.trapezoid(p.log_prob(grid).exp(), grid[:, 0], dim=-1)
    torch.testing.assert_close(area, torch.ones_like(area), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_equals_the_cross_entropy(dtype):
    """Value, gradient and second derivative of the fast log mass, up to logits where a naive one fails."""
    logits = torch.tensor([-200.0, -30, -5, -0.1, 0, 0.1, 5, 30, 200], dtype=dtype, requires_grad=True)
    x = (torch.arange(9) % 2).to(dtype)
    ours = LIKELIHOODS["bernoulli"]((9,))(logits).base_dist.log_prob(x)
    reference = dist.Bernoulli(logits=logits).log_prob(x)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1.2e-7 if dtype == torch.float32 else 3e-16)
    first, second = (torch.autograd.grad(v.sum(), logits, create_graph=True)[0] for v in (ours, reference))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(
        torch.autograd.grad(first.square().sum(), logits)[0], torch.autograd.grad(second.square().sum(), logits)[0]
    )


def test_bernoulli_has_a_gradient_in_its_data():
    x = torch.rand(5, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(3, 5, dtype=torch.float64)
    p = LIKELIHOODS["bernoulli"]((5,))(logits).base_dist
    p._validate_args = False
    torch.testing.assert_close(torch.autograd.grad(p.log_prob(x).sum(), x)[0], logits.sum(0))


def test_bernoulli_refuses_grey_pixels():
    with pytest.raises(
        ValueError, match="expected pixels of 0 and 1.*binarize them, or use likelihood='continuous-bernoulli'"
    ):
        LIKELIHOODS["bernoulli"]((3,))(torch.zeros(3)).log_prob(torch.tensor([0.0, 0.5, 1.0]))


def test_normal_has_one_learned_scale():
    likelihood = LIKELIHOODS["normal"]((2, 2))
    assert [n for n, _ in likelihood.named_parameters()] == ["log_scale"]
    with torch.no_grad():
        likelihood.log_scale.fill_(math.log(0.5))
    p = likelihood(torch.zeros(3, 2, 2))
    exact = 4 * (-math.log(0.5) - 0.5 * math.log(2 * math.pi) - 0.5 * 4)
    torch.testing.assert_close(p.log_prob(torch.ones(3, 2, 2)), torch.full((3,), exact))


def test_diagonal_normal_reads_loc_and_log_scale():
    posterior = POSTERIORS["normal"](2)
    assert posterior.num_params == 4
    q = posterior(torch.tensor([1.0, 2.0, math.log(3.0), math.log(0.1)]))
    torch.testing.assert_close(q.base_dist.loc, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(q.base_dist.scale, torch.tensor([3.0, 0.1]))
    assert q.event_shape == (2,)


def test_standard_normal_prior():
    p = PRIORS["normal"](3)()
    assert p.event_shape == (3,)
    assert float(p.log_prob(torch.zeros(3))) == pytest.approx(-1.5 * math.log(2 * math.pi))
