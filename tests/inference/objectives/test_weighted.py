"""The importance-weighted objectives: values and gradients against quadrature and exact sums, cell by cell.

Each of many replicas of one datum has parameters of its own, so that one gradient of the summed loss is a sample of as
many independent gradients, of which the mean and its standard error can be taken.
"""

from __future__ import annotations

import contextlib
import decimal
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal

from pyro_vae import SVI, VAE, elbo
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference import OBJECTIVES
from pyro_vae.inference.objectives.registry import options_of
from pyro_vae.inference.objectives.weighted import log_mean_exp
from tests.oracles import LinearGaussian, mixture, within

ORACLE = LinearGaussian()
GUIDE = ORACLE.guide()
BETAS = (0.0, 0.5, 1.0, 4.0)
REPLICAS = 20_000
START = {"weight": 0.8, "loc": 0.5, "log_scale": -0.4}
X = 0.9

#: Objective with its options, the bound that it has in expectation, and how many draws that takes.
CELLS = {
    "trace": ("trace", {"num_particles": 2, "vectorize_particles": True}, lambda w: w.mean(0), 2),
    "mean-field": ("mean-field", {"num_particles": 2, "vectorize_particles": True}, lambda w: w.mean(0), 2),
    "graph": ("graph", {"num_particles": 2, "vectorize_particles": True}, lambda w: w.mean(0), 2),
    "enum": ("enum", {"strict_enumeration_warning": False}, lambda w: w.mean(0), 2),
    "iwae": ("iwae", {"num_particles": 2}, log_mean_exp, 2),
    "iwae one by one": ("iwae", {"num_particles": 2, "vectorize_particles": False}, log_mean_exp, 2),
    "renyi 0.5": ("renyi", {"num_particles": 2, "alpha": 0.5}, lambda w: log_mean_exp(w, 0.5), 2),
    "renyi 1": ("renyi", {"num_particles": 2, "alpha": 1.0}, lambda w: w.mean(0), 2),
    "renyi 2": ("renyi", {"num_particles": 2, "alpha": 2.0}, lambda w: log_mean_exp(w, 2.0), 2),
    "dreg": ("dreg", {"num_particles": 2}, log_mean_exp, 2),
    "dreg 3": ("dreg", {"num_particles": 3}, log_mean_exp, 3),
    "dreg one by one": ("dreg", {"num_particles": 2, "vectorize_particles": False}, log_mean_exp, 2),
    "dreg 0.5": ("dreg", {"num_particles": 2, "alpha": 0.5}, lambda w: log_mean_exp(w, 0.5), 2),
    "dreg 2": ("dreg", {"num_particles": 2, "alpha": 2.0}, lambda w: log_mean_exp(w, 2.0), 2),
    "stl": ("stl", {"num_particles": 2}, lambda w: w.mean(0), 2),
    "vimco": ("vimco", {"num_particles": 2}, log_mean_exp, 2),
    "miwae": ("miwae", {"num_groups": 3, "num_particles": 2}, log_mean_exp, 2),
    "ciwae": ("ciwae", {"num_particles": 2, "elbo_weight": 0.3}, lambda w: 0.3 * w.mean(0) + 0.7 * log_mean_exp(w), 2),
}  # fmt: skip


def program(normal=dist.Normal, replicas=REPLICAS, total=None, pixels=None):
    """z ~ N(0, 1), x ~ N(weight z, 0.6); q = N(loc, scale); parameters of its own for each replica.

    Args:
        normal: The guide's distribution.
        replicas: How many of the data are in a batch.
        total: How many there are; the batch is a random part of them.
        pixels: With so many pixels in a plate of their own within the data plate, which then is dimension -2.
    """
    total = total or replicas
    shape, dim = ((total,), -1) if pixels is None else ((total, 1), -2)

    def plate():
        return pyro.plate("data", total, subsample_size=replicas, dim=dim)

    def start(name):
        return pyro.param(name, torch.full(shape, START[name], dtype=torch.float64))

    def model(x):
        weight = start("weight")
        with plate() as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            with pyro.plate("pixels", pixels, dim=-1) if pixels else contextlib.nullcontext():
                pyro.sample("x", dist.Normal(weight[rows] * z, 0.6), obs=x[rows])

    def guide(x):
        loc, scale = start("loc"), start("log_scale").exp()
        with plate() as rows:
            pyro.sample("z", normal(loc[rows], scale[rows]))

    return model, guide


