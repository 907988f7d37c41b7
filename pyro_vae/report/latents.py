"""Latent vectors of the data: the plane, a histogram, or two principal components."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from pyro_vae.data import Split
from pyro_vae.models.vae import VAE
from pyro_vae.report.images import Array, like_parameters

Classes = dict[str, NDArray[np.bool_]]

ENCODER_ROWS = 1000
MAX_POINTS = 5000
MAX_CLASSES = 40  # with more, a legend is longer than the picture

# Paul Tol's "muted", its palest colours replaced by ones that stand out from white.
PALETTE = ("#332288", "#DDAA33", "#117733", "#CC6677", "#56B4E9", "#882255", "#44AA99", "#000000", "#999933", "#AA4499")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "", "////", "", "....", "\\\\\\\\")


def latents(vae: VAE, split: Split, source: str) -> Figure:
    """Posterior means of at most ``MAX_POINTS`` data, coloured by label."""
    total = len(split.x)
    index = torch.randperm(total)[:MAX_POINTS]
    x = split.x[index.to(split.x.device)]
    classes = _classes(None if split.y is None else split.y.cpu()[index].numpy(), len(x))
    means = torch.cat([vae.encode(like_parameters(vae, part)).mean for part in x.split(ENCODER_ROWS)])
    points, names = _at_most_two(means.double().cpu().numpy())
    figure = Figure(figsize=(8, _height(points)), layout="constrained")
    axes = figure.subplots()
    (_histogram if len(names) == 1 else _scatter)(axes, points, names, classes)
    amount = f"{total:,}" if total == len(x) else f"{len(x):,} of {total:,}"
    axes.set_title(f"Means of q(z|x) for {amount} {source} data")
    axes.spines[["top", "right"]].set_visible(False)
    if "" not in classes:
        columns, scale = math.ceil(len(classes) / 20), 2 if len(x) > 1000 else 1
        figure.legend(loc="outside right upper", title="label", ncols=columns, markerscale=scale, frameon=False)
    return figure


def _at_most_two(means: Array) -> tuple[Array, list[str]]:
    """Latent vectors of size 1 or 2 as they are, larger ones by their first two principal components.

    Args:
        means: Shape ``(N, Z)``.

    Returns:
        Shape ``(N, min(Z, 2))``, and the name of each column.
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
    """Height of the figure in inches by which a plane of equal units is filled."""
    if points.shape[1] == 1:
        return 5.0
    width, height = np.ptp(points, axis=0) + 1e-12
    return 0.8 + 6.5 * float(np.clip(height / width, 0.4, 1.1))


def _classes(y: NDArray[np.int64] | None, count: int) -> Classes:
    """Label to the rows that have it; one nameless class where there are no labels, or too many to tell apart."""
    labels = np.unique(y) if y is not None else np.empty(0)
    if not 0 < len(labels) <= MAX_CLASSES:
        return {"": np.ones(count, dtype=bool)}
    return {str(label): np.asarray(y == label) for label in labels}


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


def _scatter(axes: Axes, points: Array, names: list[str], classes: Classes) -> None:
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
            axes.text(x, y, label, fontsize=14, weight="bold", ha="center", va="center", path_effects=outline)
