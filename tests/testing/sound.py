"""Sound models, several in Pyro's own style: none may be reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae import VAE
from pyro_vae.handlers import scale_kl_pair
from tests.oracles import LinearGaussian, mixture
from tests.testing.toy import Toy


@dataclass(frozen=True)
class Case:
    """Model, guide, what they take, and options of the check."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bits(*shape: int) -> Tensor:
    return (randn(*shape) > 0).float()


def positive(name: str, value: float | Tensor) -> Tensor:
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def exact_posterior() -> Case:
    oracle = LinearGaussian()
    return Case(oracle.model, oracle.guide(), (oracle.draw(8),), {"exact": oracle.log_px})


def wrong_guide() -> Case:
    oracle = LinearGaussian()
    return Case(oracle.model, oracle.guide(0.4, 1.2), (oracle.draw(8),), {"exact": oracle.log_px})


def narrow_guide() -> Case:
    """Weights of infinite variance."""
    oracle = LinearGaussian()
    return Case(oracle.model, oracle.guide(0.8, 0.5), (oracle.draw(8),), {"exact": oracle.log_px})


def plain_vae() -> Case:
    toy = Toy()
    return Case(toy.model, toy.guide, toy.data())


def package_vae() -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE((4,), 2, (8,))
    return Case(vae.model, vae.guide, (bits(10, 4),))


def two_layers() -> Case:
    def model(rows: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.8))
        with pyro.plate("rows", len(rows)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(slope * a, 1.0))
            pyro.sample("pixels", dist.Normal(b, 1.0), obs=rows)

    def guide(rows: Tensor) -> None:
        weight, scale = pyro.param("weight", torch.tensor([0.3, 0.4, 0.2])), positive("scale", torch.tensor([0.9, 0.7]))
        with pyro.plate("rows", len(rows)):
            a = pyro.sample("a", dist.Normal(weight[0] * rows, scale[0]))
            pyro.sample("b", dist.Normal(weight[1] * rows + weight[2] * a, scale[1]))

    return Case(model, guide, (1.7 * randn(12),))


def discrete() -> Case:
    oracle = mixture()

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor([-0.5, 0.0, 0.4], dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=slope * x[:, None]))

    return Case(oracle.model, guide, (torch.linspace(-3, 3, 9, dtype=torch.float64),), {"exact": oracle.log_px})


def subsampled() -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=6) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([z, z.sum(-1, True)], -1), 0.7).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        scale = positive("scale", torch.tensor([0.5, 0.6]))
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(x), subsample_size=6) as index:
            pyro.sample("z", dist.Normal(slope * x[index][:, :2], scale).to_event(1))

    return Case(model, guide, (randn(20, 3),))


def minibatch() -> Case:
    """A batch of a data set of 1,000: N/B by the plate."""
    toy = Toy()

    def model(x: Tensor) -> None:
        toy.register("decoder")
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", toy.prior(x))
            pyro.sample("x", toy.likelihood(toy.decode(z), x), obs=x)

    def guide(x: Tensor) -> None:
        toy.register("encoder")
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", toy.posterior(toy.encode(x)))

    return Case(model, guide, toy.data())


class Conditional(Toy):
    """p(x|z, y) p(z|y) with a covariate y."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Linear(1, 2)

    def model(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        self.register("decoder")
        self.register("shift")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.shift(y[:, None]), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.decode(z) + y[:, None], x), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        self.register("encoder")
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x - y[:, None])))


def conditional() -> Case:
    cvae = Conditional()
    return Case(cvae.model, cvae.guide, (*cvae.data(), randn(8, seed=3)))


def counts() -> Case:
    """A positive latent and Poisson counts."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            rate = pyro.sample("rate", dist.Gamma(2.0 * torch.ones(len(x), 1), 1.0))
            with pyro.plate("parts", x.shape[1], dim=-1):
                pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        scale, slope = positive("scale", 0.5), pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("rate", dist.LogNormal(slope * (x.mean(1, keepdim=True) + 0.1).log(), scale))

    return Case(model, guide, (torch.poisson(2 * randn(9, 3).abs(), torch.Generator().manual_seed(2)),))


def fractions() -> Case:
    """A latent in (0, 1), a Gamma-based guide and coin tosses."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(2.0, 2.0))
            pyro.sample("x", dist.Binomial(10, p), obs=x)

    def guide(x: Tensor) -> None:
        bonus = positive("bonus", torch.tensor([1.5, 2.0]))
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(bonus[0] + 0.7 * x, bonus[1] + 0.7 * (10 - x)))

    return Case(model, guide, (torch.tensor([0.0, 1.0, 3.0, 5.0, 8.0, 10.0, 4.0]),))


def masked() -> Case:
    """Missing pixels under a mask given as an argument."""

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            likelihood = dist.Normal(z[..., None], torch.tensor([0.5, 1.0, 2.0])).mask(mask).to_event(1)
            pyro.sample("x", likelihood, obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        slope, scale = pyro.param("slope", torch.tensor(0.5)), positive("scale", 0.6)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * torch.where(mask, x, 0.0).mean(-1), scale))

    return Case(model, guide, (randn(9, 3), randn(9, 3, seed=5) > -0.5))


def labels() -> Case:
    """An observed label before a latent that reads it, and a mixed guide."""

    def model(x: Tensor, y: Tensor) -> None:
        means = pyro.param("means", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.Categorical(torch.tensor([0.4, 0.6])), obs=y)
            k = pyro.sample("k", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(means[label] + k, 1.0))
            pyro.sample("x", dist.Normal(z, 0.6), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.4, 0.5, 0.3]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(logits=w[0] * x - 0.5))
            pyro.sample("z", dist.Normal(w[1] * x + w[2] * (k + y), 0.6))

    return Case(model, guide, (randn(9), (randn(9, seed=4) > 0).long()))


def local_parameters() -> Case:
    """A guide with a parameter for each datum, which has a place."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: 0.4 * randn(len(x), seed=9))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, positive("scale", 0.8)))

    return Case(model, guide, (randn(8),))


