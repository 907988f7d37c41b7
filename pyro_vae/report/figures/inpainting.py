"""Inpainting and denoising: fillings of hidden pixels, and images without their noise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.evidence.inpainting import Filling
from pyro_vae.models.autoencoder import squared_error
from pyro_vae.models.denoising import denoise
from pyro_vae.models.protocol import Autoencodes
from pyro_vae.report.figures.tiles import shrunk, tiles

COVERED = 0.5  # the grey of a hidden pixel


def fillings(x: Tensor, visible: Tensor, filling: Filling, columns: int = 6) -> Figure:
    """Draw images, visible pixels, fillings, and the fillings' mean and spread.

    Args:
        x: Complete images, shape ``(B, *data_shape)``.
        visible: True at visible pixels, bool; the shape broadcasts to that of ``x``.
        filling: Result of :func:`pyro_vae.evidence.inpaint`.
        columns: Largest number of fillings shown for each image.

    Returns:
        A figure with a row for each image.
    """
    count = min(columns, len(filling.images))
    covered = torch.where(visible, x, COVERED)
    # A pixel's spread is at most 1/2, that of a fair coin.
    shown = [x, covered, *filling.images[:count], filling.mean, 2 * filling.spread]
    images = torch.stack([shrunk(part) for part in shown], dim=1).flatten(0, 1)
    left = [0.0, 1.0, *(2.2 + k for k in range(count)), 2.4 + count, 3.4 + count]
    figure, axes = tiles(images, left, range(len(x)))
    names = ["original", "visible", *(str(k + 1) for k in range(count)), "mean", "spread"]
    axes.set_xticks([edge + 0.5 for edge in left], names, fontsize=8)
    axes.set_xlabel("1, 2, ...: E[x | z] at draws z ~ p(z | visible pixels);  spread: twice their standard deviation")
    axes.set_title("Inpainting: fillings of hidden pixels")
    return figure


def denoisings(models: Mapping[str, Autoencodes], clean: Tensor, noisy: Tensor, noise: str = "") -> Figure:
    """Draw clean, noisy and denoised images with their squared errors.

    Args:
        models: Models by name, each with ``encode`` and ``decode``.
        clean: Images, shape ``(B, *data_shape)``.
        noisy: The same images with noise, shape ``(B, *data_shape)``.
        noise: Name of the noise, for the title.

    Returns:
        A figure with a row for the clean images, a row for the noisy images, and a row for each model.
    """
    rows = {"clean": clean, "noisy": noisy} | {name: denoise(model, noisy) for name, model in models.items()}
    errors = {name: float(squared_error(image, clean, clean.dim() - 1).mean().detach()) for name, image in rows.items()}
    images = torch.cat([shrunk(image) for image in rows.values()])
    figure, axes = tiles(images, range(len(clean)), range(len(rows)))
    labels = [name if name == "clean" else f"{name}\nsquared error {errors[name]:.1f}" for name in rows]
    axes.set_yticks([row + 0.5 for row in range(len(rows))], labels)
    axes.set_title(f"Denoising{': ' + noise if noise else ''}\nE[x | z], mean over draws z ~ q(z | noisy image)")
    return figure
