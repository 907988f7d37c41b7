"""Comparison of autoencoders with VAEs: latent planes, walks, samples and codes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.distributions import Prior
from pyro_vae.models.protocol import Autoencodes
from pyro_vae.report.figures.scatter import PALETTE, classes_of
from pyro_vae.report.figures.tiles import decoded, inches, like_parameters, mosaic, pick, pixels

#: At most this many data in a plane; with more, points hide each other.
MAX_POINTS = 2000
WALKS, SIDE = 3, 6  # walks between images; images in a walk, and in a row of samples


def planes(models: Mapping[str, Autoencodes], split: Split, source: str) -> Figure:
    """Draw latent planes, walks and samples of models with two latent units.

    A walk shows decoded points on a straight line between the codes of two images. Below the walks are decoded draws from
    N(0, I). Images and draws are the same for all models. The decoded draws are samples of a model whose prior is N(0, I). An
    autoencoder has no prior, so a draw may lie where the decoder has learnt nothing. The last row shows decoded draws from a
    normal distribution with the mean and covariance of the codes in the plane.

    Args:
        models: Models by name, each with ``encode``, ``decode`` and ``latent_dim`` 2.
        split: Images, with or without labels.
        source: Name of the data, such as ``test``.

    Returns:
        A figure with a column for each model: the plane, the walks, and the two kinds of draws.

    Raises:
        ValueError: If there is no model, or a model has another ``latent_dim``.
    """
    for name, model in models.items():
        latent_dim = getattr(model, "latent_dim", None)
        if latent_dim != 2:
            raise ValueError(
                f"models: expected latent_dim 2, got {latent_dim} in {name!r}; train it with latent_dim 2."
            )
    if not models:
        raise ValueError("models: expected at least one model, got none; pass models by name.")
    rows = torch.randperm(len(split.x))[:MAX_POINTS]
    x, y = split.x[rows], None if split.y is None or split.y.dim() > 1 else split.y[rows]
    ends = pick(split, 2 * WALKS)
    noise = torch.randn(SIDE * SIDE, 2)
    figure = Figure(figsize=(3.2 * len(models), 11.6), layout="constrained")
    grid = figure.add_gridspec(4, len(models), height_ratios=(3.0, 1.5, 2.8, 2.8))
    for column, (name, model) in enumerate(models.items()):
        with torch.no_grad():
            codes = model.encode(like_parameters(model, x)).mean
            a, b = model.encode(like_parameters(model, ends)).mean.unflatten(0, (2, WALKS))
            t = torch.linspace(0, 1, SIDE).to(a)[:, None]
            walks = (1 - t) * a[:, None] + t * b[:, None]
            _plane(figure.add_subplot(grid[0, column]), name, codes, walks, y)
            _mosaic(figure, grid[1, column], decoded(model, walks.flatten(0, 1)), "from cross to cross")
            prior = getattr(model, "prior", None)
            label = "samples, z ~ p(z) = N(0, I)" if prior is not None else "decoded z ~ N(0, I), no prior"
            if isinstance(prior, Prior) and not prior.standard:
                label = "decoded z ~ N(0, I), another prior"
            _mosaic(figure, grid[2, column], decoded(model, noise.to(codes)), label)
            fitted = codes.mean(0) + noise.to(codes) @ torch.linalg.cholesky(torch.cov(codes.T)).T
            _mosaic(figure, grid[3, column], decoded(model, fitted), "decoded z ~ normal fitted to the codes")
    figure.suptitle(f"Codes of {len(x):,} {source} images, walks between some of them, and decoded draws")
    return figure


def codes(model: Autoencodes, x: Tensor, source: str) -> Figure:
    """Draw images, their codes as bars, and their reconstructions.

    Args:
        model: A model with ``encode`` and ``decode``; the code is the mean of q(z|x).
        x: Images, shape ``(B, *data_shape)``.
        source: Name of the data.

    Returns:
        A figure with a column for each image: the image, its code as bars, and its reconstruction.
    """
    with torch.no_grad():
        z = model.encode(like_parameters(model, x)).mean
        again = decoded(model, z)
    width, height = inches(x)
    figure = Figure(figsize=(1.3 * width * len(x) + 0.6, 3.6 * height), layout="constrained")
    grid = figure.subplots(3, len(x), squeeze=False)
    limit = 1.05 * float(z.abs().max())
    for column, numbers in enumerate(z.cpu().double().numpy()):
        for row, images in ((0, x), (2, again)):
            grid[row, column].imshow(pixels(images[column : column + 1])[0], cmap="gray", vmin=0, vmax=1)
        bars = grid[1, column]
        bars.bar(range(1, len(numbers) + 1), numbers, color=PALETTE[0], width=0.8)
        bars.axhline(0, color="black", linewidth=0.6)
        bars.set(ylim=(-limit, limit), xlim=(0.4, len(numbers) + 0.6))
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, label in enumerate(("image", f"its {z.shape[1]} numbers", "reconstruction")):
        grid[row, 0].set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
    figure.suptitle(f"{source} in {z.shape[1]} numbers; bars from −{limit:.1f} to {limit:.1f}")
    return figure


def _plane(axes: Axes, name: str, codes: Tensor, walks: Tensor, y: Tensor | None) -> None:
    points = codes.cpu().double().numpy()
    for k, (label, rows) in enumerate(classes_of(y, len(points)).items()):
        axes.scatter(points[rows, 0], points[rows, 1], s=5, color=PALETTE[k % len(PALETTE)], linewidths=0, alpha=0.8)
        if label:
            style = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8}
            left, up = np.median(points[rows], axis=0).tolist()
            axes.text(left, up, label, fontsize=9, weight="bold", ha="center", va="center", bbox=style)
    for walk in walks[:, [0, -1]].cpu().double().numpy():
        axes.plot(walk[:, 0], walk[:, 1], color="black", marker="x", markersize=8, linewidth=1.2)
    axes.set_title(name)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)


def _mosaic(figure: Figure, place: SubplotSpec, images: Tensor, label: str) -> None:
    """Draw images without gaps, ``SIDE`` in each row, with a label below."""
    axes = figure.add_subplot(place)
    axes.imshow(mosaic(images, SIDE), cmap="gray", vmin=0, vmax=1)
    height, width = images.shape[-2:]
    for lines, step, end in ((axes.axhline, height, len(images) // SIDE), (axes.axvline, width, SIDE)):
        for k in range(1, end):
            lines(k * step - 0.5, color="0.35", linewidth=0.5)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(label, fontsize=9)
