"""A checksum of tensors, to tell data and parameters apart."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor


def checksum(tensors: Iterable[Tensor]) -> int:
    """Return the CRC-32 of the bytes of all tensors in turn.

    Shapes and types don't enter.

    Args:
        tensors: Tensors on any device.
    """
    value = 0
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        value = zlib.crc32(flat.view(torch.uint8).numpy().data, value)
    return value
