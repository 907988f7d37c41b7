"""Floors, capacities and targets for the KL, by hand on a model whose KL of each unit is a closed form."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import VAE, elbo, fit
from pyro_vae.data import Data, Split
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference import Capacity, FreeBits, MinimumRate, TargetRate
from tests.oracles import LinearGaussian

LOC = torch.tensor([[0.0, 1.0, 2.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
SCALE = torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64)
X = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=torch.float64)
WRAPPED = ["trace", "mean-field"]


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., :2], 1.0).to_event(1), obs=x)


def guide(x):
    loc = pyro.param("loc", LOC.clone())
    scale = pyro.param("scale", SCALE.clone())
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def kls(loc=LOC, scale=SCALE):
    """KL of each unit, averaged over the data, shape (3,): about 0, 0.82, 2.25."""
    return (0.5 * (loc.square() + scale.square() - 1) - scale.log()).mean(0)


def by_hand(objective, penalty, factor=1.0):
    """Loss with ``penalty`` of the rates in the place of the KL, from the draws of the same generator state."""
    pyro.set_rng_seed(2)
    loss = objective.differentiable_loss(model, guide, X)
    pyro.set_rng_seed(2)
    trace = poutine.trace(guide).get_trace(X)
    z = trace.nodes["z"]["value"]
    distortion = -dist.Normal(z[..., :2], 1.0).log_prob(X).sum()
    return loss, factor * (distortion + 2 * penalty)


def gradient(loss):
    return torch.autograd.grad(loss, pyro.get_param_store()["loc"].unconstrained(), retain_graph=True)[0]


@pytest.mark.parametrize(("nats", "kept"), [(0.5, [1, 2]), (1.5, [2]), (3.0, []), (1e-9, [0, 1, 2])])
def test_free_bits_floor_each_unit(nats, kept):
    floored = kls().clamp(min=nats).sum()
    loss, exact = by_hand(FreeBits(elbo("mean-field"), nats), floored)
    torch.testing.assert_close(loss, exact)
    # Units below the floor feel the distortion alone: the third, which x does not see, nothing at all.
    _, distortion = by_hand(elbo("mean-field"), torch.zeros(()))
    ours, theirs = gradient(loss), gradient(distortion)
    pull = gradient(2 * kls(pyro.get_param_store()["loc"])[kept].sum()) if kept else torch.zeros_like(LOC)
    torch.testing.assert_close(ours, theirs + pull)


def test_free_bits_per_site_floors_the_sum():
    total = kls().sum()
    for nats in (0.5 * float(total), 2 * float(total)):
        loss, exact = by_hand(FreeBits(elbo("mean-field"), nats, per="site"), total.clamp(min=nats))
        torch.testing.assert_close(loss, exact)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_minimum_rate_floors_the_whole(share):
    total = kls().sum()
    loss, exact = by_hand(MinimumRate(elbo("mean-field"), share * float(total)), total * max(1.0, share))
    torch.testing.assert_close(loss, exact)
    assert bool((gradient(loss)[:, 2] == 0).all()) == (share > 1)


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("make", [lambda o: FreeBits(o, 1e-9), lambda o: MinimumRate(o, 1e-9)])
@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
def test_without_effect_they_are_the_wrapped_objective(wrapped, make, options):
    x = LinearGaussian().draw(5)
    pair = LinearGaussian().model, wide_guide
    objective = elbo(wrapped, max_plate_nesting=1, **options)
    losses = []
    for loss in (objective, make(objective)):
        pyro.set_rng_seed(5)
        losses.append(loss.terms(*pair, x))
    if wrapped == "mean-field":  # a sampled rate of one unit may be below any floor
        for ours, theirs in zip(*losses, strict=True):
            torch.testing.assert_close(ours, theirs)
    else:
        torch.testing.assert_close(losses[1].rate, losses[0].rate)
        torch.testing.assert_close(losses[1].distortion, losses[0].distortion)


def wide_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.full((2,), 3.0).double(), 0.1).to_event(1))


def test_a_common_beta_multiplies_the_floored_rate():
    pair = scale_kl_pair(model, guide, 0.5)
    pyro.set_rng_seed(2)
    loss = FreeBits(elbo("mean-field"), 1.5).differentiable_loss(*pair, X)
    _, exact = by_hand(elbo("mean-field"), 0.5 * kls().clamp(min=1.5).sum())
    torch.testing.assert_close(loss, exact)


def test_subsampling_scales_the_whole_loss():
    def pair(fn):
        return poutine.scale(fn, 7.0)

    pyro.set_rng_seed(2)
    loss = FreeBits(elbo("mean-field"), 1.5).differentiable_loss(pair(model), pair(guide), X)
    _, exact = by_hand(elbo("mean-field"), kls().clamp(min=1.5).sum(), factor=7.0)
    torch.testing.assert_close(loss, exact)


def test_capacity_grows_to_its_end_and_holds_the_rate():
    objective = Capacity(elbo("mean-field"), nats=4.0, steps=4, weight=10.0)
    for taken in range(7):
        target = 4.0 * min(1.0, taken / 4)
        loss, exact = by_hand(objective, 10 * (kls().sum() - target).abs())
        torch.testing.assert_close(loss, exact)
        assert objective.columns == {"capacity": target}
    with torch.no_grad():
        objective.terms(model, guide, X)
    assert objective.state_dict() == {"taken": 7}  # an evaluation is no step


def test_the_controller_follows_its_recursion():
    objective = TargetRate(elbo("mean-field"), nats=2.0, proportional=0.3, integral=0.05, beta_min=0.1, beta_max=0.6)
    rate, total = float(kls().sum()), 0.0
    for _ in range(12):
        error = 2.0 - rate
        wanted = 0.3 / (1 + math.exp(error)) + total - 0.05 * error + 0.1
        if 0.1 <= wanted <= 0.6:
            total -= 0.05 * error
        beta = min(max(wanted, 0.1), 0.6)
        loss, exact = by_hand(objective, beta * kls().sum())
        torch.testing.assert_close(loss, exact)
        assert objective.columns["beta"] == pytest.approx(beta)
    assert beta == 0.6  # the rate is above its target, so that the weight has risen to its end


@pytest.mark.parametrize("make", [lambda o: TargetRate(o, 3.0, integral=0.02), lambda o: Capacity(o, 3.0, 50, 20.0)])
def test_the_rate_is_held(make):
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(200, 6)[torch.randint(0, 4, (200,))])
    vae = VAE((6,), 3, (16,))
    rates = fit(vae, x, elbo=make(elbo("mean-field")), epochs=120, batch_size=50, lr=5e-3, progress=False)["train_rate"]
    assert abs(rates[-1] - 3.0) < 0.5
    free = fit(VAE((6,), 3, (16,)), x, elbo="mean-field", epochs=120, batch_size=50, lr=5e-3, progress=False)
    assert abs(free["train_rate"][-1] - 3.0) > 0.8


def test_a_run_under_a_controller_goes_on_exactly():
    x = torch.bernoulli(torch.full((60, 6), 0.4))
    make = lambda: TargetRate(elbo("mean-field"), 1.0)  # noqa: E731
    torch.manual_seed(1)
    whole, halves = VAE((6,), 2, (4,)), VAE((6,), 2, (4,))
    halves.load_state_dict(whole.state_dict())
    states = []
    keep = [lambda t: states.append(t.state_dict())]
    options = {"batch_size": 20, "progress": False}
    expected = fit(whole, x, elbo=make(), epochs=4, **options)
    fit(halves, x, elbo=make(), epochs=2, callbacks=keep, **options)
    found = fit(halves, x, elbo=make(), epochs=4, resume=states[-1], **options)
    assert found["beta"] == expected["beta"]
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_best_epoch_is_that_of_the_objective():
    """Under a capacity far above it, epochs of a larger rate are better although their ELBO is lower."""
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((80, 6), 0.5))
    data = Data("noise", Split(x), Split(x[:40]))
    history = fit(
        VAE((6,), 2, (8,)), data, elbo=Capacity(elbo("mean-field"), 4.0, 1, 50.0), epochs=15, lr=0.01, progress=False
    )
    values = [-r["validation_distortion"] - 50 * abs(r["validation_rate"] - 4.0) for r in history.rows]
    assert history["validation_objective"] == pytest.approx(values, rel=1e-4)
    assert history.best_epoch == 1 + values.index(max(values))
    assert history.best_epoch != 1 + history["validation_elbo"].index(max(history["validation_elbo"]))
    weighted = fit(VAE((6,), 2, (8,)), data, beta=4.0, epochs=3, progress=False)
    expected = [-r["validation_distortion"] - 4 * r["validation_rate"] for r in weighted.rows]
    assert weighted["validation_objective"] == pytest.approx(expected)
    assert "validation_objective" not in fit(VAE((6,), 2, (8,)), data, epochs=1, progress=False).rows[0]


def test_the_bound_is_the_true_one():
    oracle = LinearGaussian()
    x = oracle.draw(4)
    for control in (FreeBits(elbo("trace"), 9.0, "site"), Capacity(elbo("trace"), 9.0), TargetRate(elbo("trace"), 9.0)):
        torch.testing.assert_close(control.bound(oracle.model, oracle.guide(), x), oracle.log_px(x))


def test_correlated_units_are_refused_and_may_be_one_site():
    oracle = LinearGaussian()
    x = oracle.draw(4)
    with pytest.raises(ValueError, match="expected independent units at site 'z', got MultivariateNormal.*per='site'"):
        FreeBits(elbo("trace"), 1.0).loss(oracle.model, oracle.guide(), x)
    assert math.isfinite(FreeBits(elbo("trace"), 1.0, per="site").loss(oracle.model, oracle.guide(), x))


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"free bits: expected elbo\('trace'\) or elbo\('mean-field'\).*got IWAE"):
        FreeBits(elbo("iwae"), 1.0)
    for make in (FreeBits, MinimumRate, Capacity, TargetRate):
        for nats in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="expected a positive number of nats"):
                make(elbo("trace"), nats)
    with pytest.raises(ValueError, match="'unit' or 'site'"):
        FreeBits(elbo("trace"), 1.0, per="pixel")
    pair = scale_kl_pair(model, guide, 2.0)
    for control in (Capacity(elbo("trace"), 1.0), TargetRate(elbo("trace"), 1.0)):
        with pytest.raises(ValueError, match="expected no weight of the KL beside it"):
            control.loss(*pair, X)
    with pytest.raises(ValueError, match="one weight of the KL for the whole batch"):
        FreeBits(elbo("trace"), 1.0).loss(*scale_kl_pair(model, guide, torch.tensor([1.0, 2.0])), X)
