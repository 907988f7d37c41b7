"""Label counts and means for a batch that is split among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_active: WholeBatch | None = None


class WholeBatch:
    """A batch split among processes: its size, number of labels, and means.

    The counts are tensors that are changed in place. A captured graph therefore sees the counts of the current training
    step.

    Args:
        device: Device of the counts.
        mean: Function that returns the mean over the whole batch. The first argument is the mean over this process's
            data; the second is the sum of the weights of these data.
    """

    def __init__(self, device: torch.device, mean: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.mean = mean
        self.size, self.labelled = (torch.ones((), dtype=torch.int64, device=device) for _ in range(2))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make :func:`batch_counts` and :func:`batch_mean` use the whole batch.

        This holds inside the ``with`` block.
        """
        global _active
        before, _active = _active, self
        try:
            yield
        finally:
            _active = before

    def set_labels(self, y: Tensor) -> None:
        """Count the labels of the next batch in all processes together.

        Args:
            y: Labels of the whole batch, shape ``(B,)``, int64, -1 where unknown.
        """
        self.size.fill_(len(y))
        self.labelled.copy_((y >= 0).sum())


def batch_counts(known: Tensor) -> tuple[int | Tensor, Tensor]:
    """Return the size of the batch and its number of labelled data.

    Inside :meth:`WholeBatch.active`, both numbers count the data of all processes.

    Args:
        known: True for each datum of this process that has a label, shape ``(B,)``, bool.

    Returns:
        The size of the batch, and the number of labels as a 0-dim tensor.
    """
    return (len(known), known.sum()) if _active is None else (_active.size, _active.labelled)


def batch_mean(local: Tensor, scale: Tensor) -> Tensor:
    """Return the mean over the whole batch from this rank's mean.

    Outside :meth:`WholeBatch.active`, this is ``local`` itself.

    Inside, all ranks must call this function, and the gradient of the result is the gradient of ``local``. To get the gradient
    of the mean over the whole batch, multiply each rank's gradient by the rank's weight and size, and sum over ranks.

    Args:
        local: Mean over this rank's data, any shape, the same shape on every rank.
        scale: Sum of the weights of this rank's data, 0-dim.

    Returns:
        The mean over the whole batch, with the shape of ``local``.
    """
    return local if _active is None else _active.mean(local, scale)
