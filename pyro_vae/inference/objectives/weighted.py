r"""Importance-weighted objectives for any Pyro model and guide, right under plate subsampling and outer scales.

All are functions of the tempered log weights :math:`a_k = \log p(x|z_k) + \beta (\log p(z_k) - \log q(z_k|x))` of each
datum; at :math:`\beta = 1` these are the log importance weights. N/B and outer scales enter after the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.util import check_site_shape
from torch import Tensor

from pyro_vae.errors import check_count
from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.objectives.bound import Bound, Terms
from pyro_vae.inference.objectives.particles import Particles, check_sites, reduce
from pyro_vae.inference.program.checks import check_match
from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, keep_subsample
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.inference.weights.log_weights import ProposalDraws
from pyro_vae.system.randomness import own_randomness

T = TypeVar("T")
PLATE = "num_particles_vectorized"
ARRAYS = ("log_likelihood", "log_ratio", "log_w", "log_q", "score")


def log_mean_exp(log_w: Tensor, alpha: float = 0.0) -> Tensor:
    r"""The power mean of order :math:`1 - \alpha` of the weights, as a log.

    .. math:: \frac{1}{1-\alpha} \log \tfrac1K \textstyle\sum_k w_k^{1-\alpha}

    At 0 the importance-weighted bound, in the limit 1 the mean of log w: the ELBO. Near 1 the deviations from the
    largest weight are averaged, so that nothing cancels in the division.

    Args:
        log_w: Log weights, shape ``(K, ...)``, nats.
        alpha: The order.

    Returns:
        Shape ``(...)``, nats.
    """
    if alpha == 1:
        return log_w.mean(0)
    if abs(1 - alpha) > 0.1:
        return ((1 - alpha) * log_w).logsumexp(0).sub(math.log(len(log_w))) / (1 - alpha)
    largest = log_w.detach().amax(0)
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    scaled = (1 - alpha) * (log_w - largest)
    near = scaled.abs().amax(0) <= 1
    mean = torch.where(near, scaled, 0.0).expm1().mean(0).log1p()
    far = torch.where(near, 0.0, scaled).logsumexp(0) - math.log(len(log_w))
    return largest + torch.where(near, mean, far) / (1 - alpha)


class Options(TypedDict, total=False):
    """Options of :class:`WeightedELBO`."""

    num_particles: int
    vectorize_particles: bool
    max_plate_nesting: float
    retain_graph: bool | None
    plate: str | None


class WeightedELBO(Bound, pyro.infer.ELBO):
    """What the importance-weighted objectives share; see each for its bound.

    Args:
        num_particles: K, draws for each datum.
        vectorize_particles: Draw them in one call, in an outermost plate; a program that does not run there, or has
            other weights there, is drawn from one by one, with a warning.
        max_plate_nesting: How many batch dimensions the program's plates use; infinite: found by running it.
        retain_graph: As in Pyro.
        plate: Name of the data plate, where several enclose every site.

    Raises:
        TypeError: If ``num_particles`` is no whole number.
        ValueError: If there are too few draws.
    """

    name = ""
    least_particles = 1
    reparameterized = True
    takes_beta = True

    def __init__(
        self,
        num_particles: int = 5,
        *,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        plate: str | None = None,
    ) -> None:
        super().__init__(
            num_particles=num_particles, max_plate_nesting=max_plate_nesting, retain_graph=retain_graph, plate=plate
        )
        self.vectorize_particles = vectorize_particles
        check_count("num_particles", num_particles, self.least_particles, f" for {self.name}")
        self._known: tuple[Any, Any] | None = None
        self._data_plate: DataPlate | None = None

    @property
    def num_draws(self) -> int:
        """Draws of the guide for each datum and step."""
        return self.num_particles

    def value(self, log_w: Tensor) -> Tensor:
        """The bound as a function of the log weights: shape ``(K, B)`` to ``(B,)``, nats; differentiable."""
        raise NotImplementedError

    def _bound(
        self, model: Program, guide: Program, args: Args, kwargs: Kwargs, plate: str | None, outer_scale: OuterScale
    ) -> Tensor:
        draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, self.vectorize_particles)
        check_sites(Pair(draws.model_trace, draws.guide_trace), self.name, self.reparameterized)
        return self.value(draws(self.num_draws).log_w)

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """The loss with its rate and distortion, from one set of draws; see :class:`Terms`."""
        self._prepare(model, guide, args, kwargs)
        particles, surrogate = self._surrogate(model, guide, args, kwargs)
        bound = self.value(particles.log_w)
        loss = -(particles.scale * bound).sum() - particles.extra
        better = -(particles.scale * surrogate).sum() - particles.extra
        return Terms(
            loss.detach() + (better - better.detach()) if surrogate is not bound else loss,
            -particles.log_likelihood.detach().mean(0).sum(),
            -particles.log_ratio.detach().mean(0).sum(),
        )

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
        """The draws, and for each datum, shape ``(B,)``, an expression whose gradient is the one to follow."""
        particles = self._cat(self._reduce(pair) for pair in self._pairs(model, guide, args, kwargs))
        return particles, self.value(particles.log_w)

    @property
    def _layout_(self) -> DataPlate:
        assert self._data_plate is not None
        return self._data_plate

    def _reduce(self, pair: Pair) -> Particles:
        return reduce(pair, self._layout_.at(pair.model))

    def _prepare(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> None:
        """Before the first loss of a pair: find the data_plate, check the sites, and try out the particle axis."""
        if self._known is not None and self._known[0] is model and self._known[1] is guide:
            return
        with own_randomness(), torch.no_grad():
            draws = ProposalDraws(model, guide, args, kwargs, self.plate, "ignore", self.vectorize_particles)
            pair = Pair(draws.model_trace, draws.guide_trace)
            check_sites(pair, self.name, self.reparameterized)
            self._check_beta(pair)
            if self.vectorize_particles and self.num_draws > 1:
                draws(2)
                self.vectorize_particles = draws.vectorize
        self._data_plate = draws.data_plate
        self._known = model, guide

    def _check_beta(self, pair: Pair) -> None:
        if self.takes_beta:
            return
        for trace in pair:
            for name, site in sample_sites(trace):
                if site.get("kl_scales"):
                    raise ValueError(
                        f"{self.name}: expected no weight of the KL, got one at site {name!r}, but this objective has no such "
                        "term; drop beta, or use elbo('trace')."
                    )

    def _pairs(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Iterator[Pair]:
        """Pairs of traces: one with a particle axis, or one for each draw."""

        def pair(model: Program, guide: Program) -> tuple[Pair, Pair]:
            found = self._pair(model, guide, args, kwargs)
            return found, found

        return self._drawn(pair, model, guide)

    def _drawn(self, draw: Callable[[Program, Program], tuple[Pair, T]], model: Program, guide: Program) -> Iterator[T]:
        """What ``draw`` makes of model and guide: once, with a particle axis, or once for each draw.

        Args:
            draw: To a pair of traces, whose subsamples all draws keep, and what is asked for.
            model: The model.
            guide: The guide.
        """
        if self.vectorize_particles and self.num_draws > 1:
            plate = pyro.plate(PLATE, self.num_draws, dim=-self._layout_.nesting - 1)
            yield draw(plate(model), plate(guide))[1]
            return
        for number in range(self.num_draws):
            pair, found = draw(model, guide)
            if number == 0:
                model, guide = keep_subsample(pair, model, guide)
            yield found

    def _pair(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Pair:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return self._scored(model_trace, guide_trace)

    def _scored(self, model_trace: Any, guide_trace: Any) -> Pair:
        check_kl_scales(model_trace, guide_trace)
        if is_validation_enabled():
            check_match(model_trace, guide_trace)
        for trace in (model_trace, guide_trace):
            poutine.util.prune_subsample_sites(trace).compute_log_prob()
            for _, site in sample_sites(trace) if is_validation_enabled() else ():
                check_site_shape(site, math.inf)
        return Pair(model_trace, guide_trace)

    def _cat(self, parts: Iterator[Particles]) -> Particles:
        """Draws made one by one as one set."""
        found = list(parts)
        if len(found) == 1:
            return found[0]
        arrays = {name: torch.cat([getattr(part, name) for part in found]) for name in ARRAYS}
        return found[0]._replace(**arrays, extra=torch.stack([part.extra for part in found]).mean())
