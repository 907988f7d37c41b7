"""The importance-weighted bound, the Rényi bound, and the first for sites without reparameterized draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.inference.bounds import check_number
from pyro_vae.inference.particles import Particles
from pyro_vae.inference.weighted import WeightedELBO, log_mean_exp

Program = Callable[..., Any]


class IWAE(WeightedELBO):
    r"""The importance-weighted bound.

    .. math:: \mathcal L_K(x) = E\Big[\log \tfrac1K \textstyle\sum_k w_k\Big] \le \log p(x),
        \quad w_k = p(x, z_k) / q(z_k|x)

    A lower bound that rises with K to log p(x). The gradient is unbiased; its signal-to-noise ratio for the encoder
    falls with K (Rainforth et al. 2018): see :class:`DReG`. Under ``scale_kl_pair`` the weights are tempered, equal to
    distortion + beta x rate only at K = 1. All sites must have reparameterized draws.

    References:
        Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2016, eq. 8.
    """

    name = "iwae"

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_mean_exp(log_w)


class Renyi(WeightedELBO):
    r"""The variational Rényi bound.

    .. math:: \mathcal L_\alpha(x) = \frac{1}{1-\alpha} \log \tfrac1K \textstyle\sum_k w_k^{1-\alpha}

    At 0 the importance-weighted bound, at 1 the ELBO. For 0 <= alpha a lower bound in expectation at every K; it rises
    with K for alpha < 1 and falls for alpha > 1. For alpha < 0 it is no bound at finite K: an upper one in the limit
    only. All sites must have reparameterized draws.

    Args:
        alpha: The order.
        num_particles: K.
        vectorize_particles: See :class:`WeightedELBO`.
        max_plate_nesting: Likewise.
        retain_graph: Likewise.
        plate: Likewise.

    References:
        Li, Turner, "Rényi Divergence Variational Inference", 2016, eq. 8-9 and theorem 2.
    """

    name = "renyi"

    def __init__(
        self,
        alpha: float = 0.0,
        num_particles: int = 5,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        plate: str | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, retain_graph, plate)
        check_number("alpha", alpha, math.isfinite, "a finite number", "; 1 gives the ELBO, 0 the bound of iwae")
        self.alpha = alpha

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_mean_exp(log_w, self.alpha)


class VIMCO(WeightedELBO):
    r"""The importance-weighted bound with a usable gradient for sites without reparameterized draws.

    .. math:: \nabla = E\Big[\textstyle\sum_k (\hat L - \hat L_{-k})\, \nabla \log q(z_k|x)
        + \sum_k \tilde w_k \nabla a_k\Big]

    where :math:`\hat L_{-k}` has the log weight of draw k replaced by the mean of the others. Unbiased; the other draws
    are the baseline. Sites with reparameterized draws keep their pathwise gradient. Needs K >= 2.

    References:
        Mnih, Rezende, "Variational Inference for Monte Carlo Objectives", 2016, eq. 10-11.
    """

    name = "vimco"
    least_particles = 2
    reparameterized = False

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_mean_exp(log_w)

    def _surrogate(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Particles, Tensor]:
        particles, bound = super()._surrogate(model, guide, args, kwargs)
        signal = bound.detach() - leave_one_out(particles.log_w.detach())
        return particles, bound + (signal * particles.score).sum(0)


def leave_one_out(log_w: Tensor) -> Tensor:
    r"""The bounds :math:`\hat L_{-k}` in which one log weight is the mean of the others.

    Args:
        log_w: Shape ``(K, B)``, K >= 2.

    Returns:
        Shape ``(K, B)``.
    """
    others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
    replaced = torch.where(torch.eye(len(log_w), dtype=torch.bool, device=log_w.device)[..., None], others, log_w[None])
    return replaced.logsumexp(1) - math.log(len(log_w))
