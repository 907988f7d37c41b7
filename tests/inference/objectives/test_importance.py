"""VIMCO, PIWAE and Rényi bounds, against quadrature."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal

from pyro_vae import VAE, elbo
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference.objectives.weighted import log_mean_exp
from tests.oracles import within
from tests.replicas import (
    REPLICAS,
    agree,
    by_quadrature,
    gradients,
    program,
)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_vimco_without_reparameterized_draws(beta):
    exact, exact_gradient, spread = by_quadrature(log_mean_exp, 2, beta)
    model, guide = scale_kl_pair(*program(NonreparameterizedNormal), beta)
    loss, found = gradients(elbo("vimco", num_particles=2), model, guide)
    for parameter, sample in found.items():
        assert agree(sample, exact_gradient[parameter]), parameter
    assert within(-loss / REPLICAS, exact, spread / math.sqrt(REPLICAS))


def test_piwae_gives_each_side_its_own_bound():
    _, tight, _ = by_quadrature(log_mean_exp, 2, 1.0)
    _, loose, _ = by_quadrature(log_mean_exp, 1, 1.0)
    _, found = gradients(elbo("piwae", num_groups=2, num_particles=1), *program())
    assert agree(found["weight"], tight["weight"])
    assert not agree(found["weight"], loose["weight"])
    for parameter in ("loc", "log_scale"):
        assert agree(found[parameter], loose[parameter])
        assert not agree(found[parameter], tight[parameter])


def test_piwae_refuses_common_parameters():
    def model(x):
        scale = pyro.param("common", torch.tensor(1.0, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("common", torch.tensor(1.0, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), scale))

    with pytest.raises(ValueError, match="piwae: expected a model and a guide without common parameters, got shared"):
        elbo("piwae").loss(model, guide, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["renyi", "dreg"])
def test_orders_near_one_are_the_elbo_in_single_precision(name):
    vae = VAE((4,), 2, (5,))
    x = torch.bernoulli(torch.full((6, 4), 0.4))
    losses, grads = [], []
    for alpha in (1.0, 1 - 1e-6):
        pyro.set_rng_seed(1)
        loss = elbo(name, alpha=alpha, num_particles=5).differentiable_loss(vae.model, vae.guide, x)
        losses.append(loss.item())
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))]))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)
