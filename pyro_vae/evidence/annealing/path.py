r"""The annealing path: densities between a start and the posterior.

.. math:: \log f_\beta(u) = a(u) + \beta\, b(u), \quad z = T(u)

=========  ==================================  ==========================================
start      :math:`a`                           :math:`b`
=========  ==================================  ==========================================
prior      :math:`\log p(z) + \log|T'|`        :math:`\log p(x|z)`
guide      :math:`\log q(z|x) + \log|T'|`      :math:`\log p(x, z) - \log q(z|x)`
=========  ==================================  ==========================================

:math:`f_0` is the normalized density of the start, :math:`f_1 = p(x, z) |T'|`. The densities between :math:`f_0` and
:math:`f_1` are geometric averages of the two. All densities are functions of the unconstrained latents u, for each chain and
datum.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Literal, NamedTuple

import pyro
import torch
from pyro import poutine, validation_enabled
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.evidence.annealing.enumerated import enumerate_sites, keep_sites, sum_out
from pyro_vae.evidence.annealing.unconstrained import FromUnconstrained, LatentBlock, LatentVector, ToUnconstrained
from pyro_vae.inference.program.sites import (
    PARTICLES,
    base_name,
    drawn_sites,
    is_auxiliary_loss,
    sample_sites,
    site_log_prob,
    with_value,
)
from pyro_vae.inference.program.traces import Args, Kwargs, Program, prior_guide
from pyro_vae.inference.weights.compiled import trust
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.inference.weights.log_weights import EnumeratedSiteError, ProposalDraws
from pyro_vae.system.devices import explain_device_error

Start = Literal["prior", "guide"]


class Terms(NamedTuple):
    r"""Parts a and b of the log density :math:`a + \beta b`.

    Attributes:
        base: Part a, shape ``(C, B)``, nats.
        slope: Coefficient b of beta, shape ``(C, B)``, nats.
    """

    base: Tensor
    slope: Tensor


class AnnealingPath:
    r"""Densities from a start to p(x, z), for one batch of data.

    .. math:: \log f_\beta(u) = a(u) + \beta\, b(u), \quad z = T(u)

    A bijection maps the latents of a datum, of any continuous support, to one vector u of real numbers. Discrete latents that
    the guide or the model marks for enumeration are summed out of each density (see ``sum_out``). Chains run in an outermost
    plate. A program that does not run in this plate is evaluated chain by chain, with a warning.

    Args:
        model: A Pyro model whose latents are continuous, or marked for enumeration.
        guide: The guide of the model; None is allowed if the path starts at the prior.
        args: Positional arguments of model and guide.
        kwargs: Keyword arguments of model and guide.
        start: The density at beta = 0, ``"prior"`` or ``"guide"``.
        plate: See :func:`log_weights`.
        outer_scale: See :func:`log_weights`.

    Attributes:
        data_plate: The data plate.
        latents: Layout of a datum's vector u.
        summed_sites: Names of the latent sites that are summed out.
        guide_trace: Trace of the guide's first call.
        fixed: Subsamples of the plates, which stay the same in every call.
        vectorize: True if all chains run in one call.

    Raises:
        ValueError: See :func:`log_weights`. Also if a latent site is discrete and not marked, if the path starts at a guide
            without a density, if there are no data, or if p(x, z) changes from call to call.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | None,
        args: Args,
        kwargs: Kwargs,
        start: Start = "prior",
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
    ) -> None:
        if start not in ("prior", "guide"):
            raise ValueError(f"start: expected 'prior' or 'guide', got {start!r}.")
        if guide is None and start == "guide":
            raise ValueError("start: 'guide' needs a guide, but guide is None; pass a guide or start='prior'.")
        try:
            draws = _proposal(model, guide or prior_guide(model), args, kwargs, plate, outer_scale)
        except ZeroDivisionError:  # Pyro's error for a plate of size 0
            raise ValueError("data: expected at least one datum, got none; pass at least one row.") from None
        self.data_plate, self.model, self.guide, self.fixed = draws.data_plate, draws.model, draws.guide, draws.fixed
        self.guide_trace: Trace = draws.guide_trace
        self.args, self.kwargs, self.start, self.vectorize = args, kwargs, start, True
        self.summed_sites = list(draws.sites) if isinstance(draws, EnumeratedDraws) else []
        if start == "guide":
            _check_density(self.guide_trace)
            for _, site in sample_sites(self.guide_trace):
                trust(site["fn"])  # a value outside the support has density 0, which is no error on the path
        self.latents = self._find_latents()
        self._check_chains()

    @property
    def dim(self) -> int:
        """Length U of a datum's vector of unconstrained latents."""
        return self.latents.size

    @torch.no_grad()
    def draw(self, num_chains: int, source: Start | None = None) -> Tensor:
        """Draw latents independently from the prior or the guide.

        Args:
            num_chains: Number of chains, C.
            source: ``"prior"`` or ``"guide"``; None: the start of the path.

        Returns:
            Unconstrained latents, shape ``(C, B, U)``.
        """
        program = self.guide if (source or self.start) == "guide" else prior_guide(self.model)
        calls = [num_chains] if self.vectorize else [1] * num_chains
        with validation_enabled(False):
            return torch.cat([self._draw_in_one_call(program, num) for num in calls])

    def _draw_in_one_call(self, program: Program, num_chains: int) -> Tensor:
        trace = self._trace(program, num_chains)
        return self._unconstrain({b.name: trace.nodes[b.name]["value"] for b in self.latents.blocks}, num_chains)

    @torch.no_grad()
    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Convert the values of latent sites to unconstrained vectors.

        Args:
            values: z of each latent site, by the name of the site, in the shape that the model draws, with or without a leading
                dimension of chains.

        Returns:
            Unconstrained latents, shape ``(C, B, U)``; C is 1 if the values have no dimension of chains.

        Raises:
            ValueError: If a site is missing, or a value has the wrong shape.
        """
        stacked = self.latents.stack(values)
        with validation_enabled(False):
            if self.vectorize:
                return self._unconstrain(stacked, len(next(iter(stacked.values()))))
            return torch.cat([self._unconstrain(chain, 1) for chain in self.latents.chains(stacked)])

    def terms(self, u: Tensor) -> Terms:
        """Compute parts a and b of the log density; differentiable in u.

        Args:
            u: Unconstrained latents, shape ``(C, B, U)``.
        """
        logs = self.log_densities(u)
        if self.start == "prior":
            return Terms(logs["prior"] + logs["jacobian"], logs["likelihood"])
        return Terms(logs["guide"] + logs["jacobian"], logs["prior"] + logs["likelihood"] - logs["guide"])

    def log_likelihood(self, u: Tensor) -> Tensor:
        """Compute log p(x|z), shape ``(C, B)``, nats, without gradient."""
        return self.log_densities(u)["likelihood"].detach()

    def log_densities(self, u: Tensor) -> dict[str, Tensor]:
        """Evaluate the log densities that a and b consist of.

        The results are differentiable in u.

        Args:
            u: Unconstrained latents, shape ``(C, B, U)``.

        Returns:
            Log densities by name: ``prior``, ``likelihood``, ``jacobian`` (log|T'|) and, if the path starts at the guide,
            ``guide``. Each has shape ``(C, B)``, nats.
        """
        latents = self.latents.split(u)
        with validation_enabled(False):
            if self.vectorize:
                return self._log_densities_in_one_call(latents, len(u))
            each = [self._log_densities_in_one_call(chain, 1) for chain in self.latents.chains(latents)]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    def _log_densities_in_one_call(self, latents: dict[str, Tensor], num_chains: int) -> dict[str, Tensor]:
        with FromUnconstrained(latents) as placed:
            trace = self._trace(self._enumerated(self.model), num_chains)
        jacobians = [scale_and_mask(j, mask=trace.nodes[name]["mask"]) for name, j in placed.jacobians.items()]
        if self.summed_sites:
            likelihood, prior = sum_out(trace, self.data_plate, self.summed_sites, num_chains)
        else:
            sites = [site for _, site in sample_sites(trace) if not is_auxiliary_loss(site)]
            likelihood = self._per_datum([site_log_prob(s) for s in sites if s["is_observed"]], num_chains)
            prior = self._per_datum([site_log_prob(s) for s in sites if not s["is_observed"]], num_chains)
        logs = {"prior": prior, "likelihood": likelihood, "jacobian": self._per_datum(jacobians, num_chains)}
        if self.start == "guide":
            logs["guide"] = self._guide_log_prob(placed.values, num_chains)
        return logs

    def _per_datum(self, terms: list[Tensor], num_chains: int) -> Tensor:
        """Sum log-probabilities over all dimensions but those of chains and data."""
        shape = (num_chains, self.data_plate.size)
        return sum(map(self.data_plate.per_datum, terms), start=terms[0].new_zeros(shape)).expand(shape)

    def _guide_log_prob(self, values: dict[str, Tensor], num_chains: int) -> Tensor:
        sites = dict(drawn_sites(self.guide_trace))
        if len(sites) == 1:  # no site depends on the draw of another: the encoder runs once
            ((name, site),) = sites.items()
            return self._per_datum([site_log_prob(with_value(site, values[name]))], num_chains)
        trace = self._trace(self._enumerated(poutine.condition(self.guide, data=values)), num_chains)
        if self.summed_sites:
            summed = [name for name in self.summed_sites if name in sites]
            given, drawn = sum_out(keep_sites(trace, sites), self.data_plate, summed, num_chains)
            return given + drawn
        # All sites are observed in a conditioned guide.
        return self._per_datum([site_log_prob(trace.nodes[name]) for name in sites], num_chains)

    def _enumerated(self, program: Program) -> Program:
        if not self.summed_sites:
            return program
        return enumerate_sites(program, self.summed_sites, self.data_plate.nesting + self.vectorize)

    def _trace(self, program: Program, num_chains: int) -> Trace:
        with ExitStack() as stack:
            if self.vectorize:
                stack.enter_context(pyro.plate(PARTICLES, num_chains, dim=-self.data_plate.nesting - 1))
            return poutine.trace(program).get_trace(*self.args, **self.kwargs)

    def _unconstrain(self, values: dict[str, Tensor], num_chains: int) -> Tensor:
        """Convert latents to vectors by one call of the model.

        The vectors have shape ``(C, B, U)``.
        """
        with ToUnconstrained(values) as found:
            self._trace(self.model, num_chains)
        return self.latents.join(found.free, num_chains)

    def _find_latents(self) -> LatentVector:
        values = {n: s["value"] for n, s in drawn_sites(self.guide_trace) if n not in self.summed_sites}
        with torch.no_grad(), validation_enabled(False), ToUnconstrained(values) as found:
            poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        if not found.sites:
            if self.summed_sites:
                raise ValueError(
                    f"model: annealing needs a continuous latent site, but all latent sites are summed out: "
                    f"{self.summed_sites}; use importance_sampling, which gives the exact sum."
                )
            raise ValueError("model: expected a latent site, got none; without latents, log p(x) needs no estimate.")
        blocks = (LatentBlock.of(n, site, found.free[n], self.data_plate) for n, site in found.sites.items())
        return LatentVector(tuple(blocks))

    @torch.no_grad()
    def _check_chains(self) -> None:
        """Switch to chain-by-chain calls if a plate of chains does not work.

        The plate does not work if the model fails in it, or if it changes the densities.

        Raises:
            ValueError: If the densities change from call to call.
        """
        try:
            u = self.draw(2)
            together, again = self.terms(u), self.terms(u)
        except (RuntimeError, ValueError, IndexError) as error:
            if explain_device_error(error) is not None:  # the device would also fail chain by chain
                raise
            return self._go_chain_by_chain(f"does not run inside an outer plate ({error})")
        if not all(map(_close, together, again)):
            raise ValueError(
                "model: expected the same log p(x, z) at each call, got different values for the same z (dropout?); put the "
                "networks into eval() mode."
            )
        self.vectorize = False
        alone = self.terms(u)
        self.vectorize = True
        if not all(map(_close, together, alone)):
            self._go_chain_by_chain("has different densities inside an outer plate")
        return None

    def _go_chain_by_chain(self, reason: str) -> None:
        self.vectorize = False
        warnings.warn(
            f"annealing: this program {reason}; the chains run one by one, which is slower. Index from the last dimension "
            "(z[..., 0], not z[:, 0]).",
            stacklevel=5,
        )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def _proposal(
    model: Program, guide: Program, args: Args, kwargs: Kwargs, plate: str | None, outer_scale: OuterScale
) -> ProposalDraws | EnumeratedDraws:
    try:
        return ProposalDraws(model, guide, args, kwargs, plate, outer_scale, refuse_enumerated=True)
    except EnumeratedSiteError:
        return EnumeratedDraws(model, guide, args, kwargs, plate, outer_scale)


def _check_density(guide_trace: Trace) -> None:
    """Refuse a guide without a density for every value of the latents.

    Raises:
        ValueError: If a guide site is a Delta or auxiliary.
    """
    for name, site in drawn_sites(guide_trace):
        if base_name(site["fn"]) == "Delta" or site["infer"].get("is_auxiliary", False):
            raise ValueError(
                f"guide site {name!r}: expected a density over the model's latents, got an auxiliary site or a Delta; pass "
                "start='prior'."
            )
