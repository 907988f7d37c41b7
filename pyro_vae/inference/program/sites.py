"""Sample sites of a trace: kinds, log-probabilities, masks and plates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypedDict

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.distributions import Independent

#: Name of the plate over the K draws of log weights.
PARTICLES = "_log_weights_particles"
#: Names of particle plates: the plate of log weights and the plate of Pyro's objectives.
PARTICLE_PLATES = {PARTICLES, "num_particles_vectorized"}


class Site(TypedDict, total=False):
    """A sample site: a node of a trace or a handler's message."""

    name: str
    type: str
    fn: TorchDistributionMixin
    args: tuple[object, ...]
    kwargs: dict[str, object]
    value: Tensor
    is_observed: bool
    infer: dict[str, Any]
    scale: float | Tensor
    mask: bool | Tensor | None
    cond_indep_stack: tuple[CondIndepStackFrame, ...]
    kl_scales: tuple[float | Tensor, ...]
    done: bool
    log_prob: Tensor
    log_prob_sum: Tensor
    unscaled_log_prob: Tensor
    score_parts: ScoreParts


def is_subsample(site: Site) -> bool:
    """Return True if the site draws a plate's subsample of the data."""
    return type(site["fn"]).__name__ == "_Subsample"


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Yield the sample sites that have a log-probability.

    Subsampling sites and ``pyro.deterministic`` sites are left out.
    """
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_subsample(site) and not site["infer"].get("_deterministic", False):
            yield name, site


def drawn_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Yield the sample sites that are not observed.

    In a guide, only the drawn sites count in log q, since q is the distribution of the draws. A value that the guide
    observes, such as a known label, is an input of the guide, as x is.
    """
    for name, site in sample_sites(trace):
        if not site["is_observed"]:
            yield name, site


def with_value(site: Site, value: Tensor) -> Site:
    """Copy a site with a new value and without log-probabilities."""
    copy = site.copy()
    copy["value"] = value
    copy.pop("log_prob", None)
    copy.pop("log_prob_sum", None)
    copy.pop("unscaled_log_prob", None)
    copy.pop("score_parts", None)
    return copy


def site_log_prob(site: Site) -> Tensor:
    """Log-probability of a site's value, with the mask, without the scales.

    Returns:
        Log-probability in the batch shape of the site, nats.
    """
    log_prob = site.get("unscaled_log_prob")
    if log_prob is None:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, mask=site["mask"])


def mask_of(site: Site) -> Tensor | None:
    """The mask of a site: True for each element whose log-probability counts.

    If a mask covers the parts of an event, as in ``dist.mask(m).to_event(1)``, the event counts if at least one part
    counts.

    Returns:
        Boolean mask that broadcasts to the site's batch shape; None if the site has no mask.
    """
    mask = None if site["mask"] is None else torch.as_tensor(site["mask"]).bool()
    inner = distribution_mask(site["fn"])
    return inner if mask is None else mask if inner is None else mask & inner.to(mask.device)


def distribution_mask(fn: TorchDistributionMixin) -> Tensor | None:
    """The mask m of a masked distribution ``d.mask(m)``; see :func:`mask_of`."""
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


def base_distribution(distribution: TorchDistributionMixin) -> TorchDistributionMixin:
    """Return the distribution inside all wrappers, such as ``Independent``."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def base_name(distribution: TorchDistributionMixin) -> str:
    """Class name of the distribution inside all wrappers."""
    return type(base_distribution(distribution)).__name__


def is_auxiliary_loss(site: Site) -> bool:
    """Return True for a training term, marked ``auxiliary_loss``.

    A training term is added to the loss, but it is not part of a bound on log p(x).
    """
    return bool(site["infer"].get("auxiliary_loss", False))


def plates_of(site: Site) -> dict[str, CondIndepStackFrame]:
    """The plates that enclose a site, by name, without particle plates."""
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.name not in PARTICLE_PLATES}
