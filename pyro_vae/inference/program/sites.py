"""Sample sites of a trace: kinds, log-probabilities, masks and plates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent

#: A node of a trace, or a message of Pyro's.
Site = dict[str, Any]
#: Name of the plate of K draws of log weights.
PARTICLES = "_log_weights_particles"
PARTICLE_PLATES = {PARTICLES, "num_particles_vectorized"}  # ours, and that of Pyro's objectives


def is_subsample(site: Site) -> bool:
    """Return True if a sample site chooses the rows of a plate."""
    return type(site["fn"]).__name__ == "_Subsample"


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Sample sites with a log-probability: no subsampling, no ``pyro.deterministic``."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_subsample(site) and not site["infer"].get("_deterministic", False):
            yield name, site


def drawn_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """The sample sites of a trace that are not observed; of a guide's, those whose log q enters a bound.

    q is the distribution of what is drawn. What a guide observes (a label that is known, say) is given to it, as x is, and
    log p - log q averages to a bound without it.
    """
    for name, site in sample_sites(trace):
        if not site["is_observed"]:
            yield name, site


def site_log_prob(site: Site) -> Tensor:
    """Log-probability of a site's value, masked, without any scale; shape of the site's batch."""
    log_prob = site.get("unscaled_log_prob")
    if log_prob is None:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, mask=site["mask"])


def mask_of(site: Site) -> Tensor | None:
    """Where a site counts at all, by its own mask and those of its distribution; booleans that broadcast to its batch.

    ``None`` where there is no mask. An event counts if any part of it does (``dist.mask(m).to_event(1)``).
    """
    mask = None if site["mask"] is None else torch.as_tensor(site["mask"]).bool()
    inner = distribution_mask(site["fn"])
    return inner if mask is None else mask if inner is None else mask & inner.to(mask.device)


def distribution_mask(fn: Any) -> Tensor | None:
    """The part of :func:`mask_of` that the distribution itself says (``dist.Categorical(p).mask(m)``)."""
    if isinstance(fn, MaskedDistribution):
        mask, inner = torch.as_tensor(fn._mask).bool(), distribution_mask(fn.base_dist)
        return mask if inner is None else mask & inner.to(mask.device)
    if isinstance(fn, ExpandedDistribution):
        return distribution_mask(fn.base_dist)
    if isinstance(fn, Independent):
        inner = distribution_mask(fn.base_dist)
        dims = [] if inner is None else range(-min(fn.reinterpreted_batch_ndims, inner.dim()), 0)
        return inner.any(tuple(dims)) if inner is not None and dims else inner
    return None


def base_distribution(distribution: Any) -> Any:
    """A distribution without its wrappers."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def base_name(distribution: object) -> str:
    """Name of a distribution's class, without its wrappers."""
    return type(base_distribution(distribution)).__name__


def is_auxiliary_loss(site: Site) -> bool:
    """Whether a site is a training term only, which enters no bound and no evidence."""
    return bool(site["infer"].get("auxiliary_loss", False))


def plates_of(site: Site) -> dict[str, Any]:
    """The plates around a site by name, without particle axes."""
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.name not in PARTICLE_PLATES}
