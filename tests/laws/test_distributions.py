"""Laws of every likelihood, prior and posterior in the registries: a new part is tested by its row there."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pyro_vae.distributions import LIKELIHOODS, POSTERIORS, PRIORS
from pyro_vae.distributions.base import Likelihood, Posterior, Prior
from pyro_vae.distributions.likelihoods.real import LocationScale
from pyro_vae.lookup import parse_part
from pyro_vae.models.base import make_part
from tests.oracles import all_binary


class Mixture(Prior):
    """A correct part for the laws: a mixture of normals with random first locations."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.logits, self.loc = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.randn(3, latent_dim))

    def forward(self):
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), dist.Normal(self.loc, 1.0).to_event(1))


class StudentT(LocationScale):
    """A correct part for the laws: pixels with the tails of Student's t with 4 degrees of freedom, variance 2."""

    unit_deviation: ClassVar[float] = math.sqrt(2)

    def forward(self, params):
        return dist.StudentT(4.0, params, self.log_scale.exp()).to_event(self.event_dim)


#: The registries, and two parts that the laws must accept: a random start and a heavy tail.
TABLES = {
    "likelihood": LIKELIHOODS | {"student-t": StudentT},
    "prior": PRIORS | {"mixture": Mixture},
    "posterior": POSTERIORS,
}
PARTS = {f"{kind} {name}": (kind, name) for kind, table in TABLES.items() for name in table}
BASES = {"likelihood": Likelihood, "prior": Prior, "posterior": Posterior}
EVERY_PART = pytest.mark.parametrize(("kind", "name"), PARTS.values(), ids=PARTS)
DRAWS = 4000


def make(kind: str, name: str, size: int = 2, *, seed: int | None = 0, dtype: torch.dtype = torch.float64):
    """A part for vectors of this size; with a seed, its parameters are away from their start.

    The start itself has a seed too: a random one is the same in both precisions.
    """
    torch.manual_seed(100 if seed is None else seed)
    part = TABLES[kind][name]((size,) if kind == "likelihood" else size).to(dtype)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in part.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.4 * noise.to(parameter))
    return part


def inputs_of(part, size: int, *lead: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, ...]:
    """What the part is called with: outputs of a network; nothing for a prior."""
    if isinstance(part, Prior):
        return ()
    count = part.num_params if isinstance(part, Posterior) else size
    generator = torch.Generator().manual_seed(seed)
    return (0.7 * torch.randn(*lead, count, generator=generator, dtype=torch.float64).to(dtype),)


def quadrature_of(part, points: int) -> tuple[Tensor, Tensor]:
    """Values of one number and their weights, for sums and integrals over the whole support.

    The midpoint rule in t: x = tan(t) on the real line, for any tail; x = (1 + sin t) / 2 on [0, 1].
    """
    support = getattr(part, "support", "real")
    if support == "binary":
        return torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    step = math.pi / points
    t = (torch.arange(points, dtype=torch.float64) + 0.5) * step - math.pi / 2
    if support == "unit":
        return (1 + t.sin()) / 2, step * t.cos() / 2
    return t.tan(), step / t.cos().square()


def draws_of(part, p, *shape: int) -> Tensor:
    torch.manual_seed(7)
    return p.sample(shape)


@EVERY_PART
@torch.no_grad()
def test_a_density_of_one_number_sums_to_one(kind, name):
    part = make(kind, name, 1)
    grid, weights = quadrature_of(part, 400_001)
    for seed in range(3):
        p = part(*inputs_of(part, 1, seed=seed))
        total = (p.log_prob(grid[:, None]).exp() * weights).sum()
        assert float(total) == pytest.approx(1.0, abs=1e-6)


