"""Terms of log w for each draw and datum."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class WeightTerms(NamedTuple):
    r"""The two parts of log w, shape ``(K, B)``, nats.

    .. math:: \log w = \log p(x|z) + [\log p(z) - \log q(z|x)]

    Attributes:
        log_likelihood: log p(x|z), the observed sites. Its mean over draws is minus the distortion.
        log_ratio: log p(z) - log q(z|x), the latent sites. Its mean over draws is minus the rate.
    """

    log_likelihood: Tensor
    log_ratio: Tensor

    @property
    def log_w(self) -> Tensor:
        """Log importance weights, shape ``(K, B)``, nats."""
        return self.log_likelihood + self.log_ratio


class EnumeratedTerms(NamedTuple):
    r"""Terms of log w, enumerated sites y summed out; ``(K, B)``, nats.

    The first two are those of :class:`WeightTerms`, averaged over y under q; their sum averages to the ELBO. By Jensen's
    inequality that sum is at most ``log_w``.

    Attributes:
        log_likelihood: :math:`\sum_y q(y)\, \log p(x|y, z)`. Its mean over draws is minus the distortion.
        log_ratio: :math:`\sum_y q(y)\, [\log p(y, z) - \log q(y, z|x)]`. Its mean over draws is minus the rate.
        log_w: :math:`\log \sum_y p(x, y, z) / q(z|x, y)`. The mean of its exponential over draws is p(x), without bias.
    """

    log_likelihood: Tensor
    log_ratio: Tensor
    log_w: Tensor
