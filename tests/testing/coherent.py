"""Planted faults that are coherent: a true bound, on another model's log p(x). Only ``exact=`` can tell."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.oracles import LinearGaussian

ORACLE = LinearGaussian(data_dim=4, latent_dim=2, scale=0.8)


def _model(
    prior: float = 1.0,
    noise: float = 0.8,
    weight: Tensor = ORACLE.weight,
    bias: Tensor = ORACLE.bias,
    family: type[dist.Distribution] = dist.Normal,
) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), prior).to_event(1))
            pyro.sample("x", family(z @ weight.T + bias, noise).to_event(1), obs=x)

    return model


WEIGHT, BIAS = ORACLE.weight, ORACLE.bias
_MODELS = {
    "prior of scale 2": _model(prior=2.0),
    "prior of scale 1/2": _model(prior=0.5),
    "decoder that ignores z": _model(weight=0 * WEIGHT),
    "decoder that ignores one unit": _model(weight=WEIGHT * torch.tensor([1.0, 0.0], dtype=torch.float64)),
    "noise too large": _model(noise=1.3),
    "noise too small": _model(noise=0.5),
    "bias left out": _model(bias=0 * BIAS),
    "Laplace for normal": _model(family=dist.Laplace),
}


COHERENT = {name: (model, ORACLE.guide(0.0, 1.5)) for name, model in _MODELS.items()}


class _Flipped(LinearGaussian):
    @property
    def weight(self) -> Tensor:
        return super().weight.flip(0)


class _Doubled(LinearGaussian):
    @property
    def weight(self) -> Tensor:
        return 2 * super().weight


for wrong, named in ((_Flipped, "pixels in another order"), (_Doubled, "decoder twice as strong")):
    oracle = wrong(data_dim=4, latent_dim=2, scale=0.8)
    COHERENT[f"{named}, and a guide to match"] = (oracle.model, oracle.guide(0.0, 1.2))
