"""Tables of images: choose, decode and lay out the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

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
from pyro_vae.models.protocol import Decodes, PyroModel

Array = NDArray[np.float64]

#: Pictures use at most this many data, evenly spaced.
MAX_ROWS = 10_000

#: Largest side of an image in pixels; a tile on the page has fewer pixels.
MAX_SIDE = 160

TILE = 0.75  # inches
GAP = 0.04  # share of a tile, on each side
FRAME = "0.55"  # without a frame the white edge of an image is lost on the white page

T = TypeVar("T", Tensor, tuple[Tensor, ...])


def like_parameters(vae: PyroModel, x: T) -> T:
    """Move tensors to the device and dtype of a model's parameters.

    Args:
        vae: The model.
        x: A tensor or a tuple of tensors; tensors of whole numbers keep their dtype.
    """
    if isinstance(x, tuple):
        return tuple(like_parameters(vae, part) for part in x)
    like = next(vae.parameters())
    return x.to(like) if x.is_floating_point() else x.to(like.device)


def spread_rows(total: int) -> Tensor:
    """Choose at most ``MAX_ROWS`` evenly spaced rows of ``total``.

    The result has shape ``(N,)``, int64, ascending.
    """
    count = min(total, MAX_ROWS)
    return torch.arange(count) * total // max(count, 1)


def pick(split: Split, count: int) -> Tensor:
    """Pick random images with :func:`pick_rows`; return ``(count, *data_shape)``."""
    return split.x[pick_rows(split, count)]


def pick_rows(split: Split, count: int, labelled: bool = False) -> Tensor:
    """Pick random rows of a split, taking the classes in turn.

    Every class appears. If there are ten classes, each column of a table with ten columns shows one class.

    Args:
        split: Images, with or without labels.
        count: Largest number of rows.
        labelled: True to pick only data with a known label; the split of N data then needs labels of shape ``(N,)``.

    Returns:
        Rows of the split, shape ``(count,)``, int64.
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
    """Return True if at least one label is known."""
    return split.y is not None and split.y.dim() == 1 and bool((split.y >= 0).any())


def shrunk(images: Tensor, side: int = MAX_SIDE) -> Tensor:
    """Shrink images to the size of a tile by averaging pixels.

    Args:
        images: Shape ``(N, C, H, W)``.
        side: Largest height and width in pixels; smaller images stay unchanged.
    """
    height, width = images.shape[-2:]
    if max(height, width) <= side:
        return images
    factor = side / max(height, width)
    return torch.nn.functional.interpolate(
        images, (max(1, round(height * factor)), max(1, round(width * factor))), mode="area"
    )


@torch.no_grad()
def decoded(vae: Decodes, z: Tensor, side: int = MAX_SIDE) -> Tensor:
    """Decode latent vectors in chunks; return the means of p(x|z), shrunk.

    Args:
        vae: A model of images.
        z: Latent vectors, shape ``(..., Z)``.
        side: Largest height and width in pixels.

    Returns:
        Images, shape ``(..., C, H, W)``.
    """
    parts = z.flatten(0, -2).split(rows_of((0, *vae.data_shape)))
    images = torch.cat([shrunk(mean_image(vae.decode(part)), side) for part in parts])
    return images.unflatten(0, z.shape[:-1])


def pixels(images: Tensor) -> Array:
    """Convert images to the arrays that matplotlib draws, clipped to [0, 1].

    Args:
        images: Shape ``(N, C, H, W)``.

    Returns:
        Arrays of shape ``(N, H, W)`` for grey images, ``(N, H, W, 3)`` for colour images.
    """
    shown = images.clamp(0, 1).cpu().double().permute(0, 2, 3, 1).numpy()
    return shown[..., 0] if shown.shape[-1] == 1 else shown


def inches(images: Tensor) -> tuple[float, float]:
    """Return width and height of a tile, inches; the longer is ``TILE``."""
    height, width = images.shape[-2:]
    return TILE * width / max(height, width), TILE * height / max(height, width)


def tiles(images: Tensor, columns: Sequence[float], rows: Sequence[float]) -> tuple[Figure, Axes]:
    """Draw a table of images.

    Args:
        images: Images of a table with R rows and C columns, row by row, shape ``(R * C, *data_shape)``. The place of an image
            with a NaN stays empty.
        columns: Left edge of each column, in tiles from the left. If an edge is more than 1 from the last, a space is left.
        rows: Upper edge of each row, in tiles from the top.

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


def tiles_beside(x: Tensor, made: Tensor) -> tuple[Figure, Axes, list[float]]:
    """Draw images, each beside the images that a model made from it.

    Args:
        x: R images, one for each row, shape ``(R, C, H, W)``.
        made: The N images that the model made from each image, shrunk to tiles, shape ``(R, N, C, h, w)``.

    Returns:
        The figure, its axes in units of tiles, and the middle of each of the 1 + N columns.
    """
    left = [0.0, *(1.3 + k for k in range(made.shape[1]))]
    figure, axes = tiles(torch.cat([shrunk(x)[:, None], made], dim=1).flatten(0, 1), left, range(len(x)))
    return figure, axes, [edge + 0.5 for edge in left]


def mosaic(images: Tensor, columns: int) -> Array:
    """Join images without gaps into one array for matplotlib.

    Args:
        images: Images, row by row, shape ``(N, C, H, W)``; N is a multiple of ``columns``.
        columns: Number of images in a row.
    """
    shown = pixels(images)
    grid: Array = shown.reshape(-1, columns, *shown.shape[1:])
    return np.concatenate(np.concatenate(grid, axis=1), axis=1)


def captioned(panels: Sequence[Axes], images: Tensor, captions: Sequence[str]) -> None:
    """Draw images with captions, one in each panel.

    Args:
        panels: One panel for each image, or more; extra panels stay blank.
        images: Shape ``(N, C, H, W)``.
        captions: One caption for each image.
    """
    for axes, image, caption in zip(panels, pixels(shrunk(images)), captions, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_xlabel(caption.replace("-", "−"), fontsize=9)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=FRAME, linewidth=0.6, visible=bool(axes.images))
