"""Several columns of the same data, such as images and labels, whose rows come together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae.data.stored import Stored, rows_of


class Columns:
    """Columns of as many data each: what a model takes of a batch is a tuple with some rows of every one.

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
    def of(cls, given: Columns | Tensor | Stored | tuple[Tensor | Stored, ...]) -> Columns:
        """Columns as they are, or one column, or several."""
        if isinstance(given, Columns):
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

    def to(self, device: torch.device) -> Columns:
        """The same columns, whose rows are on ``device``."""
        return Columns(*(part.to(device) for part in self.parts))


def _rows(part: Tensor | Stored, rows: Tensor | slice) -> Tensor:
    if isinstance(part, Tensor) and isinstance(rows, Tensor):
        return part.index_select(0, rows.to(part.device))
    return part[rows]
