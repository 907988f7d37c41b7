"""Log-probabilities of K draws, for the importance-weighted objectives."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.handlers import Beta
from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import (
    PARTICLE_PLATES,
    Site,
    base_name,
    drawn_sites,
    is_auxiliary_loss,
    sample_sites,
    site_log_prob,
)
from pyro_vae.inference.program.sums import RunningSum
from pyro_vae.inference.program.traces import Pair
from pyro_vae.system.imports import capturing


class Particles(NamedTuple):
    r"""Log-probabilities of K draws from the guide, for B data.

    Each attribute except ``scale`` and ``extra`` has the shape ``(K, B)``, nats.

    Attributes:
        log_likelihood: log p(x|z).
        log_ratio: log p(z) - log q(z|x).
        log_w: log p(x|z) + beta (log p(z) - log q(z|x)), the *tempered* log weight; beta is the KL weight. At beta = 1,
            ``log_w`` is the log importance weight.
        log_q: log q(z|x).
        score: The part of log q(z|x) that comes from sites that are not reparameterized; 0 if all sites are
            reparameterized.
        scale: The data plate's scale N/B (N data, batch size B) times the ``poutine.scale`` that all sites share: a
            float, or a tensor of shape ``(B,)``.
        extra: Training terms (sites marked ``auxiliary_loss``) with their scales, summed over the batch and averaged
            over draws; 0-dim, nats.
    """

    log_likelihood: Tensor
    log_ratio: Tensor
    log_w: Tensor
    log_q: Tensor
    score: Tensor
    scale: Beta
    extra: Tensor


def reduce(pair: Pair, data_plate: DataPlate) -> Particles:
    """Sum the log-probabilities of all sites for each draw and datum.

    Args:
        pair: Traces of model and guide, with or without an axis for K draws.
        data_plate: The data plate.
    """
    likelihood, ratio, tempered, log_q, score, extra = (RunningSum() for _ in range(6))
    for _, site in sample_sites(pair.model):
        if is_auxiliary_loss(site):
            extra.add(site["log_prob_sum"] / _num_particles(site))
        elif site["is_observed"]:
            likelihood.add(data_plate.per_datum(site_log_prob(site)))
        else:
            _add_latent(site, data_plate, 1.0, ratio, tempered)
    for _, site in sample_sites(pair.guide):
        if is_auxiliary_loss(site):
            extra.add(-site["log_prob_sum"] / _num_particles(site))
            continue
        if site["is_observed"]:  # not drawn
            continue
        _add_latent(site, data_plate, -1.0, ratio, tempered)
        plain = data_plate.per_datum(site_log_prob(site))
        log_q.add(plain)
        if not site["fn"].has_rsample:
            score.add(plain)
    log_px = likelihood.value()
    rows = max(log_px.shape[0], *(s.total.shape[0] for s in (ratio, score) if s.total is not None), 1)
    shape = (rows, data_plate.size)
    sums = (ratio, tempered, log_q, score)
    log_ratio, weighted, of_q, scored = (part.value(log_px).expand(shape) for part in sums)
    whole = log_px.expand(shape)
    scale = data_scale(pair, data_plate)
    return Particles(whole, log_ratio, whole + weighted, of_q, scored, scale, extra.value(log_px.sum()))


def _num_particles(site: Site) -> int:
    """Number of draws over which a site's ``log_prob_sum`` adds up."""
    return math.prod(frame.size for frame in site["cond_indep_stack"] if frame.name in PARTICLE_PLATES)


def _add_latent(site: Site, data_plate: DataPlate, sign: float, ratio: RunningSum, tempered: RunningSum) -> None:
    log_prob = site_log_prob(site)
    plain = sign * data_plate.per_datum(log_prob)
    ratio.add(plain)
    for beta in (betas := site.get("kl_scales", ())):
        log_prob = log_prob * beta
    tempered.add(sign * data_plate.per_datum(log_prob) if betas else plain)


def data_scale(pair: Pair, data_plate: DataPlate) -> Beta:
    """Scale of each datum: N/B times the sites' common ``poutine.scale``.

    Returns:
        Scale: a number, or a tensor of shape ``(B,)``.

    Raises:
        ValueError: If a plate inside a datum is subsampled, or if sites have different ``poutine.scale`` values.
    """
    reference: Beta | None = None
    for trace in pair:
        for name, site in sample_sites(trace):
            if is_auxiliary_loss(site):
                continue
            scale = _without_kl(name, site, data_plate)
            if scale is None:
                continue
            if reference is None:
                reference = scale
            elif scale is not reference and is_validation_enabled() and not _close(scale, reference):
                raise ValueError(
                    f"site {name!r}: an importance-weighted bound needs one scale for each datum, but sites have different "
                    "scales; put poutine.scale around the whole model and guide."
                )
    assert reference is not None  # an observed site has no KL weight
    if not isinstance(reference, Tensor) or reference.dim() == 0:
        return reference
    return data_plate.per_datum(reference)[0] / _count(reference, data_plate)


