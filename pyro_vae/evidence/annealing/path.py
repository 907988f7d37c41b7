r"""The path of densities from a start to the posterior, as a function of unconstrained latents, for each chain and datum.

.. math:: \log f_\beta(u) = a(u) + \beta\, b(u), \quad z = T(u)

=========  ==================================  ==========================================
start      :math:`a`                           :math:`b`
=========  ==================================  ==========================================
prior      :math:`\log p(z) + \log|T'|`        :math:`\log p(x|z)`
guide      :math:`\log q(z|x) + \log|T'|`      :math:`\log p(x, z) - \log q(z|x)`
=========  ==================================  ==========================================

:math:`f_0` is the start's normalized density, :math:`f_1 = p(x, z) |T'|`; those between are their geometric averages.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine, validation_enabled
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.evidence.annealing.enumerated import enumerated, only, summed
from pyro_vae.evidence.annealing.unconstrained import Place, Unconstrain, part_of
from pyro_vae.inference.program.sites import (
    PARTICLES,
    base_name,
    drawn_sites,
    is_auxiliary_loss,
    sample_sites,
    site_log_prob,
)
from pyro_vae.inference.program.traces import prior_guide
from pyro_vae.inference.weights.compiled import trust
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.inference.weights.log_weights import EnumeratedSiteError, ProposalDraws
from pyro_vae.system.devices import explain_device_error

Start = Literal["prior", "guide"]


class Terms(NamedTuple):
    """The two parts of a path's log density, each of shape ``(C, B)``, nats: ``base + beta * slope``."""

    base: Tensor
    slope: Tensor


