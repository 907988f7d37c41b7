"""Likelihoods of real values with one learned scale: normal and Laplace."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.distributions.base import Likelihood

#: The smallest start value of a learned scale, as a standard deviation.
LEAST_SCALE = 1e-3


class LocationScale(Likelihood):
    r"""Base class of likelihoods: a location for each pixel, one common scale.

    p(x|z) is a density, so log p(x|z) may be positive. All pixels share one scale: with a separate scale, a pixel that never
    changes would drive the density to infinity.

    Attributes:
        log_scale: Log of the scale, a 0-dim parameter that starts at 0.
        unit_deviation: The standard deviation of a pixel at scale 1.
    """

    unit_deviation: ClassVar[float] = 1.0

    def __init__(self, data_shape: tuple[int, ...]) -> None:
        super().__init__(data_shape)
        self.log_scale = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start_at(self, scale: float) -> None:
        """Set the scale so that each pixel starts with standard deviation ``scale``.

        Values below ``LEAST_SCALE`` are raised to it.

        Training then moves the scale towards the standard deviation that z does not explain.
        """
        self.log_scale.fill_(math.log(max(scale, LEAST_SCALE) / self.unit_deviation))


class Normal(LocationScale):
    r"""Normal pixels with one learned scale: :math:`p(x|z) = N(x; \mu(z), \sigma^2 I)`.

    p(x|z) is a density, so log p(x|z) may be positive. One scale for all pixels keeps the density bounded.

    References:
        Rybkin, Daniilidis, Levine, "Simple and Effective VAE Training with Calibrated Decoders", 2021.
    """

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return p(x|z) with means ``params``, shape ``(..., *data_shape)``."""
        return dist.Normal(params, self.log_scale.exp()).to_event(self.event_dim)


class Laplace(LocationScale):
    r"""Laplace pixels with one learned scale.

    .. math:: \log p(x|z) = -\textstyle\sum_d |x_d - \mu_d(z)| / b - D \log 2b

    The decoder's output is the location mu, both mean and median; b is the scale, and D the number of pixels. The tails are
    heavier than a normal's: a few pixels with a large error cost less.
    """

    unit_deviation: ClassVar[float] = math.sqrt(2)

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return p(x|z) with locations ``params``, shape ``(..., *data_shape)``."""
        return dist.Laplace(params, self.log_scale.exp()).to_event(self.event_dim)
