"""Importance-weighted bounds: IWAE, Renyi, VIMCO, MIWAE, CIWAE, PIWAE."""

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
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, detached, with_values


class IWAE(WeightedELBO):
    r"""The importance-weighted bound.

    .. math:: \mathcal L_K(x) = E\Big[\log \tfrac1K \textstyle\sum_k w_k\Big] \le \log p(x),
        \quad w_k = p(x, z_k) / q(z_k|x)

    For a tighter bound than the ELBO, which it is at K = 1. A lower bound that rises with K to log p(x), short of it by
    about Var(w) / (2 K p(x)^2). The gradient is unbiased; its signal-to-noise ratio for the encoder falls with K (Rainforth
    et al. 2018): see :class:`DReG`. Under ``scale_kl_pair`` the weights are tempered; the loss is distortion + beta x rate
    at K = 1 only. All sites must have reparameterized draws.

    Args:
        *args: See :class:`WeightedELBO`; ``num_particles`` is K.
        **options: Likewise.

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

    For a choice between the importance-weighted bound (alpha = 0) and the ELBO (alpha = 1), or beyond. For alpha >= 0 it is
    a lower bound in expectation at every K; it rises with K for alpha < 1 and falls for alpha > 1. For alpha < 0 it is no
    bound at finite K, and an upper bound in the limit only. The gradient is unbiased. All sites must have reparameterized
    draws.

    Args:
        alpha: The order, any finite number.
        **options: See :class:`WeightedELBO`; ``num_particles`` is K.

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
    r"""The importance-weighted bound for sites without reparameterized draws.

    .. math:: \nabla = E\Big[\textstyle\sum_k (\hat L - \hat L_{-k})\, \nabla \log q(z_k|x)
        + \sum_k \tilde w_k \nabla a_k\Big]

    where :math:`\hat L` is the bound of :class:`IWAE` and in :math:`\hat L_{-k}` the mean of the other log weights replaces
    that of draw k. For discrete sites: the other draws are the baseline of each draw. A lower bound; its gradient is
    unbiased. Sites with reparameterized draws keep their pathwise gradient. Needs K >= 2.

    Args:
        *args: See :class:`WeightedELBO`; ``num_particles`` is K.
        **options: Likewise.

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
    r"""Bounds in which the mean of the others replaces a weight.

    Args:
        log_w: Log weights, shape ``(K, B)``, K >= 2, nats.

    Returns:
        The bound for each replaced draw, shape ``(K, B)``, nats.
    """
    others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
    replaced = torch.where(torch.eye(len(log_w), dtype=torch.bool, device=log_w.device)[..., None], others, log_w[None])
    return replaced.logsumexp(1) - math.log(len(log_w))


class MIWAE(WeightedELBO):
    r"""The mean of M importance-weighted bounds of K draws each.

    .. math:: \mathcal L_{M,K}(x) = E\Big[\tfrac1M \textstyle\sum_m \log \tfrac1K \sum_k w_{mk}\Big] \le \log p(x)

    For less noise than :class:`IWAE` without a weaker encoder gradient: the same lower bound as with K draws, whatever M,
    with a variance M times smaller, from M x K draws a step. The gradient is unbiased. Not the objective for missing data
    of the same name.

    Args:
        num_groups: M, at least 1.
        **options: See :class:`WeightedELBO`; ``num_particles`` is K, the draws of a group.

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
        """See :meth:`WeightedELBO.value`; the first K rows are the first group."""
        groups = log_w.unflatten(0, (self.num_groups, self.num_particles))
        return log_mean_exp(groups.movedim(1, 0)).mean(0)


class CIWAE(WeightedELBO):
    r"""A convex combination of the ELBO and the importance-weighted bound.

    .. math:: \lambda\, E\Big[\tfrac1K \textstyle\sum_k \log w_k\Big]
        + (1 - \lambda)\, E\Big[\log \tfrac1K \sum_k w_k\Big] \le \log p(x)

    For a trade between a tight bound and a strong encoder gradient, from the same K draws. A lower bound that rises with K
    unless :math:`\lambda = 1`. The gradient is unbiased.

    Args:
        elbo_weight: :math:`\lambda`, in [0, 1].
        **options: See :class:`WeightedELBO`; ``num_particles`` is K.

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
    r"""Two bounds of the same draws, one each for model and guide.

    .. math:: \theta: \log \tfrac1{MK} \textstyle\sum_{m,k} w_{mk}, \qquad
        \phi: \tfrac1M \sum_m \log \tfrac1K \sum_k w_{mk}

    For the tighter bound where it helps, in the model, and the better signal-to-noise ratio in the guide. ``bound`` and the
    loss are those of :class:`MIWAE`, a lower bound; the parameters of the model follow the tighter one. Each gradient is
    unbiased for its own bound. The model is evaluated twice. Model and guide must share no parameter.

    Args:
        *args: See :class:`MIWAE`.
        **options: Likewise.

    References:
        Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better", 2018, section 6.
    """

    name = "piwae"

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
        def both(model: Program, guide: Program) -> tuple[Pair, tuple[Particles, Particles]]:
            with parameters_used() as of_guide:
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            fixed = with_values(guide_trace, detached)
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

        for_guide, for_model = zip(*self._drawn(both, model, guide), strict=True)
        particles, others = self._cat(for_guide), self._cat(for_model)
        tighter = log_mean_exp(others.log_w)
        return particles._replace(extra=others.extra), self.value(particles.log_w) + (tighter - tighter.detach())
