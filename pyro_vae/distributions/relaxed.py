"""The relaxed categorical: a label that is nearly one of its values, and may be differentiated."""

from __future__ import annotations

from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical


class LogRelaxedCategorical(ExpRelaxedCategorical, TorchDistributionMixin):
    r"""The log of a relaxed one-hot label: :math:`\log y = \log\mathrm{softmax}((\log \pi + g) / \tau)`, g Gumbel noise.

    A density over the logs, which a label near a corner of the simplex does not overflow; of two such densities the ratio is
    the same as of those over y. It tends to the categorical as :math:`\tau` goes to 0, and so do bounds with it on **both**
    sides, model and guide; with a categorical on one side there is no bound.

    References:
        Maddison, Mnih, Teh, "The Concrete Distribution", 2017, appendix C.3; Jang, Gu, Poole, "Categorical
        Reparameterization with Gumbel-Softmax", 2017.
    """

    @property
    def support(self) -> Any:  # type: ignore[override]
        """None with a name: the vectors whose exponentials sum to 1."""
        raise NotImplementedError("the support is a surface that torch has no constraint for")
