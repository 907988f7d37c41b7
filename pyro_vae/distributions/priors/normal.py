"""Normal priors p(z), standard and learned."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.distributions.base import Prior


class StandardNormal(Prior):
    """The standard normal prior p(z) = N(0, I).

    Args:
        latent_dim: Size Z of the latent vector.
    """

    standard: ClassVar[bool] = True
    zero: Tensor
    one: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        """Return p(z), a distribution with event shape ``(Z,)`` and no batch shape."""
        return dist.Normal(self.zero, self.one).to_event(1)


class LearnedNormal(Prior):
    r"""A learned diagonal normal prior, :math:`p(z) = N(m, \mathrm{diag}\, e^{2 s})`.

    The prior starts at N(0, I). If the layers of encoder and decoder next to z are affine, they can absorb m and s; this prior
    then adds nothing to the model.

    Args:
        latent_dim: Size Z of the latent vector.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> TorchDistributionMixin:
        """Return p(z), a distribution with event shape ``(Z,)`` and no batch shape."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
