"""Label counts and means over a batch split among all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_active: WholeBatch | None = None


class WholeBatch:
    """A batch split among all processes: its size, labels and means.

    The counts are tensors that are changed in place. A captured graph therefore sees the counts of the current training
    step.

    Args:
        device: Device of the counts.
        mean: Function that returns the mean over the whole batch. Its arguments are the mean over this process's data, and
            the sum of the weights of these data.
    """

    def __init__(self, device: torch.device, mean: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.mean = mean
        self.size, self.labelled = (torch.ones((), dtype=torch.int64, device=device) for _ in range(2))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let :func:`batch_counts` and :func:`batch_mean` use the whole batch inside."""
        global _active
        before, _active = _active, self
        try:
            yield
        finally:
            _active = before

    def set_labels(self, y: Tensor) -> None:
        """Count the labels of the next batch, over all processes.

        Args:
            y: Labels of the whole batch, shape ``(B,)``, int64, -1 where unknown.
        """
        self.size.fill_(len(y))
        self.labelled.copy_((y >= 0).sum())


def batch_counts(known: Tensor) -> tuple[int | Tensor, Tensor]:
    """Return the size of the batch and its number of labels.

    Inside :meth:`WholeBatch.active`, both count the data of all processes.

    Args:
        known: True for each datum of this process that has a label, shape ``(B,)``, bool.

    Returns:
        The size of the batch, and the number of labels as a 0-dim tensor.
    """
    return (len(known), known.sum()) if _active is None else (_active.size, _active.labelled)


def batch_mean(local: Tensor, scale: Tensor) -> Tensor:
    """Return the mean over the whole batch from this rank's mean.

    Outside :meth:`WholeBatch.active`, this is ``local`` itself.

    Inside, this function is a collective, and its gradient is the gradient of ``local``. Each rank's gradient, multiplied by
    the rank's weight and size, sums over ranks to the gradient of the mean over the whole batch.

    Args:
        local: Mean over this rank's data, any shape, the same shape on every rank.
        scale: Sum of the weights of this rank's data, 0-dim.

    Returns:
        The mean over the whole batch, with the shape of ``local``.
    """
    return local if _active is None else _active.mean(local, scale)
