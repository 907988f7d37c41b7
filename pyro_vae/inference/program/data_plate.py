"""The data plate of a model and guide, and what is refused about it."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import ImproperUniform
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.inference.program.sites import base_name, drawn_sites, is_auxiliary_loss, plates_of, sample_sites


def refuse_points(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a bound where the guide's draw is a point and the model's prior has no integral, as the autoencoder's.

    Raises:
        ValueError: If a Delta of the guide meets an improper prior.
    """
    for name, site in drawn_sites(guide_trace):
        if base_name(site["fn"]) == "Delta" and name in model_trace.nodes:
            prior = model_trace.nodes[name]["fn"]
            while hasattr(prior, "base_dist"):
                prior = prior.base_dist
            if isinstance(prior, ImproperUniform):
                raise ValueError(
                    f"guide site {name!r}: expected a distribution with a density, got a Delta over an improper prior, as an "
                    "autoencoder has it, which bounds no log p(x); ask for its squared_error, or take a VAE."
                )


@dataclass(frozen=True)
class DataPlate:
    """Where the data lie in the batch shape of a program's sites.

    Attributes:
        plate: Name of the data plate.
        dim: Its dimension, negative.
        size: B, how many data are in it.
        nesting: How many batch dimensions the program's plates use; the particle axis lies to their left.
    """

    plate: str
    dim: int
    size: int
    nesting: int

    def at(self, trace: Trace) -> DataPlate:
        """The same data_plate with as many data as there are in this trace."""
        for _, site in sample_sites(trace):
            if self.plate in (plates := plates_of(site)):
                return dataclasses.replace(self, size=plates[self.plate].size)
        return self

    def per_datum(self, log_prob: Tensor) -> Tensor:
        """Sum a log-probability over everything inside one datum.

        Args:
            log_prob: Shape that broadcasts to ``(K, ..., B, ...)`` with ``nesting`` dimensions after K.

        Returns:
            Shape ``(K, B)``; K is 1 where there is no particle axis.
        """
        padded = log_prob.reshape((1,) * (self.nesting + 1 - log_prob.dim()) + log_prob.shape)
        kept = padded.movedim(self.dim, 1)
        return kept.reshape(*kept.shape[:2], -1).sum(-1).expand(-1, self.size)


def find_data_plate(model_trace: Trace, guide_trace: Trace, plate: str | None = None) -> DataPlate:
    """Find the data plate of a model and guide, from one trace of each.

    Args:
        model_trace: Trace of the model, replayed against the guide.
        guide_trace: Trace of the guide.
        plate: Its name, where several plates enclose every site.

    Raises:
        ValueError: If no plate encloses every observed site, a latent site lies outside, or several would do.
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
            f"data plate: expected one pyro.plate around every observed site, got none around {observed[0][0]!r}; "
            "write `with pyro.plate('data', len(x)):` around the sites of one datum."
        )
    if plate is not None and plate not in candidates:
        raise ValueError(f"plate: expected one that encloses every observed site, {sorted(candidates)}, got {plate!r}.")
    inside = [p for p in candidates if all(p in plates_of(s) for _, s in latent)]
    chosen = [plate] if plate else inside
    for name, site in latent:
        if not set(chosen or candidates) & set(plates_of(site)):
            raise ValueError(
                f"latent site {name!r}: expected inside the data plate {sorted(chosen or candidates)}, got outside; "
                "log weights are for each datum, so move it into the plate or make it a parameter."
            )
    if len(chosen) != 1:
        raise ValueError(f"data plate: expected one, got {sorted(chosen or candidates)}; name it by plate=...")
    frame = plates_of(observed[0][1])[chosen[0]]
    if frame.dim is None:
        raise ValueError(
            f"data plate {frame.name!r}: expected a vectorized plate, got a loop over it; write `with pyro.plate(...)`."
        )
    return DataPlate(frame.name, frame.dim, frame.size, _nesting(model_trace, guide_trace))


def _nesting(*traces: Trace) -> int:
    dims = [f.dim for t in traces for _, s in sample_sites(t) for f in plates_of(s).values() if f.vectorized]
    return -min(dims, default=0)


def how_to_mark(name: str) -> str:
    """How a user marks this site for enumeration; a site that Pyro makes of ``obs_mask`` does not get its ``infer=``."""
    if name.endswith("_unobserved"):
        return "mark it by pyro.infer.config_enumerate (obs_mask drops infer=)"
    return "mark it infer={'enumerate': 'parallel'}"


class UnguidedSiteError(ValueError):
    """The model draws a site that the guide does not."""


def check_match(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a model and guide that do not have the same latent sites.

    Raises:
        ValueError: If a latent site is in one of the two only (a guide's site may be marked ``is_auxiliary``).
        UnguidedSiteError: If it is in the model only.
    """
    ours = {n: s for n, s in sample_sites(model_trace) if not s["is_observed"]}
    theirs = {n: s for n, s in sample_sites(guide_trace) if not s["is_observed"]}
    for name in set(ours) - set(theirs):
        if ours[name]["infer"].get("enumerate") == "parallel":
            raise UnguidedSiteError(
                f"latent site {name!r}: expected in model and guide, got in the model only, marked for enumeration; add it to "
                "the guide, or take what sums over it: elbo enum, importance_sampling, annealed_importance_sampling."
            )
        raise UnguidedSiteError(
            f"latent site {name!r}: expected in model and guide, got in the model only; add it to the guide, or, where it is "
            f"discrete, {how_to_mark(name)} and take elbo enum or importance_sampling, which sum over it."
        )
    for name in set(theirs) - set(ours):
        if not theirs[name]["infer"].get("is_auxiliary", False):
            raise ValueError(
                f"latent site {name!r}: expected in model and guide, got in the guide only; add it to the model, or mark "
                "it infer={'is_auxiliary': True}."
            )


def check_scales(*traces: Trace) -> None:
    """Refuse a scale that is neither a plate's N/B nor ``scale_kl``'s, save on a training term, which enters no weight.

    Raises:
        ValueError: If a site carries another factor.
    """
    for trace in traces:
        for name, site in sample_sites(trace):
            if is_auxiliary_loss(site):
                continue
            known: Any = 1.0
            for frame in site["cond_indep_stack"]:
                known = known * frame.full_size / frame.size
            for beta in site.get("kl_scales", ()):
                known = known * beta
            got, known = (torch.as_tensor(scale).cpu().double() for scale in (site["scale"], known))
            if not bool(torch.isclose(got, known, rtol=1e-5).all()):
                raise ValueError(
                    f"site {name!r}: expected a scale of 1 beside the plates' N/B and scale_kl, got a poutine.scale; "
                    "log weights have no meaning for it: take it off, or pass outer_scale='ignore'."
                )


def warn_one_by_one(error: Exception) -> None:
    """Say, to the caller of the call that found it, that a program is drawn from without an outer plate."""
    warnings.warn(
        f"log weights: this program does not run inside an outer plate ({error}); drawing one by one instead, which is slower. "
        "Let it use its last dimensions alone (z[..., 0], not z[:, 0]), or pass vectorize=False.",
        stacklevel=4,
    )
