"""The networks as Pyro programs, written with Pyro alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from benchmarks.throughput.networks import OneLayer, TwoLayers

Pair = tuple[Callable[[Tensor], None], Callable[[Tensor], None]]

_NUMBERS = itertools.count()


def normal(params: Tensor) -> Any:
    """The diagonal normal of (loc, log scale)."""
    loc, log_scale = params.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def standard_normal(x: Tensor, latent_dim: int) -> Any:
    """The standard normal, one for each image."""
    return dist.Normal(x.new_zeros(len(x), latent_dim), x.new_ones(len(x), latent_dim)).to_event(1)


def observe(net: Any, z: Tensor, x: Tensor) -> None:
    """Binary pixels by the decoder's logits."""
    pyro.sample("x", dist.Bernoulli(logits=net.decoder(z)).to_event(len(net.data_shape)), obs=x)


def program(net: OneLayer | TwoLayers) -> Pair:
    """Model and guide, under names of their own in the parameter store."""
    name = f"net{next(_NUMBERS)}"
    return one_layer(net, name) if isinstance(net, OneLayer) else two_layers(net, name)


def one_layer(net: OneLayer, name: str) -> Pair:
    """p(z) p(x|z) and q(z|x)."""

    def model(x: Tensor) -> None:
        pyro.module(f"{name}.decoder", net.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(x, net.latent_dim))
            observe(net, z, x)

    def guide(x: Tensor) -> None:
        pyro.module(f"{name}.encoder", net.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(net.encoder(x)))

    return model, guide


def two_layers(net: TwoLayers, name: str) -> Pair:
    """p(z2) p(z1|z2) p(x|z1) and q(z1|x) q(z2|z1)."""

    def model(x: Tensor) -> None:
        pyro.module(f"{name}.decoder", net.decoder)
        pyro.module(f"{name}.upper_decoder", net.upper_decoder)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", standard_normal(x, net.latent_dims[1]))
            z1 = pyro.sample("z1", normal(net.upper_decoder(z2)))
            observe(net, z1, x)

    def guide(x: Tensor) -> None:
        pyro.module(f"{name}.encoder", net.encoder)
        pyro.module(f"{name}.upper_encoder", net.upper_encoder)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(net.encoder(x)))
            pyro.sample("z2", normal(net.upper_encoder(z1)))

    return model, guide
