"""Label counts and means over the batch of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_active: WholeBatch | None = None


class WholeBatch:
    """Size, number of labels and means of the batch of all processes.

    The counts are tensors that are changed in place, so that a captured graph sees each step's.

    Args:
        device: Device of the counts.
        mean: Returns the mean over the whole batch, given the mean of this process's data and the sum of their weights.
    """

    def __init__(self, device: torch.device, mean: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.mean = mean
        self.size, self.labelled = (torch.ones((), dtype=torch.int64, device=device) for _ in range(2))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, :func:`batch_counts` and :func:`batch_mean` are those of the whole batch."""
        global _active
        before, _active = _active, self
        try:
            yield
        finally:
            _active = before

    def set_labels(self, y: Tensor) -> None:
        """Set the labels of the next whole batch.

        Args:
            y: Shape ``(B,)``, int64, -1 where unknown.
        """
        self.size.fill_(len(y))
        self.labelled.copy_((y >= 0).sum())


def batch_counts(known: Tensor) -> tuple[int | Tensor, Tensor]:
    """Return the size of the batch and its number of labels.

    In a shared step they are those of all processes together.

    Args:
        known: True for each of this process's data that has a label, shape ``(B,)``, bool.

    Returns:
        Size of the batch, and number of labels as a 0-dim tensor.
    """
    return (len(known), known.sum()) if _active is None else (_active.size, _active.labelled)


def batch_mean(local: Tensor, scale: Tensor) -> Tensor:
    """Return the mean over the batch of all ranks, given this rank's.

    Outside a shared step it is ``local`` itself.

    Within a shared step it is a collective. Its gradient is that of ``local``: multiplied by a rank's weight and size, and
    summed over ranks, it is the gradient of the whole mean.

    Args:
        local: Mean over this rank's data, any shape, the same on every rank.
        scale: Sum of the weights of this rank's data, 0-dim.
    """
    return local if _active is None else _active.mean(local, scale)
