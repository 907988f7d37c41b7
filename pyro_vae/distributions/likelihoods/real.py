"""Likelihoods of real values: the normal distribution."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.distributions.base import Likelihood


class Normal(Likelihood):
    r"""Normal pixels of one learned scale: :math:`p(x|z) = N(x; \mu(z), \sigma^2 I)`.

    A density, so its log may be positive. One :math:`\sigma` serves all pixels: with one for each, a pixel that
    never changes would drive the density to infinity.

    References:
        Rybkin, Daniilidis, Levine, "Simple and Effective VAE Training with Calibrated Decoders", 2021.
    """

    def __init__(self, data_shape: tuple[int, ...]) -> None:
        super().__init__(data_shape)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """p(x|z) from means, shape ``(..., *data_shape)``."""
        return dist.Normal(params, self.log_scale.exp()).to_event(self.event_dim)

    @torch.no_grad()
    def start_at(self, scale: float) -> None:
        """See :meth:`Likelihood.start_at`; training only has to find how much less the latent vector leaves."""
        self.log_scale.fill_(math.log(max(scale, 1e-3)))
