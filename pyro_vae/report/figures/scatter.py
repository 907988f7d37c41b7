"""Points of the plane, their classes told apart by colour and marker."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.data.labels import UNKNOWN
from pyro_vae.report.figures.tiles import Array

Classes = dict[str, NDArray[np.bool_]]

MAX_CLASSES = 40  # with more, a legend is longer than the picture

# Paul Tol's "muted", its palest colours replaced by ones that stand out from white.
PALETTE = ("#332288", "#DDAA33", "#117733", "#CC6677", "#56B4E9", "#882255", "#44AA99", "#000000", "#999933", "#AA4499")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def classes_of(y: Tensor | None, count: int) -> Classes:
    """Label to the rows that have it; one nameless class where no label is known, or there are too many to tell apart.

    Args:
        y: Labels, shape ``(count,)``, -1 where unknown, or None.
        count: How many data there are.
    """
    values = np.empty(0) if y is None else y.cpu().numpy()
    labels = np.unique(values)
    if not 0 < len(labels) <= MAX_CLASSES or (labels == UNKNOWN).all():
        return nameless(count)
    names = ["unknown" if label == UNKNOWN else str(label) for label in labels]
    return {name: np.asarray(values == label) for name, label in zip(names, labels, strict=True)}


def nameless(count: int) -> Classes:
    """One class of all data, which no legend names."""
    return {"": np.ones(count, dtype=bool)}


def scatter(axes: Axes, points: Array, names: list[str], classes: Classes) -> None:
    """Draw points of shape ``(N, 2)`` with equal units on both axes, each class with its name at its median."""
    size = float(np.clip(10_000 / len(points), 12, 28))
    for k, (label, rows) in enumerate(classes.items()):
        # The markers are shifted by one every ten classes, so that no pair of colour and marker comes twice.
        color, marker = PALETTE[k % len(PALETTE)], MARKERS[(k + k // len(PALETTE)) % len(MARKERS)]
        x, y = points[rows].T
        axes.scatter(x, y, s=size, color=color, marker=marker, alpha=0.8, linewidths=0, label=label)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    _name_classes(axes, points, classes)


def _name_classes(axes: Axes, points: Array, classes: Classes) -> None:
    """Write each label at its class's median, save where another label is already; the legend has them all."""
    taken: list[Array] = []
    for label, rows in classes.items():
        centre = np.median(points[rows], axis=0)
        if all(np.abs(centre - other).max() > 0.04 * np.ptp(points, axis=0).max() for other in taken):
            taken.append(centre)
            outline = [withStroke(linewidth=3, foreground="white")]
            x, y = centre.tolist()
            axes.text(
                x,
                y,
                label,
                fontsize=14 if len(classes) <= 12 else 8,
                weight="bold",
                ha="center",
                va="center",
                path_effects=outline,
            )
