"""The rate-distortion curve of a sweep over beta."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def rate_distortion(rows: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Plot distortion against rate, with lines of equal ELBO.

    Each run is a point. The ELBO of a point is -(rate + distortion).

    Args:
        rows: ``beta``, ``rate`` and ``distortion`` of each run, nats per datum.
        title: First line of the title.
    """
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    rate, distortion = (np.array([row[key] for row in rows]) for key in ("rate", "distortion"))
    axes.plot(rate, distortion, "o-", color="#0072B2", markersize=6, zorder=3)
    for betas, point in _labels(rows, 0.02 * max(np.ptp(rate), np.ptp(distortion))):
        axes.annotate(f"β = {betas}", point, xytext=(7, 5), textcoords="offset points", fontsize=9)
    axes.margins(0.12)
    x, y = np.meshgrid(np.linspace(*axes.get_xlim(), 50), np.linspace(*axes.get_ylim(), 50))
    lines = axes.contour(x, y, -(x + y), levels=8, colors="0.75", linewidths=0.8, linestyles="--")
    digits = _digits([*lines.levels])
    axes.clabel(lines, fmt=lambda value: f"{value:.{digits}f}".replace("-", "−"), fontsize=8)
    axes.set(xlabel="rate, nats per datum", ylabel="distortion, nats per datum")
    axes.set_title(f"{title}\ntest data; dashed: equal ELBO, nats per datum", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _digits(levels: Sequence[float]) -> int:
    """Find how many decimals show equally spaced levels exactly."""
    step = float(levels[1] - levels[0]) if len(levels) > 1 else 1.0
    first = max(0, -math.floor(math.log10(step)))
    return next(
        (n for n in range(first, first + 3) if all(abs(round(v, n) - v) < 1e-3 * step for v in levels)), first + 3
    )


def _labels(rows: Sequence[Mapping[str, float]], near: float) -> list[tuple[str, tuple[float, float]]]:
    """Return labels with their positions; points closer than ``near`` share a label."""
    groups: list[tuple[list[str], tuple[float, float]]] = []
    for row in rows:
        point = (row["rate"], row["distortion"])
        for betas, other in groups:
            if max(abs(point[0] - other[0]), abs(point[1] - other[1])) <= near:
                betas.append(f"{row['beta']:g}")
                break
        else:
            groups.append(([f"{row['beta']:g}"], point))
    return [(", ".join(betas), point) for betas, point in groups]
