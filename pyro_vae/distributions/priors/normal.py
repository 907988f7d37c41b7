"""Priors p(z): no input, one distribution over the latent vector."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """The standard normal prior p(z) = N(0, I).

    Args:
        latent_dim: Z.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        """p(z), event shape ``(Z,)``, no batch shape."""
        return dist.Normal(self.zero, self.one).to_event(1)
