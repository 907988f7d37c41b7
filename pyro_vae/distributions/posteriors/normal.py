"""Posteriors q(z|x): the encoder's output, shape ``(..., num_params)``, to a distribution over the latent vector."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class DiagonalNormal(nn.Module):
    r"""The diagonal normal :math:`q(z|x) = N(\mu(x), \mathrm{diag}\, e^{2 s(x)})`; the encoder gives (mu, s).

    Args:
        latent_dim: Z.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params = 2 * latent_dim

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """q(z|x), event shape ``(Z,)``; ``params`` is (loc, log scale), shape ``(..., 2 Z)``."""
        loc, log_scale = params.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
