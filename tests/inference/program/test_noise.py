"""Draws from given noise, and guides whose sites are independent given the data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_vae.evidence.importance.noise_streams import NoiseStreams
from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.independence import independent
from pyro_vae.inference.program.noise import NoiseMessenger, SiteNoise, from_noise, noise_like
from pyro_vae.inference.weights.log_weights import ProposalDraws

LOC = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
SCALE = torch.tensor([[0.3, 1.0, 2.0], [0.7, 0.1, 1.5]], dtype=torch.float64)
TRIL = torch.tensor([[0.5, 0.0, 0.0], [-1.0, 0.8, 0.0], [0.3, 0.2, 2.0]], dtype=torch.float64).expand(2, 3, 3)
NORMAL = dist.Normal(LOC, SCALE)

MADE_OF_NORMALS = {
    "normal": NORMAL,
    "independent": NORMAL.to_event(1),
    "masked": NORMAL.mask(torch.tensor(True)),
    "full": dist.MultivariateNormal(LOC, scale_tril=TRIL),
    "low rank": dist.LowRankMultivariateNormal(LOC, TRIL[..., :2], SCALE**2),
    "log normal": dist.LogNormal(LOC, SCALE).to_event(1),
    "half normal": dist.HalfNormal(SCALE).to_event(1),
    "affine": dist.TransformedDistribution(NORMAL, [dist.transforms.AffineTransform(1.0, 2.0)]).to_event(1),
    "simplex": dist.TransformedDistribution(NORMAL.to_event(1), [dist.transforms.StickBreakingTransform()]),
}


@pytest.mark.parametrize("name", MADE_OF_NORMALS)
def test_the_same_function_of_the_noise_as_rsample(name, monkeypatch):
    """Torch's own draws, with its normal numbers recorded: mean and covariance are right if these are."""
    distribution, recorded = MADE_OF_NORMALS[name], []

    def normal(shape, dtype, device):
        recorded.append(torch.randn(shape, dtype=dtype, device=device))
        return recorded[-1]

    for module in ("normal", "multivariate_normal", "lowrank_multivariate_normal"):
        monkeypatch.setattr(f"torch.distributions.{module}._standard_normal", normal)
    torch.manual_seed(0)
    expected = distribution.rsample((5,))
    noise = torch.cat(recorded, -1)
    assert noise.shape == (5, *noise_like(distribution).shape)
    torch.testing.assert_close(from_noise(distribution, noise), expected)


def test_a_delta_takes_no_noise():
    delta = dist.Delta(LOC, event_dim=1)
    assert noise_like(delta).shape == (2, 0)
    assert torch.equal(from_noise(delta, torch.empty(4, 2, 0)), LOC.expand(4, 2, 3))


class Shy(dist.Normal):
    """A normal that draws in a way of its own."""

    def rsample(self, sample_shape=()):
        return self.loc.expand(self._extended_shape(sample_shape))


@pytest.mark.parametrize(
    "other",
    [
        dist.Gamma(SCALE, 1.0).to_event(1),
        dist.Laplace(LOC, SCALE),
        Shy(LOC, SCALE),
        dist.TransformedDistribution(dist.Uniform(LOC, LOC + 1), [dist.transforms.ExpTransform()]),
        dist.Bernoulli(torch.ones(2)),
    ],
)
def test_others_draw_as_they_do(other):
    assert noise_like(other) is None
    with pytest.raises(TypeError, match="expected a normal, a multivariate normal or a transform"):
        from_noise(other, torch.zeros(2, 3))


