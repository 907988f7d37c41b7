"""Pictures of a simulation-based calibration: the distribution functions of ranks, and the coverage of credible sets."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from pyro_vae.evidence.criticism.calibration import Calibration
from pyro_vae.evidence.criticism.ranks import LOG_JOINT, LOG_Q
from pyro_vae.evidence.criticism.uniformity import simultaneous_band
from pyro_vae.report.figures.delta_ecdf import Panel, delta_ecdf

#: Latent units shown, those with the smallest p-values.
MAX_UNITS = 4


def ranks(found: Calibration, said: Callable[[str], str] = str) -> Figure:
    """The distribution function of the ranks less the uniform one, for the units with the smallest p-values and the densities.

    A guide that is too narrow makes an S that falls below 0 on the right and rises above it on the left; one that is too
    wide the reverse; one that is shifted a bow to one side.

    Args:
        found: The ranks.
        said: How its names, which are those of a model of x alone, are said of this one.
    """
    names = [*_worst(found), *(name for name in (LOG_JOINT, LOG_Q) if name in found.names)]
    pit = dict(zip(found.names, found.pit.T.numpy(), strict=True))
    panels = [Panel(said(_title(found, name)), pit[name], found.band, name in found.failures) for name in names]
    return delta_ecdf(
        panels,
        said(f"Ranks of the truth among {found.num_draws} draws from q(z|x), {len(found.ranks):,} simulations"),
        "rank of the truth / draws",
        "share below − expected",
    )


def coverage(found: Calibration, said: Callable[[str], str] = str) -> Figure:
    """How often credible sets of q hold the truth, less the probability that q gives them; below 0: q is too sure of itself.

    Args:
        found: The ranks.
        said: See :func:`ranks`.
    """
    names = [*_worst(found), *([LOG_Q] if LOG_Q in found.names else [])]
    panels = []
    level = 1 - (1 - found.level) / len(names)
    for name in names:
        sets, size = found.credible(name, found.ranks[:, found.names.index(name)])
        band = simultaneous_band(len(sets), size - 1, level)
        values = (sets.double().numpy() + 0.5) / size
        share = band.share_below(values)
        outside = (share < band.lower) | (share > band.upper)
        title = "highest-density set of z" if name == LOG_Q else f"central interval of {name}"
        panels.append(Panel(title, values, band, bool(outside.any())))
    return delta_ecdf(
        panels,
        said(f"Coverage of credible sets of q(z|x), {len(found.ranks):,} simulations"),
        "probability of the set under q",
        "share that holds the truth − expected",
    )


def _worst(found: Calibration) -> list[str]:
    chosen = sorted(found.units, key=lambda name: found.p_values[name])[:MAX_UNITS]
    return [name for name in found.units if name in chosen]


def _title(found: Calibration, name: str) -> str:
    p = found.p_values[name]
    words = f"p = {p:.2g}".replace("-", "−") if p > 1e-12 else "p < 1e−12"
    return f"{name}: {words}" + (f", {found.fault(name)}" if name in found.failures and name != LOG_JOINT else "")
