"""Checksum of tensors, to detect changed data or parameters."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor


def checksum(tensors: Iterable[Tensor]) -> int:
    """Return the CRC-32 of the concatenated bytes of all tensors.

    Shapes and dtypes do not affect the checksum.

    Args:
        tensors: Tensors on any device.
    """
    value = 0
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        value = zlib.crc32(flat.view(torch.uint8).numpy().data, value)
    return value
