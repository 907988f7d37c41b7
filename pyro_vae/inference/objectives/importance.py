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
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, detached, with_values


class IWAE(WeightedELBO):
    r"""The importance-weighted bound.

    .. math:: \mathcal L_K(x) = E\Big[\log \tfrac1K \textstyle\sum_k w_k\Big] \le \log p(x),
        \quad w_k = p(x, z_k) / q(z_k|x)

    This lower bound on log p(x) uses K draws. At K = 1 it equals the ELBO. It becomes tighter as K rises, and tends to
    log p(x); the gap is about Var(w) / (2 K p(x)^2). The gradient is unbiased. The signal-to-noise ratio of the
    encoder's gradient falls with K (Rainforth et al. 2018); see :class:`DReG`. With ``scale_kl_pair``, the importance
    weights are tempered, and the loss equals distortion + beta * rate only at K = 1. All latent sites must be
    reparameterized.

    Args:
        *args: See :class:`WeightedELBO`; ``num_particles`` is K.
        **options: See :class:`WeightedELBO`.

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

    This family of bounds contains the importance-weighted bound (alpha = 0) and the ELBO (alpha = 1). If alpha >= 0,
    the expectation over draws is a lower bound for every K. This bound rises with K if alpha < 1, and falls with K if
    alpha > 1. If alpha < 0, the value is an upper bound in the limit of infinite K, but no bound for finite K. The
    gradient is unbiased. All latent sites must be reparameterized.

    Args:
        alpha: The order of the bound, a finite number.
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
    r"""The importance-weighted bound, for sites without reparameterized draws.

    .. math:: \nabla = E\Big[\textstyle\sum_k (\hat L - \hat L_{-k})\, \nabla \log q(z_k|x)
        + \sum_k \tilde w_k \nabla a_k\Big]

    :math:`\hat L` is the bound of :class:`IWAE`. In :math:`\hat L_{-k}`, the log weight of draw k is replaced by the
    mean of the other log weights. :math:`\hat L_{-k}` is the baseline of draw k. Use this objective for discrete sites.
    The objective is a lower bound, and its gradient is unbiased. Reparameterized sites keep their pathwise gradient. K
    must be at least 2.

    Args:
        *args: See :class:`WeightedELBO`; ``num_particles`` is K.
        **options: See :class:`WeightedELBO`.

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
    r"""Compute K importance-weighted bounds; bound k leaves out draw k.

    In bound k, the log weight of draw k is replaced by the mean of the other K - 1 log weights.

    Args:
        log_w: Log importance weights, shape ``(K, B)``, K >= 2, nats.

    Returns:
        Bounds, shape ``(K, B)``, nats. Row k is the bound without draw k.
    """
    others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
    replaced = torch.where(torch.eye(len(log_w), dtype=torch.bool, device=log_w.device)[..., None], others, log_w[None])
    return replaced.logsumexp(1) - math.log(len(log_w))


class MIWAE(WeightedELBO):
    r"""The mean of M importance-weighted bounds, each from K draws.

    .. math:: \mathcal L_{M,K}(x) = E\Big[\tfrac1M \textstyle\sum_m \log \tfrac1K \sum_k w_{mk}\Big] \le \log p(x)

    For every M, the expectation is the lower bound of :class:`IWAE` with K draws. The variance is M times smaller, and
    a larger M does not weaken the encoder's gradient. A training step needs M * K draws. The gradient is unbiased.
    Another objective, for missing data, is also called MIWAE in the literature.

    Args:
        num_groups: M, the number of groups, at least 1.
        **options: See :class:`WeightedELBO`; ``num_particles`` is K, the number of draws in a group.

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
        """M * K draws for each datum in one training step."""
        return self.num_groups * self.num_particles

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`; every K consecutive rows form one group."""
        groups = log_w.unflatten(0, (self.num_groups, self.num_particles))
        return log_mean_exp(groups.movedim(1, 0)).mean(0)


class CIWAE(WeightedELBO):
    r"""A weighted mean of the ELBO and the importance-weighted bound.

    .. math:: \lambda\, E\Big[\tfrac1K \textstyle\sum_k \log w_k\Big]
        + (1 - \lambda)\, E\Big[\log \tfrac1K \sum_k w_k\Big] \le \log p(x)

    The weighted mean is a compromise between a tight bound and a strong gradient of the encoder. Both bounds use the
    same K draws. The weighted mean is a lower bound. It rises with K unless :math:`\lambda = 1`. The gradient is
    unbiased.

    Args:
        elbo_weight: :math:`\lambda`, the weight of the ELBO, in [0, 1].
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
    r"""Separate bounds for model and guide, from the same draws.

    .. math:: \theta: \log \tfrac1{MK} \textstyle\sum_{m,k} w_{mk}, \qquad
        \phi: \tfrac1M \sum_m \log \tfrac1K \sum_k w_{mk}

    The parameters :math:`\theta` of the model follow the importance-weighted bound of all M * K draws, which is
    tighter. The parameters :math:`\phi` of the guide follow the bound of :class:`MIWAE`, whose gradient has the better
    signal-to-noise ratio. The method ``bound`` and the loss return the value of the bound of :class:`MIWAE`, a lower
    bound. Each gradient is unbiased for its own bound. A training step evaluates model and guide twice. Model and guide
    must not share parameters.

    Args:
        *args: See :class:`MIWAE`.
        **options: See :class:`MIWAE`.

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
                    "piwae: expected a model and a guide without common parameters, got shared parameters; use elbo('miwae')."
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
