"""Data on the disk or in memory, read batch by batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.data.binarization import binarize

#: Size of one read in a pass over all data, in bytes as float32.
CHUNK_BYTES = 2**25

#: An array, and a type of values, of any kind.
Array = NDArray[Any]
DType = np.dtype[Any]


class Reader(Protocol):
    """An array, wherever it is stored, that reads some of its rows.

    It is pickled to the workers of a DataLoader, so one of a file holds a path, not the data.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, ``(N, *data_shape)``."""
        ...

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Read rows in the units of the model (pixels in [0, 1]).

        Args:
            rows: Row numbers, shape ``(B,)``.

        Returns:
            Shape ``(B, *data_shape)``, float32.
        """
        ...


@dataclass(frozen=True)
class Scaled:
    """The conversion of stored values to float32.

    Attributes:
        divisor: Number that values are divided by.
        axes: New order of the axes, or None.
        data_shape: New shape of a datum, or None.
    """

    divisor: float = 1.0
    axes: tuple[int, ...] | None = None
    data_shape: tuple[int, ...] | None = None

    def __call__(self, values: Array) -> Tensor:
        """Convert values as stored, shape ``(B, ...)``, to shape ``(B, *data_shape)``."""
        if self.axes is not None:
            values = values.transpose(self.axes)
        x = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        if self.data_shape is not None:
            x = x.reshape(len(x), *self.data_shape)
        return x / self.divisor if self.divisor != 1 else x

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape after the conversion of an array of shape ``stored``."""
        if self.data_shape is not None:
            return (stored[0], *self.data_shape)
        return stored if self.axes is None else tuple(stored[axis] for axis in self.axes)


class MemoryReader:
    """An array in memory; as uint8 it takes a quarter of float32.

    Args:
        values: Shape ``(N, ...)``.
        scaled: The conversion to float32.
    """

    def __init__(self, values: Array, scaled: Scaled | None = None) -> None:
        self.values, self.scaled = values, scaled or Scaled()
        self.shape = self.scaled.shape(values.shape)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """See :class:`Reader`."""
        return self.scaled(self.values[rows])


@dataclass(frozen=True)
class ArrayFile:
    """An array in a ``.npy`` file, mapped into memory for each read.

    The pages that a mapping has touched count as memory of the process as long as it lasts. A new mapping for each batch
    limits them to those of one batch.

    Attributes:
        path: The file.
        offset: Position of the first value, in bytes.
        dtype: Type of the values.
        stored: Shape of the array, ``(N, ...)``.
        fortran: Whether the first axis varies fastest.
        scaled: The conversion to float32.
    """

    path: Path
    offset: int
    dtype: DType
    stored: tuple[int, ...]
    fortran: bool = False
    scaled: Scaled = Scaled()

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Reader`."""
        return self.scaled.shape(self.stored)

    def values(self, rows: NDArray[np.int64] | slice) -> Array:
        """Read rows as they are stored."""
        order: Literal["C", "F"] = "F" if self.fortran else "C"
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.stored, order)
        values = mapped[rows]
        return np.array(values) if isinstance(values, np.memmap) else values  # a slice is still a view of the mapping

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """See :class:`Reader`."""
        return self.scaled(self.values(rows))


@dataclass(frozen=True)
class Stored:
    """Data that are read when needed, with part of a tensor's interface.

    ``len``, ``shape``, ``device``, ``x[rows]``, ``x.split(n)`` and ``x.to(device)`` act as on a tensor; rows come as
    float32.

    Attributes:
        reader: Reads the rows.
        index: Rows of the reader, shape ``(N,)``, int64; None for all.
        image_size: Height and width to which images are brought, or None.
        mode: Binarization, always the same for one row: ``"static"``, ``"threshold"`` or ``"none"``.
        seed: Seed of static binarization.
        device: Device of the rows.
    """

    reader: Reader
    index: Tensor | None = None
    image_size: tuple[int, int] | None = None
    mode: str = "none"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return self.reader.shape[0] if self.index is None else len(self.index)

    @property
    def shape(self) -> torch.Size:
        """``(N, *data_shape)``."""
        one = self.reader.shape[1:]
        return torch.Size((len(self), *(one if self.image_size is None else (*one[:-2], *self.image_size))))

    @property
    def nbytes(self) -> int:
        """Size in bytes as float32."""
        return 4 * math.prod(self.shape)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        rows = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows.cpu()
        chosen = rows if self.index is None else self.index[rows]
        x = self.reader.read(chosen.numpy())
        if self.image_size is not None:
            x = fit_to(x, self.image_size)
        if self.mode == "static":
            noise = [np.random.Generator(np.random.Philox(key=[self.seed, int(i)])) for i in chosen]
            uniform = np.stack([g.random(x[0].numel(), dtype=np.float32) for g in noise])
            x = torch.from_numpy(uniform).reshape(x.shape).lt(x).float()
        elif self.mode != "none":
            x = binarize(x, self.mode)
        return x.to(self.device, non_blocking=True)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield batches of ``size`` in order; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def take(self, index: Tensor) -> Stored:
        """Return the data at ``index``, without reading them."""
        return dataclasses.replace(self, index=index if self.index is None else self.index[index])

    def to(self, device: torch.device) -> Stored:
        """Return the same data with their rows on ``device``."""
        return dataclasses.replace(self, device=device)

    def in_memory(self) -> Tensor:
        """Read all data into one tensor, in chunks.

        It needs no second copy of their size.
        """
        whole = torch.empty(self.shape, device=self.device)
        start = 0
        for part in self.split(rows_of(self.shape)):
            whole[start : start + len(part)] = part
            start += len(part)
        return whole


def rows_of(shape: Sequence[int]) -> int:
    """Return the number of data in one chunk.

    Args:
        shape: Shape of all data, ``(N, ...)``.
    """
    return max(1, CHUNK_BYTES // (4 * math.prod(shape[1:])))


def fit_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale images until they just cover a size, and crop them.

    Scaling is antialiased, and the crop is around the centre.

    Args:
        x: Images, shape ``(..., C, H, W)``.
        size: Height and width.

    Returns:
        Shape ``(..., C, *size)``.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    from torchvision.transforms.v2 import functional as F

    height, width = x.shape[-2:]
    factor = max(size[0] / height, size[1] / width)
    covering = [max(side, round(old * factor)) for side, old in zip(size, (height, width), strict=True)]
    return F.center_crop(F.resize(x, covering, antialias=True), list(size)).clamp(0, 1)
