"""Planted faults: data are not independent, or the loss depends on the batch."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from tests.testing.toy import Toy, Z, fault

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
