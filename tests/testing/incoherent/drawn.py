"""Planted faults: draws are not from the density, or instances share parameters."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from tests.testing.toy import ONE, Toy, Z, fault

# posterior: what draws from another distribution than it scores, where neither an integral nor a closed form tells


class _Three(dist.TorchDistribution):
    """Normal in three dimensions at once, with parts to be replaced."""

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: float, validate_args: bool | None = None) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> _Three:
        return type(self)(self.loc.expand(*batch_shape, *self.event_shape), self.scale)

    def rsample(self, sample_shape: torch.Size = ONE) -> Tensor:
        shape = torch.Size(sample_shape) + self.loc.shape
        return self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.loc, self.scale).log_prob(value).sum(-1)


class _ThreeWide(_Three):
    def rsample(self, sample_shape: torch.Size = ONE) -> Tensor:
        return self.loc + 1.5 * (super().rsample(sample_shape) - self.loc)


class _ThreeShifted(_Three):
    def rsample(self, sample_shape: torch.Size = ONE) -> Tensor:
        return super().rsample(sample_shape) + 0.5


class _ThreeCorrelated(_Three):
    def rsample(self, sample_shape: torch.Size = ONE) -> Tensor:
        eps = torch.randn(torch.Size(sample_shape) + self.loc.shape)
        return self.loc + self.scale * (0.3 * eps + 0.91**0.5 * eps[..., :1])


class ThreeUnits(Toy):
    """Three latent units whose density is one vector's; sound."""

    prior_kind: type[_Three] = _Three
    posterior_kind: type[_Three] = _Three
    likelihood_kind: type[_Three] = _Three

    def __init__(self) -> None:
        super().__init__()
        self.decoder.weight.data = torch.cat([self.decoder.weight.data, torch.full((3, 1), 0.3)], -1)
        self.encoder.weight.data, self.encoder.bias.data = self.encoder.weight.data[:3], self.encoder.bias.data[:3]

    def prior(self, x: Tensor) -> dist.Distribution:
        return self.prior_kind(torch.zeros(3), 1.0)

    def posterior(self, h: Tensor) -> dist.Distribution:
        return self.posterior_kind(h, 0.8)

    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return self.likelihood_kind(loc, 0.8)


@fault("posterior")
class GuideDrawsWider(ThreeUnits):
    posterior_kind = _ThreeWide


@fault("posterior")
class GuideDrawsShifted(ThreeUnits):
    posterior_kind = _ThreeShifted


@fault("posterior")
class GuideDrawsCorrelated(ThreeUnits):
    posterior_kind = _ThreeCorrelated


@fault("posterior")
class PriorDrawsWider(ThreeUnits):
    prior_kind = _ThreeWide


@fault("posterior")
class LikelihoodDrawsWider(ThreeUnits):
    likelihood_kind = _ThreeWide


class _Tilted(_Three):
    """Unnormalized by a factor of its parameters, which depend on z."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.5 * self.loc.square().sum(-1)


@fault("likelihood")
class FactorOfTheLatent(ThreeUnits):
    likelihood_kind = _Tilted


class _TiltedTogether(dist.MultivariateNormal):
    """The same of dependent units, over which there is no integral."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.5 * self.loc.square().sum(-1)


@fault("posterior")
class FactorOfTheLatentOfDependentUnits(ThreeUnits):
    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return _TiltedTogether(loc, 0.5 * torch.eye(3) + 0.2)


# instances


@fault("instances")
class SharedName(Toy):
    @property
    def name(self) -> str:
        return "toy"


@fault("instances")
class ParamOfOneName(Toy):
    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        scale = pyro.param("noise", torch.tensor(0.8), constraint=constraints.positive)
        return dist.Normal(loc, scale).to_event(1)


_DECODER = nn.Linear(Z, 3)


@fault("instances")
class NetworkOfTheModule(Toy):
    """One network, outside the class, for all instances."""

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", _DECODER)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(_DECODER(z), x), obs=x)
