r"""Log weights with discrete latent sites summed out.

.. math:: p(x) = E_{q(z|x,y)}\Big[\textstyle\sum_y \frac{p(x, y, z_y)}{q(z_y|x, y)}\Big]
"""

from __future__ import annotations

import math

import pyro
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.util import check_site_shape

from pyro_vae.inference.program.noise import Noise
from pyro_vae.inference.program.sites import (
    PARTICLES,
    Site,
    drawn_sites,
    plates_of,
    sample_sites,
    site_log_prob,
    with_value,
)
from pyro_vae.inference.program.traces import Pair
from pyro_vae.inference.weights.draws import Draws
from pyro_vae.inference.weights.enumeration import EnumerationSums, support_size
from pyro_vae.inference.weights.terms import EnumeratedTerms


class EnumeratedDraws(Draws[EnumeratedTerms]):
    r"""Draws of the guide; discrete sites marked for enumeration are summed out.

    .. math:: p(x_i) = E\Big[\tfrac1K \textstyle\sum_k \sum_y w_{kyi}\Big], \quad
        w_{kyi} = \frac{p(x_i, y, z_{kyi})}{q(z_{kyi}|x_i, y)}, \quad z_{kyi} \sim q(z|x_i, y)

    Here y stands for the enumerated sites, x_i for datum i, and z for the other latent sites. Each of the K draws has
    one value of z for each combination of values of y. There are two kinds of enumerated sites:

    - Sites that the guide enumerates: the ELBO averages over their values with the weights q(y|x); log w sums over
      their values without these weights.
    - Sites that only the model enumerates: they are first summed out of p(x|z) and p(z). They may be missing in the
      guide.

    A masked enumerated site, such as a known label under ``obs_mask``, counts once, not once for each value. Sites
    marked ``"sequential"`` are drawn, not enumerated. Sites that the guide observes are left out of log q. If the guide
    draws no site, all K draws give the same terms, and the sum is exact.

    Attributes:
        num_values: Number of combinations of values of the enumerated sites. One draw of one datum needs this number of
            rows.
        first: Terms computed from the first trace, K = 1; see :class:`EnumeratedTerms`.

    Raises:
        ValueError: If ``log_weights`` refuses the model or guide. Also if an enumerated site is in a plate inside a
            datum, is in the guide but not in the model, is enumerated only in part (``num_samples``), or shares its
            axis with another site (``pyro.markov``).
    """

    def _prepare(self) -> None:
        for name in self.sites:
            trace = self.guide_trace if name in self.guide_trace.nodes else self.model_trace
            self._check_site(name, trace.nodes[name], name in self.model_trace.nodes)
        pair = self._traces(None)
        for trace in pair if is_validation_enabled() else ():
            for _, site in sample_sites(trace):
                check_site_shape({**site, "log_prob": site_log_prob(site)}, self.data_plate.nesting)
        self.first = self._sums(pair, 1)
        self.num_values = math.prod(support_size(pair, name) for name in self.sites)

    def _check_site(self, name: str, site: Site, in_model: bool) -> None:
        within = [
            frame.name
            for frame in plates_of(site).values()
            if frame.name != self.data_plate.plate and frame.vectorized and frame.size > 1
        ]
        if within:
            raise ValueError(
                f"enumerated site {name!r}: expected the data plate only, got plate {within[0]!r} too; use one site for all "
                "combinations of a datum's elements, or remove the enumeration mark."
            )
        if site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"enumerated site {name!r}: the sum needs all values, but num_samples is set; remove num_samples, or remove "
                "the enumeration mark to sample the site."
            )
        if not in_model:
            raise ValueError(
                f"enumerated site {name!r}: missing from the model; remove the enumeration mark to sample the site."
            )

    def __call__(self, num_samples: int) -> EnumeratedTerms:
        """Draw K times.

        Args:
            num_samples: K, the number of draws.

        Returns:
            Terms of log w, each of shape ``(K, B)``, nats.
        """
        return self._together(num_samples, lambda num, _: self._draw(num))

    def eagerly(self, num_samples: int, _noise: Noise | None = None, _start: int = 0, /) -> EnumeratedTerms:
        """Draw by running model and guide, with torch's random generator."""
        if not self.vectorize:
            return self._sums(self._traces(None), 1)
        pair = self._traces(num_samples)
        terms = self._sums(pair, num_samples)
        if not self._compared:
            self._compare(terms, self._alone(pair.guide))
        return terms

    def _traces(self, num_samples: int | None, values: Trace | None = None) -> Pair:
        """Return traces of K draws with enumerated sites.

        If ``num_samples`` is None, make one draw without the plate over draws.
        """
        model, guide = self.model, self.guide if values is None else poutine.replay(self.guide, trace=values)
        nesting = self.data_plate.nesting
        if num_samples is not None:
            nesting += 1
            particles = pyro.plate(PARTICLES, num_samples, dim=-nesting)
            model, guide = particles(model), particles(guide)
        guide_trace = poutine.trace(EnumMessenger(-1 - nesting)(guide)).get_trace(*self.args, **self.kwargs)
        # The model's enumeration axes lie left of the guide's enumeration axes.
        model = EnumMessenger()(poutine.replay(model, trace=guide_trace))
        return Pair(poutine.trace(model).get_trace(*self.args, **self.kwargs), guide_trace)

    def _alone(self, guide_trace: Trace) -> EnumeratedTerms:
        """Compute the terms of the first draw again, without the outer plate."""
        axis = -1 - self.data_plate.nesting
        values = Trace()
        for name, site in drawn_sites(guide_trace):
            if name not in self.sites:
                values.add_node(name, **with_value(site, site["value"].select(axis - site["fn"].event_dim, 0)))
        return self._sums(self._traces(None, values), 1)

    def _sums(self, pair: Pair, num_samples: int) -> EnumeratedTerms:
        return EnumerationSums(pair, self.data_plate, self.sites).terms(num_samples)
