"""Laws of the objectives of importance weights, and what they refuse."""

from __future__ import annotations

import decimal
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import SVI, VAE, elbo
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference import OBJECTIVES
from pyro_vae.inference.objectives.weighted import WeightedELBO, log_mean_exp
from tests.oracles import LinearGaussian
from tests.replicas import (
    discrete,
)

ORACLE = LinearGaussian()
GUIDE = ORACLE.guide()
WEIGHTED = [name for name, cls in OBJECTIVES.items() if issubclass(cls, WeightedELBO)]


@pytest.mark.parametrize("name", WEIGHTED)
def test_batches_of_any_size_are_taken_one_after_the_other(name):
    objective = elbo(name, num_particles=3)
    for size in (4, 1, 7):
        x = ORACLE.draw(size)
        exact = float(ORACLE.log_px(x).sum())
        assert -float(objective.terms(ORACLE.model, GUIDE, x).loss) == pytest.approx(exact)


@pytest.mark.thin(2, by="name")
@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("vectorize", [True, False])
def test_stock_svi_and_ours_train_the_same_way(name, vectorize):
    """The same draws, so the same losses and, after some steps, the same parameters."""
    results = []
    for make in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        vae = VAE((4,), 2, (5,)).double()
        x = torch.bernoulli(torch.full((6, 4), 0.4, dtype=torch.float64))
        objective = elbo(name, num_particles=3, vectorize_particles=vectorize)
        svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), objective)
        losses = [svi.step(x) for _ in range(4)]
        results.append((losses, [p.detach().clone() for p in vae.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0])
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(set(results[0][0])) == 4


@pytest.mark.parametrize("name", WEIGHTED)
def test_terms_tell_the_true_rate_and_distortion(name):
    beta = 1.0 if name in ("rws", "tvo") else 3.0
    pair = ORACLE.model, ORACLE.guide(0.5, 1.2)
    x = ORACLE.draw(4)
    objective = elbo(name, num_particles=2000)
    terms = objective.terms(*(scale_kl_pair(*pair, beta) if beta != 1 else pair), x)
    assert float(terms.rate) == pytest.approx(float(ORACLE.rate(x, 0.5, 1.2).sum()), rel=0.05)
    assert float(terms.distortion) == pytest.approx(float(ORACLE.distortion(x, 0.5, 1.2).sum()), rel=0.05)


@pytest.mark.parametrize("name", WEIGHTED)
def test_an_auxiliary_loss_trains_and_enters_no_bound(name):
    def model(x):
        ORACLE.model(x)
        with pyro.plate("extra", len(x)):
            pyro.sample(
                "label", dist.Normal(torch.zeros(len(x)).double(), 1.0), obs=x[:, 0], infer={"auxiliary_loss": True}
            )

    x = ORACLE.draw(4)
    guide = ORACLE.guide()
    objective = elbo(name, num_particles=2)
    exact = ORACLE.log_px(x)
    torch.testing.assert_close(objective.bound(model, guide, x), exact)
    extra = float(dist.Normal(0.0, 1.0).log_prob(x[:, 0]).sum())
    assert -objective.loss(model, guide, x) == pytest.approx(float(exact.sum()) + extra)


@pytest.mark.parametrize("name", WEIGHTED)
def test_an_outer_scale_multiplies_the_bound_of_its_datum(name):
    x = ORACLE.draw(4)
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    model, guide = (poutine.scale(f, scale) for f in (ORACLE.model, ORACLE.guide()))
    exact = float((scale * ORACLE.log_px(x)).sum())
    assert -elbo(name).loss(model, guide, x) == pytest.approx(exact)


def delta_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(torch.zeros(len(x), 2, dtype=torch.float64)).to_event(1))


@pytest.mark.parametrize("name", WEIGHTED)
def test_sites_that_cannot_be_handled_are_refused(name):
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)
    if not OBJECTIVES[name].reparameterized:
        assert math.isfinite(elbo(name).loss(*discrete(4), x))
    else:
        with pytest.raises(
            ValueError, match=f"{name}: expected a reparameterized distribution at site 'z', got Categorical.*vimco"
        ):
            elbo(name).loss(*discrete(4), x)
    with pytest.raises(ValueError, match=f"{name}: expected no enumerated site, got 'z'.*temperature=0.7"):
        elbo(name).loss(*discrete(4, "parallel"), x)
    with pytest.raises(ValueError, match=f"{name}: expected a density at guide site 'z', got a Delta"):
        elbo(name).loss(ORACLE.model, delta_guide, ORACLE.draw(3))


