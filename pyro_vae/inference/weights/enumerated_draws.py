r"""Log weights with discrete latent sites summed over instead of drawn.

.. math:: p(x) = E_{q(z|x,y)}\Big[\textstyle\sum_y \frac{p(x, y, z_y)}{q(z_y|x, y)}\Big]
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pyro
import torch
from pyro import poutine, validation_enabled
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.guide import GuideMessenger
from pyro.util import check_site_shape

from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.program.data_plate import check_match, check_scales, find_data_plate, warn_one_by_one
from pyro_vae.inference.program.sites import PARTICLES, Site, drawn_sites, plates_of, sample_sites, site_log_prob
from pyro_vae.inference.program.traces import Pair, Program, subsamples
from pyro_vae.inference.weights.enumeration import EnumeratedSums, EnumeratedTerms, enumerated_sites, support_size
from pyro_vae.system.devices import explain_device_error


class EnumeratedDraws:
    r"""Draws from the guide for one batch of data, its marked discrete sites y summed over; see :class:`EnumeratedTerms`.

    .. math:: p(x_i) = E\Big[\tfrac1K \textstyle\sum_k \sum_y w_{kyi}\Big], \quad
        w_{kyi} = \frac{p(x_i, y, z_{kyi})}{q(z_{kyi}|x_i, y)}, \quad z_{kyi} \sim q(z|x_i, y)

    Called as ``ProposalDraws`` is. K counts the draws of z for each combination of values of y. A site enumerated in the
    guide is summed under q in the ELBO, and without q in log w; one enumerated in the model alone is summed out of p(x|z)
    and p(z) first. Where a mask leaves an enumerated site out, as ``obs_mask`` does for a datum whose label is known, it
    counts once, whatever its number of values. Sites marked ``"sequential"`` are drawn. What a guide observes, as it does
    with ``obs_mask``, is no draw and enters nothing. Without discrete sites that are
    drawn, every draw gives the same: the sum is exact.

    Args:
        model: A Pyro model.
        guide: Its guide; sites that the model enumerates need not be in it.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        plate: Name of the data plate, see :func:`find_data_plate`.
        outer_scale: ``"refuse"`` a ``poutine.scale`` other than 1 on a site, or ``"ignore"`` it.
        vectorize: Draw all K in one call, in an outer plate; else in K calls.
        captured: Compiles all draws but the first call's; None: eager ones.

    Attributes:
        data_plate: Where the data lie.
        sites: Names of the enumerated sites.
        fixed: The draws of subsampling sites, which all calls share.
        num_values: Number of combinations of their values: a draw makes that many rows for each datum.
        first: The terms of one draw, K = 1, at no further cost.

    Raises:
        ValueError: What ``log_weights`` refuses; if an enumerated site is in a plate within a datum, is in the guide alone,
            is enumerated in part (``num_samples``), or shares its axis with another (``pyro.markov``).
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        plate: str | None = None,
        outer_scale: Literal["refuse", "ignore"] = "refuse",
        vectorize: bool = True,
        captured: Any = None,
    ) -> None:
        if outer_scale not in ("refuse", "ignore"):
            raise ValueError(f"outer_scale: expected 'refuse' or 'ignore', got {outer_scale!r}.")
        if isinstance(poutine.unwrap(guide), GuideMessenger):
            raise ValueError(
                f"guide: expected a function with sample sites of its own, got the messenger {type(guide).__name__}, which "
                "runs the model itself; use its counterpart among the autoguides, such as AutoNormal."
            )
        self.args, self.kwargs, self.vectorize, self.captured = args, kwargs, vectorize, captured
        # Drawn once without enumeration, which needs to know how deep the plates are.
        self.guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        drawn = poutine.trace(poutine.replay(model, trace=self.guide_trace)).get_trace(*args, **kwargs)
        self.sites = enumerated_sites(drawn, self.guide_trace)
        common = drawn.copy()
        for name in self.sites:
            if name not in self.guide_trace.nodes:
                common.remove_node(name)
        check_match(common, self.guide_trace)
        check_kl_scales(common, self.guide_trace)
        if outer_scale == "refuse":
            check_scales(drawn, self.guide_trace)
        self.data_plate = find_data_plate(drawn, self.guide_trace, plate)
        for name in self.sites:
            site = (self.guide_trace if name in self.guide_trace.nodes else drawn).nodes[name]
            self._check_site(name, site, name in drawn.nodes)
        # Every call sees the same data: the draws of subsampling sites stay as they are.
        self.fixed = subsamples(Pair(drawn, self.guide_trace))
        self.model, self.guide = poutine.replay(model, trace=self.fixed), poutine.replay(guide, trace=self.fixed)
        self._compared = False
        pair = self._traces(None)
        for trace in pair if is_validation_enabled() else ():
            for _, site in sample_sites(trace):
                site_log_prob(site)
                check_site_shape({**site, "log_prob": site_log_prob(site)}, self.data_plate.nesting)
        self.first = self._sums(pair, 1).terms()
        self.num_values = math.prod(support_size(pair, name) for name in self.sites)

    def _check_site(self, name: str, site: Site, in_model: bool) -> None:
        within = [
            frame.name
            for frame in plates_of(site).values()
            if frame.name != self.data_plate.plate and frame.vectorized and frame.size > 1
        ]
        if within:
            raise ValueError(
                f"enumerated site {name!r}: expected in the data plate alone, got in {within[0]!r} too; make the elements of "
                "one datum one site with all their combinations, or take the mark off to sample it."
            )
        if site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"enumerated site {name!r}: expected all its values, got num_samples; take num_samples off to sum over it, "
                "or the mark to sample it."
            )
        if not in_model:
            raise ValueError(
                f"enumerated site {name!r}: expected in the model, got in the guide alone; take the mark off to sample it."
            )

    def __call__(self, num_samples: int) -> EnumeratedTerms:
        """Draw.

        Args:
            num_samples: K.

        Returns:
            The terms, each of shape ``(K, B)``, nats.
        """
        with validation_enabled(False):  # the first traces were validated, and those checks know no particle axis
            if self.vectorize:
                try:
                    return self._draw(num_samples)
                except (RuntimeError, ValueError, IndexError) as error:
                    if explain_device_error(error) is not None:  # the device's fault, and no better one by one
                        raise
                    warn_one_by_one(error)
                    self.vectorize = False
            terms = [self._draw(1) for _ in range(num_samples)]
            return EnumeratedTerms(*(torch.cat(part) for part in zip(*terms, strict=True)))

    def _draw(self, num_samples: int) -> EnumeratedTerms:
        if self.captured is not None and self._compared and not torch.is_grad_enabled():
            found = self.captured(self, num_samples)
            if found is not None:
                return found
        return self.eagerly(num_samples)

    def eagerly(self, num_samples: int) -> EnumeratedTerms:
        """Draw by running model and guide; see :meth:`__call__`."""
        if not self.vectorize:
            return self._sums(self._traces(None), 1).terms()
        pair = self._traces(num_samples)
        terms = self._sums(pair, num_samples).terms()
        if not self._compared:
            self._compare(terms, pair.guide)
        return terms

    def _traces(self, num_samples: int | None, values: Trace | None = None) -> Pair:
        """Model and guide, enumerated, with K draws in an outer plate, or one without it (None)."""
        model, guide = self.model, self.guide if values is None else poutine.replay(self.guide, trace=values)
        deep = self.data_plate.nesting
        if num_samples is not None:
            deep += 1
            particles = pyro.plate(PARTICLES, num_samples, dim=-deep)
            model, guide = particles(model), particles(guide)
        guide_trace = poutine.trace(EnumMessenger(-1 - deep)(guide)).get_trace(*self.args, **self.kwargs)
        # The second messenger goes on where the first stopped: the model's axes lie to the left of the guide's.
        model = EnumMessenger()(poutine.replay(model, trace=guide_trace))
        return Pair(poutine.trace(model).get_trace(*self.args, **self.kwargs), guide_trace)

    def _compare(self, terms: EnumeratedTerms, guide_trace: Trace) -> None:
        """Refuse to trust an outer plate under which a draw has other weights than alone; see ``ProposalDraws``."""
        axis = -1 - self.data_plate.nesting
        values = Trace()
        for name, site in drawn_sites(guide_trace):
            if name not in self.sites:
                value = site["value"].select(axis - site["fn"].event_dim, 0)
                values.add_node(name, **{**site, "value": value})
        alone = self._sums(self._traces(None, values), 1).terms()
        for ours, single in zip(terms, alone, strict=True):
            if not torch.allclose(ours[:1], single, rtol=1e-3, atol=1e-3, equal_nan=True):
                raise ValueError("a draw has other weights there than alone")
        self._compared = True

    def _sums(self, pair: Pair, num_samples: int) -> EnumeratedSums:
        return EnumeratedSums(pair, self.data_plate, self.sites, num_samples)
