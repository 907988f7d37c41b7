"""Data sets: splits, fingerprints, and the inputs of a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.labels import num_classes
from pyro_vae.data.stored import Stored, rows_of
from pyro_vae.system.checksum import checksum

#: Largest number of data that a mean is computed from if the data are not in memory.
MEAN_ROWS = 10_000


class Split(NamedTuple):
    """One split of a data set: data with optional labels.

    Attributes:
        x: Pixels in [0, 1] or other numbers, shape ``(N, *data_shape)``, float32; :class:`Stored` if the data are too large for
            memory.
        y: Labels, shape ``(N,)``, int64, -1 where unknown; or vectors to condition x on, shape ``(N, C)``; or None.
    """

    x: Tensor | Stored
    y: Tensor | None = None

    def inputs(self, names: Sequence[str]) -> Inputs:
        """Select the inputs that a model takes.

        Args:
            names: Names of the inputs, ``("x",)`` or ``("x", "y")``.

        Raises:
            ValueError: If ``names`` contains ``"y"`` and the split has no labels.
        """
        for name in names:
            if getattr(self, name, None) is None:
                raise ValueError(
                    f"data: the model needs labels, since it takes {' and '.join(names)}, but the data have none; take data "
                    "with labels."
                )
        return Inputs(*(getattr(self, name) for name in names))

    def without_labels(self) -> Split:
        """Return the same data with every label set to -1 (unknown)."""
        return self._replace(y=None if self.y is None else torch.full_like(self.y, -1))

    def take(self, index: Tensor) -> Split:
        """Return the split that holds the rows ``index`` of this split."""
        x = self.x.take(index) if isinstance(self.x, Stored) else self.x[index]
        return Split(x, None if self.y is None else self.y[index])


@dataclass(frozen=True)
class Data:
    """A data set with its splits.

    Attributes:
        name: Name of the data set, or the path of a file or folder.
        train: Training data; grey if ``redraw`` is True.
        validation: Data used to choose the best epoch, already binarized, or None.
        test: Test data, already binarized, or None.
        redraw: True to binarize each training batch when it is drawn.
        binarize: The mode of binarization, see :func:`pyro_vae.data.binarize`.
        description: Description of a user's file or folder, printed on the terminal.
    """

    name: str
    train: Split
    validation: Split | None = None
    test: Split | None = None
    redraw: bool = False
    binarize: str = "none"
    description: str = ""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.train.x.shape[1:])

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that are not None, by name."""
        return {k: s for k in ("train", "validation", "test") if (s := getattr(self, k)) is not None}

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or length of the label vectors; None without labels."""
        return num_classes([split.y for split in self.splits.values()])

    @property
    def noun(self) -> str:
        """The noun for messages: ``"images"`` for shape ``(C, H, W)``, else ``"data"``."""
        return "images" if len(self.data_shape) == 3 else "data"

    @property
    def sizes(self) -> str:
        """The sizes of the splits as text."""
        return ", ".join(f"{len(s.x):,} {name}" for name, s in self.splits.items())

    def to(self, device: torch.device) -> Data:
        """Return the data set with ``x`` of every split moved to ``device``.

        Stored data are moved batch by batch, when they are read.
        """
        moved = {name: split._replace(x=split.x.to(device)) for name, split in self.splits.items()}
        return dataclasses.replace(
            self, train=moved["train"], validation=moved.get("validation"), test=moved.get("test")
        )

    def moments(self) -> tuple[Tensor, float]:
        """Compute the mean and the standard deviation of the training data.

        If the data are stored, only evenly spaced data are read: at most 10,000 data and 1 GiB.

        Returns:
            The mean of each pixel, shape ``data_shape``, and one standard deviation over all pixels about these means.
        """
        x = self.train.x
        some = x if isinstance(x, Tensor) else x.take(_spaced(len(x), min(MEAN_ROWS, 32 * rows_of(x.shape))))
        parts = lambda: some.split(rows_of(some.shape))  # noqa: E731
        mean = x.mean(0) if isinstance(x, Tensor) else torch.stack([part.sum(0) for part in parts()]).sum(0) / len(some)
        squares = sum(float((part - mean).square().sum()) for part in parts())
        return mean, math.sqrt(squares / math.prod(some.shape))

    def fingerprint(self) -> dict[str, object]:
        """Return the shape, sizes and checksums that identify the data.

        For a split that is not in memory, the checksum covers 100 evenly spaced data.
        """
        fingerprint: dict[str, object] = {"data_shape": list(self.data_shape)}
        for name, split in self.splits.items():
            x = split.x if isinstance(split.x, Tensor) else split.x[_spaced(len(split.x), 100)]
            fingerprint[f"num_{name}"] = len(split.x)
            fingerprint[f"checksum_{name}"] = checksum([x])
            if split.y is not None:
                fingerprint[f"labels_{name}"] = checksum([split.y])
        return fingerprint


def _spaced(total: int, count: int) -> Tensor:
    """Return at most ``count`` evenly spaced indices below ``total``."""
    return torch.linspace(0, total - 1, min(total, count), dtype=torch.float64).round().long()


class Inputs:
    """The inputs of a model, such as x and y.

    ``len(inputs)`` is the number N of data. ``inputs[rows]`` and ``inputs.split(n)`` select rows as on a tensor, and return
    a tuple with the rows of each input. All inputs are on the device of the first input.

    Args:
        *inputs: Tensors, each of shape ``(N, ...)``; the first may be :class:`Stored`.

    Raises:
        ValueError: If no input is given, or the inputs differ in their number of data.
    """

    def __init__(self, *inputs: Tensor | Stored) -> None:
        if not inputs:
            raise ValueError("inputs: expected at least one tensor, got none; pass a tensor.")
        first = inputs[0]
        if any(len(other) != len(first) for other in inputs):
            sizes = ", ".join(str(len(part)) for part in inputs)
            raise ValueError(
                f"inputs: expected the same number of rows in each input, got {sizes}; pass inputs of the same data."
            )
        self.parts = (first, *(other.to(first.device) for other in inputs[1:]))

    @classmethod
    def of(cls, data: Inputs | Tensor | Stored | tuple[Tensor | Stored, ...]) -> Inputs:
        """Wrap a tensor or a tuple of tensors; return ``Inputs`` unchanged."""
        if isinstance(data, Inputs):
            return data
        return cls(*data) if isinstance(data, tuple) else cls(data)

    @property
    def device(self) -> torch.device:
        """The device to which selected rows are moved."""
        return self.parts[0].device

    @property
    def chunk(self) -> int:
        """The number of data in one chunk when all data are read."""
        return min(rows_of(part.shape) for part in self.parts)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Tensor | slice) -> tuple[Tensor, ...]:
        return tuple(_rows(part, rows) for part in self.parts)

    def split(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches of ``size`` rows in order; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, device: torch.device) -> Inputs:
        """Return inputs whose selected rows are moved to ``device``."""
        return Inputs(*(part.to(device) for part in self.parts))


def _rows(part: Tensor | Stored, rows: Tensor | slice) -> Tensor:
    if isinstance(part, Tensor) and isinstance(rows, Tensor):
        return part.index_select(0, rows.to(part.device))
    return part[rows]
