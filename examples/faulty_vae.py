"""A VAE in plain Pyro with a fault, and the test that finds it.

The encoder standardizes its pixels, as one does, but over the batch: the posterior of an image then depends on the
images that happen to stand beside it, and no ELBO of one image is defined. It trains without a complaint.

    python -m pytest -p pyro_vae.testing.plugin examples/faulty_vae.py

fails with a sentence that names the law, the site, the figures and what to change. Mended, by statistics of the training
set or of each image alone, the test passes:

    FAULTY=0 python -m pytest -p pyro_vae.testing.plugin examples/faulty_vae.py
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

FAULTY = os.environ.get("FAULTY", "1") == "1"


class FaultyVAE(nn.Module):
    """Eight binary pixels, two latent units."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8))

    def standardize(self, x: Tensor) -> Tensor:
        """Pixels of mean 0 and deviation 1: over the batch, which is the fault, or at fixed values."""
        return (x - x.mean(0)) / (x.std(0) + 1e-3) if FAULTY else 2 * x - 1

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z)."""
        pyro.module(f"decoder_{id(self)}", self.decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x)."""
        pyro.module(f"encoder_{id(self)}", self.encoder)
        with pyro.plate("images", len(x)):
            loc, log_scale = self.encoder(self.standardize(x)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_the_elbo_is_a_bound(elbo_checks: Callable[..., object]) -> None:
    """The whole test: a model, a guide, some data."""
    torch.manual_seed(0)
    vae = FaultyVAE()
    elbo_checks(vae.model, vae.guide, (torch.rand(12, 8) < 0.5).float())
