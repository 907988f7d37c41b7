"""A sound model, and faulty models that break one law each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.testing.elbo_bounds import check_elbo_bounds
from pyro_vae.testing.findings import BrokenBound

SCALE = 0.7


def _same(value: Tensor) -> Tensor:
    return value


@dataclass
class Toy:
    """A Gaussian model and guide with at most one fault.

    The model is z ~ N(0, 1), x ~ N(z, 0.7). Without a fault, log p(x) has a closed form. A field other than
    ``law`` plants a fault if it is not the default.

    Args:
        law: Name of the law that should be broken; None for the sound model.
    """

    law: str | None = None
    site: str = "z"
    encode: Callable[[Tensor], Tensor] = _same
    decode: Callable[[Tensor], Tensor] = _same
    wrap: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    posterior: type[dist.Normal] = dist.Normal
    likelihood: type[dist.Normal] = dist.Normal
    prior_scale: float = 1.0
    name: str = ""

    def model(self, x: Tensor) -> None:
        """The model, with its fault if it has one."""
        shift = pyro.param(f"{self.name or id(self)}.shift", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, self.prior_scale))
            pyro.sample("x", self.likelihood(self.decode(z) + shift, SCALE), obs=x)

    def guide(self, x: Tensor) -> None:
        """The guide, with its fault if it has one."""
        slope = pyro.param(f"{self.name or id(self)}.slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)), self.wrap():
            pyro.sample(self.site, self.posterior(slope * self.encode(x), 0.8))

    @property
    def exact(self) -> Callable[[Tensor], Tensor]:
        """Function that returns log p(x) of the model without a fault."""
        return dist.Normal(0.0, (1 + SCALE**2) ** 0.5).log_prob


class _Halved(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return 0.5 * super().log_prob(value)


class _Shifted(dist.Normal):
    """A normal with draws shifted by 0.5 but an unshifted density."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return super().rsample(sample_shape) + 0.5

    def entropy(self) -> Tensor:
        raise NotImplementedError


CASES: dict[str, Toy] = {
    "a sound model": Toy(),
    "a guide site spelt differently": Toy("structure", site="zz"),
    "a guide that draws at another place": Toy("posterior", posterior=_Shifted),
    "a roll across the batch": Toy("independence", encode=lambda x: x.roll(1)),
    "a term that reads its row's number": Toy("invariance", decode=lambda z: z + torch.arange(len(z))),
    "a weight on the guide's side only": Toy("kl", wrap=lambda: poutine.scale(scale=0.5)),
    "a detached latent": Toy("gradients", decode=lambda z: z.detach()),
    "half a log-likelihood": Toy("likelihood", likelihood=_Halved),
    "two instances under one name": Toy("instances", name="toy"),
    "a prior of scale 2": Toy("exact", prior_scale=2.0),
}


def run(num_samples: int = 512, seed: int = 0) -> Iterator[tuple[str, Toy, tuple[str, ...]]]:
    """Run ``check_elbo_bounds`` on the sound model and on each faulty model.

    Args:
        num_samples: See ``check_elbo_bounds``.
        seed: See ``check_elbo_bounds``.

    Yields:
        Name of the model, the model, and a sentence for each broken law.
    """
    x = torch.linspace(-2, 2, 12)
    for name, toy in CASES.items():
        try:
            check_elbo_bounds(toy.model, toy.guide, x, exact=toy.exact, num_samples=num_samples, seed=seed)
        except BrokenBound as error:
            yield (
                name,
                toy,
                tuple(str(f) for f in error.report.broken if f.law == toy.law) or tuple(map(str, error.args)),
            )
        else:
            yield name, toy, ()
