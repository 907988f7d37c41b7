"""Sites that the guide observes are no draws of q: they enter no weight, bound or gradient of any objective."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import elbo, log_weights
from pyro_vae.evidence import annealed_importance_sampling, importance_sampling
from pyro_vae.inference.objectives.registry import OBJECTIVES
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from tests.oracles import within

#: Pyro warns of an observed site in the guide, and of a program without a site to enumerate.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide"),
    pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites"),
]
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
MEANS = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
X = torch.tensor([-1.8, 0.4, 1.0, 3.0, -0.2], dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 2, 1])
#: log p(x, y) of N(x; mean_y + z, 0.8^2) with z ~ N(0, 1).
EXACT = PRIOR.log()[Y] + dist.Normal(MEANS[Y], (1 + 0.8**2) ** 0.5).log_prob(X)


def model(x, y):
    offset = pyro.param("offset", torch.zeros((), dtype=torch.float64))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(PRIOR), obs=y)
        z = pyro.sample("z", dist.Normal(offset, 1.0))
        pyro.sample("x", dist.Normal(MEANS[y] + z, 0.8), obs=x)


def programs(name, shift=0.0, infer=None):
    """Guides with the posterior, or one moved by ``shift`` posterior deviations; with a site that it observes, and without."""
    scale = (1 / (1 + 1 / 0.8**2)) ** 0.5

    def guide(x, y):
        bias = pyro.param("bias", torch.zeros((), dtype=torch.float64))
        with pyro.plate("data", len(x)):
            if name:
                slope = pyro.param("slope", torch.tensor([-0.5, 0.1, 0.4], dtype=torch.float64))
                pyro.sample(name, dist.Categorical(logits=slope * x[:, None]), obs=y, infer=infer)
            loc = (x - MEANS[y]) * scale**2 / 0.8**2
            pyro.sample("z", dist.Normal(loc + bias + shift * scale, scale))

    return guide


SITES = pytest.mark.parametrize("site", ["y", "y_given"])  # one that the model observes too, and one of the guide alone


@SITES
@pytest.mark.parametrize("vectorize", [True, False])
def test_with_the_exact_posterior_every_weight_is_the_evidence(site, vectorize):
    """Where log q(y|x) was subtracted, weights were higher than p(x, y) itself."""
    guide = programs(site)
    torch.testing.assert_close(log_weights(model, guide, X, Y, num_samples=3, vectorize=vectorize), EXACT.expand(3, 5))
    summed = EnumeratedDraws(model, guide, (X, Y), {}, vectorize=vectorize)(3)
    torch.testing.assert_close(summed.log_w, EXACT.expand(3, 5))
    torch.testing.assert_close(summed.log_likelihood + summed.log_ratio, EXACT.expand(3, 5))


@SITES
def test_estimators_leave_out_sites_that_the_guide_observes(site):
    found = importance_sampling(model, programs(site), X, Y, num_samples=2500, seed=0)  # long enough to encode once
    torch.testing.assert_close(found.log_px, EXACT)
    options = {"start": "guide", "num_chains": 2, "num_steps": 2, "seed": 0}
    torch.testing.assert_close(annealed_importance_sampling(model, programs(site), X, Y, **options).log_px, EXACT)


@pytest.mark.thin(2, by="name")
@SITES
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_leave_out_sites_that_the_guide_observes(name, site):
    """With the same draws, loss, bound and gradients are those without the site, whose own parameters get no gradient."""
    found = []
    for observed in (site, None):
        pyro.clear_param_store()
        guide, loss = programs(observed, shift=0.5), elbo(name)
        pyro.set_rng_seed(1)
        bound = loss.bound(model, guide, X, Y)
        store = pyro.get_param_store()
        params = [store["offset"].unconstrained(), store["bias"].unconstrained()]
        params += [store["slope"].unconstrained()] if observed else []
        value = loss.differentiable_loss(model, guide, X, Y)
        grads = torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True)
        found.append((bound.detach(), value.detach(), *grads))
    ours, plain = found
    for one, other in zip(ours[:-1], plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert ours[-1].abs().max() == 0
    assert any(grad.abs().max() > 0.01 for grad in plain[2:])


@pytest.mark.parametrize("name", ["trace", "mean-field", "graph", "iwae", "enum"])
def test_a_training_term_in_the_guide_has_its_own_gradient_alone(name):
    """Marked ``auxiliary_loss`` it counts as a term of the guide's side does, and its gradient is that of its log."""

    guide = programs("y_term", infer={"auxiliary_loss": True})
    loss = elbo(name).differentiable_loss(model, guide, X, Y)
    slope = pyro.param("slope").unconstrained()
    term = (slope * X[:, None]).log_softmax(-1)[torch.arange(5), Y].sum()
    (ours,) = torch.autograd.grad(loss, slope)
    (exact,) = torch.autograd.grad(term, slope)
    torch.testing.assert_close(ours, exact)


@pytest.fixture
def in_double():
    """Pyro's contraction mixes the default dtype with that of the programs."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True, False, True])])
def test_pyros_contraction_leaves_them_out_too(mask):
    """A drawn site beside it without reparameterized draws: loss and gradients average to those of the exact sum."""

    def joint_model(x, y):
        offset = pyro.param("offset", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.Categorical(PRIOR), obs=y, obs_mask=mask)
            t = pyro.sample("t", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(MEANS[label] + t + offset, 0.8), obs=x)

    def guide(x, y):
        slope = pyro.param("slope", torch.tensor([-0.5, 0.1, 0.4], dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=slope * x[:, None]), obs=y, obs_mask=mask)
            pyro.sample("t", dist.Bernoulli(0.3))

    pyro.set_rng_seed(0)
    columns, rows = [v.repeat(400) for v in (X, Y)], mask
    mask = None if mask is None else mask.repeat(400)
    objective, found = elbo("enum", max_plate_nesting=1), []
    for _ in range(20):
        loss = objective.differentiable_loss(joint_model, guide, *columns) / 400
        params = [pyro.param(name).unconstrained() for name in ("slope", "offset")]
        grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([loss.detach()[None], *(grad.reshape(-1) for grad in grads)]))
    log_q = (params[0] * X[:, None]).log_softmax(-1)
    q_t, means = torch.tensor([0.7, 0.3]), MEANS[:, None] + torch.tensor([0.0, 1.0]) + params[1]
    joint = PRIOR.log()[:, None] - math.log(2) + dist.Normal(means, 0.8).log_prob(X[:, None, None])
    given_y = (q_t * (joint - q_t.log())).sum(-1)  # (5, 3)
    known = given_y.gather(1, Y[:, None])[:, 0]
    exact = -(known if rows is None else torch.where(rows, known, (log_q.exp() * (given_y - log_q)).sum(1))).sum()
    grads = torch.autograd.grad(exact, params, allow_unused=True, materialize_grads=True)
    expected = torch.cat([exact.detach()[None], *(grad.reshape(-1) for grad in grads)])
    values = torch.stack(found)
    if rows is None:  # nothing pulls at what every label is observed by
        assert values[:, 1:4].abs().max() == 0
        values, expected = values[:, [0, 4]], expected[[0, 4]]
    assert within(values.mean(0), expected, values.std(0) / math.sqrt(20))
