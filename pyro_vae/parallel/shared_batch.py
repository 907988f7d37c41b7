"""Label counts and means over the batch of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_active: WholeBatch | None = None


class WholeBatch:
    """The size of the batch of all processes and its labels, in tensors that are changed in place: a graph sees them.

    Args:
        device: Where they are.
        mean: Gives the mean over the whole batch from that of this process's data and the sum of their weights.
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

    def tell(self, y: Tensor) -> None:
        """The labels of the whole batch of the next step, shape ``(B,)``, -1 where unknown."""
        self.size.fill_(len(y))
        self.labelled.copy_((y >= 0).sum())


def batch_counts(known: Tensor) -> tuple[int | Tensor, Tensor]:
    """How many data a batch has and how many of them a label: over all processes of a step that is shared.

    Args:
        known: Which of this process's data have a label, shape ``(B,)``, bool.

    Returns:
        Two numbers, the second as a 0-dim tensor.
    """
    return (len(known), known.sum()) if _active is None else (_active.size, _active.labelled)


def batch_mean(local: Tensor, scale: Tensor) -> Tensor:
    """The mean over the batch of all ranks, from this rank's; a collective within a shared step, else the mean as it is.

    Its gradient is that of ``local``: multiplied by a rank's weight and size, and summed over ranks, it is that of the
    whole.

    Args:
        local: Mean over this rank's data, any shape, the same on every rank.
        scale: Sum of the weights of its data, 0-dim.
    """
    return local if _active is None else _active.mean(local, scale)
