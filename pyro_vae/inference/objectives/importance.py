"""Importance-weighted objectives: IWAE, Renyi, VIMCO, MIWAE, CIWAE, PIWAE."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import check_count, check_number
from pyro_vae.inference.objectives.particles import Particles
from pyro_vae.inference.objectives.weighted import Options, WeightedELBO, log_mean_exp
from pyro_vae.inference.program.parameters import frozen, parameters_used
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, with_values


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
        **options: Of :class:`WeightedELBO`.

    References:
        Li, Turner, "Rényi Divergence Variational Inference", 2016, eq. 8-9 and theorem 2.
    """

    name = "renyi"

    def __init__(self, alpha: float = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
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

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
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


class MIWAE(WeightedELBO):
    r"""The mean of M importance-weighted bounds of K draws each.

    .. math:: \mathcal L_{M,K}(x) = E\Big[\tfrac1M \textstyle\sum_m \log \tfrac1K \sum_k w_{mk}\Big] \le \log p(x)

    The same bound as :class:`IWAE` with K draws, whatever M, with a variance M times smaller: M x K draws a step. Not
    the objective for missing data of the same name.

    Args:
        num_groups: M.
        **options: Of :class:`WeightedELBO`; ``num_particles`` is K, the draws of a group.

    References:
        Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better", 2018, eq. 15.
    """

    name = "miwae"

    def __init__(self, num_groups: int = 4, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_count("num_groups", num_groups)
        self.num_groups = num_groups

    @property
    def num_draws(self) -> int:
        """M x K."""
        return self.num_groups * self.num_particles

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`; of the rows, the first K are the first group."""
        groups = log_w.unflatten(0, (self.num_groups, self.num_particles))
        return log_mean_exp(groups.movedim(1, 0)).mean(0)


class CIWAE(WeightedELBO):
    r"""A convex combination of the ELBO and the importance-weighted bound of the same K draws.

    .. math:: \lambda\, E\Big[\tfrac1K \textstyle\sum_k \log w_k\Big]
        + (1 - \lambda)\, E\Big[\log \tfrac1K \sum_k w_k\Big] \le \log p(x)

    A lower bound that rises with K unless :math:`\lambda = 1`.

    Args:
        elbo_weight: :math:`\lambda`, in [0, 1].
        **options: Of :class:`WeightedELBO`.

    References:
        Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better", 2018, eq. 16.
    """

    name = "ciwae"

    def __init__(self, elbo_weight: float = 0.5, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_number("elbo_weight", elbo_weight, lambda share: 0 <= share <= 1, "a share in [0, 1]")
        self.elbo_weight = elbo_weight

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return self.elbo_weight * log_w.mean(0) + (1 - self.elbo_weight) * log_mean_exp(log_w)


class PIWAE(MIWAE):
    r"""Two bounds of the same M x K draws: all of them in one for the model, M groups of K for the guide.

    .. math:: \theta: \log \tfrac1{MK} \textstyle\sum_{m,k} w_{mk}, \qquad
        \phi: \tfrac1M \sum_m \log \tfrac1K \sum_k w_{mk}

    The tighter bound where it helps, the better signal-to-noise ratio where that does. ``bound`` and the loss are those
    of :class:`MIWAE`, a lower bound; the parameters of the model follow the other. The model is evaluated twice; model
    and guide must share no parameter.

    References:
        Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better", 2018, section 6.
    """

    name = "piwae"

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
        def both(model: Program, guide: Program) -> tuple[Pair, tuple[Particles, Particles]]:
            with parameters_used() as of_guide:
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            fixed = with_values(guide_trace, lambda name, site: site["value"].detach())
            with parameters_used() as of_model:
                learning = poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*args, **kwargs)
            shared = {id(p) for p in of_guide if p.requires_grad} & {id(p) for p in of_model}
            if shared:
                raise ValueError(
                    "piwae: expected a model and a guide without common parameters, got some that both use; use elbo('miwae')."
                )
            with frozen(of_model):
                following = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
            for_guide = self._reduce(self._scored(following, guide_trace))
            with frozen(of_guide):
                scored = poutine.trace(poutine.replay(guide, trace=fixed)).get_trace(*args, **kwargs)
            return Pair(learning, guide_trace), (for_guide, self._reduce(self._scored(learning, scored)))

        found, tight = zip(*self._drawn(both, model, guide), strict=True)
        particles, others = self._cat(iter(found)), self._cat(iter(tight))
        for_model = log_mean_exp(others.log_w)
        return particles._replace(extra=others.extra), self.value(particles.log_w) + (for_model - for_model.detach())
