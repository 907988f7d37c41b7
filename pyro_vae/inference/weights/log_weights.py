r"""Log importance weights, the input of objectives and estimators.

.. math:: \log w_{ki} = \log p(x_i, z_{ki}) - \log q(z_{ki} | x_i), \quad z_{ki} \sim q(z | x_i)
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor

from pyro_vae.errors import check_count
from pyro_vae.inference.program.checks import refuse_points
from pyro_vae.inference.program.independence import independent
from pyro_vae.inference.program.noise import Noise, NoiseMessenger, SiteNoise
from pyro_vae.inference.program.sites import (
    PARTICLES,
    drawn_sites,
    is_auxiliary_loss,
    sample_sites,
    site_log_prob,
    with_value,
)
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.inference.weights.draws import CompiledDraws, Draws, OuterScale
from pyro_vae.inference.weights.terms import WeightTerms


class EnumeratedSiteError(ValueError):
    """Error for a latent site that is marked for enumeration, not drawn."""


def log_weights(
    model: Program,
    guide: Program,
    *args: object,
    num_samples: int = 1,
    plate: str | None = None,
    outer_scale: OuterScale = "refuse",
    vectorize: bool = True,
    **kwargs: object,
) -> Tensor:
    r"""Log importance weights of a Pyro model and guide, for each datum.

    .. math:: \log w_{ki} = \log p(x_i, z_{ki}) - \log q(z_{ki} | x_i), \quad z_{ki} \sim q(z | x_i)

    Here i is the datum and k the draw. The ELBO, the importance-weighted bound and the estimate of log p(x) are
    reductions of the log weights over k. Masks are applied. The plates' scales N/B (N data, batch size B) and the KL
    weights of ``scale_kl`` are left out. Some sites are special:

    - Sites marked ``infer={"auxiliary_loss": True}`` are left out.
    - Sites that the guide observes are left out of log q, since q does not draw them.
    - Sites marked for enumeration are drawn.

    The *data plate* is the plate that encloses every observed and latent site. A datum is one element of the data
    plate, and log w is summed over all dimensions inside a datum. The log weights are differentiable, and the draws are
    reparameterized if the guide's distributions allow it.

    Args:
        model: A Pyro model.
        guide: A guide over the model's latent sites.
        *args: Positional arguments of model and guide, as in ``SVI.step``.
        num_samples: K, the number of draws, at least 1.
        plate: Name of the data plate; needed if several plates enclose every site.
        outer_scale: If a site has a ``poutine.scale`` other than 1: ``"refuse"`` raises an error, ``"ignore"`` leaves
            the scale out.
        vectorize: Make all K draws in one call of the guide, inside an outermost plate; if False, in K calls. If model
            or guide fails inside that plate, the draws are made one by one, and a warning is issued.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        Log importance weights, shape ``(K, B)``, nats.

    Raises:
        ValueError: If there is no data plate, a latent site lies outside the data plate, model and guide have different
            latent sites, a site has a ``poutine.scale``, a guide site is a Delta with an improper prior, or ``num_samples``
            is below 1.
    """
    check_count("num_samples", num_samples)
    draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, vectorize)
    refuse_points(draws.model_trace, draws.guide_trace)
    return draws(num_samples).log_w


class ProposalDraws(Draws[WeightTerms]):
    """Callable that draws from a guide and returns :class:`WeightTerms`.

    A guide with one latent site runs only once, since all draws can use the same distribution. In a guide with several
    latent sites, one site may depend on the draw of another, so the guide runs again at each call, unless
    :meth:`encode_once` finds that the sites are independent.

    Args:
        model: See :class:`Draws`, also for the arguments up to ``captured``.
        guide: See :class:`Draws`.
        args: See :class:`Draws`.
        kwargs: See :class:`Draws`.
        plate: See :class:`Draws`.
        outer_scale: See :class:`Draws`.
        vectorize: See :class:`Draws`.
        captured: See :class:`Draws`.
        refuse_enumerated: Refuse latent sites that are marked for enumeration; if False, draw them.

    Attributes:
        num_sites: Number of sites that the guide draws.

    Raises:
        ValueError: See :func:`log_weights`.
        EnumeratedSiteError: If ``refuse_enumerated`` is True and a site is marked for enumeration.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: Args,
        kwargs: Kwargs,
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
        vectorize: bool = True,
        captured: CompiledDraws | None = None,
        refuse_enumerated: bool = False,
    ) -> None:
        self._refuse_enumerated = refuse_enumerated
        super().__init__(model, guide, args, kwargs, plate, outer_scale, vectorize, captured)

    def _prepare(self) -> None:
        for trace in (self.guide_trace, self.model_trace):
            # Check log-probabilities once with the caller's validation; later calls run without validation.
            prune_subsample_sites(trace).compute_log_prob()
            for _, site in sample_sites(trace) if is_validation_enabled() else ():
                check_site_shape(site, math.inf)
        self.num_sites = len(dict(drawn_sites(self.guide_trace)))
        self._encoded = self.num_sites == 1

    def _sites_to_sum(self, marked: list[str]) -> list[str]:
        if marked and self._refuse_enumerated:
            raise EnumeratedSiteError(
                f"latent sites {marked}: expected sites to sample, got sites marked for enumeration; remove the marks."
            )
        return []

    def __call__(self, num_samples: int, noise: Noise | None = None, start: int = 0) -> WeightTerms:
        """Draw K times.

        Args:
            num_samples: K, the number of draws.
            noise: Function that returns standard normal numbers, used to draw sites made of normals. Other sites are
                drawn with torch's random generator, and so are all sites if ``noise`` is None.
            start: Index of the first draw, passed to ``noise``.

        Returns:
            Log-likelihood and log ratio, each of shape ``(K, B)``, nats.
        """
        return self._together(num_samples, lambda num, k: self._draw(num, noise, start + k))

    def encode_once(self) -> None:
        """If the guide's sites are independent, run the guide only once."""
        self._encoded = self._encoded or independent(self.guide, self.args, self.kwargs)

    @property
    def first(self) -> WeightTerms:
        """Terms computed from the first trace, K = 1: no new draw."""
        return self._reduce(self.model_trace, self.guide_trace, 1)

    def eagerly(self, num_samples: int, noise: Noise | None = None, start: int = 0, /) -> WeightTerms:
        """Draw by running model and guide; see :meth:`__call__`."""
        given = None if noise is None else SiteNoise(noise, self.data_plate, start, num_samples)
        guide_trace = self._guide_trace(num_samples, given)
        if given is not None:
            self.noise_shapes = given.shapes
        with self._particles(num_samples):
            model_trace = self._replayed(guide_trace)
        terms = self._reduce(model_trace, guide_trace, num_samples)
        if self.vectorize and not self._compared:
            self._compare(terms, self._alone(guide_trace))
        return terms

    def _replayed(self, guide_trace: Trace) -> Trace:
        return poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*self.args, **self.kwargs)

    def _alone(self, guide_trace: Trace) -> WeightTerms:
        """Compute the terms of the first draw again, without the outer plate."""
        values = Trace()
        for name, site in drawn_sites(guide_trace):
            node = self.guide_trace.nodes[name]
            values.add_node(name, **with_value(node, site["value"][0].reshape(node["value"].shape)))
        if len(values) > 1:  # a site may depend on the draw of an earlier site
            values = poutine.trace(poutine.replay(self.guide, trace=values)).get_trace(*self.args, **self.kwargs)
        return self._reduce(self._replayed(values), values, 1)

    def _particles(self, num_samples: int) -> AbstractContextManager[object]:
        return pyro.plate(PARTICLES, num_samples, dim=-self.data_plate.nesting - 1) if self.vectorize else nullcontext()

    def _guide_trace(self, num_samples: int, noise: SiteNoise | None = None) -> Trace:
        """Trace of the guide whose values have a leading particle axis."""
        if not self.vectorize or not self._encoded:
            given: AbstractContextManager[object] = nullcontext() if noise is None else NoiseMessenger(noise)
            with given, self._particles(num_samples):
                return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        trace = self.guide_trace.copy()
        for name, site in drawn_sites(self.guide_trace):
            missing = self.data_plate.nesting - len(site["fn"].batch_shape)
            value = None if noise is None else noise(name, site["fn"], False)
            if value is None:
                value = site["fn"](torch.Size((num_samples,) + (1,) * missing))
            trace.nodes[name] = with_value(site, value)
        return trace

    def _reduce(self, model_trace: Trace, guide_trace: Trace, num_samples: int) -> WeightTerms:
        likelihood: list[Tensor] = []
        ratio: list[Tensor] = []
        for _, site in sample_sites(model_trace):
            if not is_auxiliary_loss(site):
                (likelihood if site["is_observed"] else ratio).append(self.data_plate.per_datum(site_log_prob(site)))
        for _, site in drawn_sites(guide_trace):
            if not is_auxiliary_loss(site):
                ratio.append(-self.data_plate.per_datum(site_log_prob(site)))
        shape = (num_samples, self.data_plate.size)
        zero = likelihood[0].new_zeros(shape)
        return WeightTerms(sum(likelihood, start=zero).expand(shape), sum(ratio, start=zero).expand(shape))
