r"""Importance sampling of the marginal likelihood, :math:`p(x) = E_{q(z|x)}[p(x, z) / q(z|x)]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Delta

from pyro_vae.evidence.estimate import Estimate
from pyro_vae.inference.captured_draws import CapturedDraws
from pyro_vae.inference.layout import sample_sites
from pyro_vae.inference.weights import OuterScale, ProposalDraws, WeightTerms, prior_guide

#: Rows (draws x data) of one call of the model. Larger calls fall out of the processor's cache.
CHUNK_ROWS = 1000


@torch.no_grad()
def importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 5000,
    chunk_rows: int = CHUNK_ROWS,
    plate: str | None = None,
    outer_scale: OuterScale = "refuse",
    vectorize: bool = True,
    compile: bool | CapturedDraws = False,
    **kwargs: Any,
) -> Estimate:
    r"""Estimate log p(x) of each datum with the guide as proposal.

    .. math:: \widehat{\log p}(x_i) = \log \tfrac1K \textstyle\sum_k w_{ki}, \quad
        w_{ki} = p(x_i, z_{ki}) / q(z_{ki}|x_i)

    Biased low, by about Var(w) / (2 K p(x)^2). A guide with one latent site runs once, however large K; the model runs
    in chunks. Draws come from the global generator; draws of different data are independent.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: Its guide.
        *args: What both take.
        num_samples: K, draws for each datum.
        chunk_rows: Draws x data of one call of the model, which bounds memory; at least one draw is made a call.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        vectorize: See ``log_weights``.
        compile: Whether to compile the chunks, all but the first (docs/speed.md); a :class:`CapturedDraws` shares its graphs
            between calls. The draws are those of an eager call.
        **kwargs: Likewise.

    Returns:
        The estimate of each datum, with its standard error, ESS and Pareto k.

    Raises:
        ValueError: If model and guide have no weights for each datum (see ``log_weights``), the guide is a Delta, or a number
            is below 1.

    References:
        Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2016, eq. 8; Vehtari et al., "Pareto Smoothed
        Importance Sampling", 2024.
    """
    for name, value in {"num_samples": num_samples, "chunk_rows": chunk_rows}.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}.")
    captured = CapturedDraws() if compile is True else compile or None
    draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, vectorize, captured)
    _refuse_delta(draws)
    chunk = max(1, chunk_rows // max(1, draws.layout.size))
    sizes = [min(chunk, num_samples - done) for done in range(0, num_samples, chunk)]
    parts = [WeightTerms(*(part.cpu() for part in draws(size))) for size in sizes]
    return Estimate.from_weights(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _refuse_delta(draws: ProposalDraws) -> None:
    sites = dict(sample_sites(draws.guide_trace))
    for name, site in sites.items():
        base = site["fn"]
        while hasattr(base, "base_dist"):
            base = base.base_dist
        # Pyro's autoguides draw an auxiliary site and pass it on by Delta sites, whose log_density is the Jacobian.
        if isinstance(base, Delta) and not any(s["infer"].get("is_auxiliary", False) for s in sites.values()):
            raise ValueError(
                f"guide site {name!r}: expected a distribution with a density, got a Delta, whose weights estimate no "
                "log p(x); use a guide with a scale, such as AutoNormal."
            )


def prior_sampling(model: Callable[..., Any], *args: Any, num_samples: int = 5000, **kwargs: Any) -> Estimate:
    r"""The naive estimate of log p(x): the likelihood averaged over draws from the prior.

    .. math:: \widehat{\log p}(x) = \log \tfrac1K \textstyle\sum_k p(x | z_k), \quad z_k \sim p(z)

    Unbiased for p(x), but nearly always far too low for log p(x), since almost no draw lands where the posterior is; the
    delta-method error does not show it, Pareto k usually does. For comparison.

    Args:
        model: A Pyro model whose data lie in one plate.
        *args: What it takes.
        num_samples: K, draws for each datum.
        **kwargs: Likewise, and the options of :func:`importance_sampling`.

    Returns:
        As :func:`importance_sampling`; the rate is 0, the distortion that of prior draws.

    Raises:
        ValueError: As :func:`importance_sampling`.
    """
    return importance_sampling(model, prior_guide(model), *args, num_samples=num_samples, **kwargs)
