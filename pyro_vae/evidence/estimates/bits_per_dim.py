"""Conversion of log-likelihoods from nats per image to bits per dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.errors import check_count

#: Grey levels of an 8-bit pixel.
LEVELS = 256


def bits_per_dim(log_px: Tensor, num_dims: int, *, density: bool = False, levels: int | None = None) -> Tensor:
    r"""Convert log p(x) to bits per pixel value; lower is better.

    .. math:: b = -\frac{\log p(x)}{D \log 2} \; (+ \log_2 L \text{ for a density of dequantized pixels in } [0, 1])

    b is the length of a code for the pixels. If p(x) is a probability of integer pixels, b is exact. A density has a code
    length only if the pixels were dequantized, :math:`y = (x + u) / L` with u uniform: then
    :math:`\log P(x) \ge E_u[\log p(y)] - D \log L`, so that b is an upper bound. The density of undequantized pixels can be
    made arbitrarily large, so it is refused.

    Args:
        log_px: log p(x), nats, of any shape.
        num_dims: Number of pixel values D, pixels times channels, at least 1.
        density: True if ``log_px`` is a log density, for example from a continuous likelihood.
        levels: Number of grey levels L, at least 2, if the pixels were dequantized; else None.

    Returns:
        Bits per dimension, in the shape of ``log_px``, float64.

    Raises:
        ValueError: If ``density`` is True without ``levels``, or ``num_dims`` or ``levels`` is too small.

    References:
        Theis, van den Oord, Bethge, "A Note on the Evaluation of Generative Models", 2016, section 3.1.
    """
    check_count("num_dims", num_dims)
    if levels is not None:
        check_count("levels", levels, least=2)
    if density and levels is None:
        raise ValueError(
            "bits per dim: a density needs dequantized pixels, but levels is None; dequantize by (x + u) / 256, u uniform, "
            "and pass levels=256."
        )
    bits = -log_px.double() / (num_dims * math.log(2))
    return bits + math.log2(levels) if density and levels is not None else bits


def dequantize(pixels: Tensor, levels: int = LEVELS) -> Tensor:
    r"""Add uniform noise to integer pixels, so that they have a density.

    .. math:: y = (x + u) / L, \quad u \sim U[0, 1)

    x are the pixels and L is the number of grey levels. The noise u comes from torch's generator.

    Args:
        pixels: Integers from 0 to L - 1, any shape and dtype.
        levels: Number of grey levels, L.

    Returns:
        Numbers in [0, 1), same shape, float32.

    Raises:
        ValueError: If a pixel is not an integer from 0 to L - 1.
    """
    wide = pixels.double()
    if not bool(((wide == wide.floor()) & (wide >= 0) & (wide < levels)).all()):
        raise ValueError(
            f"pixels: expected integers from 0 to {levels - 1}, got other values; pass the pixels before scaling."
        )
    noise = torch.rand(pixels.shape, dtype=torch.float64, device=pixels.device)
    below_one = 1 - torch.finfo(torch.float32).eps / 2
    return ((wide + noise) / levels).float().clamp(max=below_one)