def log_w_of(eps, weight, loc, log_scale, beta, pixels=1):
    z = loc + log_scale.exp() * eps
    likelihood = pixels * dist.Normal(weight * z, 0.6).log_prob(torch.tensor(X, dtype=torch.float64))
    ratio = dist.Normal(torch.zeros_like(z), 1.0).log_prob(z) - dist.Normal(loc, log_scale.exp()).log_prob(z)
    return likelihood + beta * ratio


def by_quadrature(value, draws, beta, points=40, pixels=1):
    """The expectation of ``value`` over independent draws of q, its gradient and spread, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    eps = torch.stack(torch.meshgrid(*[nodes] * draws, indexing="ij")).flatten(1)
    mass = torch.stack(torch.meshgrid(*[weights] * draws, indexing="ij")).flatten(1).prod(0)
    params = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in START.items()}
    bound = value(log_w_of(eps, **params, beta=beta, pixels=pixels))
    expectation = (mass * bound).sum()
    gradient = torch.autograd.grad(expectation, list(params.values()))
    spread = (mass * (bound - expectation).square()).sum().sqrt()
    return expectation.detach(), dict(zip(params, map(float, gradient), strict=True)), float(spread.detach())


def gradients(objective, model, guide, total=REPLICAS):
    """Loss and a sample of each replica's gradient, of minus the loss, by parameter."""
    loss = objective.differentiable_loss(model, guide, torch.full((total,), X, dtype=torch.float64))
    return float(loss.detach()), of_replicas(loss)


def of_replicas(loss):
    store = pyro.get_param_store()
    params = {name: store[name].unconstrained() for name in START}
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    found = {n: torch.zeros(REPLICAS) if g is None else -g.flatten() for n, g in zip(params, grads, strict=True)}
    return {n: g[g != 0] if len(g) > REPLICAS else g for n, g in found.items()}  # rows that were not drawn have none


def agree(sample, exact):
    return within(sample.mean(), exact, sample.std() / math.sqrt(len(sample)) + 1e-12, factor=4.5)


