"""Normal posteriors q(z|x)."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.distributions.base import Posterior


class DiagonalNormal(Posterior):
    r"""The diagonal normal :math:`q(z|x) = N(\mu(x), \mathrm{diag}\, e^{2 s(x)})`.

    The encoder computes the mean mu(x) and the log scale s(x).

    Args:
        latent_dim: Size Z of the latent vector.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, num_params=2 * latent_dim)

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return q(z|x), a distribution with event shape ``(Z,)``.

        Args:
            params: The encoder's output, shape ``(..., 2 Z)``: the Z means, then the Z log scales.
        """
        loc, log_scale = params.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
