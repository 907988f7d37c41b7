"""Planted faults: the KL or its gradient is wrong."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.handlers import scale_kl
from tests.testing.toy import ONE, Toy, Z, fault, of_kind

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
        return of_kind(_Variance, h)


class _Wide(dist.Normal):
    def rsample(self, sample_shape: torch.Size = ONE) -> Tensor:
        return self.loc + 1.3 * (super().rsample(sample_shape) - self.loc)


@fault("kl")
class DrawsWider(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return of_kind(_Wide, h)


class _Mine(dist.Normal):
    pass


@torch.distributions.register_kl(_Mine, torch.distributions.Normal)
def _wrong_kl(q: Any, p: Any) -> Tensor:
    ratio = (q.scale / p.scale).square()
    return 0.5 * (ratio + ((q.loc - p.loc) / p.scale).square() - ratio.log())  # the -1 left out


@fault("kl")
class WrongClosedForm(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return of_kind(_Mine, h)


# gradients


@fault("gradients")
class DetachedLatent(Toy):
    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.detach())


class _Detached(dist.Normal):
    def rsample(self, sample_shape: torch.Size = ONE) -> Tensor:
        return super().rsample(sample_shape).detach()


@fault("gradients")
class DetachedDraw(Toy):
    def posterior(self, h: Tensor) -> dist.Distribution:
        return of_kind(_Detached, h)


class _StraightThrough(dist.Bernoulli):
    has_rsample = True

    def rsample(self, sample_shape: torch.Size = ONE) -> Tensor:
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


@fault("gradients")
class DetachedMean(Toy):
    """Of the encoder's two heads, which share a layer, one stands still: every parameter has some gradient."""

    def posterior(self, h: Tensor) -> dist.Distribution:
        loc, log_scale = h.chunk(2, -1)
        return dist.Normal(loc.detach(), (0.3 * log_scale - 0.3).exp()).to_event(1)


@fault("gradients")
class DetachedPixel(Toy):
    """The decoder learns from two pixels of three."""

    def likelihood(self, loc: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.cat([loc[..., :1].detach(), loc[..., 1:]], -1), 0.8).to_event(1)


@fault("gradients")
class FactorWithoutConstraint(Toy):
    """A full matrix as Cholesky factor: draws read its upper triangle, the density does not."""

    def guide(self, x: Tensor) -> None:
        loc = pyro.param(f"{self.name}.loc", torch.zeros(Z))
        factor = pyro.param(f"{self.name}.factor", torch.tensor([[0.8, 0.5], [0.3, 0.5]]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc + 0.2 * x[:, :Z], scale_tril=factor))
