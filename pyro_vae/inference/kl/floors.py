"""KL controls with a floor: a rate below it costs nothing."""

from __future__ import annotations

from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.errors import check_nats
from pyro_vae.inference.kl.control import KLControl


class FreeBits(KLControl):
    r"""A floor under the rate of each latent unit or site.

    .. math:: \text{distortion} + \beta \textstyle\sum_j \max(\lambda, R_j)

    :math:`R_j` is the rate of unit (or site) j. Below the floor :math:`\lambda`, a lower rate does not lower the loss.
    This keeps units from being switched off early in training. A floor for each unit requires that the units are
    independent in posterior and prior. The KL weight :math:`\beta` multiplies the sum of the floored rates.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``.
        nats: :math:`\lambda`, the floor, nats.
        per: ``"unit"`` for a floor under the rate of each unit, ``"site"`` for a floor under the rate of each latent site.

    Raises:
        ValueError: If ``nats`` is not positive, or ``per`` is unknown.

    References:
        Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016, eq. 15.
    """

    name = "free bits"
    takes_beta = True

    def __init__(self, objective: ELBO, nats: float, per: str = "unit") -> None:
        super().__init__(objective)
        check_nats("free_bits", nats)
        if per not in ("unit", "site"):
            raise ValueError(f"free_bits_per: expected 'unit' or 'site', got {per!r}.")
        self.nats, self.per = nats, per

    def penalty(self, rates: Tensor) -> Tensor:
        """Return the sum over units or sites of max(floor, rate).

        See :meth:`KLControl.penalty`.
        """
        return rates.clamp(min=self.nats).sum()


class MinimumRate(KLControl):
    r"""A floor under the total rate of all latent variables.

    .. math:: \text{distortion} + \beta \max(R_{min}, R)

    R is the total rate. Above the floor, the loss is the negative ELBO (at KL weight :math:`\beta`). Below the floor,
    the penalty is constant, so the KL costs nothing. This keeps a strong decoder from ignoring z.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``.
        nats: :math:`R_{min}`, the floor, nats per datum.

    Raises:
        ValueError: If ``nats`` is not positive.

    References:
        Alemi et al., "Fixing a Broken ELBO", 2018, on rates as constraints.
    """

    name = "minimum rate"
    takes_beta = True

    def __init__(self, objective: ELBO, nats: float) -> None:
        super().__init__(objective)
        check_nats("min_rate", nats)
        self.nats = nats

    def penalty(self, rates: Tensor) -> Tensor:
        """Return the larger of floor and total rate; see :meth:`KLControl.penalty`."""
        return rates.clamp(min=self.nats).sum()

    def _final_penalty(self, rate: float) -> float:
        return max(rate, self.nats)
