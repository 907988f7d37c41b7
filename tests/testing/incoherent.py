"""Planted faults that make the "ELBO" no bound, or its training wrong; each with the law meant for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform

from pyro_vae.handlers import scale_kl
from tests.testing.toy import Toy, Z

LAW: dict[type[Toy], str] = {}


def fault(law: str) -> Callable[[type[Toy]], type[Toy]]:
    def plant(kind: type[Toy]) -> type[Toy]:
        LAW[kind] = law
        return kind

    return plant


# structure


@fault("structure")
class MisspeltSite(Toy):
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("zz", self.posterior(self.encode(x)))


@fault("structure")
class StraySite(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        pyro.sample("extra", dist.Normal(0.0, 1.0))
        return super().posterior(h)


@fault("structure")
class NoPlate(Toy):
    """The batch taken in by to_event(2): one datum of B x D pixels."""

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), Z), 1.0).to_event(2))
        pyro.sample("x", dist.Normal(self.decode(z), 0.8).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        loc, log_scale = self.encode(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(2))


@fault("structure")
class PlateInGuideOnly(Toy):
    """The latent units in a plate of the guide, in an event of the model."""

    def guide(self, x: Tensor) -> None:
        base = self.posterior(self.encode(x)).base_dist
        with pyro.plate("data", len(x), dim=-2), pyro.plate("units", Z, dim=-1):
            pyro.sample("z", base)


@fault("structure")
class PlateOfAnotherName(Toy):
    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


@fault("structure")
class ToEventMissing(Toy):
    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Normal(loc, 0.8)


@fault("structure")
class ToEventMissingInASquareBatch(ToEventMissing):
    """As many data as pixels: nothing fails to broadcast."""

    size = 3


@fault("structure")
class NormalGuideOfPositiveLatent(Toy):
    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Gamma(torch.full((Z,), 2.0), 1.0).to_event(1)


@fault("structure")
class GammaGuideOfRealLatent(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return dist.Gamma(*h.exp().chunk(2, -1)).to_event(1)


@fault("structure")
class OtherLatentSize(Toy):
    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.expand(*z.shape[:-1], Z))


@fault("structure")
class DeltaGuide(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return dist.Delta(h.chunk(2, -1)[0]).to_event(1)


@fault("structure")
class WrongDtype(Toy):
    def data(self) -> tuple[Tensor, ...]:
        return (super().data()[0].double(),)


@fault("structure")
class GuideObserves(Toy):
    def encode(self, x: Tensor) -> Tensor:
        pyro.sample("x", self.likelihood(x, x), obs=x)
        return super().encode(x)


@fault("structure")
class OtherCategories(Toy):
    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Categorical(torch.ones(3))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z[..., None].expand(*z.shape, Z).float())

    def posterior(self, h: Tensor) -> dist.Distribution:
        return dist.Categorical(logits=h)


# independence


@fault("independence")
class RollAcrossBatch(Toy):
    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x.roll(1, 0))


@fault("independence")
class BatchNorm(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.BatchNorm1d(3), self.encoder)


@fault("independence")
class BatchMeanInDecoder(Toy):
    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z - 0.5 * z.mean(-2, keepdim=True))


@fault("independence")
class ReshapeMixes(Toy):
    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x.T.reshape(len(x), -1))


@fault("independence")
class ObservedRolled(Toy):
    def observed(self, x: Tensor, z: Tensor) -> Tensor:
        return x.roll(1, 0)


@fault("independence")
class ScaledByBatchMaximum(Toy):
    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x / x.abs().amax(0))


@fault("independence")
class AttentionOverBatch(Toy):
    def decode(self, z: Tensor) -> Tensor:
        return self.decoder((z @ z.mT).softmax(-1) @ z)


# invariance


@fault("invariance")
class ReadsPosition(Toy):
    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z) + 0.1 * torch.arange(z.shape[-2])[:, None]


@fault("invariance")
class DividedByBatch(Toy):
    def model(self, x: Tensor) -> None:
        with poutine.scale(scale=1 / len(x)):
            super().model(x)

    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=1 / len(x)):
            super().guide(x)


@fault("invariance")
class FullSizeInModelOnly(Toy):
    def model(self, x: Tensor) -> None:
        self.register("decoder")
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(self.decode(z), x), obs=x)


@fault("invariance")
class IndexIgnored(Toy):
    def model(self, x: Tensor) -> None:
        self.register("decoder")
        with pyro.plate("data", len(x), subsample_size=4):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(self.decode(z), x), obs=x[:4])

    def guide(self, x: Tensor) -> None:
        self.register("encoder")
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("z", self.posterior(self.encode(x[index])))


@fault("invariance")
class PriorOfBatchSize(Toy):
    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros(Z), len(x) / 8).to_event(1)


# kl


@fault("kl")
class WeightInModelOnly(Toy):
    def model(self, x: Tensor) -> None:
        with scale_kl(beta=0.5):
            super().model(x)


@fault("kl")
class WeightInGuideOnly(Toy):
    def guide(self, x: Tensor) -> None:
        with scale_kl(beta=0.5):
            super().guide(x)


@fault("kl")
class ScaledGuide(Toy):
    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=0.1):
            super().guide(x)


@fault("kl")
class ScaledLikelihood(Toy):
    def model(self, x: Tensor) -> None:
        self.register("decoder")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            with poutine.scale(scale=1 / 3):
                pyro.sample("x", self.likelihood(self.decode(z), x), obs=x)


class _Variance(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.loc, self.scale.square()).log_prob(value)


@fault("kl")
class VarianceForScale(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return _of(_Variance, h)


def _of(kind: type[dist.Normal], h: Tensor) -> dist.Distribution:
    loc, log_scale = h.chunk(2, -1)
    return kind(loc, (0.3 * log_scale - 0.3).exp()).to_event(1)


class _Wide(dist.Normal):
    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.loc + 1.3 * (super().rsample(sample_shape) - self.loc)


@fault("kl")
class DrawsWider(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return _of(_Wide, h)


class _Mine(dist.Normal):
    pass


@torch.distributions.register_kl(_Mine, torch.distributions.Normal)
def _wrong_kl(q: Any, p: Any) -> Tensor:
    ratio = (q.scale / p.scale).square()
    return 0.5 * (ratio + ((q.loc - p.loc) / p.scale).square() - ratio.log())  # the -1 left out


@fault("kl")
class WrongClosedForm(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return _of(_Mine, h)


# gradients


@fault("gradients")
class DetachedLatent(Toy):
    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.detach())


class _Detached(dist.Normal):
    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return super().rsample(sample_shape).detach()


@fault("gradients")
class DetachedDraw(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return _of(_Detached, h)


class _StraightThrough(dist.Bernoulli):
    has_rsample = True

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.sample(sample_shape) + self.probs - self.probs.detach()


@fault("gradients")
class StraightThrough(Toy):
    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(torch.full((Z,), 0.5), validate_args=False).to_event(1)

    def posterior(self, h: Tensor) -> dist.Distribution:
        return _StraightThrough(logits=h.chunk(2, -1)[0], validate_args=False).to_event(1)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(2 * z.square() - 1)


@fault("gradients")
class Unregistered(Toy):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(self.decode(z), x), obs=x)


@fault("gradients")
class RegisteredUnused(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(2, 2)

    def model(self, x: Tensor) -> None:
        self.register("other")
        super().model(x)


@fault("gradients")
class NoGradEncoder(Toy):
    def encode(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.encoder(x)


@fault("gradients")
class NumpyDetour(Toy):
    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(torch.from_numpy(z.detach().numpy()).tanh() + 0 * z)


@fault("gradients")
class DetachedLayer(Toy):
    """One half of the encoder stands still: its output is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), self.encoder)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder[2](self.encoder[:2](x).detach())


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


# posterior: what draws from another distribution than it scores, where neither an integral nor a closed form tells


class _Three(dist.TorchDistribution):
    """Normal in three dimensions at once, with parts to be replaced."""

    arg_constraints = {"loc": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: float, validate_args: bool | None = None) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> _Three:
        return type(self)(self.loc.expand(*batch_shape, *self.event_shape), self.scale)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.loc.shape
        return self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.loc, self.scale).log_prob(value).sum(-1)


class _ThreeWide(_Three):
    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.loc + 1.5 * (super().rsample(sample_shape) - self.loc)


class _ThreeShifted(_Three):
    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return super().rsample(sample_shape) + 0.5


class _ThreeCorrelated(_Three):
    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        eps = torch.randn(torch.Size(sample_shape) + self.loc.shape)
        return self.loc + self.scale * (eps + eps.roll(1, -1)) / 2**0.5


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


@fault("posterior")
class FactorOfTheLatent(ThreeUnits):
    likelihood_kind = _Tilted


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