@pytest.mark.thin(2, by="name")
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", WEIGHTED)
def test_all_draws_of_a_bound_are_of_one_subsample(name, vectorize):
    """At the exact posterior every draw of a datum gives its log p(x): a mean over draws of several data would not."""
    x, drawn = ORACLE.draw(20), []

    def plate():
        return pyro.plate("data", 20, subsample_size=4)

    def guide(x):
        with plate() as rows:
            drawn.append(rows)
            mean, factor = ORACLE.posterior(x[rows])
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=factor))

    def model(x):
        with plate() as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            likelihood = dist.Normal(z @ ORACLE.weight.T + ORACLE.bias, ORACLE.scale).to_event(1)
            pyro.sample("x", likelihood, obs=x[rows])

    objective = elbo(name, num_particles=3, vectorize_particles=vectorize)
    for _ in range(3):
        loss = objective.loss(model, guide, x)
        assert -loss == pytest.approx(5 * float(ORACLE.log_px(x[drawn[-1]]).sum()))
    assert len({tuple(rows.tolist()) for rows in drawn}) >= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_the_bound_of_any_order_is_that_of_exact_arithmetic(dtype, spread):
    """Against the power mean by Python's fractions of 60 digits; the gradient against the normalized weights."""
    log_w = (spread * torch.randn(7, generator=torch.Generator().manual_seed(0))).to(dtype) - 100
    with decimal.localcontext(prec=60):
        exact_w = [decimal.Decimal(float(v)) for v in log_w]
        for alpha in (0.0, 0.5, 0.9, 0.95, 0.999, 1 - 1e-6, 1 - 1e-9, 1 + 1e-6, 1.05, 1.2, 3.0):
            order = 1 - decimal.Decimal(alpha)
            powers = [(order * v).exp() for v in exact_w]
            exact = float((sum(powers) / len(powers)).ln() / order)
            leaf = log_w.clone().requires_grad_()
            value = log_mean_exp(leaf, alpha)
            rounding = 200 * torch.finfo(dtype).eps * (1 + spread)
            assert float(value.detach()) == pytest.approx(exact, abs=rounding * 10, rel=1e-15), alpha
            (gradient,) = torch.autograd.grad(value, leaf)
            weights = torch.tensor([float(p / sum(powers)) for p in powers], dtype=dtype)
            torch.testing.assert_close(gradient, weights, atol=rounding, rtol=rounding)


@pytest.mark.parametrize("alpha", [0.0, 0.95, 1 - 1e-6, 1.05, 3.0])
def test_a_draw_of_weight_zero_counts_as_one(alpha):
    log_w = torch.tensor([[0.3, -torch.inf], [-torch.inf, -torch.inf]], dtype=torch.float64)
    exact = [0.3 - math.log(2) / (1 - alpha) if alpha < 1 else -math.inf, -math.inf]
    assert log_mean_exp(log_w, alpha).tolist() == pytest.approx(exact)


def test_a_subsampled_plate_within_a_datum_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, 1).double(), 1.0))
            with pyro.plate("pixels", 10, subsample_size=2, dim=-1) as rows:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, rows])

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(3, 1).double(), 1.0))

    with pytest.raises(ValueError, match="expected no subsampled plate inside a datum, got 'pixels' with 2 of 10"):
        elbo("iwae").loss(model, guide, torch.zeros(3, 10).double())


def test_a_program_that_indexes_from_the_left_is_drawn_from_one_by_one():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2).double(), 1.0).to_event(1))

    objective = elbo("iwae", num_particles=2000)
    x = torch.linspace(-1, 1, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="drawing one by one"):
        loss = objective.loss(model, guide, x)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum()
    assert -loss == pytest.approx(float(exact), abs=0.1)
    assert not objective.vectorize_particles
