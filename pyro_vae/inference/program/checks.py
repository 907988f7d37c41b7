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
    """Error for a model's latent site that is missing in the guide."""


def how_to_mark(name: str) -> str:
    """Return the sentence that tells the user how to enumerate a site.

    For a site with ``obs_mask``, Pyro creates a latent site ``NAME_unobserved`` without the ``infer=`` argument. Only
    ``pyro.infer.config_enumerate`` can mark that latent site.
    """
    if name.endswith("_unobserved"):
        return "mark it with pyro.infer.config_enumerate (obs_mask drops infer=)"
    return "mark it with infer={'enumerate': 'parallel'}"


def check_guide(guide: Program) -> None:
    """Refuse a ``GuideMessenger``, a guide that runs the model itself.

    Raises:
        ValueError: If the guide is a ``GuideMessenger``.
    """
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        raise ValueError(
            f"guide: expected a guide with its own sample sites, got the messenger {type(guide).__name__}, which runs the "
            "model; use the corresponding autoguide, such as AutoNormal."
        )


def check_match(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a model and a guide that have different latent sites.

    Raises:
        ValueError: If a latent site is in the guide only and is not marked ``is_auxiliary``.
        UnguidedSiteError: If a latent site is in the model only.
    """
    ours = {n: s for n, s in sample_sites(model_trace) if not s["is_observed"]}
    theirs = {n: s for n, s in sample_sites(guide_trace) if not s["is_observed"]}
    for name in set(ours) - set(theirs):
        if ours[name]["infer"].get("enumerate") == "parallel":
            raise UnguidedSiteError(
                f"latent site {name!r}: missing from the guide, and marked for enumeration in the model; add the site to the "
                "guide, or use elbo enum, importance_sampling or annealed_importance_sampling."
            )
        raise UnguidedSiteError(
            f"latent site {name!r}: missing from the guide; add the site to the guide or, if the site is discrete, "
            f"{how_to_mark(name)} and use elbo enum or importance_sampling."
        )
    for name in set(theirs) - set(ours):
        if not theirs[name]["infer"].get("is_auxiliary", False):
            raise ValueError(
                f"latent site {name!r}: missing from the model; add the site to the model, or mark the guide's site with "
                "infer={'is_auxiliary': True}."
            )


def check_scales(*traces: Trace) -> None:
    """Refuse site scales that come from ``poutine.scale``.

    Two scales are allowed: the scale N/B of a subsampled plate (N data, batch size B) and the KL weight of
    ``scale_kl``. Training terms (sites marked ``auxiliary_loss``) may have any scale, since they are not part of the
    log importance weights.

    Raises:
        ValueError: If a site has a scale other than these two.
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
                    f"site {name!r}: log importance weights allow only the plates' N/B and scale_kl as scales, got a "
                    "poutine.scale; remove the poutine.scale, or pass outer_scale='ignore'."
                )


def refuse_points(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a plain autoencoder, which has no bound on log p(x).

    Raises:
        ValueError: If a site is a Delta in the guide and has an improper prior in the model. Then log p(x) does not
            exist.
    """
    for name, site in drawn_sites(guide_trace):
        if base_name(site["fn"]) == "Delta" and name in model_trace.nodes:
            if isinstance(base_distribution(model_trace.nodes[name]["fn"]), ImproperUniform):
                raise ValueError(
                    f"guide site {name!r}: a Delta with an improper prior, as in an autoencoder, has no bound on log p(x); "
                    "use the model's squared_error, or a VAE."
                )
