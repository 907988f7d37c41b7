"""Checks that a model and its guide fit together."""

from __future__ import annotations

import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_vae.inference.program.sites import base_distribution, base_name, drawn_sites, is_auxiliary_loss, sample_sites
from pyro_vae.inference.program.traces import Program


class UnguidedSiteError(ValueError):
    """The model draws a site that the guide does not."""


def how_to_mark(name: str) -> str:
    """Instruction to mark a site for enumeration, as part of a sentence.

    Pyro drops ``infer=`` on the latent site that it makes of ``obs_mask``, so that one needs ``config_enumerate``.
    """
    if name.endswith("_unobserved"):
        return "mark it by pyro.infer.config_enumerate (obs_mask drops infer=)"
    return "mark it infer={'enumerate': 'parallel'}"


def check_guide(guide: Program) -> None:
    """Refuse a guide that runs the model itself.

    Raises:
        ValueError: If the guide is a ``GuideMessenger``.
    """
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        raise ValueError(
            f"guide: expected a function with its own sample sites, got the messenger {type(guide).__name__}, which runs the "
            "model itself; use the corresponding autoguide, such as AutoNormal."
        )


def check_match(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a model and guide with different latent sites.

    Raises:
        ValueError: If a latent site is in the guide only and is not marked ``is_auxiliary``.
        UnguidedSiteError: If it is in the model only.
    """
    ours = {n: s for n, s in sample_sites(model_trace) if not s["is_observed"]}
    theirs = {n: s for n, s in sample_sites(guide_trace) if not s["is_observed"]}
    for name in set(ours) - set(theirs):
        if ours[name]["infer"].get("enumerate") == "parallel":
            raise UnguidedSiteError(
                f"latent site {name!r}: expected in model and guide, got in the model only, marked for enumeration; add it to "
                "the guide, or sum it out: elbo enum, importance_sampling, annealed_importance_sampling."
            )
        raise UnguidedSiteError(
            f"latent site {name!r}: expected in model and guide, got in the model only; add it to the guide or, if "
            f"discrete, {how_to_mark(name)} and use elbo enum or importance_sampling."
        )
    for name in set(theirs) - set(ours):
        if not theirs[name]["infer"].get("is_auxiliary", False):
            raise ValueError(
                f"latent site {name!r}: expected in model and guide, got in the guide only; add it to the model, or mark "
                "it infer={'is_auxiliary': True}."
            )


def check_scales(*traces: Trace) -> None:
    """Refuse scales other than a plate's N/B and ``scale_kl``.

    Training terms (``auxiliary_loss``) may have any scale: they enter no weight.

    Raises:
        ValueError: If a site carries another factor.
    """
    for trace in traces:
        for name, site in sample_sites(trace):
            if is_auxiliary_loss(site):
                continue
            known: float | Tensor = 1.0
            for frame in site["cond_indep_stack"]:
                known = known * frame.full_size / frame.size
            for beta in site.get("kl_scales", ()):
                known = known * beta
            found, expected = (torch.as_tensor(scale).cpu().double() for scale in (site["scale"], known))
            if not bool(torch.isclose(found, expected, rtol=1e-5).all()):
                raise ValueError(
                    f"site {name!r}: expected no scale but the plates' N/B and scale_kl, got a poutine.scale, which log "
                    "weights cannot hold; remove it, or pass outer_scale='ignore'."
                )


def refuse_points(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a bound of a program that draws points (an autoencoder).

    Raises:
        ValueError: If a Delta of the guide meets an improper prior, under which there is no log p(x).
    """
    for name, site in drawn_sites(guide_trace):
        if base_name(site["fn"]) == "Delta" and name in model_trace.nodes:
            if isinstance(base_distribution(model_trace.nodes[name]["fn"]), ImproperUniform):
                raise ValueError(
                    f"guide site {name!r}: expected a density, got a Delta over an improper prior, as in an autoencoder, which "
                    "has no bound; use its squared_error, or a VAE."
                )
