"""Batches of data, and the order in which rows are drawn."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyro_vae.data.binarization import binarize
from pyro_vae.data.dataset import Inputs
from pyro_vae.data.stored import Stored
from pyro_vae.parallel import World

#: How long a worker lives on after a SIGTERM, in seconds.
WORKER_GRACE = 20


class Batches:
    """Epochs of shuffled batches: the same ones, bit for bit, from memory, from the disk and from workers.

    Args:
        data: A tensor or :class:`Stored`, shape ``(N, *data_shape)``, whose batches are tensors; or :class:`Inputs`, whose
            batches are tuples.
        batch_size: B; the last batch of an epoch is smaller where it must be.
        redraw: Whether to binarize each batch afresh, of several columns the first.
        num_workers: Processes that read ahead where the data are stored; a tensor needs none. They outlive an epoch.
        context: How the workers start (``"fork"``, ``"spawn"``, ``"forkserver"``); None: the platform's way.
        world: Which of several processes this is: each reads its rows of every batch, and has one at least.
        order: Draws the order of an epoch; None: every datum once.
    """

    def __init__(
        self,
        data: Tensor | Stored | Inputs,
        batch_size: int,
        redraw: bool = False,
        num_workers: int = 0,
        context: str | None = None,
        world: World | None = None,
        order: Order | None = None,
    ) -> None:
        self.columns, self.batch_size, self.redraw = Inputs.of(data), batch_size, redraw
        self.world = world or World()
        self.order = order or Shuffled(len(self.columns))
        self._alone = not isinstance(data, Inputs)
        self._order = _Order()
        x = self.columns.parts[0]
        self._loader: DataLoader[Tensor] | None = None
        if isinstance(x, Stored) and num_workers > 0:
            self._loader = DataLoader(
                _Rows(x.to(torch.device("cpu"))),
                sampler=self._order,
                batch_size=None,  # the sampler gives whole batches
                num_workers=num_workers,
                persistent_workers=True,
                multiprocessing_context=context,
                generator=torch.Generator(),  # else each epoch would take a number from torch's global one
                worker_init_fn=_outlive_signals,
            )

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(self.order.total / self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Any]:
        """One epoch in a new order.

        Args:
            generator: Source of the order and of the binarization, on the device of the data.

        Yields:
            Shape ``(B, *data_shape)``, or a tuple of the columns, each of shape ``(B, ...)``.
        """
        yield from self.rest(self.order(generator), 0, generator)

    def rest(self, order: Tensor, done: int, generator: torch.Generator) -> Iterator[Any]:
        """What is left of an epoch of which ``done`` batches were given before.

        Args:
            order: The rows of the epoch in their order, as ``self.order`` has drawn them.
            done: How many batches to leave out.
            generator: Source of the binarization.

        Yields:
            See :meth:`epoch`.
        """
        left = order[done * self.batch_size :]
        left = left if isinstance(self.columns.parts[0], Tensor) else left.cpu()  # whoever reads is there
        batches = left.split(self.batch_size) if len(left) else ()  # nothing splits into one empty batch
        read = self._read(tuple(self.world.share(rows) for rows in batches))
        for (x, *others), rows in zip(read, batches, strict=True):
            x = self._redrawn(x, len(rows), generator) if self.redraw else x
            yield x if self._alone else (x, *others)

    def _redrawn(self, x: Tensor, total: int, generator: torch.Generator) -> Tensor:
        """A batch of ``total`` data, or this process's rows of it, binarized with the same noise for all processes."""
        if self.world.size == 1:
            return binarize(x, "dynamic", generator)
        noise = torch.rand((total, *x.shape[1:]), generator=generator, device=x.device, dtype=x.dtype)
        return self.world.share(noise).lt(x).to(x.dtype)

    def _read(self, batches: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        if self._loader is None:
            yield from (self.columns[rows] for rows in batches)
            return
        others = self.columns.parts[1:]
        self._order.batches = batches
        for x, rows in zip(self._loader, batches, strict=True):
            device = self.columns.device
            yield x.to(device, non_blocking=True), *(other[rows.to(device)] for other in others)


def _outlive_signals(worker: int) -> None:
    """Let the parent decide when its workers end: a signal to all processes of a job must not end its epoch by an error."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_GRACE))


class _Order(Sampler[Tensor]):
    """The batches of the epoch to come, as rows."""

    def __init__(self) -> None:
        self.batches: tuple[Tensor, ...] = ()

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Rows(Dataset[Tensor]):
    """Stored data as a DataLoader takes them."""

    def __init__(self, x: Stored) -> None:
        self.x = x

    def __getitem__(self, rows: Any) -> Tensor:
        return self.x[rows]


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
