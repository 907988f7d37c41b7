"""Reweighted wake-sleep and the thermodynamic variational objective."""

from __future__ import annotations

from itertools import pairwise
from typing import Unpack

from pyro import poutine
from torch import Tensor

from pyro_vae.errors import check_count, check_number
from pyro_vae.inference.objectives.particles import Particles
from pyro_vae.inference.objectives.weighted import Options, WeightedELBO, log_mean_exp
from pyro_vae.inference.program.sums import RunningSum
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, detached, with_values


class RWS(WeightedELBO):
    r"""Reweighted wake-sleep, with wake-phase updates of model and guide.

    .. math:: \nabla_\theta = \textstyle\sum_k \tilde w_k \nabla_\theta \log p(x, z_k), \qquad
        \nabla_\phi = \sum_k \tilde w_k \nabla_\phi \log q(z_k|x)

    This objective works with any sites, even discrete sites, since draws are not differentiated. The method ``bound``
    and the loss return the value of the importance-weighted bound, a lower bound. The model's gradient is an unbiased
    gradient of this bound. The guide's gradient estimates the gradient of -KL(p(z|x) || q(z|x)). Its weights are
    self-normalized, which causes a bias that falls with K. A KL weight is refused, since the loss contains no KL(q ||
    p) term. K must be at least 2.

    Args:
        *args: See :class:`WeightedELBO`; ``num_particles`` is K.
        **options: See :class:`WeightedELBO`.

    References:
        Bornschein, Bengio, "Reweighted Wake-Sleep", 2015, eq. 9-10; Le et al., "Revisiting Reweighted Wake-Sleep for
        Models with Stochastic Control Flow", 2019.
    """

    name = "rws"
    least_particles = 2
    reparameterized = False
    takes_beta = False
    self_normalized = True

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_mean_exp(log_w)

    def _pair(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Pair:
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        fixed = with_values(drawn, detached)
        guide_trace = poutine.trace(poutine.replay(guide, trace=fixed)).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*args, **kwargs)
        return self._scored(model_trace, guide_trace)

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
        particles, bound = super()._surrogate(model, guide, args, kwargs)
        weights = particles.log_w.detach().softmax(0)
        # The bound contributes -sum_k w_k log q. Adding 2 sum_k w_k log q gives the wake-phase update of q.
        return particles, bound + 2 * (weights * particles.log_q).sum(0)


class TVO(RWS):
    r"""The thermodynamic variational objective.

    .. math:: \textstyle\sum_{j=1}^{J} (t_j - t_{j-1})\, E_{\pi_{t_{j-1}}}[\log w] \le \log p(x),
        \qquad \pi_t(z) \propto q(z|x)^{1-t} p(x, z)^t

    The objective is a left Riemann sum along the path :math:`\pi_t` from q(z|x) at t = 0 to p(z|x) at t = 1. It works
    with any sites, even discrete sites: the gradient has the covariance form of the paper, so draws are not
    differentiated. The exact sum is a lower bound. At J = 1 it equals the ELBO; with more points it is tighter. The
    estimate may be biased up or down, since its expectations are self-normalized over K draws of q; the bias falls with
    K. A KL weight is refused. K must be at least 2.

    Args:
        partitions: J, the number of intervals, at least 1. The path has the points 0, then J - 1 points evenly spaced in
            log t that start at ``first_point``, then 1.
        first_point: The first point after 0, in (0, 1).
        **options: See :class:`WeightedELBO`; ``num_particles`` is K, by default 10.

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
        """Points t of the path, in rising order from 0 to 1."""
        inner = self.partitions - 1
        steps = [self.first_point ** (1 - k / inner) for k in range(inner)]
        return [0.0, *steps, 1.0]

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        total = RunningSum()
        for start, end in pairwise(self.points):
            total.add((end - start) * ((start * log_w).softmax(0) * log_w).sum(0))
        return total.value()

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
        particles = self._cat([self._reduce(pair) for pair in self._pairs(model, guide, args, kwargs)])
        log_w, log_q = particles.log_w, particles.log_q
        fixed = log_w.detach()
        total = RunningSum()
        for start, end in pairwise(self.points):
            weights = (start * fixed).softmax(0)
            centred = fixed - (weights * fixed).sum(0)
            path = log_q + start * log_w  # log of q^(1-t) p^t, up to its normalizer
            total.add((end - start) * (weights * (log_w + centred * path)).sum(0))
        return particles, total.value()
