"""A small VAE in plain Pyro, each part of which a planted fault can replace."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

D, Z, B = 3, 2, 8
ONE = torch.Size()


class Toy(nn.Module):
    """Linear encoder and decoder, three pixels, two latent units; sound."""

    size = B

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.encoder, self.decoder = nn.Linear(D, 2 * Z), nn.Linear(Z, D)
        for parameter in self.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)

    @property
    def name(self) -> str:
        return f"toy{id(self)}"

    def data(self) -> tuple[Tensor, ...]:
        return (torch.randn(self.size, D, generator=torch.Generator().manual_seed(1)),)

    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros(Z), 1.0).to_event(1)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Normal(loc, 0.8).to_event(1)

    def observed(self, x: Tensor, z: Tensor) -> Tensor:
        return x

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def posterior(self, h: Tensor) -> dist.Distribution:
        loc, log_scale = h.chunk(2, -1)
        return dist.Normal(loc, (0.3 * log_scale - 0.3).exp()).to_event(1)

    def register(self, part: str) -> None:
        pyro.module(f"{self.name}.{part}", getattr(self, part))

    def model(self, x: Tensor) -> None:
        self.register("decoder")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(self.decode(z), x), obs=self.observed(x, z))

    def guide(self, x: Tensor) -> None:
        self.register("encoder")
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


#: Planted faults, each with the law meant for it.
LAW: dict[type[Toy], str] = {}


def fault(law: str) -> Callable[[type[Toy]], type[Toy]]:
    """Plant a fault."""

    def plant(kind: type[Toy]) -> type[Toy]:
        LAW[kind] = law
        return kind

    return plant


def of_kind(kind: type[dist.Normal], h: Tensor) -> dist.Distribution:
    """The toy's posterior with another normal."""
    loc, log_scale = h.chunk(2, -1)
    return kind(loc, (0.3 * log_scale - 0.3).exp()).to_event(1)
