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

#: A NumPy array and a NumPy dtype of any kind.
Array = NDArray[Any]
DType = np.dtype[Any]


class Reader(Protocol):
    """Protocol of objects that read selected rows of an array.

    A ``DataLoader`` pickles the reader and sends it to worker processes. Therefore a reader of a file must hold the path of the
    file, not the data.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, ``(N, *data_shape)``."""
        ...

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Read rows and convert them for a model (pixels in [0, 1]).

        Args:
            rows: The numbers of B rows, shape ``(B,)``.

        Returns:
            The data in these rows, shape ``(B, *data_shape)``, float32.
        """
        ...


@dataclass(frozen=True)
class Scaled:
    """The conversion of stored values to float32.

    Attributes:
        divisor: Number by which values are divided.
        axes: New order of the axes; None to keep the order.
        data_shape: New shape of each datum; None to keep the shape.
    """

    divisor: float = 1.0
    axes: tuple[int, ...] | None = None
    data_shape: tuple[int, ...] | None = None

    def __call__(self, values: Array) -> Tensor:
        """Convert stored values.

        Args:
            values: Values as stored, shape ``(B, ...)``.

        Returns:
            The data, shape ``(B, *data_shape)``, float32.
        """
        if self.axes is not None:
            values = values.transpose(self.axes)
        x = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        if self.data_shape is not None:
            x = x.reshape(len(x), *self.data_shape)
        return x / self.divisor if self.divisor != 1 else x

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of an array after conversion, given its ``stored`` shape."""
        if self.data_shape is not None:
            return (stored[0], *self.data_shape)
        return stored if self.axes is None else tuple(stored[axis] for axis in self.axes)


class MemoryReader:
    """Reader of an array in memory.

    The reader converts rows only when they are read: an array of uint8 takes a quarter of the memory of float32.

    Args:
        values: The array, shape ``(N, ...)``.
        scaled: The conversion to float32.
    """

    def __init__(self, values: Array, scaled: Scaled | None = None) -> None:
        self.values, self.scaled = values, scaled or Scaled()
        self.shape = self.scaled.shape(values.shape)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Read rows as float32, see :class:`Reader`."""
        return self.scaled(self.values[rows])


@dataclass(frozen=True)
class ArrayFile:
    """Reader of a ``.npy`` file; each read makes a new memory map.

    All pages that were read through a memory map count as memory of the process, as long as the map exists. A new map for each
    batch limits this memory to one batch.

    Attributes:
        path: The file.
        offset: Position of the first value, in bytes.
        dtype: Type of the values.
        stored: Shape of the array in the file, ``(N, ...)``.
        fortran: True if the array is stored in Fortran order (the first axis varies fastest).
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
        """Shape of all data, see :class:`Reader`."""
        return self.scaled.shape(self.stored)

    def values(self, rows: NDArray[np.int64] | slice) -> Array:
        """Read rows without conversion."""
        order: Literal["C", "F"] = "F" if self.fortran else "C"
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.stored, order)
        values = mapped[rows]
        return np.array(values) if isinstance(values, np.memmap) else values  # a slice is a view of the memory map

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Read rows as float32, see :class:`Reader`."""
        return self.scaled(self.values(rows))


@dataclass(frozen=True)
class Stored:
    """Data that are read when needed, with some of a tensor's methods.

    ``len``, ``shape``, ``device``, ``x[rows]``, ``x.split(n)`` and ``x.to(device)`` work as on a tensor. Rows are returned
    as float32.

    Attributes:
        reader: Object that reads the rows.
        index: The reader's rows that belong to these data, shape ``(N,)``, int64; None for all rows of the reader.
        image_size: Height and width to which images are scaled and cropped; None to keep their size.
        mode: Mode of binarization, ``"static"``, ``"threshold"`` or ``"none"``. The same row is binarized alike at every read.
        seed: Seed of the static binarization.
        device: Device to which selected rows are moved.
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
        """Shape of all data, ``(N, *data_shape)``."""
        one = self.reader.shape[1:]
        return torch.Size((len(self), *(one if self.image_size is None else (*one[:-2], *self.image_size))))

    @property
    def nbytes(self) -> int:
        """Size of all data in bytes, as float32."""
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
        """Yield batches of ``size`` rows in order; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def take(self, index: Tensor) -> Stored:
        """Select the rows ``index`` without reading them."""
        return dataclasses.replace(self, index=index if self.index is None else self.index[index])

    def to(self, device: torch.device) -> Stored:
        """Return data whose selected rows are moved to ``device``."""
        return dataclasses.replace(self, device=device)

    def in_memory(self) -> Tensor:
        """Read all data into one tensor, chunk by chunk.

        Only the tensor and one chunk are in memory at the same time.
        """
        whole = torch.empty(self.shape, device=self.device)
        start = 0
        for part in self.split(rows_of(self.shape)):
            whole[start : start + len(part)] = part
            start += len(part)
        return whole


def rows_of(shape: Sequence[int]) -> int:
    """Return the number of data that fit in one chunk of ``CHUNK_BYTES``.

    Args:
        shape: Shape of all data, ``(N, ...)``.
    """
    return max(1, CHUNK_BYTES // (4 * math.prod(shape[1:])))


def fit_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale images until they just cover ``size``; then crop around the centre.

    Scaling is antialiased and keeps the aspect ratio.

    Args:
        x: Images, shape ``(..., C, H, W)``, pixels in [0, 1].
        size: Height and width of the result.

    Returns:
        Images, shape ``(..., C, *size)``, pixels in [0, 1].
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    from torchvision.transforms.v2 import functional as F

    height, width = x.shape[-2:]
    factor = max(size[0] / height, size[1] / width)
    covering = [max(side, round(old * factor)) for side, old in zip(size, (height, width), strict=True)]
    return F.center_crop(F.resize(x, covering, antialias=True), list(size)).clamp(0, 1)
