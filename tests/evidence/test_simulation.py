"""Simulated data: draws of the joint distribution in the form of the arguments, and models that are refused."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE
from pyro_vae.evidence.simulation import simulate
from tests.oracles import LinearGaussian, mixture, within

ORACLE = LinearGaussian()
DOUBLE = {"dtype": torch.float64}


def test_simulated_latents_are_draws_of_the_posterior():
    """L^-1 (z - m(x)) is standard normal, and the data have the model's mean and covariance."""
    num = 20_000
    simulated = simulate(ORACLE.model, torch.zeros(num, 5, **DOUBLE))
    (x,), z = simulated.args, simulated.latents["z"]
    mean, factor = ORACLE.posterior(x)
    whitened = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False).T
    assert within(whitened.mean(0), 0.0, 1 / math.sqrt(num))
    assert within(whitened.T @ whitened / num, torch.eye(2, **DOUBLE), math.sqrt(2 / num))
    variance = ORACLE.weight.square().sum(-1) + ORACLE.scale**2
    assert within(x.mean(0), ORACLE.bias, (variance / num).sqrt())
    assert within(x.var(0), variance, variance * math.sqrt(2 / num))


def test_simulated_data_take_the_form_of_the_arguments():
    vae = VAE((1, 4, 4), 3, (8,))
    grey = torch.rand(5, 1, 4, 4)
    simulated = simulate(vae.model, grey)
    assert simulated.args[0].shape == grey.shape
    assert set(simulated.args[0].unique().tolist()) <= {0.0, 1.0}
    assert simulated.latents["z"].shape == (5, 3)
    assert not simulated.args[0].requires_grad

    def model(label, *, flat, weight):
        with pyro.plate("data", len(label)):
            y = pyro.sample("y", dist.Bernoulli(torch.full((len(label),), 0.5)), obs=label)
            z = pyro.sample("z", dist.Normal(torch.zeros(len(label)), 1.0))
            loc = (weight * z + 10 * y)[:, None, None].expand(-1, 2, 3)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(2), obs=flat.reshape(-1, 2, 3))

    weight = torch.tensor(2.0)
    out = simulate(model, torch.zeros(400), flat=torch.zeros(400, 6), weight=weight)
    (label,), x = out.args, out.kwargs["flat"]
    assert x.shape == (400, 6)
    assert out.kwargs["weight"] is weight
    assert set(out.latents) == {"z"}
    residual = x.mean(-1) - 2 * out.latents["z"] - 10 * label
    assert within(residual.mean(), 0.0, 1 / math.sqrt(6 * 400))
    assert within(label.mean(), 0.5, 0.5 / math.sqrt(400))


def test_discrete_latents_can_be_simulated():
    oracle = mixture()
    out = simulate(oracle.model, torch.zeros(20_000, **DOUBLE))
    counts = torch.bincount(out.latents["z"], minlength=3) / 20_000
    assert within(counts, oracle.probs, (oracle.probs * (1 - oracle.probs) / 20_000).sqrt())
    assert within((out.args[0] - oracle.locs[out.latents["z"]]).mean(), 0.0, 1 / math.sqrt(20_000))


def _doubled(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x * 2.0)


def _equal_as_given(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.clamp(min=0))


def _also_a_covariate(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z + x.abs(), 1.0), obs=x)


def _factor(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("prior", -z.square())


def _nothing_observed(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_doubled, "site 'x': the observed value must be an argument of the model; pass posterior_draws"),
        (
            _equal_as_given,
            "site 'x': the observed value must be an argument of the model; pass posterior_draws",
        ),
        (_also_a_covariate, "site 'x': expected a distribution that does not depend on the data"),
        (_factor, "site 'prior': the observed value must be an argument of the model; pass posterior_draws"),
        (_nothing_observed, "model: expected an observed site, got none"),
    ],
)
def test_models_that_cannot_be_simulated_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        simulate(model, torch.ones(4, **DOUBLE))


def test_draws_that_the_argument_cannot_hold_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(
        ValueError, match="site 'x': expected data in a dtype that can represent the draws, got torch.int64"
    ):
        simulate(model, torch.zeros(4, dtype=torch.int64))
