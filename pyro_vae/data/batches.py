"""Shuffled batches, from a tensor in memory or from data that stay where they are stored."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyro_vae.data.binarization import binarize
from pyro_vae.data.stored import Stored
from pyro_vae.parallel import World

#: How long a worker lives on after a SIGTERM, in seconds.
WORKER_GRACE = 20


class Batches:
    """Epochs of shuffled batches: the same ones, bit for bit, from memory, from the disk and from workers.

    Args:
        x: Data, shape ``(N, *data_shape)``: a tensor, or :class:`Stored`.
        batch_size: B; the last batch of an epoch is smaller where it must be.
        redraw: Whether to binarize each batch afresh.
        num_workers: Processes that read ahead where the data are stored; a tensor needs none. They outlive an epoch.
        context: How the workers start (``"fork"``, ``"spawn"``, ``"forkserver"``); None: the platform's way.
        world: Which of several processes this is: each reads its rows of every batch, and has one at least.
    """

    def __init__(
        self,
        x: Tensor | Stored,
        batch_size: int,
        redraw: bool = False,
        num_workers: int = 0,
        context: str | None = None,
        world: World | None = None,
    ) -> None:
        self.x, self.batch_size, self.redraw = x, batch_size, redraw
        self.world = world or World()
        self._order = _Order()
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
        return math.ceil(len(self.x) / self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Tensor]:
        """One epoch in a new order.

        Args:
            generator: Source of the order and of the binarization, on the device of ``x``.

        Yields:
            Shape ``(B, *data_shape)``.
        """
        yield from self.rest(self.order(generator), 0, generator)

    def order(self, generator: torch.Generator) -> Tensor:
        """The order of the epoch that begins at this state of the generator: all indices, shape ``(N,)``."""
        return torch.randperm(len(self.x), generator=generator, device=generator.device)

    def rest(self, order: Tensor, done: int, generator: torch.Generator) -> Iterator[Tensor]:
        """What is left of an epoch of which ``done`` batches were given before.

        Args:
            order: All indices in the order of the epoch, shape ``(N,)``.
            done: How many batches to leave out.
            generator: Source of the binarization.

        Yields:
            Shape ``(B, *data_shape)``.
        """
        left = order[done * self.batch_size :]
        left = left if isinstance(self.x, Tensor) else left.cpu()  # whoever reads is there
        batches = left.split(self.batch_size) if len(left) else ()  # nothing splits into one empty batch
        read = self._read(tuple(self.world.share(rows) for rows in batches))
        for x, rows in zip(read, batches, strict=True):
            yield self._redrawn(x, len(rows), generator) if self.redraw else x

    def _redrawn(self, x: Tensor, total: int, generator: torch.Generator) -> Tensor:
        """A batch of ``total`` data, or this process's rows of it, binarized with the same noise for all processes."""
        if self.world.size == 1:
            return binarize(x, "dynamic", generator)
        noise = torch.rand((total, *x.shape[1:]), generator=generator, device=x.device, dtype=x.dtype)
        return self.world.share(noise).lt(x).to(x.dtype)

    def _read(self, batches: tuple[Tensor, ...]) -> Iterator[Tensor]:
        if isinstance(self.x, Tensor):
            yield from (self.x.index_select(0, rows) for rows in batches)
        elif self._loader is None:
            yield from (self.x[rows] for rows in batches)
        else:
            self._order.batches = batches
            for x in self._loader:
                yield x.to(self.x.device, non_blocking=True)


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
