"""The base classes `Likelihood`, `Prior` and `Posterior`.

Each base class is a module with one abstract method, :meth:`forward`, which returns a Pyro distribution. All attributes and
other methods have defaults. A flag such as ``--prior NAME:ARG:ARG`` selects a class by its NAME; the file ``registry.py`` in
the folder ``priors`` lists the names of the priors. The class attribute ``arguments`` declares the ARGs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class Likelihood(nn.Module, ABC):
    """Base class of likelihoods p(x|z), which are computed from decoder outputs.

    Args:
        data_shape: Shape of one datum.

    Attributes:
        support: The values of the data: ``"binary"`` (0 or 1), ``"unit"`` (numbers in [0, 1]) or ``"real"``.
        density: True if log p(x|z) is a log density, False if it is a log probability.
        bits_per_dim: True if log p(x|z) is a log probability of pixel values, so that bits per dimension are a code length.
        arguments: The constructor's further arguments: a dict from each name to an example value of the right type.
    """

    support: ClassVar[str] = "real"
    density: ClassVar[bool] = True
    bits_per_dim: ClassVar[bool] = False
    arguments: ClassVar[Mapping[str, int | float]] = {}

    def __init__(self, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_dim = len(data_shape)

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return p(x|z), a distribution with event shape ``data_shape``.

        Args:
            params: The decoder's output, shape ``(..., *data_shape)``, any real numbers.
        """

    def bias(self, mean: Tensor) -> Tensor:
        """Return the decoder output at which p(x|z) has the mean ``mean``.

        Both tensors have the shape ``data_shape``.
        """
        return mean

    def start_at(self, scale: float) -> None:
        """Set the initial value of a learned scale; called before training.

        Args:
            scale: Standard deviation of the training data about the mean of each pixel, over all pixels; positive.
        """


class Prior(nn.Module, ABC):
    """Base class of priors p(z), distributions of the latent vector.

    Args:
        latent_dim: Size Z of the latent vector.

    Attributes:
        standard: True if p(z) is N(0, I); code that holds only for N(0, I) checks this attribute.
        arguments: The constructor's further arguments: a dict from each name to an example value of the right type.
    """

    standard: ClassVar[bool] = False
    arguments: ClassVar[Mapping[str, int | float]] = {}

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def forward(self) -> TorchDistributionMixin:
        """Return p(z), a distribution with event shape ``(Z,)`` and no batch shape."""

    def connect(self, data_shape: tuple[int, ...], encode: Callable[..., TorchDistributionMixin]) -> None:
        """Give the prior access to the model's encoder and data shape.

        The model calls this method once, after it has made the encoder; most priors ignore it.

        Args:
            data_shape: Shape of one datum.
            encode: The model's method ``encode``, which maps data of shape ``(..., *data_shape)`` to q(z|x).
        """


class Posterior(nn.Module, ABC):
    """Base class of posteriors q(z|x), which are computed from encoder outputs.

    Args:
        latent_dim: Size Z of the latent vector.

    Attributes:
        num_params: The size of the encoder's output for one datum.
        arguments: The constructor's further arguments: a dict from each name to an example value of the right type.
    """

    num_params: int
    arguments: ClassVar[Mapping[str, int | float]] = {}

    def __init__(self, latent_dim: int, num_params: int) -> None:
        super().__init__()
        self.latent_dim, self.num_params = latent_dim, num_params

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return q(z|x), a distribution with event shape ``(Z,)``.

        Args:
            params: The encoder's output, shape ``(..., num_params)``, any real numbers.
        """