def law_table():
    """Every cell, of which a fixed quarter is quick: each objective, subsampling and weight is in it."""
    for i, (cell, j, k) in enumerate(itertools.product(CELLS, range(2), range(len(BETAS)))):
        quick = (i // 8 + 2 * j + k) % 4 == 0
        marks = [] if quick else [pytest.mark.slow]
        name = f"{cell}-{('whole', 'subsampled')[j]}-{BETAS[k]}"
        yield pytest.param(cell, bool(j), BETAS[k], marks=marks, id=name)


@pytest.mark.parametrize(("cell", "subsampled", "beta"), [*law_table()])
def test_value_and_gradient_are_those_of_the_bound(cell, subsampled, beta):
    name, options, value, draws = CELLS[cell]
    exact, exact_gradient, spread = by_quadrature(value, draws, beta)
    factor = 5 if subsampled else 1
    model, guide = scale_kl_pair(*program(total=factor * REPLICAS), beta)
    loss, found = gradients(elbo(name, **options), model, guide, factor * REPLICAS)
    for parameter, sample in found.items():
        assert len(sample) == REPLICAS, parameter
        assert agree(sample / factor, exact_gradient[parameter]), parameter
    assert within(-loss / factor / REPLICAS, exact, spread / math.sqrt(REPLICAS))
    at_one = by_quadrature(value, draws, 1.0)[0]
    bound = elbo(name, **options).bound(model, guide, torch.full((factor * REPLICAS,), X, dtype=torch.float64))
    assert bound.shape == (REPLICAS,)
    assert agree(bound, at_one)  # no beta and no N/B in it


#: Objectives that take a weight for each datum, with the bound that they have in expectation.
OF_A_DATUM = {
    "iwae": log_mean_exp,
    "dreg": log_mean_exp,
    "vimco": log_mean_exp,
    "stl": lambda w: w.mean(0),
    "trace": lambda w: w.mean(0),
    "mean-field": lambda w: w.mean(0),
}


@pytest.mark.parametrize("pixels", [None, 2], ids=["one plate", "data plate at dim -2"])
@pytest.mark.parametrize("name", OF_A_DATUM)
def test_a_weight_for_each_datum(name, pixels):
    """Half of the data weigh the KL by 0.5, half by 4."""
    half = REPLICAS // 2
    betas = torch.tensor([0.5, 4.0], dtype=torch.float64).repeat_interleave(half)
    model, guide = program(pixels=pixels)
    pair = scale_kl_pair(model, guide, betas if pixels is None else betas[:, None])
    x = torch.full((REPLICAS,) if pixels is None else (REPLICAS, pixels), X, dtype=torch.float64)
    vectorize = {"vectorize_particles": True, "max_plate_nesting": 1 if pixels is None else 2}
    loss = elbo(name, num_particles=2, **vectorize).differentiable_loss(*pair, x)
    found = of_replicas(loss)
    values = []
    for part, beta in ((slice(half), 0.5), (slice(half, None), 4.0)):
        exact, gradient, spread = by_quadrature(OF_A_DATUM[name], 2, beta, pixels=pixels or 1)
        values.append((exact, spread**2 / half))
        for parameter, sample in found.items():
            assert agree(sample[part], gradient[parameter]), (parameter, beta)
    error = math.sqrt(sum(variance for _, variance in values)) / 2
    assert within(-loss.detach() / REPLICAS, sum(exact for exact, _ in values) / 2, error)


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
        with pytest.raises(ValueError, match="dreg: expected one weight of the KL for each datum.*within a datum"):
            elbo("dreg", num_particles=particles).loss(*pair, x)
    assert math.isfinite(elbo("iwae").loss(*pair, x))


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_vimco_without_reparameterized_draws(beta):
    exact, exact_gradient, spread = by_quadrature(log_mean_exp, 2, beta)
    model, guide = scale_kl_pair(*program(NonreparameterizedNormal), beta)
    loss, found = gradients(elbo("vimco", num_particles=2), model, guide)
    for parameter, sample in found.items():
        assert agree(sample, exact_gradient[parameter]), parameter
    assert within(-loss / REPLICAS, exact, spread / math.sqrt(REPLICAS))


def test_piwae_gives_each_side_its_own_bound():
    _, tight, _ = by_quadrature(log_mean_exp, 2, 1.0)
    _, loose, _ = by_quadrature(log_mean_exp, 1, 1.0)
    _, found = gradients(elbo("piwae", num_groups=2, num_particles=1), *program())
    assert agree(found["weight"], tight["weight"])
    assert not agree(found["weight"], loose["weight"])
    for parameter in ("loc", "log_scale"):
        assert agree(found[parameter], loose[parameter])
        assert not agree(found[parameter], tight[parameter])


@pytest.mark.parametrize("normal", [dist.Normal, NonreparameterizedNormal])
def test_rws_wakes_both_sides(normal):
    """theta: the gradient of the bound; phi: sum of normalized weights times the score, both by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    eps = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij")).flatten(1)
    mass = torch.outer(weights, weights).flatten()
    params = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in START.items()}
    normalized = log_w_of(eps, **params, beta=1.0).detach().softmax(0)
    z = (params["loc"] + params["log_scale"].exp() * eps).detach()
    log_q = dist.Normal(params["loc"], params["log_scale"].exp()).log_prob(z)
    wake = torch.autograd.grad((mass * (normalized * log_q).sum(0)).sum(), [params["loc"], params["log_scale"]])
    _, found = gradients(elbo("rws", num_particles=2), *program(normal))
    assert agree(found["weight"], by_quadrature(log_mean_exp, 2, 1.0)[1]["weight"])
    assert agree(found["loc"], wake[0])
    assert agree(found["log_scale"], wake[1])


@pytest.mark.parametrize("partitions", [1, 2, 5])
def test_tvo_is_the_riemann_sum_along_the_path(partitions):
    """With many draws, value and gradient are those of the sum of exact expectations under q^(1-t) p^t."""
    objective = elbo("tvo", partitions=partitions, num_particles=4000, first_point=0.05)
    assert objective.points[0] == 0
    assert objective.points[-1] == 1
    assert len(objective.points) == partitions + 1
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, mass = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    params = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in START.items()}
    log_w = log_w_of(nodes, **params, beta=1.0)
    exact = sum(
        (b - a) * (((a * log_w + mass.log()).softmax(0)) * log_w).sum() for a, b in itertools.pairwise(objective.points)
    )
    gradient = dict(zip(params, torch.autograd.grad(exact, list(params.values())), strict=True))
    replicas = 400
    x = torch.full((replicas,), X, dtype=torch.float64)
    loss = objective.differentiable_loss(*program(replicas=replicas), x)
    store = pyro.get_param_store()
    for name in START:
        (found,) = torch.autograd.grad(loss, store[name].unconstrained(), retain_graph=True)
        error = found.std() / math.sqrt(replicas) + 3 / 4000  # the bias of self-normalization is of order 1 / K
        assert within(-found.mean(), gradient[name].detach(), error), name
    assert -float(loss.detach()) / replicas == pytest.approx(float(exact.detach()), abs=0.01)
    assert float(exact.detach()) < float(dist.Normal(0.0, math.hypot(START["weight"], 0.6)).log_prob(torch.tensor(X)))


# Two latent layers


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


# Discrete latents: exact sums

MIXTURE = mixture()
LOGITS = [0.3, -0.2, 0.5]


def discrete(replicas, enumerate_=None):
    infer = {"enumerate": enumerate_} if enumerate_ else {}

    def guide(x):
        logits = pyro.param("logits", torch.tensor(LOGITS, dtype=torch.float64).expand(replicas, 3).clone())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits), infer=infer)

    def model(x):
        mu = pyro.param("mu", MIXTURE.locs.expand(replicas, 3).clone())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(MIXTURE.probs))
            chosen = (torch.nn.functional.one_hot(z, 3) * mu).sum(-1)
            pyro.sample("x", dist.Normal(chosen, 1.0), obs=x)

    return model, guide


def discrete_exact(value, draws, beta):
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    mu = MIXTURE.locs.clone().requires_grad_()
    log_q = logits.log_softmax(0)
    joint = dist.Normal(mu, 1.0).log_prob(torch.tensor(X, dtype=torch.float64)) + beta * (MIXTURE.probs.log() - log_q)
    combinations = torch.tensor(list(itertools.product(range(3), repeat=draws))).T
    mass, bound = log_q[combinations].sum(0).exp(), value(joint[combinations])
    exact = (mass * bound).sum()
    spread = (mass * (bound - exact).square()).sum().sqrt().detach()
    return (
        exact,
        spread,
        dict(zip(("logits", "mu"), torch.autograd.grad(exact, (logits, mu), retain_graph=True), strict=True)),
    )


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(
    ("name", "options", "value", "draws"),
    [
        ("trace", {}, lambda w: w.mean(0), 1),
        ("graph", {}, lambda w: w.mean(0), 1),
        ("vimco", {"num_particles": 2}, log_mean_exp, 2),
        ("vimco", {"num_particles": 3, "vectorize_particles": False}, log_mean_exp, 3),
    ],
)
def test_gradients_of_discrete_latents_by_exact_sums(name, options, value, draws, beta):
    exact, spread, gradient = discrete_exact(value, draws, beta)
    model, guide = scale_kl_pair(*discrete(REPLICAS), beta)
    x = torch.full((REPLICAS,), X, dtype=torch.float64)
    loss = elbo(name, **options).differentiable_loss(model, guide, x)
    store = pyro.get_param_store()
    for parameter in ("logits", "mu"):
        (found,) = torch.autograd.grad(loss, store[parameter].unconstrained(), retain_graph=True)
        for column, expected in zip(-found.T, gradient[parameter], strict=True):
            assert agree(column, expected), parameter
    assert within(-loss.detach() / REPLICAS, exact.detach(), spread / math.sqrt(REPLICAS))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("factor", [1, 4])
def test_enumeration_in_the_guide_is_exact(beta, factor):
    exact, _, gradient = discrete_exact(lambda w: w.mean(0), 1, beta)
    model, guide = discrete(3, "parallel")
    pair = scale_kl_pair(poutine.scale(model, factor), poutine.scale(guide, factor), beta)
    x = torch.full((3,), X, dtype=torch.float64)
    objective = elbo("enum", max_plate_nesting=1)
    loss = objective.differentiable_loss(*pair, x)
    assert float(-loss.detach()) == pytest.approx(3 * factor * float(exact.detach()))
    store = pyro.get_param_store()
    for parameter in ("logits", "mu"):
        (found,) = torch.autograd.grad(loss, store[parameter].unconstrained(), retain_graph=True)
        torch.testing.assert_close(-found / factor, gradient[parameter].expand(3, 3))
    at_one = discrete_exact(lambda w: w.mean(0), 1, 1.0)[0].detach()
    torch.testing.assert_close(objective.bound(model, guide, x), at_one.expand(3))
    theirs = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert objective.loss(model, guide, x) == pytest.approx(theirs)


def test_enumeration_in_the_model_sums_the_site_out():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(MIXTURE.probs), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(MIXTURE.locs[z], 1.0), obs=x)

    def guide(x):
        pass

    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    objective = elbo("enum", max_plate_nesting=1)
    torch.testing.assert_close(objective.bound(model, guide, x), MIXTURE.log_px(x))
    assert -objective.loss(model, guide, x) == pytest.approx(float(MIXTURE.log_px(x).sum()))


# Laws common to all

DISCRETE_TOO = ("vimco", "rws", "tvo", "trace", "graph", "enum")
WEIGHTED = tuple(name for name in OBJECTIVES if name not in ("trace", "mean-field", "graph", "enum"))


@pytest.mark.parametrize("name", WEIGHTED)
def test_every_draw_gives_log_px_at_the_exact_posterior(name):
    x = ORACLE.draw(5)
    exact = ORACLE.log_px(x)
    objective = elbo(name)
    torch.testing.assert_close(objective.bound(ORACLE.model, ORACLE.guide(), x), exact)
    assert -objective.loss(ORACLE.model, ORACLE.guide(), x) == pytest.approx(float(exact.sum()))
    assert -objective(ORACLE.model, ORACLE.guide())(x).item() == pytest.approx(float(exact.sum()))


@pytest.mark.parametrize("name", WEIGHTED)
def test_batches_of_any_size_are_taken_one_after_the_other(name):
    objective = elbo(name, num_particles=3)
    for size in (4, 1, 7):
        x = ORACLE.draw(size)
        exact = float(ORACLE.log_px(x).sum())
        assert -float(objective.terms(ORACLE.model, GUIDE, x).loss) == pytest.approx(exact)


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


# What is refused


def dropping_guide(x):
    with pyro.plate("data", len(x)):
        loc = torch.nn.functional.dropout(torch.ones(len(x), 2, dtype=torch.float64), 0.5)
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def delta_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(torch.zeros(len(x), 2, dtype=torch.float64)).to_event(1))


@pytest.mark.parametrize("name", WEIGHTED)
def test_sites_that_cannot_be_handled_are_refused(name):
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)
    if name not in DISCRETE_TOO:
        with pytest.raises(
            ValueError, match=f"{name}: expected reparameterized draws at site 'z', got Categorical.*vimco"
        ):
            elbo(name).loss(*discrete(4), x)
    with pytest.raises(ValueError, match=f"{name}: expected no enumerated site, got 'z'.*temperature=0.7"):
        elbo(name).loss(*discrete(4, "parallel"), x)
    with pytest.raises(ValueError, match=f"{name}: expected a density at guide site 'z', got a Delta"):
        elbo(name).loss(ORACLE.model, delta_guide, ORACLE.draw(3))


@pytest.mark.parametrize("name", ["dreg", "stl"])
def test_a_guide_that_cannot_be_repeated_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a guide that gives one density for one draw"):
        elbo(name).loss(ORACLE.model, dropping_guide, ORACLE.draw(3))


@pytest.mark.parametrize("name", ["rws", "tvo"])
def test_a_beta_is_refused_where_there_is_no_kl(name):
    pair = scale_kl_pair(ORACLE.model, ORACLE.guide(), 0.5)
    with pytest.raises(ValueError, match=f"{name}: expected no weight of the KL, got one at site 'z'"):
        elbo(name).loss(*pair, ORACLE.draw(3))


@pytest.mark.parametrize("checked", [True, False])
def test_dreg_refuses_weights_of_single_sites(checked):
    model, guide, _ = two_layers(3)
    x = torch.zeros(3, dtype=torch.float64)
    tensors = {"z1": torch.tensor(0.5), "z2": torch.tensor(0.5)}  # which may differ at the next step
    with pyro.validation_enabled(checked):
        for betas in ({"z1": 0.5}, SITES, tensors):
            pair = scale_kl_pair(model, guide, betas)
            with pytest.raises(
                ValueError, match="dreg: expected one weight of the KL for all sites, got another at 'z2'"
            ):
                elbo("dreg").loss(*pair, x)
            assert math.isfinite(elbo("stl").loss(*pair, x))
        assert math.isfinite(elbo("dreg").loss(*scale_kl_pair(model, guide, {"z1": 0.5, "z2": 0.5}), x))


# Two plates around every site


def two_plates(x):
    def model(x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior

    return model, guide


@pytest.mark.parametrize("plate", ["rows", "columns"])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_the_data_plate_may_be_named(name, plate):
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
    model, guide = two_plates(x)
    log_px = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(1 if plate == "rows" else 0)
    objective = elbo(name, plate=plate)
    assert "plate" in options_of(name)
    if name != "mean-field":  # which is exact in expectation only
        assert -objective.loss(model, guide, x) == pytest.approx(float(log_px.sum()))
        torch.testing.assert_close(objective.bound(model, guide, x), log_px)
    other = "columns" if plate == "rows" else "rows"
    assert objective.bound(model, guide, x, plate=other).shape == (x.shape[1 if plate == "rows" else 0],)
    if name not in ("trace", "mean-field", "graph"):  # whose loss is a sum over everything
        with pytest.raises(ValueError, match=r"name it by plate="):
            elbo(name).loss(model, guide, x)
        with pytest.raises(ValueError, match="expected one that encloses every observed site"):
            elbo(name, plate="pixels").loss(model, guide, x)


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


# Orders near 1


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


@pytest.mark.parametrize("name", ["renyi", "dreg"])
def test_orders_near_one_are_the_elbo_in_single_precision(name):
    vae = VAE((4,), 2, (5,))
    x = torch.bernoulli(torch.full((6, 4), 0.4))
    losses, grads = [], []
    for alpha in (1.0, 1 - 1e-6):
        pyro.set_rng_seed(1)
        loss = elbo(name, alpha=alpha, num_particles=5).differentiable_loss(vae.model, vae.guide, x)
        losses.append(loss.item())
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))]))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)


def test_a_subsampled_plate_within_a_datum_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, 1).double(), 1.0))
            with pyro.plate("pixels", 10, subsample_size=2, dim=-1) as rows:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, rows])

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(3, 1).double(), 1.0))

    with pytest.raises(ValueError, match="expected whole plates inside a datum, got 'pixels' with 2 of 10"):
        elbo("iwae").loss(model, guide, torch.zeros(3, 10).double())


def test_piwae_refuses_common_parameters():
    def model(x):
        scale = pyro.param("common", torch.tensor(1.0, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("common", torch.tensor(1.0, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), scale))

    with pytest.raises(ValueError, match="piwae: expected a model and a guide without common parameters"):
        elbo("piwae").loss(model, guide, torch.zeros(3, dtype=torch.float64))


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


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("iwae", {"alpha": 0.5}, "unknown option 'alpha'"),
        ("trace", {"num_groups": 2}, "unknown option 'num_groups'"),
        ("renyi", {"alpha": math.nan}, "alpha: expected a finite number"),
        ("dreg", {"alpha": math.inf}, "alpha: expected a finite number"),
        ("miwae", {"num_groups": 0}, "num_groups: expected at least 1"),
        ("ciwae", {"elbo_weight": 1.5}, "elbo_weight: expected a share"),
        ("vimco", {"num_particles": 1}, "num_particles: expected at least 2 for vimco"),
        ("rws", {"num_particles": 1}, "num_particles: expected at least 2 for rws"),
        ("tvo", {"partitions": 0}, "partitions: expected at least 1"),
        ("tvo", {"first_point": 1.0}, "first_point: expected a number between 0 and 1"),
        ("iwae", {"num_particles": 0}, "num_particles: expected at least 1"),
        *(
            (name, {"num_particles": 2.5}, "num_particles: expected a whole number, got float 2.5")
            for name in OBJECTIVES
        ),
        *(
            (name, {"num_particles": True}, "num_particles: expected a whole number, got bool True")
            for name in OBJECTIVES
        ),
        *((name, {"num_particles": "3"}, "num_particles: expected a whole number, got str '3'") for name in OBJECTIVES),
        ("miwae", {"num_groups": 1.5}, "num_groups: expected a whole number, got float 1.5"),
        ("piwae", {"num_groups": True}, "num_groups: expected a whole number, got bool True"),
        ("tvo", {"partitions": 2.5}, "partitions: expected a whole number, got float 2.5"),
        ("tvo", {"first_point": None}, "first_point: expected a number between 0 and 1, got NoneType None"),
        ("renyi", {"alpha": "1"}, "alpha: expected a finite number, got str '1'"),
        ("dreg", {"alpha": "1"}, "alpha: expected a finite number, got str '1'"),
        ("ciwae", {"elbo_weight": "half"}, "elbo_weight: expected a share in .0, 1., got str 'half'"),
    ],
)
def test_options_out_of_range(name, options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        elbo(name, **options)
