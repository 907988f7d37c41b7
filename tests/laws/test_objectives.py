"""Laws of every objective in the registry: values and gradients against quadrature and exact sums."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import elbo
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference import OBJECTIVES
from pyro_vae.inference.objectives.registry import options_of
from pyro_vae.inference.objectives.weighted import log_mean_exp
from tests.oracles import LinearGaussian, within
from tests.replicas import (
    BETAS,
    REPLICAS,
    X,
    agree,
    by_quadrature,
    discrete,
    discrete_exact,
    gradients,
    of_replicas,
    program,
)

ORACLE = LinearGaussian()
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


def law_table():
    """Every cell, of which a fixed quarter is quick: each objective, subsampling and weight is in it."""
    for i, (cell, j, k) in enumerate(itertools.product(CELLS, range(2), range(len(BETAS)))):
        quick = (i // 8 + 2 * j + k) % 4 == 0
        marks = [] if quick else [pytest.mark.slow]
        name = f"{cell}-{('whole', 'subsampled')[j]}-{BETAS[k]}"
        yield pytest.param(cell, bool(j), BETAS[k], marks=marks, id=name)


def test_every_objective_is_in_the_table():
    """PIWAE's two sides have bounds of their own, and self-normalized gradients are of no bound: both have their tests."""
    tested = {name for name, *_ in CELLS.values()}
    assert tested | {"piwae"} == {name for name, cls in OBJECTIVES.items() if not cls.self_normalized}


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


#: The first cell of each objective.
FIRST = {row[0]: row for row in reversed(CELLS.values())}


@pytest.mark.thin(2, by="name")
@pytest.mark.parametrize("pixels", [None, 2], ids=["one plate", "data plate at dim -2"])
@pytest.mark.parametrize("name", FIRST)
def test_a_weight_for_each_datum(name, pixels):
    """Half of the data weigh the KL by 0.5, half by 4."""
    half = REPLICAS // 2
    betas = torch.tensor([0.5, 4.0], dtype=torch.float64).repeat_interleave(half)
    model, guide = program(pixels=pixels)
    pair = scale_kl_pair(model, guide, betas if pixels is None else betas[:, None])
    x = torch.full((REPLICAS,) if pixels is None else (REPLICAS, pixels), X, dtype=torch.float64)
    _, options, value, draws = FIRST[name]
    loss = elbo(name, **options, max_plate_nesting=1 if pixels is None else 2).differentiable_loss(*pair, x)
    found = of_replicas(loss)
    values = []
    for part, beta in ((slice(half), 0.5), (slice(half, None), 4.0)):
        exact, gradient, spread = by_quadrature(value, draws, beta, pixels=pixels or 1)
        values.append((exact, spread**2 / half))
        for parameter, sample in found.items():
            assert agree(sample[part], gradient[parameter]), (parameter, beta)
    error = math.sqrt(sum(variance for _, variance in values)) / 2
    assert within(-loss.detach() / REPLICAS, sum(exact for exact, _ in values) / 2, error)


@pytest.mark.thin(2, by="beta")
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


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "mean-field"])  # whose KL is not drawn
def test_every_draw_gives_log_px_at_the_exact_posterior(name):
    x = ORACLE.draw(5)
    exact = ORACLE.log_px(x)
    objective = elbo(name)
    torch.testing.assert_close(objective.bound(ORACLE.model, ORACLE.guide(), x), exact)
    assert -objective.loss(ORACLE.model, ORACLE.guide(), x) == pytest.approx(float(exact.sum()))
    assert -objective(ORACLE.model, ORACLE.guide())(x).item() == pytest.approx(float(exact.sum()))


def two_plates(x):
    def model(x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior

    return model, guide


@pytest.mark.thin(2, by="name")
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
        with pytest.raises(ValueError, match=r"choose the data plate with plate="):
            elbo(name).loss(model, guide, x)
        with pytest.raises(ValueError, match="expected a plate around every observed site"):
            elbo(name, plate="pixels").loss(model, guide, x)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_number_of_particles_is_whole(name):
    for value, kind in ((2.5, "float 2.5"), (True, "bool True"), ("3", "str '3'")):
        with pytest.raises(TypeError, match=f"num_particles: expected a whole number, got {kind}"):
            elbo(name, num_particles=value)
