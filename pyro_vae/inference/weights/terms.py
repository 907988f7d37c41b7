"""Terms of the log importance weights, for each draw and datum."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class WeightTerms(NamedTuple):
    r"""The two parts of a log importance weight log w.

    Each part has the shape ``(K, B)``, K draws and B data, in nats.

    .. math:: \log w = \log p(x|z) + [\log p(z) - \log q(z|x)]

    Attributes:
        log_likelihood: log p(x|z), from the observed sites. Its mean over draws is the negative distortion.
        log_ratio: log p(z) - log q(z|x), from the latent sites. Its mean over draws is the negative rate.
    """

    log_likelihood: Tensor
    log_ratio: Tensor

    @property
    def log_w(self) -> Tensor:
        """Log importance weights, shape ``(K, B)``, nats."""
        return self.log_likelihood + self.log_ratio


class EnumeratedTerms(NamedTuple):
    r"""Terms of log w for a model with enumerated sites.

    Each term has the shape ``(K, B)``, K draws and B data, in nats. Here y stands for the enumerated sites.
    ``log_likelihood`` and ``log_ratio`` are the terms of :class:`WeightTerms`, averaged over y with weights q(y|x). The
    mean of ``log_likelihood + log_ratio`` over draws is the ELBO. By Jensen's inequality, ``log_likelihood + log_ratio
    <= log_w``.

    Attributes:
        log_likelihood: :math:`\sum_y q(y)\, \log p(x|y, z)`. Its mean over draws is the negative distortion.
        log_ratio: :math:`\sum_y q(y)\, [\log p(y, z) - \log q(y, z|x)]`. Its mean over draws is the negative rate.
        log_w: :math:`\log \sum_y p(x, y, z) / q(z|x, y)`. The mean of exp(``log_w``) over draws is unbiased for p(x).
    """

    log_likelihood: Tensor
    log_ratio: Tensor
    log_w: Tensor
