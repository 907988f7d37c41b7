"""The data plate of a model and its guide."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.inference.program.sites import is_auxiliary_loss, plates_of, sample_sites


@dataclass(frozen=True)
class DataPlate:
    """The plate over the data: its name, dimension and size.

    Attributes:
        plate: Name of the data plate.
        dim: Batch dimension of the data plate, negative.
        size: B, the number of data in the batch.
        nesting: Number of batch dimensions that the plates of model and guide use. The axis of the draws, if there is
            one, lies left of these dimensions.
    """

    plate: str
    dim: int
    size: int
    nesting: int

    def at(self, trace: Trace) -> DataPlate:
        """Return a copy whose ``size`` is the batch size in ``trace``."""
        for _, site in sample_sites(trace):
            if self.plate in (plates := plates_of(site)):
                return dataclasses.replace(self, size=plates[self.plate].size)
        return self

    def per_datum(self, log_prob: Tensor) -> Tensor:
        """Sum a site's log-probability over all dimensions inside each datum.

        Args:
            log_prob: Log-probability in the batch shape of a site, nats. The shape broadcasts to ``(K, ..., B, ...)``:
                the K draws, then ``nesting`` dimensions, with the B data in dimension ``dim``.

        Returns:
            Log-probability of each draw and datum, shape ``(K, B)``, nats. K is 1 if the site has no axis of draws.
        """
        padded = log_prob.reshape((1,) * (self.nesting + 1 - log_prob.dim()) + log_prob.shape)
        kept = padded.movedim(self.dim, 1)
        return kept.reshape(*kept.shape[:2], -1).sum(-1).expand(-1, self.size)


def find_data_plate(model_trace: Trace, guide_trace: Trace, plate: str | None = None) -> DataPlate:
    """Find the data plate of a model and its guide.

    Args:
        model_trace: Trace of the model, replayed against the guide.
        guide_trace: Trace of the guide.
        plate: Name of the data plate; needed if several plates enclose every site.

    Returns:
        The data plate. Its ``size`` is the batch size in the traces.

    Raises:
        ValueError: If no plate encloses every observed site, a latent site lies outside the plate, several plates
            enclose every site, or the data plate is a Python loop (sequential).
    """
    sites = [(n, s) for n, s in sample_sites(model_trace) if not is_auxiliary_loss(s)]
    observed = [(n, s) for n, s in sites if s["is_observed"]]
    if not observed:
        raise ValueError("model: expected an observed site, got none; pass the data by obs=... or pyro.condition.")
    latent = [(n, s) for n, s in sites if not s["is_observed"]]
    latent += [(n, s) for n, s in sample_sites(guide_trace) if not s["is_observed"]]
    around = [plates_of(s) for _, s in observed]
    candidates = set(around[0]).intersection(*around)
    if not candidates:
        raise ValueError(
            f"data plate: no pyro.plate encloses every observed site, {[name for name, _ in observed]}; write "
            "`with pyro.plate('data', len(x)):` around all sites of a datum."
        )
    if plate is not None and plate not in candidates:
        raise ValueError(f"plate: expected a plate around every observed site, {sorted(candidates)}, got {plate!r}.")
    inside = [p for p in candidates if all(p in plates_of(s) for _, s in latent)]
    chosen = [plate] if plate else inside
    for name, site in latent:
        if not set(chosen or candidates) & set(plates_of(site)):
            raise ValueError(
                f"latent site {name!r}: lies outside the data plate {sorted(chosen or candidates)} and belongs to no datum; "
                "move the site into the plate, or replace the site by a parameter."
            )
    if len(chosen) != 1:
        raise ValueError(
            f"data plate: expected one plate around every site, got {sorted(chosen or candidates)}; choose the data plate "
            "with plate=..."
        )
    frame = plates_of(observed[0][1])[chosen[0]]
    if frame.dim is None:
        raise ValueError(
            f"data plate {frame.name!r}: expected a vectorized plate, got a loop; write `with pyro.plate(...)`."
        )
    return DataPlate(frame.name, frame.dim, frame.size, _nesting(model_trace, guide_trace))


def _nesting(*traces: Trace) -> int:
    dims = [f.dim for t in traces for _, s in sample_sites(t) for f in plates_of(s).values() if f.vectorized]
    return -min(dims, default=0)
