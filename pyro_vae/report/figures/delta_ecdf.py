"""Differences of empirical from uniform distribution functions, with simultaneous bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.evidence.criticism.uniformity import Array, Band

LINE, BAND, FAULT = "#0072B2", "0.85", "#D55E00"


class Panel(NamedTuple):
    """One sample of size S, and the band for its distribution function.

    Attributes:
        title: Title of the panel.
        values: The sample, shape ``(S,)``, float64, in (0, 1). The points of the band's grid divide [0, 1] into equal cells;
            each value is the midpoint of a cell.
        band: Simultaneous band for the sample's distribution function.
        fault: True to draw the line and the title in the colour of a fault.
    """

    title: str
    values: Array
    band: Band
    fault: bool


def delta_ecdf(panels: Sequence[Panel], title: str, xlabel: str, ylabel: str) -> Figure:
    r"""Draw each sample's distribution function minus the uniform one.

    .. math:: \Delta(u) = \tfrac1S \textstyle\sum_s [v_s < u] - u

    where :math:`v_s` are the S values of the sample. The line joins the values at the points of the band's grid, as the band's
    edges do. So the line leaves the grey area exactly where the sample leaves the band. The level of the band is exact, and
    holds for all points at once.

    Args:
        panels: Panels, at least one.
        title: Title of the figure.
        xlabel: Label below the lowest panel of each column.
        ylabel: Label of the first column.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 2.9 * rows + 0.6), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for k, (axes, panel) in enumerate(zip(all_axes, panels, strict=False)):
        _draw(axes, panel)
        lowest = k >= len(panels) - columns
        axes.set(xlabel=xlabel if lowest else "", ylabel=ylabel if k % columns == 0 else "")
        axes.tick_params(labelbottom=lowest)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    figure.suptitle(title, fontsize=12)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    band, color = panel.band, FAULT if panel.fault else LINE
    grid = np.concatenate([[0.0], band.grid, [1.0]])
    shares = (band.share_below(panel.values), band.lower, band.upper)
    line, lower, upper = (np.pad(share - band.grid, 1) for share in shares)  # 0 at both ends
    axes.fill_between(grid, lower, upper, color=BAND, linewidth=0, zorder=0)
    axes.axhline(0, color="0.4", linewidth=0.8, zorder=0.5)
    axes.plot(grid, line, color=color, linewidth=1.5)
    axes.set_title(panel.title, fontsize=9.5, loc="left", color=FAULT if panel.fault else "black")
    reach = 1.1 * np.abs([line, lower, upper]).max()
    axes.set(xlim=(0, 1), ylim=(-reach, reach))
    axes.locator_params(axis="y", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
