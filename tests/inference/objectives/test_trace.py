"""The ELBO by draws, and what it shares with that of a closed KL: Pyro's objectives, given a bound for each datum."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch.distributions import biject_to, constraints

from pyro_vae import SVI, VAE, elbo
from pyro_vae.handlers import scale_kl, scale_kl_pair
from tests.inference.objectives.diagonal import LOC, SCALE, diagonal_distortion, diagonal_guide, diagonal_rate
from tests.oracles import LinearGaussian, mixture, within

ORACLE = LinearGaussian()
#: The plain ELBOs, with Pyro's classes.
PYROS = {"trace": pyro.infer.Trace_ELBO, "mean-field": pyro.infer.TraceMeanField_ELBO}
OPTIONS = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


@pytest.mark.parametrize("name", PYROS)
def test_it_is_pyros_class(name):
    assert isinstance(elbo(name), PYROS[name])


@pytest.mark.parametrize("options", OPTIONS)
def test_trace_equals_log_px_at_the_exact_posterior_on_every_draw(options):
    x = ORACLE.draw(6)
    objective = elbo("trace", **options)
    exact = ORACLE.log_px(x)
    torch.testing.assert_close(objective.bound(ORACLE.model, ORACLE.guide(), x), exact)
    assert objective.loss(ORACLE.model, ORACLE.guide(), x) == pytest.approx(-float(exact.sum()))


@pytest.mark.parametrize("name", PYROS)
@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.7, 1.0), (-0.3, 1.4)])
def test_gap_is_the_kl_per_datum_in_expectation(name, shift, stretch):
    x = ORACLE.draw(5)
    pair = (ORACLE.model, ORACLE.guide(shift, stretch))
    objective = elbo(name, num_particles=50, vectorize_particles=True)
    if name == "mean-field":
        # A correlated normal against independent ones has no closed form in torch: the fallback is sampled.
        pair = (ORACLE.model, diagonal_guide)
    bounds = torch.stack([objective.bound(*pair, x) for _ in range(200)])
    exact = ORACLE.log_px(x) - ORACLE.kl(shift, stretch)
    if name == "mean-field":
        exact = -diagonal_rate(x) - diagonal_distortion(x)
    error = bounds.std(0) / math.sqrt(200)
    if name == "trace" and (shift, stretch) == (0.0, 1.0):
        torch.testing.assert_close(bounds, exact.expand(200, 5))
    else:
        assert within(bounds.mean(0), exact, error)


@pytest.mark.thin(2, by="beta")
@pytest.mark.parametrize("name", PYROS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.usefixtures("checked")
def test_beta_elbo_value_and_gradient_by_hand(name, beta, options):
    """scale_kl_pair under an objective = distortion + beta KL, written without Pyro, from the same noise."""
    vae = VAE((4,), 2, (3,), likelihood="normal").double()
    x = torch.randn(6, 4, dtype=torch.float64)
    particles = options.get("num_particles", 1)

    def by_hand():
        loc, log_scale = vae.encoder(x).chunk(2, -1)
        if "vectorize_particles" in options:
            draws = torch.randn(particles, 6, 2, dtype=torch.float64)
        else:
            draws = [torch.randn(6, 2, dtype=torch.float64) for _ in range(particles)]
        total = 0.0
        for eps in draws:
            z = loc + log_scale.exp() * eps
            residual = (x - vae.decoder(z)) / vae.likelihood.log_scale.exp()
            distortion = (0.5 * residual.square() + vae.likelihood.log_scale + 0.5 * math.log(2 * math.pi)).sum()
            if name == "trace":
                kl = (0.5 * z.square() - 0.5 * eps.square() - log_scale).sum()
            else:
                kl = (0.5 * (loc.square() + (2 * log_scale).exp() - 1) - log_scale).sum()
            total = total + distortion + beta * kl
        return total / particles

    model, guide = scale_kl_pair(vae.model, vae.guide, beta)
    objective = elbo(name, max_plate_nesting=1, **options)
    pyro.set_rng_seed(3)
    value = objective.differentiable_loss(model, guide, x)
    gradient = torch.autograd.grad(value, list(vae.parameters()), allow_unused=True)
    pyro.set_rng_seed(3)
    exact = by_hand()
    exact_gradient = torch.autograd.grad(exact, list(vae.parameters()), allow_unused=True)
    torch.testing.assert_close(value, exact)
    assert len(gradient) == 9
    for ours, hand in zip(gradient, exact_gradient, strict=True):
        torch.testing.assert_close(ours, hand)
    pyro.set_rng_seed(3)
    assert objective.loss(model, guide, x) == pytest.approx(exact.item())
    pyro.set_rng_seed(3)
    assert objective(model, guide)(x).item() == pytest.approx(exact.item())


@pytest.mark.parametrize("name", PYROS)
@pytest.mark.usefixtures("checked")
def test_value_and_gradient_are_those_of_pyros_class(name):
    vae = VAE((4,), 2, (3,)).double()
    x = (torch.rand(6, 4, dtype=torch.float64) < 0.5).double()
    results = []
    for objective in (elbo(name, num_particles=2), PYROS[name](num_particles=2)):
        vae.zero_grad()
        pyro.set_rng_seed(5)
        results.append((objective.loss_and_grads(vae.model, vae.guide, x), [p.grad.clone() for p in vae.parameters()]))
    (ours, our_grads), (theirs, their_grads) = results
    assert ours == pytest.approx(theirs)
    assert len(our_grads) == 8
    torch.testing.assert_close(our_grads, their_grads)


@pytest.mark.parametrize("name", PYROS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_terms_and_bound_contain_no_beta(name, beta):
    vae = VAE((4,), 2, (3,)).double()
    x = (torch.rand(6, 4, dtype=torch.float64) < 0.5).double()
    pair = scale_kl_pair(vae.model, vae.guide, beta)
    objective = elbo(name)
    pyro.set_rng_seed(1)
    scaled = objective.terms(*pair, x)
    pyro.set_rng_seed(1)
    plain = objective.terms(vae.model, vae.guide, x)
    assert scaled.loss.item() == pytest.approx(float(plain.distortion + beta * plain.rate))
    assert plain.loss.item() == pytest.approx(float(plain.distortion + plain.rate))
    torch.testing.assert_close(scaled[1:], plain[1:])
    pyro.set_rng_seed(1)
    scaled_bound = objective.bound(*pair, x)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(scaled_bound, objective.bound(vae.model, vae.guide, x))
    assert scaled_bound.shape == (6,)


@pytest.mark.parametrize("name", PYROS)
@pytest.mark.parametrize("side", ["model", "guide"])
def test_beta_on_one_side_is_refused(name, side):
    vae = VAE((4,), 2, (3,))
    x = torch.ones(3, 4)
    model = scale_kl(vae.model, 2.0) if side == "model" else vae.model
    guide = scale_kl(vae.guide, 2.0) if side == "guide" else vae.guide
    with pytest.raises(ValueError, match="same KL weight in model and guide"):
        elbo(name).loss(model, guide, x)
    with pytest.raises(ValueError, match="same KL weight in model and guide"):
        elbo(name).bound(model, guide, x)


@pytest.mark.usefixtures("checked")
def test_score_function_gradient_of_a_discrete_guide():
    """The mean gradient of the trace objective over draws is the exact gradient, by enumeration."""
    oracle, x = mixture(), torch.full((100,), 0.7, dtype=torch.float64)
    logits = torch.tensor([0.2, -0.4, 0.5], dtype=torch.float64, requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits.expand(len(x), 3)))

    q = logits.softmax(-1)
    exact = torch.autograd.grad(-(q * (oracle.joint(x)[0] - q.log())).sum(), logits)[0]
    objective = elbo("trace")
    grads = torch.stack(  # each the sum over 100 data, of independent draws
        [torch.autograd.grad(objective.differentiable_loss(oracle.model, guide, x), logits)[0] for _ in range(100)]
    )
    assert within(grads.mean(0) / 100, exact, grads.std(0) / 100 / math.sqrt(100))


@pytest.mark.parametrize("name", PYROS)
@pytest.mark.usefixtures("checked")
def test_subsampling_scales_the_loss_and_not_the_bound(name):
    def model(x):
        with pyro.plate("data", 12, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ ORACLE.weight.T + ORACLE.bias, ORACLE.scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 12, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(LOC, SCALE).to_event(1))

    x = ORACLE.draw(4)
    pyro.set_rng_seed(2)
    terms = elbo(name).terms(model, guide, x)
    assert terms.loss.item() == pytest.approx(3 * float(terms.distortion + terms.rate))
    pyro.set_rng_seed(2)
    assert float(elbo(name).bound(model, guide, x).sum()) == pytest.approx(-float(terms.distortion + terms.rate))


@pytest.mark.parametrize("name", PYROS)
def test_auxiliary_loss_is_trained_but_is_no_distortion(name):
    weight = torch.tensor(0.3, dtype=torch.float64)

    def model(x):
        ORACLE.model(x)
        with pyro.plate("labels", len(x)):
            pyro.sample(
                "y", dist.Bernoulli(weight), obs=torch.ones(len(x), dtype=x.dtype), infer={"auxiliary_loss": True}
            )

    x = ORACLE.draw(4)
    pyro.set_rng_seed(2)
    terms = elbo(name).terms(model, diagonal_guide, x)
    pyro.set_rng_seed(2)
    plain = elbo(name).terms(ORACLE.model, diagonal_guide, x)
    torch.testing.assert_close(terms[1:], plain[1:])
    assert (terms.loss - plain.loss).item() == pytest.approx(-4 * math.log(0.3))


@pytest.mark.parametrize("name", PYROS)
def test_a_masked_latent_counts_nothing(name):
    x = ORACLE.draw(4)
    mask = torch.tensor([True, False, False, True])
    pair = (poutine.mask(ORACLE.model, mask=mask), poutine.mask(diagonal_guide, mask=mask))
    pyro.set_rng_seed(2)
    masked = elbo(name).terms(*pair, x)
    pyro.set_rng_seed(2)
    bound = elbo(name).bound(*pair, x)
    assert bound[~mask].tolist() == [0.0, 0.0]
    assert float(masked.rate + masked.distortion) == pytest.approx(-float(bound.sum()))
    pyro.set_rng_seed(2)
    torch.testing.assert_close(bound[mask], elbo(name).bound(ORACLE.model, diagonal_guide, x)[mask])


@pytest.mark.parametrize("num_particles", [1, 10, 101])
@pytest.mark.parametrize("name", PYROS)
def test_particles_act(name, num_particles):
    vae = VAE((4,), 2, (3,))
    rows = []
    vae.decoder.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[:-1].numel()))
    elbo(name, num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1).loss(
        vae.model, vae.guide, torch.ones(5, 4)
    )
    assert sum(rows) == 5 * num_particles


@pytest.mark.parametrize("name", PYROS)
def test_stock_svi_trains_with_it(name):
    vae = VAE((4,), 1, (8,))
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(20, 1)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), elbo(name))
    before = svi.evaluate_loss(x)
    for _ in range(150):
        svi.step(x)
    # Two equally likely patterns: log p(x) is at most -log 2 a datum; independent pixels get -4 log 2.
    assert 40 * math.log(2) < svi.evaluate_loss(x) < 40 * 2.5 * math.log(2) < before
    assert isinstance(SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), elbo(name)), pyro.infer.SVI)


LATENTS = {
    "beta": (dist.Beta(2.0, 2.0), biject_to(constraints.unit_interval)),
    "gamma": (dist.Gamma(2.0, 2.0), biject_to(constraints.positive)),
    "log-normal": (dist.LogNormal(0.0, 1.0), biject_to(constraints.positive)),
}


def auto_normal(prior, at=0.8, scale=0.3):
    """p(z) constrained, x ~ N(z, 0.5); q = AutoNormal."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    start = init_to_value(values={"z": torch.full((3,), at)})
    return model, AutoNormal(model, init_loc_fn=start, init_scale=scale)


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("name", PYROS)
def test_the_jacobian_of_an_auto_normal_is_in_its_bound(name, kind):
    """Against the ELBO by quadrature over the unconstrained value."""
    prior, transform = LATENTS[kind]
    model, guide = auto_normal(prior)
    x = torch.tensor([0.2, 0.7, 1.4])
    q = dist.Normal(transform.inv(torch.tensor(0.8)), 0.3)
    u = torch.linspace(float(q.loc) - 2.7, float(q.loc) + 2.7, 4001)
    z = transform(u)
    density = prior.log_prob(z) + transform.log_abs_det_jacobian(u, z) - q.log_prob(u)
    integrand = q.log_prob(u).exp() * (density + dist.Normal(z, 0.5).log_prob(x[:, None]))
    exact = torch.trapezoid(integrand, u)
    objective = elbo(name, num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    bound, terms = objective.bound(model, guide, x).detach(), objective.terms(model, guide, x)
    rate = -torch.trapezoid(q.log_prob(u).exp() * density, u)
    assert within(bound, exact, torch.full((3,), 1.5 / math.sqrt(20_000)))
    assert within(-terms.loss.detach(), exact.sum(), 3 * 1.5 / math.sqrt(20_000))
    assert within(terms.rate, 3 * rate, 3 * 1.5 / math.sqrt(20_000))


@pytest.mark.parametrize("name", PYROS)
@pytest.mark.parametrize("beta", [0.5, {"z": 0.5}])
def test_a_weight_of_an_auto_normal_is_on_its_auxiliary_site_too(name, beta):
    model, guide = auto_normal(dist.Beta(2.0, 2.0))
    pair = scale_kl_pair(model, guide, beta)
    terms = elbo(name).terms(*pair, torch.tensor([0.2, 0.7, 1.4]))
    assert terms.loss.item() == pytest.approx(float(terms.distortion + 0.5 * terms.rate))


def test_a_weight_that_leaves_out_an_auxiliary_site_is_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u, 1.0))

    model, _ = auto_normal(dist.Normal(0.0, 1.0))
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="auxiliary site 'u': expected the KL weight of site 'z'"):
        elbo("trace").loss(*scale_kl_pair(model, guide, {"z": 0.5}), x)
    assert math.isfinite(elbo("trace").loss(*scale_kl_pair(model, guide, 0.5), x))
