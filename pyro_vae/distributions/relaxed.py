"""The relaxed categorical: a differentiable approximation of a label."""

from __future__ import annotations

from typing import NoReturn

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical


class LogRelaxedCategorical(ExpRelaxedCategorical, TorchDistributionMixin):
    r"""The distribution of log y for a relaxed one-hot label y.

    .. math:: \log y = \log\mathrm{softmax}((\log \pi + g) / \tau), \quad g \text{ Gumbel noise}

    Here :math:`\pi` are the class probabilities and :math:`\tau` is the temperature. The density is over log y; unlike the
    density over y, it does not overflow near a corner of the simplex. The ratio of two densities over log y equals the ratio of
    the densities over y. As :math:`\tau` goes to 0, the distribution tends to the categorical. If **both** model and guide are
    relaxed, their bound tends to the bound with categorical labels. If only the model or only the guide is relaxed, there is no
    bound.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, appendix C.3; Jang, Gu, Poole, "Categorical
        Reparameterization with Gumbel-Softmax", 2017.
    """

    @property
    def support(self) -> NoReturn:  # type: ignore[override]
        """Not available: PyTorch has no constraint for logs of probability vectors."""
        raise NotImplementedError("support: PyTorch has no constraint for vectors whose exponentials sum to 1")
