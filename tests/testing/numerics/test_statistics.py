from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_vae.testing.numerics.normalization import total_mass
from pyro_vae.testing.numerics.quadrature import NoMassError
from pyro_vae.testing.numerics.statistics import choice_p, holm, markov_p, student_p


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([0.02, 0.02], 0.05) == [True, True]
    assert holm([0.03, 0.04], 0.05) == [False, False]
    assert holm([], 0.05) == []


@pytest.mark.parametrize(("degrees", "t", "exact"), [(31, 4.0, 3.659e-4), (9, 4.781, 1e-3), (1000, 3.3, 1.001e-3)])
def test_student_against_tables(degrees, t, exact):
    """Two-sided tail probabilities; the approximation errs by a few per cent."""
    values = torch.linspace(-1, 1, degrees + 1, dtype=torch.float64)
    values = values / values.std() + t / math.sqrt(degrees + 1)
    assert student_p(values) == pytest.approx(exact, rel=0.03)


def test_student_is_level():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([student_p(torch.randn(20, generator=generator)) for _ in range(4000)])
    assert float((p < 0.05).double().mean()) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_markov_is_the_reciprocal_of_the_product():
    assert markov_p(torch.tensor([1.0, 2.0, -0.5])) == pytest.approx(math.exp(-2.5))
    assert markov_p(torch.tensor([-1.0])) == 1.0


def _choices(tilt, rows=300, seed=0):
    """Weights with heavy tails, and rows in which the chosen one has the weights' law, tilted."""
    generator = torch.Generator().manual_seed(seed)
    log_w = 2 * torch.randn(rows, 6, generator=generator)
    chosen = torch.multinomial(((1 + tilt) * log_w).softmax(1), 1, generator=generator)
    order = torch.cat([chosen, torch.arange(6).expand(rows, 6)], 1)
    others = torch.stack([torch.cat([row[:1], row[1:][row[1:] != row[0]]]) for row in order])
    return log_w.gather(1, others)


def _choice(tilt, seed=0):
    log_w = _choices(tilt, seed=seed)
    return choice_p(log_w, log_w.log_softmax(1))


def test_choice_is_level_and_has_power():
    rejected = sum(_choice(0.0, seed=seed) < 0.05 for seed in range(150))
    assert rejected <= 0.05 * 150  # Chernoff's bound is conservative
    assert max(_choice(-0.4), _choice(0.6)) < 1e-4


def test_choice_takes_a_certain_outcome():
    sure = torch.tensor([[0.0, -1e6], [0.0, -1e6]])
    assert choice_p(sure, sure) == 1.0
    assert choice_p(-sure, -sure) == 0.0
    assert choice_p(torch.zeros(5, 2), torch.zeros(5, 2)) == 1.0


ONES = torch.ones(3)
PROPER = [
    dist.Normal(5 * ONES, 0.001), dist.Normal(torch.zeros(2, 3), ONES).to_event(1), dist.Cauchy(0.0, 2.0),
    dist.LogNormal(0.0, 2.0), dist.Gamma(0.3, 1.0), dist.Beta(0.5, 0.5), dist.Uniform(2.0, 3.0), dist.Exponential(100.0),
    dist.StudentT(2.0), dist.Laplace(0.0, 1.0), dist.HalfCauchy(1.0), dist.ContinuousBernoulli(logits=ONES),
    dist.Bernoulli(logits=ONES), dist.Categorical(ONES), dist.OneHotCategorical(ONES), dist.Binomial(10, 0.2),
    dist.Poisson(30.0), dist.Geometric(0.05), dist.NegativeBinomial(3, 0.8),
    dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.99], [0.99, 1.0]])),
    dist.MixtureSameFamily(dist.Categorical(ONES[:2]), dist.Normal(torch.tensor([-4.0, 4.0]), 0.5)),
    dist.TransformedDistribution(dist.Normal(0.0, 1.0), [torch.distributions.SigmoidTransform()]),
    dist.Gamma(0.03, 1.0), dist.Weibull(1.0, 0.2), dist.LogNormal(0.0, 40.0), dist.Kumaraswamy(2.0, 0.3),
    dist.ZeroInflatedPoisson(torch.tensor(3.0), gate=torch.tensor(0.2)),
    dist.ZeroInflatedNegativeBinomial(3.0, probs=torch.tensor(0.5), gate=torch.tensor(0.2)),
    dist.TruncatedPolyaGamma(torch.ones(())), dist.MultivariateNormal(torch.arange(5.0), torch.eye(5)),
]  # fmt: skip


@pytest.mark.parametrize("fn", PROPER, ids=lambda fn: type(fn).__name__)
def test_mass_of_known_distributions(fn):
    torch.testing.assert_close(total_mass(fn), torch.ones_like(total_mass(fn)), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    "fn", [dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 0.3), dist.Dirichlet(ONES), dist.Delta(ONES)]
)
def test_what_has_no_mass_to_compute_says_so(fn):
    with pytest.raises(NoMassError, match="dimensions|no mass"):
        total_mass(fn)


@pytest.mark.parametrize(
    "fn",
    [
        dist.Beta(0.1, 0.1), dist.Gamma(0.001, 1.0), dist.StudentT(0.5),
        dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.97, 0.03])), dist.Normal(torch.tensor([0.0, 3e3]), 1.0)),
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.97, 0.03])), dist.Normal(torch.tensor([[0.0] * 5, [30.0] * 5]), 1.0).to_event(1)
        ),
    ],
    ids=["Beta", "Gamma", "StudentT", "Mixture", "Mixture of vectors"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(5))
def test_a_mass_that_cannot_be_resolved_is_not_reported(fn, seed):
    """Each is a density; part of its mass lies beyond the grid, the numbers of its precision, or between the cells."""
    pyro.set_rng_seed(seed)
    with pytest.raises(NoMassError):
        total_mass(fn)


class _Scaled(dist.TorchDistribution):
    """A density of five numbers, times a factor."""

    support = constraints.real_vector
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base, factor):
        self.base, self.factor = base, factor
        super().__init__(base.batch_shape, base.event_shape)

    def sample(self, sample_shape=()):
        return self.base.sample(sample_shape)

    def log_prob(self, value):
        return self.base.log_prob(value) + math.log(self.factor)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_mass_of_a_product_is_computed_coordinate_by_coordinate(factor):
    scale = torch.tensor([0.1, 1.0, 2.0, 30.0, 1e3])
    for base in (dist.Normal(torch.arange(10.0).reshape(2, 5), scale), dist.Laplace(torch.zeros(5), scale)):
        mass = total_mass(_Scaled(base.to_event(1), factor))
        torch.testing.assert_close(mass, torch.full_like(mass, factor), rtol=5e-3, atol=0)
    with pytest.raises(NoMassError, match="dependent"):
        total_mass(_Scaled(dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 0.05), factor))
