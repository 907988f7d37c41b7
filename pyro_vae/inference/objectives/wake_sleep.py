"""Reweighted wake-sleep and the thermodynamic variational objective."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Unpack

from pyro import poutine
from torch import Tensor

from pyro_vae.errors import check_count, check_number
from pyro_vae.inference.objectives.particles import Particles
from pyro_vae.inference.objectives.weighted import Options, WeightedELBO, log_mean_exp
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, with_values


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

    def _pair(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Pair:
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        fixed = with_values(drawn, lambda name, site: site["value"].detach())
        guide_trace = poutine.trace(poutine.replay(guide, trace=fixed)).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*args, **kwargs)
        return self._scored(model_trace, guide_trace)

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
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
        **options: Of :class:`WeightedELBO`; ``num_particles`` is 10 by default.

    References:
        Masrani, Le, Wood, "The Thermodynamic Variational Objective", 2019, eq. 6 and 11.
    """

    name = "tvo"

    def __init__(self, partitions: int = 4, first_point: float = 0.025, **options: Unpack[Options]) -> None:
        options.setdefault("num_particles", 10)
        super().__init__(**options)
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

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
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
