"""Objectives made of several bounds: means over groups of draws, mixtures with the ELBO, one for each network."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from pyro import poutine
from torch import Tensor

from pyro_vae.inference.bounds import check_count, check_number
from pyro_vae.inference.particles import Pair, Particles, frozen, parameters_used, with_values
from pyro_vae.inference.weighted import WeightedELBO, log_mean_exp

Program = Callable[..., Any]


class MIWAE(WeightedELBO):
    r"""The mean of M importance-weighted bounds of K draws each.

    .. math:: \mathcal L_{M,K}(x) = E\Big[\tfrac1M \textstyle\sum_m \log \tfrac1K \sum_k w_{mk}\Big] \le \log p(x)

    The same bound as :class:`IWAE` with K draws, whatever M, with a variance M times smaller: M x K draws a step. Not
    the objective for missing data of the same name.

    Args:
        num_groups: M.
        num_particles: K, draws within a group.
        vectorize_particles: See :class:`WeightedELBO`.
        max_plate_nesting: Likewise.
        retain_graph: Likewise.
        plate: Likewise.

    References:
        Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better", 2018, eq. 15.
    """

    name = "miwae"

    def __init__(
        self,
        num_groups: int = 4,
        num_particles: int = 5,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        plate: str | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, retain_graph, plate)
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
        num_particles: K.
        vectorize_particles: See :class:`WeightedELBO`.
        max_plate_nesting: Likewise.
        retain_graph: Likewise.
        plate: Likewise.

    References:
        Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better", 2018, eq. 16.
    """

    name = "ciwae"

    def __init__(
        self,
        elbo_weight: float = 0.5,
        num_particles: int = 5,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        plate: str | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, retain_graph, plate)
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

    def _surrogate(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Particles, Tensor]:
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


class RWS(WeightedELBO):
    r"""Reweighted wake-sleep: wake-phase updates of model and guide, for any sites, discrete ones too.

    .. math:: \nabla_\theta = \textstyle\sum_k \tilde w_k \nabla_\theta \log p(x, z_k), \qquad
        \nabla_\phi = \sum_k \tilde w_k \nabla_\phi \log q(z_k|x)

    The model follows the importance-weighted bound, without bias; the guide follows -KL(p(z|x) || q(z|x)), biased by
    self-normalization, less so with larger K. No draw is differentiated. ``bound`` and the loss are the
    importance-weighted bound. There is no KL to weight: a beta is refused. Needs K >= 2.

    References:
        Bornschein, Bengio, "Reweighted Wake-Sleep", 2015, eq. 9-10; Le et al., "Revisiting Reweighted Wake-Sleep for
        Models with Stochastic Control Flow", 2019.
    """

    name = "rws"
    least_particles = 2
    reparameterized = False
    takes_beta = False

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_mean_exp(log_w)

    def _pair(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Pair:
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        fixed = with_values(drawn, lambda name, site: site["value"].detach())
        guide_trace = poutine.trace(poutine.replay(guide, trace=fixed)).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*args, **kwargs)
        return self._scored(model_trace, guide_trace)

    def _surrogate(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Particles, Tensor]:
        particles, bound = super()._surrogate(model, guide, args, kwargs)
        weights = particles.log_w.detach().softmax(0)
        # The bound holds -log q with these very weights; twice that with the other sign is the wake-phi update.
        return particles, bound + 2 * (weights * particles.log_q).sum(0)


class TVO(RWS):
    r"""The thermodynamic variational objective: a left Riemann sum along the path from q(z|x) to p(z|x).

    .. math:: \textstyle\sum_{j=1}^{J} (t_j - t_{j-1})\, E_{\pi_{t_{j-1}}}[\log w] \le \log p(x),
        \qquad \pi_t(z) \propto q(z|x)^{1-t} p(x, z)^t

    The ELBO at J = 1, tighter with more points. The expectations are self-normalized over K draws of q, so the
    estimate is biased, up or down, less with larger K: the inequality holds for the exact sum. The gradient is the
    paper's covariance form, which differentiates no draw and suits discrete sites. A beta is refused. Needs K >= 2.

    Args:
        partitions: J, the number of intervals: 0, then J - 1 points spaced evenly in log t from ``first_point`` on, then 1.
        first_point: The first point after 0, in (0, 1).
        num_particles: K.
        vectorize_particles: See :class:`WeightedELBO`.
        max_plate_nesting: Likewise.
        retain_graph: Likewise.
        plate: Likewise.

    References:
        Masrani, Le, Wood, "The Thermodynamic Variational Objective", 2019, eq. 6 and 11.
    """

    name = "tvo"

    def __init__(
        self,
        partitions: int = 4,
        first_point: float = 0.025,
        num_particles: int = 10,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        plate: str | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting, retain_graph, plate)
        check_count("partitions", partitions)
        check_number("first_point", first_point, lambda point: 0 < point < 1, "a number between 0 and 1")
        self.partitions, self.first_point = partitions, first_point

    @property
    def points(self) -> list[float]:
        """0 = t_0 < t_1 < ... < t_J = 1."""
        inner = self.partitions - 1
        steps = [self.first_point ** (1 - k / inner) for k in range(inner)]
        return [0.0, *steps, 1.0]

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        points = self.points
        return sum((end - start) * ((start * log_w).softmax(0) * log_w).sum(0) for start, end in pairwise(points))  # type: ignore[return-value]

    def _surrogate(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Particles, Tensor]:
        particles, _ = WeightedELBO._surrogate(self, model, guide, args, kwargs)
        log_w, log_q = particles.log_w, particles.log_q
        fixed = log_w.detach()
        total: Any = 0.0
        for start, end in pairwise(self.points):
            weights = (start * fixed).softmax(0)
            centred = fixed - (weights * fixed).sum(0)
            path = log_q + start * log_w  # log of q^(1-t) p^t, up to its normalizer
            total = total + (end - start) * (weights * (log_w + centred * path)).sum(0)
        return particles, total
