r"""The base class of the importance-weighted objectives.

Each objective is a function of the K tempered log weights of a datum, one for each draw z_k:

.. math:: a_k = \log p(x|z_k) + \beta (\log p(z_k) - \log q(z_k|x))

Here beta is the KL weight; at :math:`\beta = 1` the tempered log weights are the log importance weights. The data
plate's scale N/B (N data, batch size B) and a ``poutine.scale`` multiply the bound of a datum, not the log weights, so
the loss remains correct when the data plate is subsampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypedDict, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
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
    r"""Logarithm of a power mean of the importance weights.

    .. math:: \frac{1}{1-\alpha} \log \tfrac1K \textstyle\sum_k w_k^{1-\alpha}

    At alpha = 0, this is the importance-weighted bound. In the limit alpha = 1, it is the mean of the log weights,
    which estimates the ELBO. Near alpha = 1, the code averages deviations from the largest log weight, to avoid
    cancellation before the division by 1 - alpha.

    Args:
        log_w: Log importance weights, shape ``(K, ...)``, nats.
        alpha: One minus the order of the power mean, a real number.

    Returns:
        Logarithm of the power mean, shape ``(...)``, nats.
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
    """Optional arguments of :class:`WeightedELBO`."""

    num_particles: int
    vectorize_particles: bool
    max_plate_nesting: float
    retain_graph: bool | None
    plate: str | None


class WeightedELBO(Bound):
    """Base class for objectives that are functions of log importance weights.

    Args:
        num_particles: K, the number of draws for each datum.
        vectorize_particles: Make all K draws in one call of the guide, inside an outermost plate. If model or guide
            fails inside that plate, or if the plate changes the log weights, the draws are made one by one, and a
            warning is issued.
        max_plate_nesting: Number of batch dimensions that the plates of model and guide use. If infinite, it is found
            by a run of both.
        retain_graph: See ``pyro.infer.ELBO``.
        plate: Name of the data plate; needed if several plates enclose every site.

    Attributes:
        name: Name of the objective in messages.
        least_particles: Smallest allowed K.
        reparameterized: True if all latent sites must be reparameterized.

    Raises:
        TypeError: If ``num_particles`` is not a whole number.
        ValueError: If ``num_particles`` is below ``least_particles``.
    """

    name: ClassVar[str] = ""
    least_particles: ClassVar[int] = 1
    reparameterized: ClassVar[bool] = True

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
        self._known: tuple[Program, Program] | None = None
        self._known_plate: DataPlate | None = None

    def value(self, log_w: Tensor) -> Tensor:
        """Compute the bound from log weights, differentiably.

        Args:
            log_w: Log importance weights, shape ``(K, B)``, nats. In training they are tempered by the KL weight.

        Returns:
            Bound of each datum, shape ``(B,)``, nats, higher is better.
        """
        raise NotImplementedError

    def _bound(
        self, model: Program, guide: Program, args: Args, kwargs: Kwargs, plate: str | None, outer_scale: OuterScale
    ) -> Tensor:
        draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, self.vectorize_particles)
        check_sites(Pair(draws.model_trace, draws.guide_trace), self.name, self.reparameterized)
        return self.value(draws(self.num_draws).log_w)

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """Compute loss, rate and distortion; see :meth:`Bound.terms`."""
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
        """Draw K times; return the log-probabilities and a surrogate bound.

        The surrogate bound has the shape ``(B,)``, in nats. Training follows its gradient.
        """
        particles = self._cat([self._reduce(pair) for pair in self._pairs(model, guide, args, kwargs)])
        return particles, self.value(particles.log_w)

    @property
    def _data_plate(self) -> DataPlate:
        assert self._known_plate is not None
        return self._known_plate

    def _reduce(self, pair: Pair) -> Particles:
        return reduce(pair, self._data_plate.at(pair.model))

    def _prepare(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> None:
        """Find the data plate, check the sites, test the plate over draws."""
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
        self._known_plate = draws.data_plate
        self._known = model, guide

    def _check_beta(self, pair: Pair) -> None:
        if self.takes_beta:
            return
        for trace in pair:
            for name, site in sample_sites(trace):
                if site.get("kl_scales"):
                    raise ValueError(
                        f"{self.name}: this objective has no KL to weight, but site {name!r} has a KL weight; remove beta, or "
                        "use elbo('trace')."
                    )

    def _pairs(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Iterator[Pair]:
        """Yield pairs of traces: one for all draws, or one per draw."""

        def pair(model: Program, guide: Program) -> tuple[Pair, Pair]:
            drawn = self._pair(model, guide, args, kwargs)
            return drawn, drawn

        return self._drawn(pair, model, guide)

    def _drawn(self, draw: Callable[[Program, Program], tuple[Pair, T]], model: Program, guide: Program) -> Iterator[T]:
        """Yield results of ``draw``: one for all draws, or one per draw.

        Args:
            draw: Function that takes a model and a guide, and returns a pair of traces and a result. All draws use the
                data that the first pair subsampled.
            model: A Pyro model.
            guide: A guide of the model.
        """
        if self.vectorize_particles and self.num_draws > 1:
            plate = pyro.plate(PLATE, self.num_draws, dim=-self._data_plate.nesting - 1)
            yield draw(plate(model), plate(guide))[1]
            return
        for number in range(self.num_draws):
            pair, result = draw(model, guide)
            if number == 0:
                model, guide = keep_subsample(pair, model, guide)
            yield result

    def _pair(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Pair:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return self._scored(model_trace, guide_trace)

    def _scored(self, model_trace: Trace, guide_trace: Trace) -> Pair:
        check_kl_scales(model_trace, guide_trace)
        if is_validation_enabled():
            check_match(model_trace, guide_trace)
        for trace in (model_trace, guide_trace):
            poutine.util.prune_subsample_sites(trace).compute_log_prob()
            for _, site in sample_sites(trace) if is_validation_enabled() else ():
                check_site_shape(site, math.inf)
        return Pair(model_trace, guide_trace)

    def _cat(self, parts: Sequence[Particles]) -> Particles:
        """Join draws that were made one by one: concatenate over K."""
        if len(parts) == 1:
            return parts[0]
        arrays = {name: torch.cat([getattr(part, name) for part in parts]) for name in ARRAYS}
        return parts[0]._replace(**arrays, extra=torch.stack([part.extra for part in parts]).mean())
