"""Floors, capacities and targets for the KL, by hand on a model whose KL of each unit is a closed form."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value

from pyro_vae import VAE, elbo, fit
from pyro_vae.data import Data, Split
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference import OBJECTIVES, Capacity, FreeBits, MinimumRate, TargetRate
from pyro_vae.inference.kl.registry import CONTROLS, controlled
from tests.oracles import LinearGaussian

LOC = torch.tensor([[0.0, 1.0, 2.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
SCALE = torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64)
X = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=torch.float64)
#: The objectives that a control may wrap.
WRAPPED = ["trace", "mean-field"]
#: A value for the flag of each control.
VALUES = {"free_bits": 0.1, "min_rate": 0.1, "capacity": "0.1", "target_rate": 0.1, "total_correlation": 2.0}


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


def test_every_control_is_tested():
    assert VALUES.keys() == CONTROLS.keys()


@pytest.mark.parametrize("name", CONTROLS)
def test_the_bound_is_the_true_one(name):
    oracle = LinearGaussian()
    x = oracle.draw(4)
    options = {"free_bits_per": "site"} if name == "free_bits" else {}
    control = controlled(elbo("trace"), **{name: VALUES[name]}, **options)
    assert type(control) is CONTROLS[name].kind
    torch.testing.assert_close(control.bound(oracle.model, oracle.guide(), x), oracle.log_px(x))


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_control_wraps_an_objective_or_names_those_that_it_wraps(objective, name):
    if objective in WRAPPED:
        assert controlled(elbo(objective), **{name: VALUES[name]}).objective.__class__ is OBJECTIVES[objective]
        return
    with pytest.raises(TypeError, match=r"expected elbo\('trace'\) or elbo\('mean-field'\)"):
        controlled(elbo(objective), **{name: VALUES[name]})


def test_correlated_units_are_refused_and_may_be_one_site():
    oracle = LinearGaussian()
    x = oracle.draw(4)
    with pytest.raises(ValueError, match="expected independent units at site 'z', got MultivariateNormal.*per='site'"):
        FreeBits(elbo("trace"), 1.0).loss(oracle.model, oracle.guide(), x)
    assert math.isfinite(FreeBits(elbo("trace"), 1.0, per="site").loss(oracle.model, oracle.guide(), x))


def test_what_is_refused():
    for make in (FreeBits, MinimumRate, Capacity, TargetRate):
        for nats in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="expected a positive number of nats"):
                make(elbo("trace"), nats)
    with pytest.raises(ValueError, match="'unit' or 'site'"):
        FreeBits(elbo("trace"), 1.0, per="pixel")
    pair = scale_kl_pair(model, guide, 2.0)
    for control in (Capacity(elbo("trace"), 1.0), TargetRate(elbo("trace"), 1.0)):
        with pytest.raises(ValueError, match="cannot be combined with beta, since this control weights the KL itself"):
            control.loss(*pair, X)
    with pytest.raises(ValueError, match="one KL weight for the whole batch"):
        FreeBits(elbo("trace"), 1.0).loss(*scale_kl_pair(model, guide, torch.tensor([1.0, 2.0])), X)


# Guides with auxiliary sites


def two_constrained(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        share = pyro.sample("share", dist.Beta(2.0, 3.0))
        pyro.sample("x", dist.Normal(rate * share, 0.5), obs=x)


def auto_normal(x):
    start = {"rate": torch.full((len(x),), 1.3), "share": torch.full((len(x),), 0.7)}
    guide = AutoNormal(two_constrained, init_loc_fn=init_to_value(values=start), init_scale=0.3)
    guide(x)
    return guide


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("make", [lambda o: MinimumRate(o, 1e-9), lambda o: FreeBits(o, 1e-9, "site")])
def test_the_density_of_an_auxiliary_site_is_in_the_rate(wrapped, make):
    x = torch.linspace(0.1, 2.0, 500)  # so many that no mean rate of a site is near 0
    guide = auto_normal(x)
    objective = elbo(wrapped, max_plate_nesting=1)
    terms = []
    for loss in (objective, make(objective)):
        pyro.set_rng_seed(5)
        terms.append(loss.terms(two_constrained, guide, x))
    for ours, theirs in zip(*terms, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_each_auxiliary_site_belongs_to_the_site_made_from_it():
    x = torch.linspace(0.1, 2.0, 5)
    guide = auto_normal(x)
    sites = {}
    for name in ("rate", "share"):
        pyro.set_rng_seed(5)
        trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(two_constrained, trace=trace)).get_trace(x)
        trace.compute_log_prob()
        model_trace.compute_log_prob()
        log_q = trace.nodes[name]["log_prob_sum"] + trace.nodes[f"{name}_unconstrained"]["log_prob_sum"]
        sites[name] = (log_q - model_trace.nodes[name]["log_prob_sum"]) / 5
    total = float(sum(rate.detach() for rate in sites.values()))
    floor = total / 2 + 0.1
    pyro.set_rng_seed(5)
    control = FreeBits(elbo("trace", max_plate_nesting=1), floor, "site")
    terms = control.terms(two_constrained, guide, x)
    expected = terms.distortion + 5 * sum(rate.clamp(min=floor) for rate in sites.values())
    torch.testing.assert_close(terms.loss, expected)
    assert float(terms.rate) == pytest.approx(5 * total)


def hidden(x):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        for name in ("rate", "share"):
            pyro.sample(name, dist.Normal(u, 0.1).expand([len(x)]).mask(True))


def test_units_and_sites_whose_rate_is_not_known_are_refused():
    x = torch.linspace(0.1, 2.0, 5)
    with pytest.raises(ValueError, match="got the auxiliary site 'rate_unconstrained'.*use per='site'"):
        FreeBits(elbo("trace"), 0.1).loss(two_constrained, auto_normal(x), x)

    def pair(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("rate", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + pyro.sample("share", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    with pytest.raises(ValueError, match="free bits: expected auxiliary guide sites named SITE_unconstrained.*'u'"):
        FreeBits(elbo("trace"), 0.1, "site").loss(pair, hidden, x)
    assert math.isfinite(MinimumRate(elbo("trace"), 0.1).loss(pair, hidden, x))
    point = AutoDelta(pair)
    with pytest.raises(ValueError, match="expected a density at site 'rate', got a Delta"):
        FreeBits(elbo("trace"), 0.1).loss(pair, point, x)


# Programs and scales


#: A control by each flag.
BY_FLAG = {name: functools.partial(controlled, **{name: value}) for name, value in VALUES.items()}


@pytest.mark.parametrize("make", BY_FLAG.values(), ids=BY_FLAG)
@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_a_site_that_is_not_in_the_guide_is_named(make, wrapped):
    def empty(x):
        pass

    with pytest.raises(ValueError, match="latent site 'z': missing from the guide"):
        make(elbo(wrapped)).loss(model, empty, X)


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("make", [lambda o: MinimumRate(o, 1e-9), lambda o: FreeBits(o, 1e-9)])
@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
def test_an_outer_scale_of_each_datum(wrapped, make, options):
    """Without effect they are the wrapped objective under the scale; rate and distortion are without it."""
    x, scale = LinearGaussian().draw(5), torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1], dtype=torch.float64)
    pair = [poutine.scale(fn, scale) for fn in (LinearGaussian().model, wide_guide)]
    objective = elbo(wrapped, max_plate_nesting=1, **options)
    terms = []
    for loss in (objective, make(objective)):
        pyro.set_rng_seed(5)
        terms.append(loss.terms(*pair, x))
    assert terms[1].loss.shape == ()
    for ours, theirs in zip(*terms, strict=True):
        torch.testing.assert_close(ours, theirs)


#: A total correlation takes a latent variable in the data plate alone.
@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "total_correlation"])
def test_the_data_plate_may_be_named(name):
    make = BY_FLAG[name]

    def program(of_model):
        def fn(x):
            with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0) if of_model else dist.Normal(1 + x / 2, 0.5))
                if of_model:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return fn

    x, programs = torch.zeros(4, 3), (program(True), program(False))
    with pytest.raises(ValueError, match="choose the data plate with plate="):
        make(elbo("mean-field")).loss(*programs, x)
    control = make(elbo("mean-field", plate="rows"))
    assert control.bound(*programs, x).shape == (4,)
    whole = elbo("mean-field").terms(*programs, x)
    assert float(control.terms(*programs, x).rate) == pytest.approx(float(whole.rate))


# What a model is chosen by


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: FreeBits(o, 1.0), -10 - 0.5 * 2.0),
        (lambda o: FreeBits(o, 5.0), -10 - 0.5 * 2.0),  # the floor is for training alone
        (lambda o: FreeBits(o, 5.0, "site"), -10 - 0.5 * 2.0),
        (lambda o: MinimumRate(o, 5.0), -10 - 0.5 * 5.0),
        (lambda o: MinimumRate(o, 1.0), -10 - 0.5 * 2.0),
    ],
)
def test_floors_choose_by_the_weighted_elbo(make, expected):
    assert make(elbo("trace")).selection(10.0, 2.0, 0.5) == pytest.approx(expected)


def test_capacity_and_target_choose_by_the_distance_to_it():
    assert Capacity(elbo("trace"), 5.0, 100, 7.0).selection(10.0, 2.0, 1.0) == pytest.approx(-10 - 7 * 3)
    assert TargetRate(elbo("trace"), 5.0, beta_max=9.0).selection(10.0, 2.0, 1.0) == pytest.approx(-10 - 9 * 3)


@pytest.mark.parametrize("name", CONTROLS)
def test_options_of_another_kind_are_refused(name):
    sentence = {"total_correlation": "a finite number of at least 0"}.get(name, "a positive number of nats")
    with pytest.raises(TypeError, match=f"expected {sentence}, got str '1'"):
        CONTROLS[name].kind(elbo("trace"), "1")


def test_a_number_of_steps_is_whole():
    with pytest.raises(TypeError, match="capacity: expected a whole number, got float 2.5"):
        Capacity(elbo("trace"), 1.0, 2.5)
