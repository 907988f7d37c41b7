"""Shuffled batches of one column or several, from tensors in memory or from data that stay where they are stored."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyro_vae.data.binarization import binarize
from pyro_vae.data.columns import Columns
from pyro_vae.data.orders import Order, Shuffled
from pyro_vae.data.stored import Stored
from pyro_vae.parallel import World

#: How long a worker lives on after a SIGTERM, in seconds.
WORKER_GRACE = 20


class Batches:
    """Epochs of shuffled batches: the same ones, bit for bit, from memory, from the disk and from workers.

    Args:
        data: A tensor or :class:`Stored`, shape ``(N, *data_shape)``, whose batches are tensors; or :class:`Columns`, whose
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
        data: Tensor | Stored | Columns,
        batch_size: int,
        redraw: bool = False,
        num_workers: int = 0,
        context: str | None = None,
        world: World | None = None,
        order: Order | None = None,
    ) -> None:
        self.columns, self.batch_size, self.redraw = Columns.of(data), batch_size, redraw
        self.world = world or World()
        self.order = order or Shuffled(len(self.columns))
        self._alone = not isinstance(data, Columns)
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
