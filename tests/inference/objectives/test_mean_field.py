"""The ELBO with the KL in closed form."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import elbo
from pyro_vae.inference import FreeBits
from tests.inference.objectives.diagonal import diagonal_guide, diagonal_rate
from tests.oracles import LinearGaussian, mixture, within

ORACLE = LinearGaussian()


def test_mean_field_rate_is_exact_on_every_draw():
    x = ORACLE.draw(5)
    terms = elbo("mean-field").terms(ORACLE.model, diagonal_guide, x)
    assert float(terms.rate) == pytest.approx(float(diagonal_rate(x).sum()))


def test_exact_posterior_by_mean_field_only_in_expectation():
    x = ORACLE.draw(5)
    oracle = LinearGaussian(latent_dim=1)
    x = oracle.draw(5)

    def guide(x):
        mean, factor = oracle.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, factor[0]).to_event(1))

    objective = elbo("mean-field")
    bounds = torch.stack([objective.bound(oracle.model, guide, x) for _ in range(2000)])
    assert within(bounds.mean(0), oracle.log_px(x), bounds.std(0) / math.sqrt(2000))
    assert bool((bounds.std(0) > 0.1).all())


@pytest.mark.thin(2, by="how")
@pytest.mark.parametrize("coupling", [0.6, 0.0])
@pytest.mark.parametrize("how", ["bound", "loss", "site", "unit"])
@pytest.mark.usefixtures("checked")
def test_mean_field_is_a_bound_where_the_guide_draws_a_models_parent_last(how, coupling):
    """p(z) p(a|z) p(x|z) and q(a) q(z|a), all normal: KL(q(a) || p(a|z)) in closed form would forget that z depends on a."""
    n, x = 20_000, torch.full((20_000,), 1.3, dtype=torch.float64)
    m = torch.full((n,), 0.4, dtype=torch.float64, requires_grad=True)
    s, t, one = torch.tensor(0.7).double(), torch.tensor(0.9).double(), torch.tensor(1.0).double()

    def model():
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Normal(0 * one, one))
            pyro.sample("a", dist.Normal(z, one))
            pyro.sample("x", dist.Normal(z, one), obs=x)

    def guide():
        with pyro.plate("data", n):
            a = pyro.sample("a", dist.Normal(m, s))
            pyro.sample("z", dist.Normal(coupling * a, t))

    second = coupling**2 * (m.square() + s**2) + t**2
    errors = second + (1 - coupling) ** 2 * (m.square() + s**2) + t**2 + x.square() - 2 * x * coupling * m + second
    exact = -0.5 * errors + 1 + s.log() + t.log() - 0.5 * math.log(2 * math.pi)
    pyro.set_rng_seed(5)
    objective = elbo("mean-field")
    if how == "bound":
        found = objective.bound(model, guide)
        assert within(found.mean(), exact.mean(), found.std() / math.sqrt(n))
    else:
        wrapped = objective if how == "loss" else FreeBits(objective, 1e-12, per=how)
        found = -wrapped.differentiable_loss(model, guide) / n
        assert within(found, exact.mean(), objective.bound(model, guide).std() / math.sqrt(n))
    ours, theirs = (
        torch.autograd.grad(value.sum() * k, m)[0] for value, k in ((found, n if how != "bound" else 1), (exact, 1))
    )
    assert within(ours.mean(), theirs.mean(), ours.std() / math.sqrt(n))


@pytest.mark.filterwarnings("error")
def test_mean_field_does_not_warn_of_an_order_that_does_not_matter():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    assert elbo("mean-field").loss(model, guide) == pytest.approx(0.0, abs=1e-6)


def test_mean_field_refuses_discrete_sites():
    oracle, x = mixture(), torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"site 'z'.*use elbo\('trace'\)"):
        elbo("mean-field").loss(oracle.model, oracle.exact_guide, x)
