"""Numbers that say what an image is like: its ink, how many pieces it has, how rough it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor


class ImageStatistics(NamedTuple):
    """Statistics of N images.

    Attributes:
        ink: Mean pixel, shape ``(N,)``, float64.
        components: Number of connected components of the pixels above the threshold, likewise.
        spectrum: Mean power at each whole spatial frequency from 1 to the Nyquist one, shape ``(N, F)``.
    """

    ink: Tensor
    components: Tensor
    spectrum: Tensor


def image_statistics(images: Tensor, threshold: float = 0.5) -> ImageStatistics:
    """The statistics of each image; colours are averaged over.

    Args:
        images: Shape ``(N, H, W)`` or ``(N, C, H, W)``.
        threshold: A pixel above it is ink, for the components.

    Raises:
        ValueError: If the shape is another one, or a pixel is not finite.
    """
    if images.dim() not in (3, 4) or 0 in images.shape:
        raise ValueError(f"images: expected shape (N, H, W) or (N, C, H, W), got {tuple(images.shape)}.")
    images = images.detach().cpu().double()
    if not bool(images.isfinite().all()):
        raise ValueError(f"images: expected finite pixels, got {int((~images.isfinite()).sum()):,} that are not.")
    channels = images[:, None] if images.dim() == 3 else images
    grey = channels.mean(1)
    return ImageStatistics(
        ink=grey.mean((1, 2)),
        components=components((grey > threshold).numpy()),
        spectrum=radial_spectrum(channels).mean(1),
    )


def components(ink: NDArray[np.bool_]) -> Tensor:
    """Number of connected components of each image, pixels that touch by a corner being connected.

    All images are labelled in one call, with no connection from one to the next.

    Args:
        ink: Which pixels are ink, shape ``(N, H, W)``.

    Returns:
        Shape ``(N,)``, float64.
    """
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True
    labels, total = ndimage.label(ink, structure)
    image_of = np.zeros(total + 1, dtype=np.int64)
    image_of[labels] = np.arange(len(ink))[:, None, None]
    return torch.from_numpy(np.bincount(image_of[1:], minlength=len(ink)).astype(float))


def radial_spectrum(images: Tensor) -> Tensor:
    r"""Mean power of the frequencies about as far from zero: :math:`P(f) = \mathrm{mean}_{|k| \approx f} |\hat x_k|^2 / (H W)`.

    Frequencies are in cycles over the longer side, rounded to whole ones; the mean of the image (frequency 0) is left
    out. Of white noise of variance s^2 every value has expectation s^2.

    Args:
        images: Shape ``(..., H, W)``.

    Returns:
        Shape ``(..., F)``, F half the longer side, at least 1.
    """
    height, width = images.shape[-2:]
    side = max(height, width)
    power = torch.fft.fft2(images).abs().square() / (height * width)
    vertical, horizontal = (torch.fft.fftfreq(n, d=1 / side, dtype=torch.float64) for n in (height, width))
    radius = torch.hypot(vertical[:, None], horizontal).round().long().flatten()
    highest = max(1, side // 2)
    kept = (radius >= 1) & (radius <= highest)
    ring = radius[kept] - 1
    counts = torch.bincount(ring, minlength=highest).clamp(min=1)
    found = power.new_zeros((*images.shape[:-2], highest))
    return found.index_add(-1, ring, power.flatten(-2)[..., kept]) / counts
