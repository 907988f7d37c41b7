"""Batches of data, and the order of rows within an epoch."""

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

#: Seconds that a worker process keeps running after a SIGTERM.
WORKER_GRACE = 20


class Batches:
    """Iterator over the shuffled batches of each epoch.

    The batches are the same, bit for bit, if data come from memory, from the disk or from worker processes.

    Args:
        data: N data. For a tensor or :class:`Stored`, shape ``(N, *data_shape)``, each batch is a tensor; for :class:`Inputs`,
            each batch is a tuple of tensors.
        batch_size: Batch size B; the last batch of an epoch may be smaller.
        redraw: True to binarize each batch when it is drawn. With several inputs, only the first input is binarized.
        num_workers: Number of worker processes that read stored data in advance. The processes live for all epochs. Ignored for
            a tensor.
        context: Start method of the worker processes (``"fork"``, ``"spawn"``, ``"forkserver"``); None for the platform's
            default.
        world: Rank of this process and number of data-parallel processes. Each process reads its own share of every batch,
            at least one row.
        order: Object that draws the order of the rows in each epoch; None for :class:`Shuffled`.
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
        self.inputs, self.batch_size, self.redraw = Inputs.of(data), batch_size, redraw
        self.world = world or World()
        self.order = order or Shuffled(len(self.inputs))
        self._single = not isinstance(data, Inputs)
        self._sampler = _BatchSampler()
        x = self.inputs.parts[0]
        self._loader: DataLoader[Tensor] | None = None
        if isinstance(x, Stored) and num_workers > 0:
            self._loader = DataLoader(
                _Rows(x.to(torch.device("cpu"))),
                sampler=self._sampler,
                batch_size=None,  # the sampler gives whole batches
                num_workers=num_workers,
                persistent_workers=True,
                multiprocessing_context=context,
                generator=torch.Generator(),  # else each epoch would take a number from torch's global one
                worker_init_fn=_outlive_signals,
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(self.order.total / self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Any]:
        """Yield the batches of one epoch in a new order.

        Args:
            generator: Generator for the order and the binarization, on the device of the data.

        Yields:
            A batch of B data, shape ``(B, *data_shape)``; with several inputs, a tuple of tensors of shape ``(B, ...)``.
        """
        yield from self.rest(self.order(generator), 0, generator)

    def rest(self, order: Tensor, done: int, generator: torch.Generator) -> Iterator[Any]:
        """Yield the batches of an epoch except the first ``done``.

        Args:
            order: Row numbers of the whole epoch, as drawn by ``self.order``.
            done: Number of batches to skip.
            generator: Generator for the binarization.

        Yields:
            A batch, in the form that :meth:`epoch` describes.
        """
        left = order[done * self.batch_size :]
        left = left if isinstance(self.inputs.parts[0], Tensor) else left.cpu()  # stored data are read by the CPU
        batches = left.split(self.batch_size) if len(left) else ()  # split would give one empty batch
        read = self._read(tuple(self.world.share(rows) for rows in batches))
        for (x, *others), rows in zip(read, batches, strict=True):
            x = self._redrawn(x, len(rows), generator) if self.redraw else x
            yield x if self._single else (x, *others)

    def _redrawn(self, x: Tensor, total: int, generator: torch.Generator) -> Tensor:
        """Binarize this process's share ``x`` of a batch.

        Each process draws the noise for all ``total`` data of the batch and uses its own share of the noise.
        """
        if self.world.size == 1:
            return binarize(x, "dynamic", generator)
        noise = torch.rand((total, *x.shape[1:]), generator=generator, device=x.device, dtype=x.dtype)
        return self.world.share(noise).lt(x).to(x.dtype)

    def _read(self, batches: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        if self._loader is None:
            yield from (self.inputs[rows] for rows in batches)
            return
        others = self.inputs.parts[1:]
        self._sampler.batches = batches
        for x, rows in zip(self._loader, batches, strict=True):
            device = self.inputs.device
            yield x.to(device, non_blocking=True), *(other[rows.to(device)] for other in others)


def _outlive_signals(_worker: int) -> None:
    """Make a worker process ignore signals; only its parent process ends it.

    Otherwise a signal to all processes would kill the workers, and the epoch would end with an error.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(WORKER_GRACE))


class _BatchSampler(Sampler[Tensor]):
    """A sampler that yields the row numbers of each batch."""

    def __init__(self) -> None:
        self.batches: tuple[Tensor, ...] = ()

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Rows(Dataset[Tensor]):
    """Stored data in the form of a dataset for a ``DataLoader``."""

    def __init__(self, x: Stored) -> None:
        self.x = x

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.x[rows]


class Order(Protocol):
    """Protocol of objects that draw the order of rows in an epoch.

    Every epoch has the same number of rows. The order depends only on the state of the generator.
    """

    @property
    def total(self) -> int:
        """The number of rows in an epoch."""
        ...

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Draw the row numbers of one epoch.

        Returns:
            Row numbers in the order of use, shape ``(total,)``, int64, on the generator's device.
        """
        ...


@dataclass(frozen=True)
class Shuffled:
    """Order of an epoch: every datum once, at random.

    Attributes:
        total: Number of data, and of rows in an epoch.
    """

    total: int

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Draw the row numbers of one epoch, see :class:`Order`."""
        return torch.randperm(self.total, generator=generator, device=generator.device)


