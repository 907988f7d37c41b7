"""Draws from the guide beside the latents that the data were made from, and how each is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

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
from pyro_vae.inference.weights.log_weights import ProposalDraws

LOG_JOINT, LOG_Q = "log p(x, z)", "log q(z|x)"


class Scored(NamedTuple):
    """Latents and their log densities; K of them for each datum.

    Attributes:
        units: The latents of each site, one column a number, shape ``(K, B, U)``.
        log_joint: log p(x, z), shape ``(K, B)``, nats.
        log_q: log q(z|x), likewise; None where the guide cannot say it of latents that it did not draw.
    """

    units: dict[str, Tensor]
    log_joint: Tensor
    log_q: Tensor | None

    def quantities(self) -> dict[str, Tensor]:
        """What is ranked, by name: each unit of each site, log p(x, z), and log q(z|x) where it is known; each ``(K, B)``."""
        found = {}
        for site, units in self.units.items():
            for j, unit in enumerate(units.unbind(-1)):
                found[site if units.shape[-1] == 1 else f"{site}[{j}]"] = unit
        logs = {LOG_JOINT: self.log_joint} | ({} if self.log_q is None else {LOG_Q: self.log_q})
        return found | logs


class Ranking:
    """Scores draws from the guide, and the true latents, for one batch of simulated data.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: Its guide.
        simulated: Data from the model, with their latents.
        plate: See ``log_weights``.
        vectorize: See ``log_weights``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        simulated: Simulated,
        plate: str | None = None,
        vectorize: bool = True,
    ) -> None:
        self.model, self.guide, self.simulated = model, guide, simulated
        checked = ProposalDraws(model, guide, simulated.args, simulated.kwargs, plate, vectorize=vectorize)
        if vectorize:
            checked(2)  # finds out whether the program runs in an outer plate, and says so where it does not
        self.data_plate, self.vectorize = checked.data_plate, checked.vectorize
        sites = [site for _, site in sample_sites(checked.guide_trace)]
        #: Whether log q(z|x) can be had of any z: not where a site hands on the draw of another one.
        self.has_log_q = not any(site["infer"].get("is_auxiliary", False) for site in sites)
        at_truth = poutine.trace(poutine.replay(model, trace=_replayable(simulated.latents)))
        found = dict(sample_sites(at_truth.get_trace(*simulated.args, **simulated.kwargs)))
        self.event_dims = {name: found[name]["fn"].event_dim for name in simulated.latents}

    def ranks(self, num: int, chunk_rows: int) -> tuple[tuple[str, ...], Tensor]:
        """The rank of the truth among draws from the guide, ties broken at random.

        Args:
            num: L, how many draws.
            chunk_rows: Draws x data of one call of the model; at least one draw is made a call.

        Returns:
            The names of the quantities, and ranks of shape ``(B, Q)``, int64, 0 to L.

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
                less, equal = _compare(drawn, truth[name], name)
                below[name] += less.sum(0)
                tied[name] += equal.sum(0)
        counts = torch.stack(list(below.values()), 1).cpu()
        ties = torch.stack(list(tied.values()), 1).cpu()
        return tuple(truth), counts + (torch.rand(ties.shape, dtype=torch.float64) * (ties + 1)).long()

    def truth(self) -> Scored:
        """The latents that the data were made from: K = 1."""
        latents = self.simulated.latents
        if self.vectorize:
            latents = {name: self._padded(value, self.event_dims[name]) for name, value in latents.items()}
        return self._score(1, latents)

    def draws(self, num: int) -> Scored:
        """``num`` draws from the guide for each datum."""
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
        guide = self.guide if latents is None else poutine.replay(self.guide, trace=_replayable(latents))
        args, kwargs = self.simulated.args, self.simulated.kwargs
        with validation_enabled(False), self._particles(num):  # those checks know no particle axis
            q = poutine.trace(guide).get_trace(*args, **kwargs)
            values = latents or {name: q.nodes[name]["value"] for name in self.simulated.latents}
            p = poutine.trace(poutine.replay(self.model, trace=_replayable(values))).get_trace(*args, **kwargs)
        units = {name: self._units(value, self.event_dims[name]) for name, value in values.items()}
        return Scored(
            units, self._log_prob(sample_sites(p)), self._log_prob(drawn_sites(q)) if self.has_log_q else None
        )

    def _particles(self, num: int) -> AbstractContextManager[Any]:
        return pyro.plate(PARTICLES, num, dim=-self.data_plate.nesting - 1) if self.vectorize else nullcontext()

    def _log_prob(self, sites: Iterable[tuple[str, Site]]) -> Tensor:
        terms = [self.data_plate.per_datum(site_log_prob(site)) for _, site in sites if not is_auxiliary_loss(site)]
        return torch.stack(terms).sum(0)

    def _units(self, value: Tensor, event_dim: int) -> Tensor:
        """A site's value as ``(K, B, U)``: all numbers of one datum in a row."""
        kept = self._padded(value, event_dim).movedim(self.data_plate.dim - event_dim, 1)
        return kept.reshape(*kept.shape[:2], -1)

    def _padded(self, value: Tensor, event_dim: int) -> Tensor:
        missing = self.data_plate.nesting + 1 + event_dim - value.dim()
        return value.reshape((1,) * missing + value.shape)


def _compare(drawn: Tensor, truth: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Which draws lie below the truth, and which are equal to it: log densities up to rounding."""
    if bool(drawn.isnan().any()) or bool(truth.isnan().any()):
        raise ValueError(f"{name}: expected numbers, got NaN for a simulated datum; calibrate a model without NaN.")
    equal = drawn == truth
    if name in (LOG_JOINT, LOG_Q):
        size = torch.maximum(drawn.abs(), truth.abs()).clamp(min=1)
        equal |= (drawn - truth).abs() <= (100 * torch.finfo(drawn.dtype).eps * size).clamp(max=0.01)
    return (drawn < truth) & ~equal, equal


def _replayable(values: Mapping[str, Tensor]) -> Trace:
    trace = Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    return trace
