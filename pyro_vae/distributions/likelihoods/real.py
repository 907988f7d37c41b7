"""Likelihoods of real values with one learned scale: normal and Laplace."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.distributions.base import Likelihood

#: The smallest standard deviation of the data that a learned scale starts at.
LEAST_SCALE = 1e-3


class LocationScale(Likelihood):
    r"""Base class of likelihoods with a pixel's location and one scale.

    A density, so its log may be positive. One scale serves all pixels: with a scale for each, a pixel that never changes
    would drive the density to infinity.

    Attributes:
        log_scale: Log of the scale, 0-dim, starts at 0.
        unit_deviation: The standard deviation at scale 1.
    """

    unit_deviation: ClassVar[float] = 1.0

    def __init__(self, data_shape: tuple[int, ...]) -> None:
        super().__init__(data_shape)
        self.log_scale = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start_at(self, scale: float) -> None:
        """Start at the data's standard deviation, at least ``LEAST_SCALE``.

        Training then finds the part of it that z does not explain.
        """
        self.log_scale.fill_(math.log(max(scale, LEAST_SCALE) / self.unit_deviation))


class Normal(LocationScale):
    r"""Normal pixels with one learned scale: :math:`p(x|z) = N(x; \mu(z), \sigma^2 I)`.

    References:
        Rybkin, Daniilidis, Levine, "Simple and Effective VAE Training with Calibrated Decoders", 2021.
    """

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return p(x|z) with means ``params``, shape ``(..., *data_shape)``."""
        return dist.Normal(params, self.log_scale.exp()).to_event(self.event_dim)


class Laplace(LocationScale):
    r"""Laplace pixels with one learned scale.

    .. math:: \log p(x|z) = -\textstyle\sum_d |x_d - \mu_d(z)| / b - D \log 2b

    The location is mean and median. Heavier tails than the normal's: single pixels that are far off cost less.
    """

    unit_deviation: ClassVar[float] = math.sqrt(2)

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return p(x|z) with locations ``params``, shape ``(..., *data_shape)``."""
        return dist.Laplace(params, self.log_scale.exp()).to_event(self.event_dim)
