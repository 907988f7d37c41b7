"""Simulation-based calibration: distribution functions of ranks, coverage of credible sets."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from pyro_vae.evidence.criticism.calibration import Calibration
from pyro_vae.evidence.criticism.ranks import LOG_JOINT, LOG_Q
from pyro_vae.evidence.criticism.uniformity import simultaneous_band
from pyro_vae.report.figures.delta_ecdf import Panel, delta_ecdf

#: At most this many latent units are shown, those with the smallest p-values.
MAX_UNITS = 4


def ranks(calibration: Calibration, wording: Callable[[str], str] = str) -> Figure:
    """Draw the ranks' distribution functions minus the uniform distribution function.

    The first panels show the latent units with the smallest p-values, the last panels the log densities. If the guide is too
    narrow, the line is above 0 on the left and below 0 on the right. If the guide is too wide, it is the other way round. If
    the guide is shifted, the whole line is on one side of 0.

    Args:
        calibration: The ranks and their p-values.
        wording: Function that adapts a text to the model. Texts are written for a model of x alone, such as ``q(z|x)``.
    """
    names = [*_worst(calibration), *(name for name in (LOG_JOINT, LOG_Q) if name in calibration.names)]
    pit = dict(zip(calibration.names, calibration.pit.T.numpy(), strict=True))
    panels = [
        Panel(wording(_title(calibration, name)), pit[name], calibration.band, name in calibration.failures)
        for name in names
    ]
    return delta_ecdf(
        panels,
        wording(
            f"Ranks of the truth among {calibration.num_draws} draws from q(z|x), {len(calibration.ranks):,} simulations"
        ),
        "normalized rank of the truth",
        "share below − expected share",
    )


def coverage(calibration: Calibration, wording: Callable[[str], str] = str) -> Figure:
    """Draw the coverage of credible sets minus their probability under the guide.

    Values below 0 show an overconfident guide: the credible sets contain the truth too rarely.

    Args:
        calibration: The ranks and their p-values.
        wording: See :func:`ranks`.
    """
    names = [*_worst(calibration), *([LOG_Q] if LOG_Q in calibration.names else [])]
    panels = []
    level = 1 - (1 - calibration.level) / len(names)
    for name in names:
        sets, size = calibration.credible(name, calibration.ranks[:, calibration.names.index(name)])
        band = simultaneous_band(len(sets), size - 1, level)
        values = (sets.double().numpy() + 0.5) / size
        share = band.share_below(values)
        outside = (share < band.lower) | (share > band.upper)
        title = "highest-density set of z" if name == LOG_Q else f"central interval of {name}"
        panels.append(Panel(title, values, band, bool(outside.any())))
    return delta_ecdf(
        panels,
        wording(f"Coverage of credible sets of q(z|x), {len(calibration.ranks):,} simulations"),
        "probability of the set under q",
        "share with the truth − expected share",
    )


def _worst(calibration: Calibration) -> list[str]:
    chosen = sorted(calibration.units, key=lambda name: calibration.p_values[name])[:MAX_UNITS]
    return [name for name in calibration.units if name in chosen]


def _title(calibration: Calibration, name: str) -> str:
    p = calibration.p_values[name]
    words = f"p = {p:.2g}".replace("-", "−") if p > 1e-12 else "p < 1e−12"
    return f"{name}: {words}" + (
        f", {calibration.fault(name)}" if name in calibration.failures and name != LOG_JOINT else ""
    )