class Spread:
    """Order of an epoch: every datum once, labelled data spread evenly.

    The order is random. Two full batches differ by at most one in their numbers of labelled data. With few labels, a plain
    shuffle would leave most batches without a label. If there are at least as many labels as batches, every batch contains a
    labelled datum, even a smaller last batch.

    Args:
        labelled: Bool tensor, True for each datum with a label, shape ``(N,)``.
        batch_size: Batch size B.
    """

    def __init__(self, labelled: Tensor, batch_size: int) -> None:
        self._labelled, self._others = labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]
        self.total, known = len(labelled), len(self._labelled)
        self._distance, self._last = self.total / known, self.total % batch_size
        if -(-self.total // batch_size) > known or self._last > self._distance:
            self._last = 0
        if self._last:  # __call__ places one labelled datum in the last batch, and spreads the rest over the others
            self._distance = (self.total - self._last) / (known - 1) if known > 1 else float(self.total)

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Draw the row numbers of one epoch, see :class:`Order`."""
        known, unknown = _shuffled(self._labelled, generator), _shuffled(self._others, generator)
        start = torch.rand((), generator=generator, device=generator.device).item()
        places = (torch.arange(len(known), dtype=torch.float64) + start) * self._distance
        if self._last:
            places[-1] = self.total - self._last + start * self._last
        return _merged(places.long(), known, unknown)


class Mixed:
    r"""Order of an epoch: unlabelled data once, labelled data in every batch.

    The order is random. Every full batch contains ``per_batch`` labelled data, which are repeated as often as needed. A datum
    that appears twice in an epoch counts twice in the objective and in means over the epoch.

    Args:
        labelled: Bool tensor, True for each datum with a label, shape ``(N,)``.
        batch_size: Batch size B.
        per_batch: Number of labelled data in each full batch, from 1 to B - 1.

    Raises:
        ValueError: If ``per_batch`` is not between 1 and B - 1.
    """

    def __init__(self, labelled: Tensor, batch_size: int, per_batch: int) -> None:
        if not 1 <= per_batch < batch_size:
            raise ValueError(
                f"labelled_per_batch: expected between 1 and {batch_size - 1}, got {per_batch}; leave room for unlabelled data "
                f"in a batch of {batch_size}."
            )
        self._labelled, self._others = labelled.nonzero()[:, 0], (~labelled).nonzero()[:, 0]
        self._batch_size, self.per_batch = batch_size, per_batch
        self._repeated = -(-len(self._others) * per_batch // (batch_size - per_batch))
        self.total = len(self._others) + self._repeated

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Draw the row numbers of one epoch, see :class:`Order`."""
        unknown = _shuffled(self._others, generator)
        turns = -(-self._repeated // len(self._labelled))
        known = torch.cat([_shuffled(self._labelled, generator) for _ in range(turns)])[: self._repeated]
        places = torch.arange(self._repeated) * self._batch_size // self.per_batch
        return _merged(places, known, unknown)


def _shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows.to(generator.device)[torch.randperm(len(rows), generator=generator, device=generator.device)]


def _merged(places: Tensor, known: Tensor, unknown: Tensor) -> Tensor:
    """Merge two tensors: ``known`` at ``places``, ``unknown`` at all other positions."""
    order = known.new_empty(len(known) + len(unknown))
    at = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    at[places.to(order.device)] = True
    order[at], order[~at] = known, unknown
    return order


def order_of(y: Tensor | None, size: int, batch_size: int, per_batch: int | None = None) -> Order:
    """Choose how to order the data of an epoch, given their labels.

    Args:
        y: Labels, shape ``(N,)``, -1 where unknown. None, or vectors of shape ``(N, C)``, count as no labels.
        size: Number N of data.
        batch_size: Batch size B.
        per_batch: Number of labelled data in each batch. None to use each labelled datum once in an epoch.

    Returns:
        :class:`Mixed` if ``per_batch`` is given; otherwise :class:`Spread` for partly labelled data, and :class:`Shuffled` for
        all other data.

    Raises:
        ValueError: If ``per_batch`` is not between 1 and B - 1, or ``per_batch`` is given for data that are not
            partly labelled.
    """
    labelled = None if y is None or y.dim() != 1 or y.is_floating_point() else y >= 0
    if labelled is None or bool(labelled.all()) or not bool(labelled.any()):
        if per_batch is not None:
            raise ValueError(
                "labelled_per_batch: needs both labelled and unlabelled data, but these data have only one kind; remove "
                "--labelled-per-batch, or hide labels (--labels)."
            )
        return Shuffled(size)
    return Spread(labelled, batch_size) if per_batch is None else Mixed(labelled, batch_size, per_batch)
