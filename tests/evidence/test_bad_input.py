"""What the functions of ``evidence`` refuse, each in one sentence, and odd programs that they take."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import evidence
from pyro_vae.runs.evaluation.checks import CHECKS
from pyro_vae.runs.evaluation.estimators import ESTIMATORS

X = torch.tensor([0.0, 1.0, 4.0, 2.0])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


FUNCTIONS = {
    "importance": lambda *a: evidence.importance_sampling(*a, num_samples=10),
    "prior": lambda m, g, *a: evidence.prior_sampling(m, *a, num_samples=10),
    "annealed": lambda *a: evidence.annealed_importance_sampling(*a, num_steps=5),
    "bidirectional": lambda *a: evidence.bidirectional(*a, num_steps=5),
    "refined": lambda *a: evidence.refined_importance_sampling(*a, num_samples=10, steps=2),
    "gaps": lambda *a: evidence.gaps(*a, num_samples=10, steps=2),
    "aggregate": lambda *a: evidence.aggregate_posterior(*a),
    "calibration": lambda *a: evidence.calibrate(*a, num_simulations=10),
}


def test_every_estimator_and_check_is_here():
    """``smoothed`` is another reading of ``importance``, and predictive checks take images, not programs."""
    assert FUNCTIONS.keys() == {*ESTIMATORS, *CHECKS} - {"smoothed", "predictive"}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_no_data_are_refused(function):
    with pytest.raises(ValueError, match=r"^data: expected at least one datum, got a tensor of shape \(0,\)\.$"):
        function(model, guide, X[:0])


@pytest.mark.parametrize("name", ["annealed", "bidirectional"])
def test_discrete_latents_are_refused_in_one_line(name):
    def discrete(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x))))

    with pytest.raises(ValueError, match="latent site 'z': expected a continuous distribution") as caught:
        FUNCTIONS[name](discrete, its_guide, X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["refined", "gaps"])
def test_a_subsample_is_not_refined(name):
    def rows(x):
        return pyro.plate("data", len(x), subsample_size=2)

    def part(x):
        with rows(x) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def its_guide(x):
        with rows(x) as index:
            pyro.sample("z", dist.Normal(x[index] / 2, 0.7))

    with pytest.raises(ValueError, match="plate 'data': expected all data, got a new subsample at each call"):
        FUNCTIONS[name](part, its_guide, X)


def test_a_path_from_a_guide_over_positive_numbers():
    """Poisson counts under a Gamma rate: p(x) is negative binomial; moves may leave the support, which is no error."""

    def counts(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal((x + 1.5).log() - 0.7, 0.9))

    found = evidence.annealed_importance_sampling(counts, its_guide, X, num_steps=200, start="guide", seed=0)
    exact = dist.GammaPoisson(2.0, 1.0).log_prob(X).double()
    assert float((found.log_px - exact).abs().max()) < 4 * float(found.std_error.max()) + 0.01


def test_a_likelihood_that_depends_on_no_latent():
    def loose(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    found = evidence.annealed_importance_sampling(loose, None, X, num_steps=5, seed=0)
    torch.testing.assert_close(found.log_px, dist.Normal(0.0, 1.0).log_prob(X).double(), rtol=1e-5, atol=1e-5)


def test_a_list_of_estimates_is_compared():
    one, two = (evidence.importance_sampling(model, guide, X, num_samples=50, seed=s) for s in (0, 1))
    assert {row.name for row in evidence.compare([one, two]).rows} == {"1", "2"}
