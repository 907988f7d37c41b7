"""Binarization: convert grey pixels to 0 or 1."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.lookup import unknown

#: Modes of binarization: "dynamic" (redrawn for every batch), "static" (drawn once), "threshold", "none".
BINARIZE = ("dynamic", "static", "threshold", "none")


def binarize(x: Tensor, mode: str, generator: torch.Generator | None = None) -> Tensor:
    """Binarize grey pixels.

    Args:
        x: Pixels in [0, 1], any shape.
        mode: ``"dynamic"`` and ``"static"`` draw each pixel from a Bernoulli distribution with the grey value as its
            probability: the caller repeats the draw for every batch in mode ``"dynamic"``, but not in mode ``"static"``.
            ``"threshold"`` returns ``x > 0.5``, ``"none"`` returns ``x``.
        generator: Generator for the draws; None for torch's default generator.

    Returns:
        Pixels that are 0 or 1 (grey pixels in mode ``"none"``), with the shape and dtype of ``x``.

    Raises:
        ValueError: If ``mode`` is unknown.

    References:
        Salakhutdinov, Murray, "On the quantitative analysis of deep belief networks", 2008 (drawn once); Burda,
        Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2016 (drawn for every batch).
    """
    if mode not in BINARIZE:
        raise unknown("binarization", mode, BINARIZE)
    if mode == "none":
        return x
    if mode == "threshold":
        return (x > 0.5).to(x.dtype)
    # Same distribution as torch.bernoulli, but faster on a CPU (benchmarks/kernels.py).
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype).lt_(x)
