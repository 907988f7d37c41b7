"""The base class of likelihoods."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class Likelihood(nn.Module):
    """What every likelihood offers.

    Args:
        data_shape: Shape of one datum.
    """

    #: What the data must be: "binary" (0 or 1), "unit" ([0, 1]) or "real".
    support = "real"

    def __init__(self, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_dim = len(data_shape)

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """p(x|z) with event shape ``data_shape``; ``params`` has shape ``(..., *data_shape)``."""
        raise NotImplementedError

    def bias(self, mean: Tensor) -> Tensor:
        """The decoder's output for which p(x|z) has this mean; both of shape ``data_shape``."""
        return mean

    def start_at(self, scale: float) -> None:
        """Set a scale of its own, where it has one, to the data's standard deviation about their mean."""
