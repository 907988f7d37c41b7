"""Planted faults: guide and model disagree."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.testing.toy import Toy, Z, fault

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
