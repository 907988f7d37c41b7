"""STL and DReG: value and gradient against quadrature, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import elbo
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference.objectives.weighted import log_mean_exp
from tests.oracles import LinearGaussian
from tests.replicas import (
    REPLICAS,
    X,
    agree,
    by_quadrature,
    gradients,
    program,
)

ORACLE = LinearGaussian()


@pytest.mark.parametrize("name", ["iwae", "dreg"])
def test_a_weight_in_a_tensor_is_the_number_and_stays_live(name):
    weight = torch.tensor(4.0, dtype=torch.float64)
    pair = scale_kl_pair(*program(), weight)
    objective = elbo(name, num_particles=2)
    for beta in (4.0, 0.5):
        weight.fill_(beta)
        _, gradient, _ = by_quadrature(log_mean_exp, 2, beta)
        _, found = gradients(objective, *pair)
        for parameter, sample in found.items():
            assert agree(sample, gradient[parameter]), (parameter, beta)


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_dreg_refuses_a_weight_that_varies_within_a_datum(shape):
    def model(x):
        with pyro.plate("data", 4, dim=-2):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x.mean(1, keepdim=True))
            with pyro.plate("units", 3, dim=-1):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", 4, dim=-2), pyro.plate("units", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 0.8))

    pair = scale_kl_pair(model, guide, torch.linspace(0.5, 2.0, math.prod(shape)).reshape(shape))
    x = torch.randn(4, 3)
    for particles in (3, 4):
        with pytest.raises(ValueError, match="dreg: expected one KL weight for each datum.*within a datum"):
            elbo("dreg", num_particles=particles).loss(*pair, x)
    assert math.isfinite(elbo("iwae").loss(*pair, x))


def two_layers(replicas, a=2 / 3, b=0.5, s1=(2 / 3) ** 0.5, s2=0.5**0.5):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1); the guide draws z1 first; by default the exact posterior."""
    values = {"a": a, "b": b, "s1": s1, "s2": s2}

    def start(name):
        return pyro.param(name, torch.full((replicas,), values[name], dtype=torch.float64))

    def model(x):
        zero = torch.zeros((), dtype=torch.float64)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(zero, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        a, b, s1, s2 = map(start, values)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(a * x, s1))
            pyro.sample("z2", dist.Normal(b * z1, s2))

    return model, guide, values


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", ["stl", "dreg"])
def test_no_gradient_reaches_the_guide_at_the_exact_posterior(name, vectorize):
    model, guide, values = two_layers(50)
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)
    loss = elbo(name, num_particles=3, vectorize_particles=vectorize).differentiable_loss(model, guide, x)
    store = pyro.get_param_store()
    for parameter in values:
        (found,) = torch.autograd.grad(loss, store[parameter].unconstrained(), retain_graph=True)
        assert float(found.abs().max()) < 1e-12, parameter
    plain = elbo("iwae", num_particles=3).differentiable_loss(model, guide, x)
    (found,) = torch.autograd.grad(plain, store["s2"].unconstrained())
    assert float(found.abs().max()) > 0.01  # which the score of q brings


SITES = {"z1": 0.5, "z2": 4.0}


@pytest.mark.parametrize(
    ("name", "draws", "beta"),
    [
        (n, k, b)
        for n, k in (("stl", 1), ("dreg", 2), ("iwae", 2))
        for b in (1.0, 0.5, SITES)
        if (n, b) != ("dreg", SITES)
    ],
)
def test_gradients_of_two_layers_by_quadrature(name, draws, beta):
    start = {"a": 0.4, "b": 0.8, "s1": 0.6, "s2": 0.9}
    nodes, weights = np.polynomial.hermite_e.hermegauss(18)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    eps = torch.stack(torch.meshgrid(*[nodes] * (2 * draws), indexing="ij")).flatten(1).unflatten(0, (draws, 2))
    mass = torch.stack(torch.meshgrid(*[weights] * (2 * draws), indexing="ij")).flatten(1).prod(0)
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in start.items()}
    z1 = p["a"] * X + p["s1"] * eps[:, 0]
    z2 = p["b"] * z1 + p["s2"] * eps[:, 1]
    normal = lambda loc, scale, value: dist.Normal(loc, scale).log_prob(value)  # noqa: E731
    zero, one, x = (torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0, X))
    on_z1, on_z2 = (beta[site] if isinstance(beta, dict) else beta for site in SITES)
    ratio = on_z2 * (normal(zero, one, z2) - normal(p["b"] * z1, p["s2"], z2))
    ratio = ratio + on_z1 * (normal(z2, one, z1) - normal(p["a"] * X, p["s1"], z1))
    log_w = normal(z1, one, x) + ratio
    exact = (mass * (log_w.mean(0) if name == "stl" else log_mean_exp(log_w))).sum()
    gradient = dict(zip(p, torch.autograd.grad(exact, list(p.values())), strict=True))
    model, guide, values = two_layers(REPLICAS, **start)
    model, guide = scale_kl_pair(model, guide, beta)
    data = torch.full((REPLICAS,), X, dtype=torch.float64)
    loss = elbo(name, num_particles=draws).differentiable_loss(model, guide, data)
    for parameter in values:
        (found,) = torch.autograd.grad(loss, pyro.get_param_store()[parameter].unconstrained(), retain_graph=True)
        assert agree(-found, gradient[parameter].detach()), parameter


def dropping_guide(x):
    with pyro.plate("data", len(x)):
        loc = torch.nn.functional.dropout(torch.ones(len(x), 2, dtype=torch.float64), 0.5)
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("name", ["dreg", "stl"])
def test_a_guide_that_cannot_be_repeated_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: two runs of the guide give the same draw different densities"):
        elbo(name).loss(ORACLE.model, dropping_guide, ORACLE.draw(3))


@pytest.mark.parametrize("checked", [True, False])
def test_dreg_refuses_weights_of_single_sites(checked):
    model, guide, _ = two_layers(3)
    x = torch.zeros(3, dtype=torch.float64)
    tensors = {"z1": torch.tensor(0.5), "z2": torch.tensor(0.5)}  # which may differ at the next step
    with pyro.validation_enabled(checked):
        for betas in ({"z1": 0.5}, SITES, tensors):
            pair = scale_kl_pair(model, guide, betas)
            with pytest.raises(
                ValueError, match="dreg: expected the same KL weight at all sites, got a different weight at 'z2'"
            ):
                elbo("dreg").loss(*pair, x)
            assert math.isfinite(elbo("stl").loss(*pair, x))
        assert math.isfinite(elbo("dreg").loss(*scale_kl_pair(model, guide, {"z1": 0.5, "z2": 0.5}), x))
