"""Terms of log w for each draw and datum."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class WeightTerms(NamedTuple):
    r"""The two parts of log w, each of shape ``(K, B)``, nats.

    .. math:: \log w = \log p(x|z) + [\log p(z) - \log q(z|x)]

    Attributes:
        log_likelihood: log p(x|z), from the observed sites. The mean over draws is minus the distortion.
        log_ratio: log p(z) - log q(z|x), from the latent sites. The mean over draws is minus the rate.
    """

    log_likelihood: Tensor
    log_ratio: Tensor

    @property
    def log_w(self) -> Tensor:
        """Log importance weights, shape ``(K, B)``, nats."""
        return self.log_likelihood + self.log_ratio


class EnumeratedTerms(NamedTuple):
    r"""Terms of log w, with enumerated sites y summed out.

    Each term has the shape ``(K, B)``, nats. ``log_likelihood`` and ``log_ratio`` are the terms of :class:`WeightTerms`,
    averaged over y under q. The mean of ``log_likelihood + log_ratio`` over draws is the ELBO. By Jensen's inequality,
    ``log_likelihood + log_ratio <= log_w``.

    Attributes:
        log_likelihood: :math:`\sum_y q(y)\, \log p(x|y, z)`. The mean over draws is minus the distortion.
        log_ratio: :math:`\sum_y q(y)\, [\log p(y, z) - \log q(y, z|x)]`. The mean over draws is minus the rate.
        log_w: :math:`\log \sum_y p(x, y, z) / q(z|x, y)`. The mean of exp(``log_w``) over draws is unbiased for p(x).
    """

    log_likelihood: Tensor
    log_ratio: Tensor
    log_w: Tensor
