"""Simulated data: ranks of the true latents among a guide's draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import pyro
import torch
from pyro import poutine, validation_enabled
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.evidence.simulation import Simulated
from pyro_vae.inference.program.sites import (
    PARTICLES,
    Site,
    drawn_sites,
    is_auxiliary_loss,
    sample_sites,
    site_log_prob,
)
from pyro_vae.inference.program.traces import Program
from pyro_vae.inference.weights.log_weights import ProposalDraws

LOG_JOINT, LOG_Q = "log p(x, z)", "log q(z|x)"


class Scored(NamedTuple):
    """K latents for each of B data, with their log densities.

    Attributes:
        units: Latents by site name, shape ``(K, B, U)``, where U is the number of units of the site for one datum.
        log_joint: log p(x, z), shape ``(K, B)``, nats.
        log_q: log q(z|x), shape ``(K, B)``, nats; None if the guide cannot compute it for latents that it did not draw.
    """

    units: dict[str, Tensor]
    log_joint: Tensor
    log_q: Tensor | None

    def quantities(self) -> dict[str, Tensor]:
        """Values of the quantities to rank, by name, each ``(K, B)``.

        The quantities are each unit of each latent site, log p(x, z), and log q(z|x) if ``log_q`` is known.
        """
        values = {}
        for site, units in self.units.items():
            for j, unit in enumerate(units.unbind(-1)):
                values[site if units.shape[-1] == 1 else f"{site}[{j}]"] = unit
        logs = {LOG_JOINT: self.log_joint} | ({} if self.log_q is None else {LOG_Q: self.log_q})
        return values | logs


class Ranking:
    """The ranking of a simulated batch's true latents among a guide's draws.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        simulated: Data from the model with their true latents.
        plate: See ``log_weights``.
        vectorize: See ``log_weights``.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        simulated: Simulated,
        plate: str | None = None,
        vectorize: bool = True,
    ) -> None:
        self.model, self.guide, self.simulated = model, guide, simulated
        checked = ProposalDraws(model, guide, simulated.args, simulated.kwargs, plate, vectorize=vectorize)
        if vectorize:
            checked(2)  # tries an outer plate, and warns if the program does not run in one
        self.data_plate, self.vectorize = checked.data_plate, checked.vectorize
        sites = [site for _, site in sample_sites(checked.guide_trace)]
        #: True if the guide can score every z; False if a site passes on the draw of another site.
        self.has_log_q = not any(site["infer"].get("is_auxiliary", False) for site in sites)
        at_truth = poutine.trace(poutine.replay(model, trace=_trace_of(simulated.latents)))
        sites_at_truth = dict(sample_sites(at_truth.get_trace(*simulated.args, **simulated.kwargs)))
        self.event_dims = {name: sites_at_truth[name]["fn"].event_dim for name in simulated.latents}

    def ranks(self, num: int, chunk_rows: int) -> tuple[tuple[str, ...], Tensor]:
        """Rank the truth among draws from the guide; break ties at random.

        Args:
            num: Number of draws, L.
            chunk_rows: Largest product (draws * data) in one call of the model, but at least one draw.

        Returns:
            Names of the Q quantities, and their ranks for B data, shape ``(B, Q)``, int64, 0 to L.

        Raises:
            ValueError: If a log density is NaN.
        """
        truth = self.truth().quantities()
        below: dict[str, Tensor] = {
            name: torch.zeros_like(value[0], dtype=torch.int64) for name, value in truth.items()
        }
        tied = {name: count.clone() for name, count in below.items()}
        size = max(1, chunk_rows // max(1, self.data_plate.size))
        for done in range(0, num, size):
            for name, drawn in self.draws(min(size, num - done)).quantities().items():
                less, equal = _below_and_tied(drawn, truth[name], name)
                below[name] += less.sum(0)
                tied[name] += equal.sum(0)
        counts = torch.stack(list(below.values()), 1).cpu()
        ties = torch.stack(list(tied.values()), 1).cpu()
        return tuple(truth), counts + (torch.rand(ties.shape, dtype=torch.float64) * (ties + 1)).long()

    def truth(self) -> Scored:
        """Return the true latents with their log densities, K = 1."""
        latents = self.simulated.latents
        if self.vectorize:
            latents = {name: self._padded(value, self.event_dims[name]) for name, value in latents.items()}
        return self._score(1, latents)

    def draws(self, num: int) -> Scored:
        """Return ``num`` draws from the guide for each datum, with log densities."""
        if self.vectorize:
            return self._score(num)
        parts = [self._score(1) for _ in range(num)]
        log_q = [part.log_q for part in parts if part.log_q is not None]
        return Scored(
            {name: torch.cat([part.units[name] for part in parts]) for name in parts[0].units},
            torch.cat([part.log_joint for part in parts]),
            torch.cat(log_q) if log_q else None,
        )

    def _score(self, num: int, latents: Mapping[str, Tensor] | None = None) -> Scored:
        guide = self.guide if latents is None else poutine.replay(self.guide, trace=_trace_of(latents))
        args, kwargs = self.simulated.args, self.simulated.kwargs
        with validation_enabled(False), self._particles(num):  # Pyro's checks do not know the particle axis
            q = poutine.trace(guide).get_trace(*args, **kwargs)
            values = latents or {name: q.nodes[name]["value"] for name in self.simulated.latents}
            p = poutine.trace(poutine.replay(self.model, trace=_trace_of(values))).get_trace(*args, **kwargs)
        units = {name: self._units(value, self.event_dims[name]) for name, value in values.items()}
        return Scored(
            units, self._log_prob(sample_sites(p)), self._log_prob(drawn_sites(q)) if self.has_log_q else None
        )

    def _particles(self, num: int) -> AbstractContextManager[object]:
        return pyro.plate(PARTICLES, num, dim=-self.data_plate.nesting - 1) if self.vectorize else nullcontext()

    def _log_prob(self, sites: Iterable[tuple[str, Site]]) -> Tensor:
        terms = [self.data_plate.per_datum(site_log_prob(site)) for _, site in sites if not is_auxiliary_loss(site)]
        return torch.stack(terms).sum(0)

    def _units(self, value: Tensor, event_dim: int) -> Tensor:
        """Reshape a site's value to ``(K, B, U)``, U numbers per datum."""
        kept = self._padded(value, event_dim).movedim(self.data_plate.dim - event_dim, 1)
        return kept.reshape(*kept.shape[:2], -1)

    def _padded(self, value: Tensor, event_dim: int) -> Tensor:
        """Expand a site's value to all dimensions, the axis of draws first."""
        missing = self.data_plate.nesting + 1 + event_dim - value.dim()
        return value.reshape((1,) * missing + value.shape)


def _below_and_tied(drawn: Tensor, truth: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return masks of the draws below the truth and of those equal.

    Log densities that differ only by rounding count as equal.

    Raises:
        ValueError: If ``drawn`` or ``truth`` contains NaN.
    """
    if bool(drawn.isnan().any()) or bool(truth.isnan().any()):
        raise ValueError(f"{name}: expected numbers, got NaN for a simulated datum; calibrate a model without NaN.")
    equal = drawn == truth
    if name in (LOG_JOINT, LOG_Q):
        size = torch.maximum(drawn.abs(), truth.abs()).clamp(min=1)
        equal |= (drawn - truth).abs() <= (100 * torch.finfo(drawn.dtype).eps * size).clamp(max=0.01)
    return (drawn < truth) & ~equal, equal


def _trace_of(values: Mapping[str, Tensor]) -> Trace:
    """Make a trace that holds given values; programs replay the trace."""
    trace = Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    return trace
