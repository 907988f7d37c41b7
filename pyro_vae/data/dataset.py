"""Data sets: splits, their fingerprint, and the inputs of a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.labels import num_classes
from pyro_vae.data.stored import Stored, rows_of
from pyro_vae.system.checksum import checksum

#: Data over which a mean is taken where they are not in memory.
MEAN_ROWS = 10_000


class Split(NamedTuple):
    """Images with their labels.

    Attributes:
        x: Pixels in [0, 1], shape ``(N, *data_shape)``, float32: a tensor, or :class:`Stored` where they are too large.
        y: Labels, shape ``(N,)``, int64, -1 where unknown; or vectors of which x depends, shape ``(N, C)``; or None.
    """

    x: Tensor | Stored
    y: Tensor | None = None

    def columns(self, names: Sequence[str]) -> Inputs:
        """What a model takes of these data.

        Raises:
            ValueError: If there is no such column.
        """
        for name in names:
            if getattr(self, name, None) is None:
                raise ValueError(
                    f"data: expected labels, since the model takes {' and '.join(names)}, got data without."
                )
        return Inputs(*(getattr(self, name) for name in names))

    def without_labels(self) -> Split:
        """The same images, of which no label is known."""
        return self._replace(y=None if self.y is None else torch.full_like(self.y, -1))

    def take(self, index: Tensor) -> Split:
        """The images at ``index``."""
        x = self.x.take(index) if isinstance(self.x, Stored) else self.x[index]
        return Split(x, None if self.y is None else self.y[index])


@dataclass(frozen=True)
class Data:
    """What a run is trained, selected and tested on.

    Attributes:
        name: Name of the data set, or the path of a file or folder.
        train: Training images; grey where they are binarized afresh for every batch.
        validation: Images by which the best epoch is chosen, binarized, or None.
        test: Test images, binarized.
        redraw: Whether training batches are binarized when they are drawn.
        binarize: The mode of binarization.
        words: What was found in a file or folder.
    """

    name: str
    train: Split
    validation: Split | None = None
    test: Split | None = None
    redraw: bool = False
    binarize: str = "none"
    words: str = ""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.train.x.shape[1:])

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        return {k: s for k in ("train", "validation", "test") if (s := getattr(self, k)) is not None}

    @property
    def num_classes(self) -> int | None:
        """One more than the largest label of any split; of vectors, how many numbers they have; None without either."""
        return num_classes([split.y for split in self.splits.values()])

    @property
    def noun(self) -> str:
        """What the data are called: images where they have a channel, a height and a width, else data."""
        return "images" if len(self.data_shape) == 3 else "data"

    @property
    def sizes(self) -> str:
        """The sizes of the splits in words."""
        return ", ".join(f"{len(s.x):,} {name}" for name, s in self.splits.items())

    def to(self, device: torch.device) -> Data:
        """The same data with their pixels on a device; stored ones go there when they are read."""
        moved: dict[str, Any] = {k: s._replace(x=s.x.to(device)) for k, s in self.splits.items()}
        return dataclasses.replace(self, **moved)

    def moments(self) -> tuple[Tensor, float]:
        """Mean of the training data, shape ``data_shape``, and their standard deviation about it over all pixels.

        Taken over some evenly spaced data, at most 10,000 and 1 GiB, where they are stored.
        """
        x = self.train.x
        some = x if isinstance(x, Tensor) else x.take(_spaced(len(x), min(MEAN_ROWS, 32 * rows_of(x.shape))))
        parts = lambda: some.split(rows_of(some.shape))  # noqa: E731
        mean = x.mean(0) if isinstance(x, Tensor) else torch.stack([part.sum(0) for part in parts()]).sum(0) / len(some)
        squares = sum(float((part - mean).square().sum()) for part in parts())
        return mean, math.sqrt(squares / math.prod(some.shape))

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others: shape, sizes, and checksums of pixels and labels.

        Of splits that are not in memory 100 evenly spaced data are looked at.
        """
        found: dict[str, Any] = {"data_shape": list(self.data_shape)}
        for name, split in self.splits.items():
            x = split.x if isinstance(split.x, Tensor) else split.x[_spaced(len(split.x), 100)]
            found[f"num_{name}"] = len(split.x)
            found[f"checksum_{name}"] = checksum([x])
            if split.y is not None:
                found[f"labels_{name}"] = checksum([split.y])
        return found


def _spaced(total: int, count: int) -> Tensor:
    """At most ``count`` indices below ``total``, evenly spaced."""
    return torch.linspace(0, total - 1, min(total, count), dtype=torch.float64).round().long()


class Inputs:
    """Inputs of as many data each: what a model takes of a batch is a tuple with some rows of every one.

    ``len``, ``columns[rows]`` and ``columns.split(n)`` act as on a tensor, but give tuples of tensors, all on the device of
    the first column.

    Args:
        *columns: Each of shape ``(N, ...)``: tensors, of which the first may be :class:`Stored`.

    Raises:
        ValueError: If there is none, or one has another number of data than the first.
    """

    def __init__(self, *columns: Tensor | Stored) -> None:
        if not columns:
            raise ValueError("columns: expected at least one, got none.")
        first = columns[0]
        if any(len(other) != len(first) for other in columns):
            raise ValueError(
                f"columns: expected as many data in each, got {', '.join(str(len(column)) for column in columns)}; pass those "
                "of the same data."
            )
        self.parts = (first, *(other.to(first.device) for other in columns[1:]))

    @classmethod
    def of(cls, given: Inputs | Tensor | Stored | tuple[Tensor | Stored, ...]) -> Inputs:
        """Inputs as they are, or one column, or several."""
        if isinstance(given, Inputs):
            return given
        return cls(*given) if isinstance(given, tuple) else cls(given)

    @property
    def device(self) -> torch.device:
        """Where rows are."""
        return self.parts[0].device

    @property
    def chunk(self) -> int:
        """How many data make one chunk of a pass over all of them, by their memory."""
        return min(rows_of(part.shape) for part in self.parts)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Tensor | slice) -> tuple[Tensor, ...]:
        return tuple(_rows(part, rows) for part in self.parts)

    def split(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches of ``size`` in order, the last one smaller where it must be."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, device: torch.device) -> Inputs:
        """The same columns, whose rows are on ``device``."""
        return Inputs(*(part.to(device) for part in self.parts))


def _rows(part: Tensor | Stored, rows: Tensor | slice) -> Tensor:
    if isinstance(part, Tensor) and isinstance(rows, Tensor):
        return part.index_select(0, rows.to(part.device))
    return part[rows]