def _without_kl(name: str, site: Site, data_plate: DataPlate) -> Beta | None:
    """Divide a site's scale by the KL weights of that site.

    Returns:
        Scale without the KL weights; None if a KL weight is, or may be, 0.
    """
    for frame in site["cond_indep_stack"]:
        if frame.full_size == frame.size:
            continue
        if frame.name != data_plate.plate and frame.dim is not None and frame.dim > data_plate.dim:
            raise ValueError(
                f"site {name!r}: expected no subsampled plate inside a datum, got {frame.name!r} with {frame.size} of "
                f"{frame.full_size}, which would bias the importance-weighted bound; use the whole plate."
            )
    betas = site.get("kl_scales", ())
    if not betas:
        return site["scale"]
    if any(isinstance(beta, Tensor) or beta == 0 for beta in betas):
        return None
    return site["scale"] / math.prod(betas)


def _count(scale: Tensor, data_plate: DataPlate) -> int:
    """Number of elements that ``scale`` has for each datum."""
    return max(1, scale.numel() // max(1, scale.shape[data_plate.dim] if scale.dim() >= -data_plate.dim else 1))


def _close(one: Beta, other: Beta) -> bool:
    a, b = torch.broadcast_tensors(torch.as_tensor(one).detach().double(), torch.as_tensor(other).detach().double())
    return bool(torch.isclose(a, b, rtol=1e-5).all())


def check_sites(pair: Pair, what: str, reparameterized: bool) -> None:
    """Refuse sites that an importance-weighted objective cannot use.

    Args:
        pair: Traces of model and guide.
        what: Name of the objective.
        reparameterized: If True, every latent site must be reparameterized.

    Raises:
        ValueError: If a latent site is enumerated, is a Delta in the guide, or is not reparameterized although it must
            be.
    """
    for name, site in (*sample_sites(pair.model), *sample_sites(pair.guide)):
        if site["infer"].get("enumerate") is not None and not site["is_observed"]:
            raise ValueError(
                f"{what}: expected no enumerated site, got {name!r}; use elbo('enum'), remove the enumeration mark to sample "
                "the site, or relax labels with temperature=0.7."
            )
    auxiliary = any(site["infer"].get("is_auxiliary", False) for _, site in sample_sites(pair.guide))
    for name, site in drawn_sites(pair.guide):
        if is_auxiliary_loss(site):
            continue
        fn = site["fn"]
        if base_name(fn) == "Delta" and not auxiliary:
            raise ValueError(
                f"{what}: expected a density at guide site {name!r}, got a Delta, which gives no importance weights; use a "
                "guide such as AutoNormal, or elbo('trace') for a point estimate."
            )
        if reparameterized and not fn.has_rsample:
            raise ValueError(
                f"{what}: expected a reparameterized distribution at site {name!r}, got {base_name(fn)}; use elbo('vimco') "
                "or elbo('rws')."
            )


def common_beta(pair: Pair, data_plate: DataPlate, what: str = "dreg") -> Beta:
    """Return the KL weight that all latent sites share.

    Two sites share a KL weight if their weights are the same tensor object, or equal numbers. Two tensor objects with
    equal values are not enough, since the values may differ in a later training step.

    Returns:
        KL weight: a number, or a tensor of shape ``()`` or ``(B,)``.

    Raises:
        ValueError: If two sites have different KL weights, or if a KL weight varies inside one datum.
    """
    sites = [(n, s) for n, s in drawn_sites(pair.guide) if not is_auxiliary_loss(s)]
    factors = [(name, _factors(site)) for name, site in sites] or [("", ())]
    first = factors[0][1]
    for name, others in factors if not capturing() else ():  # checked by the eager run before capture
        if len(others) != len(first) or not all(a is b or _equal(a, b) for a, b in zip(others, first, strict=True)):
            raise ValueError(
                f"{what}: expected the same KL weight at all sites, got a different weight at {name!r}; use one number or "
                "tensor, or elbo('stl') or elbo('iwae')."
            )
    return _of_data(math.prod(first), data_plate, what)


def _factors(site: Site) -> tuple[Beta, ...]:
    return tuple(beta for beta in site.get("kl_scales", ()) if isinstance(beta, Tensor) or beta != 1)


def _equal(one: Beta, other: Beta) -> bool:
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _of_data(beta: Beta, data_plate: DataPlate, what: str) -> Beta:
    """Reshape a KL weight from a site's batch shape to ``(B,)``.

    Numbers and 0-dim tensors are returned unchanged.
    """
    if not isinstance(beta, Tensor) or beta.dim() == 0:
        return beta
    padded = beta.reshape((1,) * (data_plate.nesting - beta.dim()) + beta.shape).movedim(data_plate.dim, 0)
    if padded[0].numel() > 1:
        raise ValueError(
            f"{what}: expected one KL weight for each datum, got shape {tuple(beta.shape)}, which varies within a datum; use "
            "elbo('iwae') or elbo('stl')."
        )
    return padded.reshape(-1)
