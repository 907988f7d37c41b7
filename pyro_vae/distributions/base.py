"""The base classes `Likelihood`, `Prior` and `Posterior`.

Each class is a module with one abstract method, :meth:`forward`, which returns a Pyro distribution. All other attributes and
hooks have defaults. A flag such as ``--prior NAME:ARG:ARG`` selects a class by NAME from the registry in the folder of its
family; the class attribute ``arguments`` declares the ARGs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class Likelihood(nn.Module, ABC):
    """The likelihood p(x|z): maps decoder outputs to distributions of the data.

    Args:
        data_shape: Shape of one datum.

    Attributes:
        support: The values of the data: ``"binary"`` (0 or 1), ``"unit"`` (numbers in [0, 1]) or ``"real"``.
        density: True if log p(x|z) is a log density, False if it is a log probability.
        bits_per_dim: True if log p(x|z) is a log probability of pixel values, so that bits per dimension are a code length.
        arguments: Names of the constructor's arguments after ``data_shape``, each with an example value of the argument's
            type.
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
        """Return p(x|z), event shape ``data_shape``.

        Args:
            params: The decoder's output, shape ``(..., *data_shape)``, any real numbers.
        """

    def bias(self, mean: Tensor) -> Tensor:
        """Return the decoder output for a mean; both have shape ``data_shape``."""
        return mean

    def start_at(self, scale: float) -> None:
        """Set the start value of a learned scale; called before training.

        Args:
            scale: Standard deviation of the training data about the mean, over all pixels; positive.
        """


class Prior(nn.Module, ABC):
    """The prior p(z): a distribution of the latent vector.

    Args:
        latent_dim: Z, the size of the latent vector.

    Attributes:
        standard: True if p(z) is N(0, I); closed forms rely on this.
        arguments: Names of the constructor's arguments after ``latent_dim``, each with an example value of the argument's
            type.
    """

    standard: ClassVar[bool] = False
    arguments: ClassVar[Mapping[str, int | float]] = {}

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def forward(self) -> TorchDistributionMixin:
        """Return p(z), event shape ``(Z,)``, no batch shape."""

    def connect(self, data_shape: tuple[int, ...], encode: Callable[..., TorchDistributionMixin]) -> None:
        """Take the parts of the model that a prior may use.

        The model calls this hook once, after it has made the encoder.

        Args:
            data_shape: Shape of one datum.
            encode: The model's ``encode``: data of shape ``(..., *data_shape)`` to q(z|x).
        """


class Posterior(nn.Module, ABC):
    """The posterior q(z|x): maps encoder outputs to distributions of the latent vector.

    Args:
        latent_dim: Z, the size of the latent vector.

    Attributes:
        num_params: The size of the encoder's output for one datum.
        arguments: Names of the constructor's arguments after ``latent_dim``, each with an example value of the argument's
            type.
    """

    num_params: int
    arguments: ClassVar[Mapping[str, int | float]] = {}

    def __init__(self, latent_dim: int, num_params: int) -> None:
        super().__init__()
        self.latent_dim, self.num_params = latent_dim, num_params

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return q(z|x), event shape ``(Z,)``.

        Args:
            params: The encoder's output, shape ``(..., num_params)``, any real numbers.
        """
