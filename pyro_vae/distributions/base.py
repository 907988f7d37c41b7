"""The base classes `Likelihood`, `Prior` and `Posterior`.

Each is a module with one method to write, :meth:`forward`, which gives a Pyro distribution. What else the package asks of a
part is an attribute or a hook with a default. A part is made from a name, ``"NAME:ARG:ARG"``, by the registry beside its
family; ``arguments`` declares the ARGs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class Likelihood(nn.Module, ABC):
    """The likelihood p(x|z): decoder outputs to distributions of the data.

    Args:
        data_shape: Shape of one datum.

    Attributes:
        support: The data it is for: ``"binary"`` (0 or 1), ``"unit"`` (numbers in [0, 1]) or ``"real"``.
        density: True if log p(x|z) is a log density, False if it is a log probability.
        bits_per_dim: True if log p(x|z) is a log probability of pixel values, a code length.
        arguments: Arguments of the constructor after ``data_shape``, each with an example value of its type.
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
        """Return the decoder's output for a mean, both of shape ``data_shape``."""
        return mean

    def start_at(self, scale: float) -> None:
        """Set a learned scale to its start; called before training.

        Args:
            scale: Standard deviation of the training data about their mean, over all pixels; positive.
        """


class Prior(nn.Module, ABC):
    """The prior p(z): a distribution of the latent vector.

    Args:
        latent_dim: Z, the size of the latent vector.

    Attributes:
        standard: True if p(z) is N(0, I), which closed forms may rely on.
        arguments: Arguments of the constructor after ``latent_dim``, each with an example value of its type.
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

        Called once, when the encoder is made.

        Args:
            data_shape: Shape of one datum.
            encode: The model's ``encode``: data of shape ``(..., *data_shape)`` to q(z|x).
        """


class Posterior(nn.Module, ABC):
    """The posterior q(z|x): encoder outputs to distributions of the latent vector.

    Args:
        latent_dim: Z, the size of the latent vector.

    Attributes:
        num_params: The number of values that the encoder gives for one datum.
        arguments: Arguments of the constructor after ``latent_dim``, each with an example value of its type.
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