@pytest.mark.parametrize("batch_dim", [-1, -2])
@pytest.mark.parametrize("event", [(), (2,)])
def test_every_datum_gets_its_own_numbers_wherever_the_plates_are(batch_dim, event):
    """Two plates, the data in either: through the messenger with particles, and without by one call."""
    sizes = {-1: 3, -2: 4}
    size, inner = sizes[batch_dim], sizes[-3 - batch_dim]
    data_plate = DataPlate("data", batch_dim, size, 2)
    shape = (sizes[-2], sizes[-1], *event)
    distribution = dist.Normal(torch.zeros(shape), torch.ones(shape)).to_event(len(event))
    noise = NoiseStreams(0, torch.arange(size))
    found = SiteNoise(noise, data_plate, 0, 5)("z", distribution, False)
    like = SiteNoise(noise, data_plate, 0, 5)
    with NoiseMessenger(like), pyro.plate("particles", 5, dim=-3):
        through = pyro.sample("z", distribution.expand([5, *shape[:2]]))
    assert torch.equal(found, through)
    width = inner * torch.Size(event).numel()
    assert like.shapes["z"].width == width
    numbers = NoiseStreams(0, torch.arange(size))("z", 0, 5, like.shapes["z"])
    axis = 2 if batch_dim == -1 else 1
    for i in range(size):
        assert torch.equal(found.select(axis, i).reshape(5, width), numbers[:, i])


def two_sites(x, second):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.mean(-1), 1.0))
        pyro.sample("y", second(x, z))


def positive(x, z):
    return dist.TransformedDistribution(dist.Normal(x.sum(-1), 1.0), [dist.transforms.ExpTransform()])


SECOND = {
    "independent": (lambda x, z: dist.Normal(x.std(-1), 2.0), True),
    "transformed": (positive, True),
    "discrete": (lambda x, z: dist.Bernoulli(x.mean(-1)), True),
    "of the draw": (lambda x, z: dist.Normal(z, 2.0), False),
    "of its sign": (lambda x, z: dist.Bernoulli((z > 0).float() * 0.9), False),
    "behind provenance's back": (lambda x, z: dist.Normal(torch.tensor([float(v) for v in z]), 2.0), False),
    "dropout": (lambda x, z: dist.Normal(torch.nn.functional.dropout(x).mean(-1), 2.0), False),
    "a point of the draw": (lambda x, z: dist.Delta(z), False),
}


@pytest.mark.parametrize("name", SECOND)
def test_sites_that_depend_on_a_draw_are_found(name):
    second, expected = SECOND[name]
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert independent(lambda x: two_sites(x, second), (x,), {}) is expected
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "calls"), [("independent", 0), ("of the draw", 4)])
def test_the_encoder_runs_once_where_it_may(name, calls):
    """And with the same noise the weights are the same, held or not."""
    x, ran = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), []

    def guide(x):
        ran.append(len(x))
        two_sites(x, SECOND[name][0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            y = pyro.sample("y", dist.Normal(0.0, 2.0))
            pyro.sample("x", dist.Normal((z + y)[..., None], 1.0).expand((*z.shape, 4)).to_event(1), obs=x)

    found = []
    for once in (True, False):
        draws, noise = ProposalDraws(model, guide, (x,), {}), NoiseStreams(0, torch.arange(6))
        if once:
            draws.encode_once()
        draws(3, noise, 0)  # the first call compares a draw with one alone
        before = len(ran)
        found.append(torch.cat([draws(5, noise, 3 + 5 * k).log_w for k in range(4)]))
        if once:
            assert len(ran) - before == calls
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_constraints_are_no_more_than_transforms():
    """An autoguide's site: the unconstrained draw has the noise, the Delta behind it none."""

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(torch.distributions.biject_to(constraints.positive)(u)))

    noise = SiteNoise(NoiseStreams(0, torch.arange(4)), DataPlate("data", -1, 4, 1), 0, 1)
    with NoiseMessenger(noise):
        trace = pyro.poutine.trace(guide).get_trace(torch.zeros(4))
    assert {name: like.width for name, like in noise.shapes.items()} == {"u": 1, "z": 0}
    torch.testing.assert_close(trace.nodes["z"]["value"], trace.nodes["u"]["value"].exp())
