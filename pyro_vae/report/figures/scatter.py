"""Scatter plots with a colour and a marker for each class."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.data.labels import UNKNOWN
from pyro_vae.report.figures.tiles import Array

Classes = dict[str, NDArray[np.bool_]]
Place = Literal["outside right upper", "outside right center"]

MAX_CLASSES = 40  # with more, a legend is longer than the picture

# Paul Tol's "muted" palette; its palest colours are replaced by colours that stand out from white.
PALETTE = ("#332288", "#DDAA33", "#117733", "#CC6677", "#56B4E9", "#882255", "#44AA99", "#000000", "#999933", "#AA4499")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def classes_of(y: Tensor | None, count: int) -> Classes:
    """Group the data into classes by label.

    If no label is known, or there are more than ``MAX_CLASSES`` different labels, all data form one class without a name.

    Args:
        y: Labels, shape ``(count,)``, -1 where unknown, or None.
        count: Number of data.
    """
    values = np.empty(0) if y is None else y.cpu().numpy()
    labels = np.unique(values)
    if not 0 < len(labels) <= MAX_CLASSES or (labels == UNKNOWN).all():
        return nameless(count)
    names = ["unknown" if label == UNKNOWN else str(label) for label in labels]
    return {name: np.asarray(values == label) for name, label in zip(names, labels, strict=True)}


def nameless(count: int) -> Classes:
    """Put all data in one class without a name."""
    return {"": np.ones(count, dtype=bool)}


def scatter(axes: Axes, points: Array, names: list[str], classes: Classes) -> None:
    """Draw each class: its points, and its name at their median.

    Args:
        axes: Panel to draw in; both axes get equal units.
        points: Points, shape ``(N, 2)``.
        names: Labels of the two axes.
        classes: For each class, by name, the mask that selects its points, shape ``(N,)``.
    """
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
    """Write each class's name at its median, unless another name is there."""
    taken: list[Array] = []
    outline, size = [withStroke(linewidth=3, foreground="white")], 14 if len(classes) <= 12 else 8
    for label, rows in classes.items():
        centre = np.median(points[rows], axis=0)
        if all(np.abs(centre - other).max() > 0.04 * np.ptp(points, axis=0).max() for other in taken):
            taken.append(centre)
            x, y = centre.tolist()
            axes.text(x, y, label, fontsize=size, weight="bold", ha="center", va="center", path_effects=outline)


def label_legend(figure: Figure, axes: Axes, classes: Classes, loc: Place, markerscale: float) -> None:
    """Draw a legend of the classes, if the classes have names.

    Args:
        figure: The figure.
        axes: Panel of the figure in which the classes are drawn.
        classes: See :func:`classes_of`.
        loc: Place of the legend.
        markerscale: Size of the legend's markers, relative to the drawn markers.
    """
    if "" in classes:
        return
    entries, columns = axes.get_legend_handles_labels(), math.ceil(len(classes) / 20)
    figure.legend(*entries, loc=loc, title="label", ncols=columns, markerscale=markerscale, frameon=False)