def auto_normal() -> Case:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Case(model, AutoNormal(model), (randn(8),))


def auto_normal_of(prior: dist.Distribution) -> Callable[[], Case]:
    """A constrained latent: the guide's site is a Delta that carries the Jacobian."""

    def make() -> Case:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        start = init_to_value(values={"z": torch.full((8,), 0.8)})
        return Case(model, AutoNormal(model, init_loc_fn=start, init_scale=0.3), (0.5 + randn(8).abs(),))

    make.__name__ = f"auto_normal_{type(prior).__name__.lower()}"
    return make


def steep_prior() -> Case:
    """A Gamma prior of shape 0.03, most of whose mass lies below the numbers of single precision, and a relu encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(0.03, 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 3), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module(f"steep{id(encoder)}", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(*(nn.functional.softplus(encoder(x)) + 0.3).unbind(-1)))

    return Case(model, guide, (randn(8, 3).abs(),))


def zero_inflated() -> Case:
    """Counts whose distribution gives its batch shape as a tuple."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.ZeroInflatedPoisson(z.exp(), gate=torch.tensor(0.2)), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Case(model, guide, (torch.poisson(torch.ones(9), torch.Generator().manual_seed(2)),))


def sequence() -> Case:
    """A site for each step in time, the data slices of one argument."""

    def model(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.6))
        with pyro.plate("data", len(x)):
            z = torch.zeros(())
            for t in range(x.shape[1]):
                z = pyro.sample(f"z{t}", dist.Normal(slope * z, 1.0))
                pyro.sample(f"x{t}", dist.Poisson(nn.functional.softplus(z) + 0.1), obs=x[:, t])

    def guide(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.3, 0.2]))
        with pyro.plate("data", len(x)):
            z = torch.zeros(())
            for t in range(x.shape[1]):
                z = pyro.sample(f"z{t}", dist.Normal(w[0] * x[:, t] + w[1] * z - 0.2, positive("scale", 0.8)))

    return Case(model, guide, (torch.poisson(torch.ones(8, 4), torch.Generator().manual_seed(3)),))


def two_likelihoods() -> Case:
    """Each datum is scored at one of two sites, by what kind it is."""

    def model(x: Tensor, kind: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=kind):
                pyro.sample("narrow", dist.Normal(z, 0.5), obs=x)
            with poutine.mask(mask=~kind):
                pyro.sample("wide", dist.Laplace(z, 1.0), obs=x)

    def guide(x: Tensor, kind: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.4, 0.7]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(kind, w[1], w[0]) * x, positive("scale", 0.7)))

    return Case(model, guide, (randn(10), randn(10, seed=5) > 0))


def weighted_kl() -> Case:
    toy = Toy()
    return Case(*scale_kl_pair(toy.model, toy.guide, 4.0), toy.data())


def heavy_tails() -> Case:
    """A Cauchy prior and a normal guide: log w is unbounded."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Cauchy(0.0, 1.0))
            pyro.sample("x", dist.StudentT(3.0, z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor(0.6))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(w * x, positive("scale", 0.7)))

    return Case(model, guide, (3 * randn(10),))


def correlated_guide() -> Case:
    toy = Toy()

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        factor = pyro.param("factor", torch.tensor([[0.8, 0.0], [0.3, 0.5]]), constraint=constraints.lower_cholesky)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc + 0.2 * x[:, :2], scale_tril=factor))

    return Case(toy.model, guide, toy.data())


def closure() -> Case:
    """Data that are no argument: half of the laws cannot be checked, and the report says so."""
    toy = Toy()
    (x,) = toy.data()
    return Case(lambda: toy.model(x), lambda: toy.guide(x), ())


SOUND = {
    make.__name__: make
    for make in (
        exact_posterior, wrong_guide, narrow_guide, plain_vae, package_vae, two_layers, discrete, subsampled, minibatch,
        conditional, counts, fractions, masked, labels, local_parameters, auto_normal, weighted_kl, heavy_tails,
        correlated_guide, closure, steep_prior, zero_inflated, sequence, two_likelihoods,
        *map(auto_normal_of, (dist.Gamma(2.0, 2.0), dist.Beta(2.0, 2.0), dist.LogNormal(0.0, 1.0))),
    )
}  # fmt: skip