@EVERY_PART
@torch.no_grad()
def test_a_density_of_two_numbers_sums_to_one_with_the_moments_of_its_draws(kind, name):
    """Moments by quadrature; those of draws lie within 5 standard errors.

    Of arctan(x), with the products of the two: all its moments are finite, with those of a heavy tail's x they are not.
    """
    part = make(kind, name, 2)
    p = part(*inputs_of(part, 2))
    assert p.batch_shape == ()
    assert p.event_shape == (2,)
    grid, weights = quadrature_of(part, 1201)
    points = torch.cartesian_prod(grid, grid)
    mass = p.log_prob(points).exp() * torch.cartesian_prod(weights, weights).prod(-1)
    assert float(mass.sum()) == pytest.approx(1.0, abs=2e-3)

    def moments(x: Tensor) -> Tensor:
        x = x.arctan()
        return torch.cat([x, x.square(), x.prod(-1, keepdim=True)], -1)

    exact = (mass[:, None] * moments(points)).sum(0) / mass.sum()
    found = moments(draws_of(part, p, DRAWS))
    error = found.std(0) / math.sqrt(DRAWS)
    assert bool(((found.mean(0) - exact).abs() < 5 * error + 2e-3).all())


@EVERY_PART
@torch.no_grad()
def test_draws_of_one_number_have_its_distribution(kind, name):
    part = make(kind, name, 1)
    p = part(*inputs_of(part, 1, seed=2))
    drawn, (grid, weights) = draws_of(part, p, DRAWS)[:, 0], quadrature_of(part, 400_001)
    if len(grid) == 2:
        assert set(drawn.tolist()) == {0.0, 1.0}
        prob = float(p.log_prob(torch.ones(1, dtype=torch.float64)).exp())
        assert stats.binomtest(int(drawn.sum()), DRAWS, prob).pvalue > 1e-4
        return
    cdf = (p.log_prob(grid[:, None]).exp() * weights).cumsum(0)
    below = torch.from_numpy(np.interp(drawn.numpy(), grid.numpy(), cdf.numpy()))
    assert stats.kstest(below.numpy(), "uniform").pvalue > 1e-4


@EVERY_PART
def test_leading_dimensions_are_a_loop(kind, name):
    part = make(kind, name, 3)
    values = draws_of(part, part(*inputs_of(part, 3)), 4, 5)
    inputs = inputs_of(part, 3, 4, 5)
    together = part(*inputs).log_prob(values)
    assert together.shape == (4, 5)
    for k, b in itertools.product(range(4), range(5)):
        one = part(*(x[k, b] for x in inputs)).log_prob(values[k, b])
        torch.testing.assert_close(together[k, b], one, rtol=1e-12, atol=1e-12)


@EVERY_PART
@torch.no_grad()
def test_both_precisions_agree(kind, name):
    double, single = make(kind, name, 3), make(kind, name, 3, dtype=torch.float32)
    values = draws_of(double, double(*inputs_of(double, 3, 6)), 6 if kind == "prior" else 1).reshape(6, 3)
    wide = double(*inputs_of(double, 3, 6)).log_prob(values)
    narrow_p = single(*inputs_of(single, 3, 6, dtype=torch.float32))
    narrow = narrow_p.log_prob(values.float())
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    assert narrow_p.sample().dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


@EVERY_PART
@torch.no_grad()
def test_a_saved_part_is_the_same(kind, name):
    saved, loaded = make(kind, name, 3), make(kind, name, 3, seed=None)
    loaded.load_state_dict(saved.state_dict())
    inputs = inputs_of(saved, 3, 4)
    values = draws_of(saved, saved(*inputs), *((4,) if kind == "prior" else ()))
    assert torch.equal(saved(*inputs).log_prob(values), loaded(*inputs).log_prob(values))


@EVERY_PART
def test_a_gradient_reaches_every_parameter_and_input(kind, name):
    part = make(kind, name, 3)
    inputs = tuple(x.requires_grad_() for x in inputs_of(part, 3, 4))
    with torch.no_grad():
        values = draws_of(part, part(*inputs), *((4,) if kind == "prior" else ()))
    tensors = (*part.parameters(), *inputs)
    if tensors:
        part(*inputs).log_prob(values).sum().backward()
    for tensor in tensors:
        assert bool((tensor.grad != 0).all())


