"""Distribution functions less that of the uniform one, by ArviZ, each in the band that holds for all of its points."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_vae.evidence.arviz_export import draws_group, is_arviz_1
from pyro_vae.evidence.criticism.uniformity import Band
from pyro_vae.system.imports import import_arviz

LINE, BAND, FAULT = "#0072B2", "0.85", "#D55E00"


class Panel(NamedTuple):
    """One panel.

    Attributes:
        title: What stands above it.
        values: Numbers in (0, 1), the middles of equal cells, shape ``(S,)``, float64.
        band: The band of their distribution function.
        fault: Whether its line is drawn in the colour of what is wrong.
    """

    title: str
    values: NDArray[np.float64]
    band: Band
    fault: bool


def delta_ecdf(panels: Sequence[Panel], title: str, xlabel: str, ylabel: str) -> Figure:
    """A panel each: the share of the values below x, less x; the band in grey.

    The lines are drawn by ``plot_ecdf_pit`` of ArviZ 1.x or ``plot_ecdf`` of 0.x. The band is ours in both, since its level is
    exact and holds for all panels together.

    Args:
        panels: At least one.
        title: Of the figure.
        xlabel: Of each panel of the last row.
        ylabel: Of each panel of the first column.
    """
    columns = min(3, len(panels))
    draw = _by_arviz_1 if is_arviz_1() else _by_arviz_0
    figure, axes = draw(panels, columns)
    for k, (panel, one) in enumerate(zip(panels, axes, strict=True)):
        _finish(one, panel)
        one.set_xlabel(xlabel if k >= len(panels) - columns else "")
        one.tick_params(labelbottom=k >= len(panels) - columns)
        one.set_ylabel(ylabel if k % columns == 0 else "")
    figure.suptitle(title, fontsize=12)
    return figure


def _size(count: int, columns: int) -> tuple[float, float]:
    return 3.6 * columns + 0.4, 2.9 * math.ceil(count / columns) + 0.6


def _by_arviz_0(panels: Sequence[Panel], columns: int) -> tuple[Figure, list[Axes]]:
    arviz = import_arviz()
    figure = Figure(figsize=_size(len(panels), columns), layout="constrained")
    grid = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat
    axes = list(grid)
    for panel, one in zip(panels, axes, strict=False):
        points = np.concatenate([[0.0], panel.band.grid, [1.0]])
        look = {"color": _color(panel), "where": "mid"}
        arviz.plot_ecdf(
            panel.values, cdf=lambda x: x, eval_points=points, difference=True, plot_kwargs=look, ax=one, show=False
        )
    for one in axes[len(panels) :]:
        one.remove()
    return figure, axes[: len(panels)]


def _by_arviz_1(panels: Sequence[Panel], columns: int) -> tuple[Figure, list[Axes]]:
    import arviz_plots
    from matplotlib import pyplot

    names = [f"{k}" for k in range(len(panels))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a layout of more panels than are filled
        found: Any = arviz_plots.plot_ecdf_pit(
            draws_group("prior_sbc", {name: _spread(panel) for name, panel in zip(names, panels, strict=True)}),
            group="prior_sbc",
            sample_dims=["chain", "draw"],
            backend="matplotlib",
            col_wrap=columns,
            figure_kwargs={
                "figsize": _size(len(panels), columns),
                "layout": "constrained",
                "sharex": False,
                "sharey": False,
            },
            # Its own test and marks would stand beside ours, which is for all panels together.
            visuals={"suspicious_points": False, "p_value_text": False, "title": False},
        )
    figure = found.viz["figure"].item()
    pyplot.close(figure)  # it is the caller's, not pyplot's
    axes = [found.viz["plot"][name].item() for name in names]
    for name, panel in zip(names, panels, strict=True):
        found.viz["ecdf_lines"][name].item().set(color=_color(panel), linewidth=1.5)
        found.viz["ref_line"][name].item().remove()
    for one in figure.axes:
        if one not in axes:  # a layout has more panels than are filled
            one.remove()
    return figure, axes


def _spread(panel: Panel) -> NDArray[np.float64]:
    """The values of each cell spread evenly over it: the line between the points of the grid is then straight, not a saw."""
    size = len(panel.band.grid) + 1
    cells = np.floor(panel.values * size).astype(int)
    counts = np.bincount(cells, minlength=size)
    parts = [(cell + (np.arange(n) + 0.5) / n) / size for cell, n in enumerate(counts) if n]
    return np.concatenate(parts)


def _color(panel: Panel) -> str:
    return FAULT if panel.fault else LINE


def _finish(axes: Axes, panel: Panel) -> None:
    band = panel.band
    grid, lower, upper = (
        np.concatenate([[start], values, [end]])
        for start, values, end in ((0, band.grid, 1), (0, band.lower - band.grid, 0), (0, band.upper - band.grid, 0))
    )
    axes.fill_between(grid, lower, upper, color=BAND, linewidth=0, zorder=0)
    axes.axhline(0, color="0.4", linewidth=0.8, zorder=0.5)
    axes.set_title(panel.title, fontsize=9.5, loc="left", color=FAULT if panel.fault else "black")
    line = np.concatenate([np.asarray(drawn.get_ydata(), dtype=float) for drawn in axes.lines])
    reach = 1.1 * max(np.abs(line).max(), np.abs(lower).max(), np.abs(upper).max())
    axes.set(xlim=(0, 1), ylim=(-reach, reach))
    axes.locator_params(axis="y", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
