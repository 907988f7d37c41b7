"""Statistics of images: ink, connected components, power spectrum."""

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
        ink: Mean pixel value, shape ``(N,)``, float64.
        components: Number of connected components of the pixels above the threshold, shape ``(N,)``, float64.
        spectrum: Mean power at each whole spatial frequency from 1 to the Nyquist frequency, shape ``(N, F)``, float64; see
            :func:`radial_spectrum`.
    """

    ink: Tensor
    components: Tensor
    spectrum: Tensor


def image_statistics(images: Tensor, threshold: float = 0.5) -> ImageStatistics:
    """Compute the statistics of each image, averaged over the channels.

    Args:
        images: Shape ``(N, H, W)`` or ``(N, C, H, W)``.
        threshold: A pixel above this value counts as ink when components are counted.

    Returns:
        Ink, components and spectrum of each image; float64, CPU.

    Raises:
        ValueError: If ``images`` have the wrong shape or a pixel is not finite.
    """
    if images.dim() not in (3, 4) or 0 in images.shape:
        raise ValueError(
            f"images: expected shape (N, H, W) or (N, C, H, W), got {tuple(images.shape)}; pass at least one image."
        )
    images = images.detach().cpu().double()
    if not bool(images.isfinite().all()):
        bad = int((~images.isfinite()).sum())
        raise ValueError(f"images: expected finite pixels, got {bad:,} infinite or NaN; remove such images.")
    channels = images[:, None] if images.dim() == 3 else images
    grey = channels.mean(1)
    return ImageStatistics(
        ink=grey.mean((1, 2)),
        components=components((grey > threshold).numpy()),
        spectrum=radial_spectrum(channels).mean(1),
    )


def components(ink: NDArray[np.bool_]) -> Tensor:
    """Count the connected components of each image.

    Two ink pixels are connected if they share an edge or a corner. Pixels of different images are never connected.

    Args:
        ink: True where a pixel is ink, shape ``(N, H, W)``, bool.

    Returns:
        Number of components of each image, shape ``(N,)``, float64.
    """
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True
    labels, total = ndimage.label(ink, structure)
    image_of = np.zeros(total + 1, dtype=np.int64)
    image_of[labels] = np.arange(len(ink))[:, None, None]
    return torch.from_numpy(np.bincount(image_of[1:], minlength=len(ink)).astype(float))


def radial_spectrum(images: Tensor) -> Tensor:
    r"""Mean power at each spatial frequency, over all directions.

    .. math:: P(f) = \operatorname{mean}_{|k| \approx f} |\hat x_k|^2 / (H W)

    where :math:`\hat x` is the discrete Fourier transform of the image. A frequency is a number of cycles over the longer side,
    rounded to a whole number. Frequency 0, the mean of the image, is left out. For white noise of variance s^2, P(f) has
    expectation s^2 at each f.

    Args:
        images: Shape ``(..., H, W)``.

    Returns:
        Mean power at frequencies 1 to F, shape ``(..., F)``, where F is half the longer side, at least 1.
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
    sums = power.new_zeros((*images.shape[:-2], highest))
    return sums.index_add(-1, ring, power.flatten(-2)[..., kept]) / counts
