r"""The array everything else is a reduction of: log importance weights, one for each draw and datum.

.. math:: \log w_{ki} = \log p(x_i, z_{ki}) - \log q(z_{ki} | x_i), \quad z_{ki} \sim q(z | x_i)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol

import pyro
import torch
from pyro import poutine, validation_enabled
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor

from pyro_vae.errors import check_count
from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.program.data_plate import (
    check_match,
    check_scales,
    find_data_plate,
    refuse_points,
    warn_one_by_one,
)
from pyro_vae.inference.program.independence import independent
from pyro_vae.inference.program.noise import Noise, NoiseMessenger, NoiseShape, SiteNoise
from pyro_vae.inference.program.sites import PARTICLES, drawn_sites, is_auxiliary_loss, sample_sites, site_log_prob
from pyro_vae.inference.weights.enumeration import enumerated_sites
from pyro_vae.system.devices import explain_device_error

OuterScale = Literal["refuse", "ignore"]


class EnumeratedSiteError(ValueError):
    """A latent site is marked for enumeration, where draws of it were asked for."""


class WeightTerms(NamedTuple):
    r"""The two parts of log w, each of shape ``(K, B)``, nats: their sum is log w.

    Attributes:
        log_likelihood: log p(x|z), the observed sites. Its mean over draws is minus the distortion.
        log_ratio: log p(z) - log q(z|x), the latent sites. Its mean over draws is minus the rate.
    """

    log_likelihood: Tensor
    log_ratio: Tensor

    @property
    def log_w(self) -> Tensor:
        """Log importance weights, shape ``(K, B)``, nats."""
        return self.log_likelihood + self.log_ratio


def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: object,
    num_samples: int = 1,
    plate: str | None = None,
    outer_scale: OuterScale = "refuse",
    vectorize: bool = True,
    **kwargs: object,
) -> Tensor:
    r"""Log importance weights of any Pyro model and guide, for each draw and datum.

    .. math:: \log w_{ki} = \log p(x_i, z_{ki}) - \log q(z_{ki} | x_i), \quad z_{ki} \sim q(z | x_i)

    Masks are applied. A plate's N/B and the factors of ``scale_kl`` do not enter. Sites marked
    ``infer={"auxiliary_loss": True}`` are left out, and what the guide observes, which is no draw of q. Differentiable,
    with reparameterized draws where the guide has them.

    The *data plate* is the one plate that encloses every observed and latent site; log w is summed over everything
    inside one of its elements. Sites marked for enumeration are sampled.

    Args:
        model: A Pyro model.
        guide: Its guide, over the same latent sites.
        *args: What model and guide take, as in ``SVI.step``.
        num_samples: K, at least 1.
        plate: Name of the data plate, where several enclose every site.
        outer_scale: ``"refuse"`` a ``poutine.scale`` other than 1 on a site, or ``"ignore"`` it.
        vectorize: Draw all K in one call, in an outermost plate; else in K calls. A program that fails inside such a
            plate is drawn from one by one, with a warning.
        **kwargs: Likewise.

    Returns:
        Shape ``(K, B)``, nats.

    Raises:
        ValueError: If there is no data plate, a latent site lies outside it, model and guide disagree on latent sites,
            a site carries a scale that is not understood, the guide is a Delta over an improper prior, or
            ``num_samples`` is below 1.
    """
    check_count("num_samples", num_samples)
    draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, vectorize)
    refuse_points(draws._first, draws.guide_trace)
    return draws(num_samples).log_w


class CompiledDraws(Protocol):
    """Draws of a proposal by compiled graphs, shared between batches."""

    def __call__(
        self, draws: ProposalDraws, num_samples: int, noise: Noise | None = None, start: int = 0
    ) -> WeightTerms | None:
        """Draw as :class:`ProposalDraws` does; None if that must be done eagerly."""


class ProposalDraws:
    """Draws from the guide for one batch of data; each call gives the two parts of log w.

    The first trace finds the data_plate and is checked. Where the guide draws at one site, its distribution is kept, so
    that the encoder runs once however many draws follow; with several sites the guide runs once a call, since a
    later site may depend on the draw of an earlier one, unless :meth:`encode_once` finds that none does. A plate that
    subsamples keeps its first subsample.

    Args:
        model: A Pyro model.
        guide: Its guide.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        plate: Name of the data plate, see :func:`find_data_plate`.
        outer_scale: See :func:`log_weights`.
        vectorize: See :func:`log_weights`.
        captured: Compiles all draws but the first call's, and shares its graphs with other batches; None: eager ones.
        refuse_enumerated: Whether a latent site that is marked for enumeration is refused, not sampled.

    Attributes:
        num_sites: How many sites the guide draws.
        noise_shapes: What sites have taken of the noise that was given, by name.

    Raises:
        ValueError: See :func:`log_weights`.
        EnumeratedSiteError: If a site is marked and ``refuse_enumerated``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
        vectorize: bool = True,
        captured: CompiledDraws | None = None,
        refuse_enumerated: bool = False,
    ) -> None:
        if outer_scale not in ("refuse", "ignore"):
            raise ValueError(f"outer_scale: expected 'refuse' or 'ignore', got {outer_scale!r}.")
        self.model, self.args, self.kwargs, self.vectorize = model, args, kwargs, vectorize
        self.captured = captured
        if isinstance(poutine.unwrap(guide), GuideMessenger):
            raise ValueError(
                f"guide: expected a function with sample sites of its own, got the messenger {type(guide).__name__}, which "
                "runs the model itself; use its counterpart among the autoguides, such as AutoNormal."
            )
        self.guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.trace(poutine.replay(model, trace=self.guide_trace)).get_trace(*args, **kwargs)
        if refuse_enumerated and (marked := enumerated_sites(replayed, self.guide_trace)):
            raise EnumeratedSiteError(f"latent sites {marked}: expected to be sampled, got marked for enumeration.")
        check_match(replayed, self.guide_trace)
        check_kl_scales(replayed, self.guide_trace)
        if outer_scale == "refuse":
            check_scales(replayed, self.guide_trace)
        self.data_plate = find_data_plate(replayed, self.guide_trace, plate)
        for trace in (self.guide_trace, replayed):
            # Scored once under the caller's validation: later calls are made without.
            prune_subsample_sites(trace).compute_log_prob()
            for _, site in sample_sites(trace) if is_validation_enabled() else ():
                check_site_shape(site, math.inf)
        self._first = replayed
        self._compared = False
        self.num_sites = len(dict(drawn_sites(self.guide_trace)))
        self._encoded = self.num_sites == 1
        self.noise_shapes: dict[str, NoiseShape] = {}
        # Every call sees the same data: the draws of subsampling sites stay as they are.
        fixed = Trace()
        for trace in (self.guide_trace, replayed):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample" and name not in fixed:
                    fixed.add_node(name, **site)
        self.fixed = fixed
        self.model = poutine.replay(model, trace=fixed)
        self.guide = poutine.replay(guide, trace=fixed)

    def __call__(self, num_samples: int, noise: Noise | None = None, start: int = 0) -> WeightTerms:
        """Draw.

        Args:
            num_samples: K.
            noise: Where sites made of normals have their noise from; None, and for other sites: torch's generator.
            start: Number of the first draw, by which ``noise`` knows it.

        Returns:
            Log likelihood and log ratio, each of shape ``(K, B)``, nats.
        """
        with validation_enabled(False):  # the first trace was validated, and those checks know no particle axis
            if self.vectorize:
                try:
                    return self._draw(num_samples, noise, start)
                except (RuntimeError, ValueError, IndexError) as error:
                    if explain_device_error(error) is not None:  # the device's fault, and no better one by one
                        raise
                    warn_one_by_one(error)
                    self.vectorize = False
            terms = [self._draw(1, noise, start + k) for k in range(num_samples)]
            return WeightTerms(*(torch.cat(part) for part in zip(*terms, strict=True)))

    def encode_once(self) -> None:
        """Keep the distributions of all the guide's sites, if none depends on the draw of another."""
        self._encoded = self._encoded or independent(self.guide, self.args, self.kwargs)

    @property
    def first(self) -> WeightTerms:
        """The draw of the first trace, K = 1: at no further cost."""
        return self._reduce(self._first, self.guide_trace, 1)

    def _draw(self, num_samples: int, noise: Noise | None, start: int) -> WeightTerms:
        if self.captured is not None and self._compared and not torch.is_grad_enabled():
            found = self.captured(self, num_samples, noise, start)
            if found is not None:
                return found
        return self.eagerly(num_samples, noise, start)

    def eagerly(self, num_samples: int, noise: Noise | None = None, start: int = 0) -> WeightTerms:
        """Draw by running model and guide; see :meth:`__call__`."""
        given = None if noise is None else SiteNoise(noise, self.data_plate, start, num_samples)
        guide_trace = self._guide_trace(num_samples, given)
        if given is not None:
            self.noise_shapes = given.shapes
        with self._particles(num_samples):
            model_trace = self._replayed(guide_trace)
        terms = self._reduce(model_trace, guide_trace, num_samples)
        if self.vectorize and not self._compared:
            self._compare(terms, guide_trace)
        return terms

    def _replayed(self, guide_trace: Trace) -> Trace:
        return poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*self.args, **self.kwargs)

    def _compare(self, terms: WeightTerms, guide_trace: Trace) -> None:
        """Refuse to trust an outer plate under which a draw has other weights than alone.

        A program that indexes from the left, ``z[:, 0]``, may run there without an error and mix up draws and data.
        """
        values = Trace()
        for name, site in drawn_sites(guide_trace):
            node = dict(self.guide_trace.nodes[name])
            node.pop("unscaled_log_prob")
            values.add_node(name, **{**node, "value": site["value"][0].reshape(node["value"].shape)})
        if len(values) > 1:  # a later site may depend on an earlier one
            values = poutine.trace(poutine.replay(self.guide, trace=values)).get_trace(*self.args, **self.kwargs)
        alone = self._reduce(self._replayed(values), values, 1)
        for ours, single in zip(terms, alone, strict=True):
            if not torch.allclose(ours[:1], single, rtol=1e-3, atol=1e-3, equal_nan=True):
                raise ValueError("a draw has other weights there than alone")
        self._compared = True

    def _particles(self, num_samples: int) -> AbstractContextManager[Any]:
        return pyro.plate(PARTICLES, num_samples, dim=-self.data_plate.nesting - 1) if self.vectorize else nullcontext()

    def _guide_trace(self, num_samples: int, noise: SiteNoise | None = None) -> Trace:
        """A trace of the guide with a leading particle axis."""
        if not self.vectorize or not self._encoded:
            given: AbstractContextManager[Any] = nullcontext() if noise is None else NoiseMessenger(noise)
            with given, self._particles(num_samples):
                return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        trace = self.guide_trace.copy()
        for name, site in drawn_sites(self.guide_trace):
            missing = self.data_plate.nesting - len(site["fn"].batch_shape)
            value = None if noise is None else noise(name, site["fn"], False)
            if value is None:
                value = site["fn"](torch.Size((num_samples,) + (1,) * missing))
            trace.nodes[name] = {**site, "value": value}
            trace.nodes[name].pop("unscaled_log_prob", None)
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
