"""Tables of images: which are shown, and how they are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.data.stored import rows_of
from pyro_vae.models.base import mean_image

Array = NDArray[np.float64]

#: The most data that pictures look at; of more, these many evenly spaced ones.
MAX_ROWS = 10_000

#: Pixels of the longer side of an image; a tile has fewer on the page.
MAX_SIDE = 160

TILE = 0.75  # inches
GAP = 0.04  # of a tile, on each side
FRAME = "0.55"  # without it the white edge of an image is lost on the white page


T = TypeVar("T", Tensor, tuple[Tensor, ...])


def like_parameters(vae: Any, x: T) -> T:
    """``x``, or several columns, on the device of the model's parameters, and in their dtype save for whole numbers."""
    if isinstance(x, tuple):
        return tuple(like_parameters(vae, column) for column in x)
    like = next(vae.parameters())
    return x.to(like) if x.is_floating_point() else x.to(like.device)


def spread_rows(total: int) -> Tensor:
    """All rows of ``total``, or ``MAX_ROWS`` evenly spaced ones: shape ``(N,)``, int64, ascending."""
    count = min(total, MAX_ROWS)
    return torch.arange(count) * total // max(count, 1)


def pick(split: Split, count: int) -> Tensor:
    """Random images, see :func:`pick_rows`: shape ``(count, *data_shape)``."""
    return split.x[pick_rows(split, count)]


def pick_rows(split: Split, count: int, labelled: bool = False) -> Tensor:
    """Random rows, the classes in turn, so that each is seen and a column of ten holds one class of ten.

    Args:
        split: Images, with or without labels.
        count: How many; fewer where there are not so many.
        labelled: Whether only data whose label is known, of a split with labels of shape ``(N,)``.

    Returns:
        Shape ``(count,)``, int64.
    """
    among = (cast(Tensor, split.y).cpu() >= 0).nonzero()[:, 0] if labelled else None
    order = spread_rows(len(split.x)) if among is None else among[spread_rows(len(among))]
    order = order[torch.randperm(len(order))]
    if split.y is not None and split.y.dim() == 1:
        labels, index = split.y.cpu()[order].sort(stable=True)
        counts = labels.unique_consecutive(return_counts=True)[1]
        turn = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        order = order[index][turn.argsort(stable=True)]
    return order[:count]


def has_known_labels(split: Split) -> bool:
    """Whether the label of some datum is known."""
    return split.y is not None and split.y.dim() == 1 and bool((split.y >= 0).any())


def shrunk(images: Tensor, side: int = MAX_SIDE) -> Tensor:
    """Images of shape ``(N, C, H, W)``, averaged down where they are larger than ``side``, by default what a tile shows."""
    height, width = images.shape[-2:]
    if max(height, width) <= side:
        return images
    factor = side / max(height, width)
    return torch.nn.functional.interpolate(
        images, (max(1, round(height * factor)), max(1, round(width * factor))), mode="area"
    )


@torch.no_grad()
def decoded(vae: Any, z: Tensor, side: int = MAX_SIDE) -> Tensor:
    """Means of p(x|z), as large as a tile can show, decoded in chunks.

    Args:
        vae: The model, of images.
        z: Latent vectors, shape ``(..., Z)``.
        side: Pixels of their longer side, at most.

    Returns:
        Shape ``(..., C, H, W)``.
    """
    parts = z.flatten(0, -2).split(rows_of((0, *vae.data_shape)))
    images = torch.cat([shrunk(mean_image(vae.decode(part)), side) for part in parts])
    return images.unflatten(0, z.shape[:-1])


def pixels(images: Tensor) -> Array:
    """Images of shape ``(N, C, H, W)`` as matplotlib takes them: ``(N, H, W)`` grey or ``(N, H, W, 3)``."""
    shown = images.clamp(0, 1).cpu().double().permute(0, 2, 3, 1).numpy()
    return shown[..., 0] if shown.shape[-1] == 1 else shown


def inches(images: Tensor) -> tuple[float, float]:
    """Width and height of a tile: its longer side is ``TILE``."""
    height, width = images.shape[-2:]
    return TILE * width / max(height, width), TILE * height / max(height, width)


def tiles(images: Tensor, columns: Sequence[float], rows: Sequence[float]) -> tuple[Figure, Axes]:
    """A table of images.

    Args:
        images: Shape ``(R * C, *data_shape)``, row after row; where one is NaN, nothing is drawn.
        columns: Left edges, in tiles from the left; a step above 1 leaves a space.
        rows: Upper edges, in tiles from the top.

    Returns:
        The figure, and its axes in units of tiles, without ticks.
    """
    width, height = inches(images)
    right, bottom = columns[-1] + 1, rows[-1] + 1
    figure = Figure(figsize=(width * right, height * bottom))
    axes = figure.add_axes((0, 0, 1, 1))
    for k, image in enumerate(pixels(images)):
        if np.isnan(image).any():
            continue
        x, y = columns[k % len(columns)], rows[k // len(columns)]
        left, top, side = x + GAP, y + GAP, 1 - 2 * GAP
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(left, left + side, top + side, top), aspect="auto")
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=FRAME, linewidth=0.6))
    axes.set(xlim=(0, right), ylim=(bottom, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes
