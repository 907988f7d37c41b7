"""Latent vectors of the data: histogram, plane, or two principal components."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.report.figures.encoded import Encoded
from pyro_vae.report.figures.scatter import PALETTE, Classes, classes_of, label_legend, scatter
from pyro_vae.report.figures.tiles import Array

MAX_POINTS = 5000

HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "", "////", "", "....", "\\\\\\\\")


def latents(encoded: Encoded, source: str) -> Figure:
    """Draw the latent vectors of at most ``MAX_POINTS`` data, coloured by label.

    Args:
        encoded: The encoded data.
        source: Name of the data, such as ``test``.
    """
    _, means, labels = encoded.take(torch.randperm(len(encoded.rows))[:MAX_POINTS])
    classes = classes_of(labels, len(means))
    points, names = _at_most_two(means.numpy())
    figure = Figure(figsize=(8, _height(points)), layout="constrained")
    axes = figure.subplots()
    (_histogram if len(names) == 1 else scatter)(axes, points, names, classes)
    what = encoded.name[0].upper() + encoded.name[1:]
    axes.set_title(f"{what} of {encoded.amount(len(means))} {source} data")
    axes.spines[["top", "right"]].set_visible(False)
    label_legend(figure, axes, classes, "outside right upper", 2 if len(means) > 1000 else 1)
    return figure


def _at_most_two(means: Array) -> tuple[Array, list[str]]:
    """Reduce latent vectors to at most two principal components.

    Args:
        means: Latent vectors, shape ``(N, Z)``; returned unchanged if Z is 1 or 2.

    Returns:
        Reduced vectors, shape ``(N, min(Z, 2))``, and the name of each axis.
    """
    if means.shape[1] <= 2:
        return means, [f"$z_{k + 1}$" for k in range(means.shape[1])]
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, svd_solver="full")
    with np.errstate(invalid="ignore", divide="ignore"):  # no variance at all: 0 / 0
        points = pca.fit_transform(means)
        shares = np.nan_to_num(pca.explained_variance_ratio_)
    return points, [f"principal component {k} ({share:.1%} of the variance)" for k, share in enumerate(shares, start=1)]


def _height(points: Array) -> float:
    """Compute the height of a figure whose axes have equal units, inches."""
    if points.shape[1] == 1:
        return 5.0
    width, height = np.ptp(points, axis=0) + 1e-12
    return 0.8 + 6.5 * float(np.clip(height / width, 0.4, 1.1))


def _histogram(axes: Axes, points: Array, names: list[str], classes: Classes) -> None:
    parts = [points[rows, 0] for rows in classes.values()]
    count = len(classes)
    bins = int(np.clip(2 * math.sqrt(len(points)), 10, 60))
    axes.hist(
        parts,
        bins=bins,
        density=True,
        stacked=True,
        color=[PALETTE[k % len(PALETTE)] for k in range(count)],
        label=list(classes),
        hatch=[HATCHES[k % len(HATCHES)] for k in range(count)],
        edgecolor="white",
        linewidth=0.3,
    )
    axes.set(xlabel=names[0], ylabel="density, stacked by label" if count > 1 else "density")
