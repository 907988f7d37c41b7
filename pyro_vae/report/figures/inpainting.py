"""Pictures of what was covered and what stands there now: fillings of hidden pixels, and noise taken off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.evidence.inpainting import Filling
from pyro_vae.models.autoencoder import squared_error
from pyro_vae.models.denoising import denoise
from pyro_vae.report.figures.tiles import shrunk, tiles

COVERED = 0.5  # the grey of a hidden pixel


def fillings(x: Tensor, visible: Tensor, found: Filling, columns: int = 6) -> Figure:
    """Images, what was seen of them, several fillings, and their mean and spread.

    Args:
        x: Images, shape ``(B, *data_shape)``, whole.
        visible: Which pixels were seen, shape that broadcasts to that of ``x``.
        found: What :func:`pyro_vae.evidence.inpaint` gave.
        columns: How many fillings to show, at most.

    Returns:
        A row for each image.
    """
    count = min(columns, len(found.images))
    covered = torch.where(visible, x, COVERED)
    # A spread's largest value is that of a fair coin.
    shown = [x, covered, *found.images[:count], found.mean, 2 * found.spread]
    images = torch.stack([shrunk(part) for part in shown], dim=1).flatten(0, 1)
    left = [0.0, 1.0, *(2.2 + k for k in range(count)), 2.4 + count, 3.4 + count]
    figure, axes = tiles(images, left, range(len(x)))
    words = ["original", "seen", *(str(k + 1) for k in range(count)), "mean", "spread"]
    axes.set_xticks([edge + 0.5 for edge in left], words, fontsize=8)
    axes.set_xlabel(
        "fillings 1, 2, ...: E[x | z] at draws z of p(z | what is seen);   spread: their standard deviation"
    )
    axes.set_title("Hidden pixels, filled")
    return figure


def denoisings(models: Mapping[str, Any], clean: Tensor, noisy: Tensor, words: str = "") -> Figure:
    """Images, the same with noise, and what each model makes of the noisy ones, with mean squared errors.

    Args:
        models: Name to a model with ``encode`` and ``decode``.
        clean: Images, shape ``(B, *data_shape)``.
        noisy: The same, with noise.
        words: What noise, for the title.

    Returns:
        A row for the images, the noisy ones, and each model.
    """
    rows = {"clean": clean, "noisy": noisy} | {name: denoise(model, noisy) for name, model in models.items()}
    errors = {name: float(squared_error(found, clean, clean.dim() - 1).mean().detach()) for name, found in rows.items()}
    images = torch.cat([shrunk(found) for found in rows.values()])
    figure, axes = tiles(images, range(len(clean)), range(len(rows)))
    labels = [name if name == "clean" else f"{name}\nsquared error {errors[name]:.1f}" for name in rows]
    axes.set_yticks([row + 0.5 for row in range(len(rows))], labels)
    axes.set_title(f"Noise taken off{': ' + words if words else ''}\nE[x | z], mean over draws z of q(z | noisy image)")
    return figure
