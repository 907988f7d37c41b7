"""The relaxed categorical: a differentiable label, near one of its values."""

from __future__ import annotations

from typing import NoReturn

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical


class LogRelaxedCategorical(ExpRelaxedCategorical, TorchDistributionMixin):
    r"""The log of a relaxed one-hot label.

    .. math:: \log y = \log\mathrm{softmax}((\log \pi + g) / \tau), \quad g \text{ Gumbel noise}

    A density over log y, which does not overflow near a corner of the simplex. The ratio of two such densities equals the
    ratio of the densities over y. As :math:`\tau` goes to 0 it tends to the categorical, and so does a bound that has it on
    **both** sides, model and guide; with a categorical on one side there is no bound.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, appendix C.3; Jang, Gu, Poole, "Categorical
        Reparameterization with Gumbel-Softmax", 2017.
    """

    @property
    def support(self) -> NoReturn:  # type: ignore[override]
        """Not available: PyTorch has no constraint for this surface."""
        raise NotImplementedError("support: PyTorch has no constraint for vectors whose exponentials sum to 1")