@EVERY_PART
def test_a_spec_makes_it_and_superfluous_arguments_are_refused(kind, name):
    cls, args = parse_part(kind, name, TABLES[kind])
    assert (cls, args) == (TABLES[kind][name], [])
    assert issubclass(cls, BASES[kind])
    with pytest.raises(ValueError, match=f"^{kind}.*{name}"):
        parse_part(kind, ":".join([name, *["1"] * (len(cls.arguments) + 1)]), TABLES[kind])


@pytest.mark.parametrize("name", TABLES["likelihood"])
@torch.no_grad()
def test_a_likelihood_is_what_it_declares(name):
    likelihood = make("likelihood", name, 2)
    p = likelihood(*inputs_of(likelihood, 2, 5))
    drawn = draws_of(likelihood, p, 300)
    assert p.support.is_discrete is not likelihood.density
    assert not (likelihood.density and likelihood.bits_per_dim)
    if likelihood.support == "binary":
        assert bool(((drawn == 0) | (drawn == 1)).all())
        assert float(likelihood(torch.zeros(2)).log_prob(all_binary(2).float()).exp().sum()) == pytest.approx(1.0)
    elif likelihood.support == "unit":
        assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    else:
        assert float(drawn.min()) < 0
        assert float(drawn.max()) > 1


@pytest.mark.parametrize("name", TABLES["likelihood"])
@torch.no_grad()
def test_the_bias_orders_means_and_a_learned_scale_starts_at_the_datas(name):
    likelihood = make("likelihood", name, 5, seed=None)
    mean = torch.tensor([0.02, 0.3, 0.5, 0.7, 0.98], dtype=torch.float64)
    found = likelihood(likelihood.bias(mean)).base_dist.mean
    assert bool((found.diff() > 0).all())
    assert float(found[2]) == pytest.approx(0.5, abs=1e-12)
    before = [p.clone() for p in likelihood.parameters()]
    for scale in (0.3, 2.0):
        likelihood.start_at(scale)
        if before:
            spread = likelihood(mean).base_dist.stddev
            torch.testing.assert_close(spread, torch.full_like(spread, scale))
    likelihood.start_at(0.0)
    assert all(bool(p.isfinite().all()) for p in likelihood.parameters())


@pytest.mark.parametrize("name", TABLES["prior"])
@torch.no_grad()
def test_a_prior_is_standard_if_it_says_so(name):
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    standard = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1).log_prob(z)
    moved = make("prior", name, 3)
    same = torch.allclose(moved().log_prob(z), standard, rtol=1e-12, atol=1e-12)
    assert same is moved.standard


@torch.no_grad()
def test_a_learned_normal_prior_starts_at_the_standard_normal():
    z = torch.randn(50, 3, dtype=torch.float64)
    learned, standard = (make("prior", name, 3, seed=None) for name in ("diagonal-normal", "normal"))
    assert torch.equal(learned().log_prob(z), standard().log_prob(z))


class Shifted(Prior):
    """A prior with an argument, as ``"shifted:3"`` gives it."""

    arguments: ClassVar = {"shift": 2}

    def __init__(self, latent_dim: int, shift: int = 1) -> None:
        super().__init__(latent_dim)
        self.shift = shift

    def forward(self):
        return dist.Normal(torch.full((self.latent_dim,), float(self.shift)), 1.0).to_event(1)


def test_the_arguments_of_a_spec_go_to_the_constructor():
    table = {"shifted": Shifted}
    for text, shift in (("shifted", 1), ("shifted:3", 3)):
        assert make_part("prior", text, table, 4)().mean.tolist() == [shift] * 4
    given = Shifted(2, 5)
    assert make_part("prior", given, table, 4) is given
    for text in ("shifted:3:4", "shifted:three", "shifted:0.5"):
        with pytest.raises(ValueError, match=f"^prior: expected shifted:SHIFT, such as shifted:2, got '{text}'"):
            make_part("prior", text, table, 4)
    with pytest.raises(ValueError, match=r"^prior: expected a name or a module, got 3\.5"):
        make_part("prior", 3.5, table, 4)


def test_a_part_without_its_method_cannot_be_made():
    for base, arguments in ((Likelihood, ((2,),)), (Prior, (2,)), (Posterior, (2, 4))):
        with pytest.raises(TypeError, match="abstract"):
            base(*arguments)
