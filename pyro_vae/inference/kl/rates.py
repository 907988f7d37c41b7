"""Distortion and rates of each datum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.handlers import owner_of
from pyro_vae.inference.objectives.mean_field import auxiliary_sites, closed_kl, site_kl, with_closed_kl
from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import Site, base_name, is_auxiliary_loss, sample_sites, site_log_prob
from pyro_vae.inference.program.traces import Pair


def distortion_of(pair: Pair, data_plate: DataPlate) -> Tensor:
    """Return the distortion of each datum, averaged over draws, shape ``(B,)``, nats."""
    total: Any = 0.0
    for _, site in sample_sites(pair.model):
        if site["is_observed"] and not is_auxiliary_loss(site):
            total = total - data_plate.per_datum(site_log_prob(site)).mean(0)
    return total


def rates_of(pair: Pair, data_plate: DataPlate, per: str, analytic: bool, name: str) -> Tensor:
    """Return the R rates of each datum, averaged over draws.

    Args:
        pair: Traces of model and guide.
        data_plate: The data plate of both traces.
        per: ``"unit"``: R is the number of units, with a rate for each unit. ``"site"``: a rate for each latent site.
            ``"all"``: R = 1, one rate for all latent variables together.
        analytic: Use the closed-form KL for every site where a closed form is valid.
        name: Name of the caller, for error messages.

    Returns:
        Rates, shape ``(B, R)``, nats.

    Raises:
        ValueError: If a latent site has no reparameterized draws, or the rate cannot be divided among units or sites.
    """
    for site_name, site in sample_sites(pair.guide):
        if not site["fn"].has_rsample and not is_auxiliary_loss(site):
            raise ValueError(
                f"{name}: expected reparameterized draws at site {site_name!r}, got {type(site['fn']).__name__}, whose draws "
                "would need an unknown score-function term; use a reparameterized distribution."
            )
    auxiliary = auxiliary_sites(*pair)
    closed = with_closed_kl(*pair) if analytic else set()
    if per == "unit":
        if auxiliary:
            raise ValueError(
                f"{name}: expected only latent sites of the model in the guide, got the auxiliary site {auxiliary[0][0]!r}, "
                "whose units have no separate densities; use per='site'."
            )
        return torch.cat([_unit_kl(*sites, sites[0] in closed, data_plate) for sites in latent_sites(pair)], -1)
    rates = {
        key: data_plate.per_datum(site_kl(site, theirs, key in closed)).mean(0)
        for key, site, theirs in latent_sites(pair)
    }
    for key, site in auxiliary:
        owner = _owner(key, rates, per, name)
        rates[owner] = rates[owner] + data_plate.per_datum(site_log_prob(site)).mean(0)
    by_site = torch.stack([*rates.values()], -1)
    return by_site.sum(-1, keepdim=True) if per == "all" else by_site


def latent_sites(pair: Pair) -> Iterator[tuple[str, Site, Site]]:
    """Yield the name, model site and guide site of each latent variable."""
    for name, site in sample_sites(pair.model):
        if not site["is_observed"] and not is_auxiliary_loss(site):
            yield name, site, pair.guide.nodes[name]


def extra_terms(pair: Pair) -> Tensor:
    """Return the sum of the scaled auxiliary losses, 0-dim, nats.

    The sum adds the model's auxiliary losses and subtracts those of the guide.
    """
    total = torch.zeros(())
    for sign, trace in ((1.0, pair.model), (-1.0, pair.guide)):
        for _, site in sample_sites(trace):
            if is_auxiliary_loss(site):
                total = total + sign * site["log_prob_sum"]
    return total


def _owner(key: str, rates: Mapping[str, Tensor], per: str, name: str) -> str:
    """Return the latent site whose rate includes an auxiliary guide site."""
    owner = owner_of(key)
    if owner in rates:
        return owner
    if per == "all" or len(rates) == 1:
        return next(iter(rates))
    raise ValueError(
        f"{name}: expected auxiliary guide sites named SITE_unconstrained, as in Pyro's autoguides, got {key!r}, which could "
        "belong to any latent site; rename the site, or use min_rate."
    )


def _unit_kl(name: str, site: Site, guide_site: Site, closed: bool, data_plate: DataPlate) -> Tensor:
    """Return the KL of each unit at a latent site.

    The shape is ``(B, units)``, nats. The KL is averaged over draws, and summed over all plates except the data plate.
    """
    q, p = (_units(name, s["fn"]) for s in (guide_site, site))
    kl = closed_kl(q, p) if closed else None
    if kl is None:
        kl = q.log_prob(guide_site["value"]) - p.log_prob(guide_site["value"])
    batch = kl.shape[: kl.dim() - guide_site["fn"].event_dim]
    flat = kl.reshape(*batch, -1)
    if guide_site["mask"] is not None:
        flat = flat * torch.as_tensor(guide_site["mask"]).to(flat)[..., None]
    padded = flat.reshape((1,) * (data_plate.nesting + 1 - len(batch)) + flat.shape)
    data = padded.movedim(data_plate.dim - 1, 1)
    return data.reshape(*data.shape[:2], -1, flat.shape[-1]).sum(2).mean(0).expand(data_plate.size, -1)


def _units(name: str, distribution: TorchDistributionMixin) -> TorchDistributionMixin:
    """Return scalar distributions, one for each unit of a site.

    Raises:
        ValueError: If the units depend on each other, or have no density.
    """
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    whole = distribution.event_dim == (distribution.reinterpreted_batch_ndims if base is not distribution else 0)
    if not whole or base.event_shape:
        raise ValueError(
            f"free bits: expected independent units at site {name!r}, got {type(base).__name__}, whose units depend on each "
            "other; use per='site'."
        )
    if base_name(base) == "Delta":
        raise ValueError(
            f"free bits: expected a density at site {name!r}, got a Delta, which has no density; use a guide with a scale."
        )
    return base
