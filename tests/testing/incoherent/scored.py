"""Planted faults: a density is none, or reads what it should not."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform

from tests.testing.toy import ONE, Toy, Z, fault

# likelihood


@fault("likelihood")
class GreyBernoulli(Toy):
    def data(self) -> tuple[Tensor, ...]:
        return (super().data()[0].sigmoid(),)

    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=loc, validate_args=False).to_event(1)


class _Halved(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return 0.5 * super().log_prob(value)


@fault("likelihood")
class ScaledLogProb(Toy):
    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return _Halved(loc, 0.8).to_event(1)


class _SquaredError(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return -0.5 * ((value - self.loc) / self.scale).square()


@fault("likelihood")
class SquaredError(Toy):
    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return _SquaredError(loc, 0.8).to_event(1)


class _VectorSquaredError(dist.TorchDistribution):
    """The best-known one: minus the squared error of a whole vector as its log-probability."""

    arg_constraints: ClassVar = {"loc": constraints.real_vector}
    support = constraints.real_vector

    def __init__(self, loc: Tensor, validate_args: bool | None = None) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> dist.TorchDistribution:
        return type(self)(self.loc.expand(*batch_shape, *self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return -0.5 * (value - self.loc).square().sum(-1)


class _WithDraws(_VectorSquaredError):
    def sample(self, sample_shape: torch.Size = ONE) -> Tensor:
        return self.loc + torch.randn(torch.Size(sample_shape) + self.loc.shape)


class _WithoutSpread(_VectorSquaredError):
    def sample(self, sample_shape: torch.Size = ONE) -> Tensor:
        return self.loc.expand(torch.Size(sample_shape) + self.loc.shape)


@fault("likelihood")
class VectorSquaredError(Toy):
    """It draws nothing; the integral begins at the data."""

    kind: ClassVar[type[_VectorSquaredError]] = _VectorSquaredError

    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return self.kind(loc)


@fault("likelihood")
class VectorSquaredErrorWithDraws(VectorSquaredError):
    kind = _WithDraws


@fault("likelihood")
class VectorSquaredErrorThatDrawsItsMean(VectorSquaredError):
    kind = _WithoutSpread


@fault("likelihood")
class ScoredTwice(Toy):
    def model(self, x: Tensor) -> None:
        self.register("decoder")
        with pyro.plate("data", len(x)):
            likelihood = self.likelihood(self.decode(pyro.sample("z", self.prior(x))), x)
            pyro.sample("x", likelihood, obs=x)
            pyro.sample("again", likelihood, obs=x)


@fault("likelihood")
class ScoredTwiceInPart(Toy):
    """One pixel of three is in both halves, once in other units."""

    def model(self, x: Tensor) -> None:
        self.register("decoder")
        with pyro.plate("data", len(x)):
            loc = self.decode(pyro.sample("z", self.prior(x)))
            pyro.sample("left", dist.Normal(loc[..., :2], 0.8).to_event(1), obs=x[..., :2])
            pyro.sample("right", dist.Normal(2 * loc[..., 1:], 1.6).to_event(1), obs=2 * x[..., 1:])


class _BernoulliTimesTwo(dist.Bernoulli):
    def log_prob(self, value: Tensor) -> Tensor:
        return 2 * super().log_prob(value)


@fault("likelihood")
class BernoulliTimesTwo(Toy):
    def data(self) -> tuple[Tensor, ...]:
        return ((super().data()[0] > 0).float(),)

    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return _BernoulliTimesTwo(logits=loc).to_event(1)


@fault("likelihood")
class Factor(Toy):
    def decode(self, z: Tensor) -> Tensor:
        pyro.factor("penalty", -0.1 * z.square().sum(-1))
        return super().decode(z)


@fault("likelihood")
class PriorReadsData(Toy):
    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(0.3 * x[..., :Z], 1.0).to_event(1)


@fault("likelihood")
class SkipConnection(Toy):
    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Normal(0.7 * loc + 0.3 * x, 0.8).to_event(1)


@fault("likelihood")
class SkipConnectionOfBits(BernoulliTimesTwo):
    """The sum over all eight images of three bits tells."""

    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=loc + x).to_event(1)


@fault("likelihood")
class Dropout(Toy):
    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(nn.functional.dropout(z, 0.2))


@fault("likelihood")
class NoisyObservation(Toy):
    def observed(self, x: Tensor, z: Tensor) -> Tensor:
        return x + 0.1 * torch.rand_like(x)


@fault("likelihood")
class ObservesReconstruction(Toy):
    def observed(self, x: Tensor, z: Tensor) -> Tensor:
        return self.decode(z).detach()


@fault("likelihood")
class NoiseInGuide(Toy):
    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x + 0.3 * torch.randn_like(x))


class _Exp(ExpTransform):
    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


@fault("likelihood")
class JacobianLeftOut(Toy):
    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.LogNormal(torch.zeros(Z), 1.0).to_event(1)

    def posterior(self, h: Tensor) -> dist.Distribution:
        normal = super().posterior(h).base_dist
        return dist.TransformedDistribution(normal, [_Exp()]).to_event(1)
