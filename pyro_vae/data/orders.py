"""The order of an epoch: every datum once, shuffled; or labelled data among unlabelled ones, some in every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Order(Protocol):
    """Draws the order of an epoch: rows of the data, shape ``(total,)``, always as many, from one state the same."""

    @property
    def total(self) -> int:
        """Rows an epoch."""
        ...

    def __call__(self, generator: torch.Generator) -> Tensor:
        """A new order, shape ``(total,)``, int64, on the generator's device."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Every datum once.

    Attributes:
        total: N.
    """

    total: int

    def __call__(self, generator: torch.Generator) -> Tensor:
        """See :class:`Order`."""
        return torch.randperm(self.total, generator=generator, device=generator.device)


class Spread:
    """Every datum once, the labelled ones at equal distances: whole batches differ by one labelled datum at most.

    A plain shuffle leaves it to chance which batch has a label, and most have none where labels are few. If there are as
    many as batches, each batch has one: a last one that is shorter than their distance has one among its rows.

    Args:
        labelled: Which data have a label, shape ``(N,)``, bool.
        batch_size: B.
    """

    def __init__(self, labelled: Tensor, batch_size: int) -> None:
        self._labelled, self._others = labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]
        self.total, known = len(labelled), len(self._labelled)
        self._distance, self._last = self.total / known, self.total % batch_size
        if -(-self.total // batch_size) > known or self._last > self._distance:
            self._last = 0
        if self._last:  # as if the last batch were as long as the distance
            self._distance = (self.total - self._last) / (known - 1) if known > 1 else float(self.total)

    def __call__(self, generator: torch.Generator) -> Tensor:
        """See :class:`Order`."""
        known, unknown = _shuffled(self._labelled, generator), _shuffled(self._others, generator)
        start = torch.rand((), generator=generator, device=generator.device).item()
        places = (torch.arange(len(known), dtype=torch.float64) + start) * self._distance
        if self._last:
            places[-1] = self.total - self._last + start * self._last
        return _merged(places.long(), known, unknown)


class Mixed:
    r"""Every unlabelled datum once, and in every whole batch as many labelled ones, which come again and again.

    A labelled datum then weighs as much more than an unlabelled one as it comes more often: in the objective, and in means
    over an epoch.

    Args:
        labelled: Which data have a label, shape ``(N,)``, bool.
        batch_size: B.
        per_batch: Labelled data of a batch, from 1 to B - 1.

    Raises:
        ValueError: If ``per_batch`` is not.
    """

    def __init__(self, labelled: Tensor, batch_size: int, per_batch: int) -> None:
        if not 1 <= per_batch < batch_size:
            raise ValueError(
                f"labelled_per_batch: expected between 1 and {batch_size - 1}, one less than the batch, got {per_batch}."
            )
        self._labelled, self._others = labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]
        self._batch_size, self.per_batch = batch_size, per_batch
        self._repeated = -(-len(self._others) * per_batch // (batch_size - per_batch))
        self.total = len(self._others) + self._repeated

    def __call__(self, generator: torch.Generator) -> Tensor:
        """See :class:`Order`."""
        unknown = _shuffled(self._others, generator)
        turns = -(-self._repeated // len(self._labelled))
        known = torch.cat([_shuffled(self._labelled, generator) for _ in range(turns)])[: self._repeated]
        places = torch.arange(self._repeated) * self._batch_size // self.per_batch
        return _merged(places, known, unknown)


def _shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows.to(generator.device)[torch.randperm(len(rows), generator=generator, device=generator.device)]


def _merged(places: Tensor, known: Tensor, unknown: Tensor) -> Tensor:
    """``known`` at its places, ``unknown`` at the others."""
    order = known.new_empty(len(known) + len(unknown))
    at = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    at[places.to(order.device)] = True
    order[at], order[~at] = known, unknown
    return order


def order_of(y: Tensor | None, size: int, batch_size: int, per_batch: int | None = None) -> Order:
    """The order that suits the labels that a model is given.

    Args:
        y: Labels, shape ``(N,)``, -1 where unknown; None, or of another shape: there are none.
        size: N.
        batch_size: B.
        per_batch: Labelled data of every batch; None: each once an epoch, spread evenly.

    Raises:
        ValueError: If ``per_batch`` is asked for where not both kinds are there, or is no such number.
    """
    labelled = None if y is None or y.dim() != 1 or y.is_floating_point() else y >= 0
    if labelled is None or bool(labelled.all()) or not bool(labelled.any()):
        if per_batch is not None:
            raise ValueError(
                f"labelled_per_batch: expected with data of which some have labels and some have none, got {per_batch}; "
                "leave it out, or hide labels (--labels)."
            )
        return Shuffled(size)
    return Spread(labelled, batch_size) if per_batch is None else Mixed(labelled, batch_size, per_batch)
