"""Nats per image as bits per dimension, where that has a meaning."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Grey levels of an 8-bit pixel.
LEVELS = 256


def bits_per_dim(log_px: Tensor, num_dims: int, *, density: bool = False, levels: int | None = None) -> Tensor:
    r"""Bits for each pixel value: a code length, lower is better.

    .. math:: b = -\frac{\log p(x)}{D \log 2} \; (+ \log_2 L \text{ for a density of dequantized pixels in } [0, 1])

    A probability of integers is taken as it is. A density has a code length only if the pixels were dequantized, :math:`y =
    (x + u) / L` with u uniform: then :math:`\log P(x) \ge E_u[\log p(y)] - D \log L`, so that b is an upper bound. The
    density of undequantized pixels can be made as large as one likes, and is refused.

    Args:
        log_px: log p(x), nats, of any shape.
        num_dims: D, pixels times channels.
        density: Whether it is a density, as of a continuous likelihood.
        levels: L, where the pixels were dequantized; else None.

    Returns:
        The same shape, float64.

    Raises:
        ValueError: If it is a density of pixels that were not dequantized, or a number is too small.

    References:
        Theis, van den Oord, Bethge, "A Note on the Evaluation of Generative Models", 2016, section 3.1.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims: expected at least 1, got {num_dims}.")
    if levels is not None and levels < 2:
        raise ValueError(f"levels: expected at least 2, got {levels}.")
    if density and levels is None:
        raise ValueError(
            "bits per dim: expected a probability, or a density of dequantized pixels, got a density of pixels as they are; "
            "dequantize them, (x + u) / 256 with u uniform in [0, 1), and pass levels=256."
        )
    bits = -log_px.double() / (num_dims * math.log(2))
    return bits + math.log2(levels) if density and levels is not None else bits


def dequantize(pixels: Tensor, levels: int = LEVELS) -> Tensor:
    """Integers 0 to L - 1 as numbers in [0, 1) with a density: (x + u) / L, u uniform in [0, 1), from torch's generator.

    Args:
        pixels: Integers, any shape and dtype.
        levels: L.

    Returns:
        The same shape, float32, below 1.

    Raises:
        ValueError: If a pixel is no integer of 0 to L - 1.
    """
    wide = pixels.double()
    if not bool(((wide == wide.floor()) & (wide >= 0) & (wide < levels)).all()):
        raise ValueError(
            f"pixels: expected integers of 0 to {levels - 1}, got others; pass them before they are scaled."
        )
    noise = torch.rand(pixels.shape, dtype=torch.float64, device=pixels.device)
    below_one = 1 - torch.finfo(torch.float32).eps / 2
    return ((wide + noise) / levels).float().clamp(max=below_one)