class AnnealingPath:
    """Densities of one batch of data on the path from a start to p(x, z), with the latents of a datum as one vector.

    Latents are mapped to all real numbers by the bijection of their support, so every continuous one is taken; discrete ones
    that guide or model mark for enumeration are summed out of each density (see ``summed``). Chains are an outermost plate;
    a program that does not run in one is evaluated chain by chain, with a warning.

    Args:
        model: A Pyro model whose latents are continuous, or marked for enumeration.
        guide: Its guide; None where the start is the prior.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        start: The density at which the path begins, ``"prior"`` or ``"guide"``.
        plate: See :func:`log_weights`.
        outer_scale: See :func:`log_weights`.

    Attributes:
        data_plate: Where the data are.
        dim: U, the size of a datum's vector.
        sites: Names of the latent sites that are summed out.
        guide_trace: The guide's first trace.
        fixed: The subsamples that every call sees.

    Raises:
        ValueError: See :func:`log_weights`; and if a latent site is discrete and not marked, the start is the guide and it has
            no density, there are no data, or p(x, z) is another one at each call.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        start: Start = "prior",
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
    ) -> None:
        if start not in ("prior", "guide"):
            raise ValueError(f"start: expected 'prior' or 'guide', got {start!r}.")
        if guide is None and start == "guide":
            raise ValueError("start: expected 'prior' where there is no guide, got 'guide'; pass a guide.")
        try:
            draws = _first_draws(model, guide or prior_guide(model), args, kwargs, plate, outer_scale)
        except ZeroDivisionError:  # a plate of size 0, in Pyro's words
            raise ValueError("data: expected at least one datum, got none; pass some.") from None
        self.data_plate, self.model, self.guide, self.fixed = draws.data_plate, draws.model, draws.guide, draws.fixed
        self.guide_trace: Trace = draws.guide_trace
        self.args, self.kwargs, self.start, self.vectorize = args, kwargs, start, True
        self.sites = list(draws.sites) if isinstance(draws, EnumeratedDraws) else []
        if start == "guide":
            _check_density(self.guide_trace)
            for _, site in sample_sites(self.guide_trace):
                trust(site["fn"])  # where a path leaves the support its density is 0, no error
        self._parts = self._find_parts()
        self.dim = sum(part.size for part in self._parts)
        self._check_chains()

    @torch.no_grad()
    def draw(self, num_chains: int, source: Start | None = None) -> Tensor:
        """Independent draws of the prior or the guide.

        Args:
            num_chains: C.
            source: From which; None: the path's start.

        Returns:
            Unconstrained latents, shape ``(C, B, U)``.
        """
        program = self.guide if (source or self.start) == "guide" else prior_guide(self.model)
        calls = [num_chains] if self.vectorize else [1] * num_chains
        drawn = []
        with validation_enabled(False):
            for num in calls:
                trace = self._trace(program, num)
                drawn.append(self._free({part.name: trace.nodes[part.name]["value"] for part in self._parts}, num))
        return torch.cat(drawn)

    @torch.no_grad()
    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Latents as vectors.

        Args:
            values: z of each latent site, in the shape in which the model draws it, or with one more dimension for chains
                in front.

        Returns:
            Unconstrained latents, shape ``(C, B, U)``; C is 1 where there is no dimension for it.

        Raises:
            ValueError: If a site is missing, or a value has another shape.
        """
        stacked = {}
        for part in self._parts:
            if part.name not in values:
                raise ValueError(f"posterior_draws: expected a value of latent site {part.name!r}, got none.")
            value, shape = values[part.name], tuple(part.alone + part.event)
            if tuple(value.shape) not in (shape, (len(value), *shape)):
                raise ValueError(
                    f"posterior_draws: expected {part.name!r} of shape {shape}, or with chains in front, got "
                    f"{tuple(value.shape)}."
                )
            stacked[part.name] = value.to(part.dtype).reshape(-1, *part.batch, *part.event)
        num = min(len(value) for value in stacked.values())
        if num != max(len(value) for value in stacked.values()):
            raise ValueError(
                "posterior_draws: expected as many chains at every site, got several numbers; draw them together."
            )
        with validation_enabled(False):
            if self.vectorize:
                return self._free(stacked, num)
            alone = {p.name: stacked[p.name].reshape(-1, *p.alone, *p.event) for p in self._parts}
            return torch.cat([self._free({k: v[c] for k, v in alone.items()}, 1) for c in range(num)])

    def terms(self, u: Tensor) -> Terms:
        """The path's log density at ``u``, shape ``(C, B, U)``; differentiable."""
        sums = self.sums(u)
        if self.start == "prior":
            return Terms(sums["prior"] + sums["jacobian"], sums["likelihood"])
        return Terms(sums["guide"] + sums["jacobian"], sums["prior"] + sums["likelihood"] - sums["guide"])

    def sums(self, u: Tensor) -> dict[str, Tensor]:
        """Prior, likelihood, log|T'| and, where it is the start, guide at ``u``; each of shape ``(C, B)``, nats."""
        pieces = zip(self._parts, u.split([part.size for part in self._parts], -1), strict=True)
        latents = {part.name: part.unflatten(piece) for part, piece in pieces}
        with validation_enabled(False):
            if self.vectorize:
                return self._sums(latents, len(u))
            alone = {p.name: latents[p.name].reshape(-1, *p.alone, *p.free) for p in self._parts}
            each = [self._sums({k: v[c] for k, v in alone.items()}, 1) for c in range(len(u))]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    def _sums(self, latents: dict[str, Tensor], num: int) -> dict[str, Tensor]:
        with Place(latents) as place:
            trace = self._trace(self._enumerated(self.model), num)
        jacobians = [scale_and_mask(j, mask=trace.nodes[name]["mask"]) for name, j in place.jacobians.items()]
        if self.sites:
            likelihood, prior = summed(trace, self.data_plate, self.sites, num)
        else:
            kept = [site for _, site in sample_sites(trace) if not is_auxiliary_loss(site)]
            likelihood = self._per_datum([site_log_prob(s) for s in kept if s["is_observed"]], num)
            prior = self._per_datum([site_log_prob(s) for s in kept if not s["is_observed"]], num)
        found = {"prior": prior, "likelihood": likelihood, "jacobian": self._per_datum(jacobians, num)}
        if self.start == "guide":
            found["guide"] = self._guide_log_prob(place.values, num)
        return found

    def _per_datum(self, terms: list[Tensor], num: int) -> Tensor:
        shape = (num, self.data_plate.size)
        return sum(map(self.data_plate.per_datum, terms), start=terms[0].new_zeros(shape)).expand(shape)

    def _guide_log_prob(self, values: dict[str, Tensor], num: int) -> Tensor:
        sites = dict(drawn_sites(self.guide_trace))
        if len(sites) == 1:  # no site depends on another's draw: the encoder runs once for all
            ((name, site),) = sites.items()
            kept = {k: v for k, v in site.items() if k != "unscaled_log_prob"}
            return self._per_datum([site_log_prob({**kept, "value": values[name]})], num)
        trace = self._trace(self._enumerated(poutine.condition(self.guide, data=values)), num)
        if self.sites:
            given, drawn = summed(only(trace, sites), self.data_plate, [n for n in self.sites if n in sites], num)
            return given + drawn
        return self._per_datum(
            [site_log_prob(trace.nodes[name]) for name in sites], num
        )  # conditioned, all are observed

    def _enumerated(self, program: Callable[..., Any]) -> Callable[..., Any]:
        return enumerated(program, self.sites, self.data_plate.nesting + self.vectorize) if self.sites else program

    def _trace(self, program: Callable[..., Any], num: int) -> Trace:
        with ExitStack() as stack:
            if self.vectorize:
                stack.enter_context(pyro.plate(PARTICLES, num, dim=-self.data_plate.nesting - 1))
            return poutine.trace(program).get_trace(*self.args, **self.kwargs)

    def _free(self, values: dict[str, Tensor], num: int) -> Tensor:
        """Values of one call as vectors, shape ``(C, B, U)``."""
        with Unconstrain(values) as found:
            self._trace(self.model, num)
        shaped = [(p, found.free[p.name].reshape(num, *p.batch, *p.free)) for p in self._parts]
        return torch.cat([part.flatten(u) for part, u in shaped], -1)

    def _find_parts(self) -> list[Any]:
        values = {n: s["value"] for n, s in drawn_sites(self.guide_trace) if n not in self.sites}
        with torch.no_grad(), validation_enabled(False), Unconstrain(values) as found:
            poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        parts = [part_of(name, site, found.free[name], self.data_plate) for name, site in found.sites.items()]
        if not parts:
            if self.sites:
                raise ValueError(
                    f"model: expected a latent site for chains to move, got none but such as are summed over, {self.sites}; "
                    "use importance_sampling, which gives the exact sum."
                )
            raise ValueError("model: expected a latent site, got none; its log p(x) needs no estimate.")
        return parts

    @torch.no_grad()
    def _check_chains(self) -> None:
        """Go chain by chain where a chain has other densities in the plate than alone; refuse densities that are random."""
        try:
            u = self.draw(2)
            together, again = self.terms(u), self.terms(u)
        except (RuntimeError, ValueError, IndexError) as error:
            if explain_device_error(error) is not None:  # the device's fault, and no better one by one
                raise
            return self._give_up(f"does not run inside an outer plate ({error})")
        if not all(map(_close, together, again)):
            raise ValueError(
                "model: expected the same log p(x, z) at each call, got another for the same z (dropout?); put its networks "
                "into eval() mode."
            )
        self.vectorize = False
        alone = self.terms(u)
        self.vectorize = True
        if not all(map(_close, together, alone)):
            self._give_up("has other densities inside an outer plate than alone")
        return None

    def _give_up(self, reason: str) -> None:
        self.vectorize = False
        warnings.warn(
            f"annealing: this program {reason}; going chain by chain instead, which is slower. Let it use its last dimensions "
            "alone (z[..., 0], not z[:, 0]).",
            stacklevel=5,
        )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def _first_draws(*given: Any) -> ProposalDraws | EnumeratedDraws:
    once: Callable[..., ProposalDraws] = partial(ProposalDraws, refuse_enumerated=True)
    try:
        return once(*given)
    except EnumeratedSiteError:
        return EnumeratedDraws(*given)


def _check_density(guide_trace: Trace) -> None:
    """Refuse a guide whose density cannot be had at any z.

    Raises:
        ValueError: If a site is a Delta, or auxiliary.
    """
    for name, site in drawn_sites(guide_trace):
        if base_name(site["fn"]) == "Delta" or site["infer"].get("is_auxiliary", False):
            raise ValueError(
                f"guide site {name!r}: expected a density over the model's latents, got one by way of an auxiliary site or a "
                "Delta; pass start='prior'."
            )
