r"""Log importance weights: the array that objectives and estimators reduce.

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
    """A latent site that should be sampled is marked for enumeration."""


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
    r"""Log importance weights of a Pyro model and guide, per datum.

    .. math:: \log w_{ki} = \log p(x_i, z_{ki}) - \log q(z_{ki} | x_i), \quad z_{ki} \sim q(z | x_i)

    Their reductions over k are the ELBO, the importance-weighted bound and the estimate of log p(x). Masks are applied. A
    plate's N/B and the factors of ``scale_kl`` do not enter. Sites marked ``infer={"auxiliary_loss": True}`` are left out,
    and so are sites that the guide observes, since they are no draw of q. The result is differentiable, with
    reparameterized draws if the guide has them.

    The *data plate* is the one plate that encloses every observed and latent site. log w is summed over everything inside
    one of its elements. Sites marked for enumeration are sampled.

    Args:
        model: A Pyro model.
        guide: Its guide, over the same latent sites.
        *args: Positional arguments of both, as in ``SVI.step``.
        num_samples: K, at least 1.
        plate: Name of the data plate, if several enclose every site.
        outer_scale: ``"refuse"`` a ``poutine.scale`` other than 1 on a site, or ``"ignore"`` it.
        vectorize: Draw all K in one call, in an outermost plate; else in K calls. A program that fails inside such a
            plate is drawn from one by one, with a warning.
        **kwargs: Keyword arguments of both.

    Returns:
        Shape ``(K, B)``, nats.

    Raises:
        ValueError: If there is no data plate, a latent site lies outside it, model and guide disagree on latent sites,
            a site carries a scale that is not understood, the guide is a Delta over an improper prior, or
            ``num_samples`` is below 1.
    """
    check_count("num_samples", num_samples)
    draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, vectorize)
    refuse_points(draws.model_trace, draws.guide_trace)
    return draws(num_samples).log_w


class ProposalDraws(Draws[WeightTerms]):
    """Draws of the guide, with the two parts of log w.

    If the guide draws at one site, its distribution is kept, so the encoder runs once for any number of draws. With
    several sites a later one may depend on the draw of an earlier one, so the guide runs once a call, unless
    :meth:`encode_once` finds the sites independent.

    Args:
        model: See :class:`Draws`, for all but the last argument.
        guide: Likewise.
        args: Likewise.
        kwargs: Likewise.
        plate: Likewise.
        outer_scale: Likewise.
        vectorize: Likewise.
        captured: Likewise.
        refuse_enumerated: Refuse a latent site that is marked for enumeration; else sample it.

    Attributes:
        num_sites: Number of sites that the guide draws.

    Raises:
        ValueError: See :func:`log_weights`.
        EnumeratedSiteError: If a site is marked and ``refuse_enumerated``.
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
            # Scored once under the caller's validation: later calls are made without.
            prune_subsample_sites(trace).compute_log_prob()
            for _, site in sample_sites(trace) if is_validation_enabled() else ():
                check_site_shape(site, math.inf)
        self.num_sites = len(dict(drawn_sites(self.guide_trace)))
        self._encoded = self.num_sites == 1

    def _sites_to_sum(self, marked: list[str]) -> list[str]:
        if marked and self._refuse_enumerated:
            raise EnumeratedSiteError(f"latent sites {marked}: expected to be sampled, got marked for enumeration.")
        return []

    def __call__(self, num_samples: int, noise: Noise | None = None, start: int = 0) -> WeightTerms:
        """Draw K times.

        Args:
            num_samples: K.
            noise: Source of the noise of sites made of normals. Without it, and at other sites, torch's generator draws.
            start: Number of the first draw, for ``noise``.

        Returns:
            Log likelihood and log ratio, each of shape ``(K, B)``, nats.
        """
        return self._together(num_samples, lambda num, k: self._draw(num, noise, start + k))

    def encode_once(self) -> None:
        """Keep the distributions of all the guide's sites, if they are independent."""
        self._encoded = self._encoded or independent(self.guide, self.args, self.kwargs)

    @property
    def first(self) -> WeightTerms:
        """Terms of the first trace, K = 1, at no further cost."""
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
        """Terms of the first of K draws, with no outer plate."""
        values = Trace()
        for name, site in drawn_sites(guide_trace):
            node = self.guide_trace.nodes[name]
            values.add_node(name, **with_value(node, site["value"][0].reshape(node["value"].shape)))
        if len(values) > 1:  # a later site may depend on an earlier one
            values = poutine.trace(poutine.replay(self.guide, trace=values)).get_trace(*self.args, **self.kwargs)
        return self._reduce(self._replayed(values), values, 1)

    def _particles(self, num_samples: int) -> AbstractContextManager[object]:
        return pyro.plate(PARTICLES, num_samples, dim=-self.data_plate.nesting - 1) if self.vectorize else nullcontext()

    def _guide_trace(self, num_samples: int, noise: SiteNoise | None = None) -> Trace:
        """Trace of the guide with a leading particle axis."""
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
