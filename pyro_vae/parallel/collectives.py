"""Collectives: exchange of objects, tensors and errors between all ranks.

Every rank must call these functions in the same order.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_vae.errors import first_line
from pyro_vae.parallel.processes import stream_seed, world

T = TypeVar("T")
Batch = TypeVar("Batch", covariant=True)

_SHARED = "_pyro_vae_shared"


class JobError(ConnectionError):
    """The error for a lost process, or for ranks with different parameters."""


# Objects and errors. A rank that fails sends a Failure instead of its next object. All other ranks then raise this error.

#: Errors of the input or of the machine. Other ranks raise such an error with the number of the failed rank.
_PLAIN = (ValueError, TypeError, OSError, MemoryError, RuntimeError)


class Failure(NamedTuple):
    """An error in a form that other ranks can rebuild as ``make(*args)``.

    Attributes:
        make: The type of the error, or a function that returns the error.
        args: Arguments of ``make``.
    """

    make: Callable[..., Exception]
    args: tuple[object, ...]

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describe an error so that other ranks can rebuild it.

        An error class of this package is rebuilt exactly. Every other error is rebuilt as an error of a built-in type
        with the same message.
        """
        plain = next((kind for kind in _PLAIN if isinstance(error, kind)), RuntimeError)
        if type(error).__module__.startswith("pyro_vae.") and plain is RuntimeError:
            make, args, *_ = cast("tuple[Callable[..., Exception], tuple[object, ...]]", error.__reduce__())
            return cls(make, args)
        text = str(error) if isinstance(error, plain) else f"{type(error).__name__}: {error}"
        return cls(plain, (text,))

    def error(self, rank: int) -> Exception:
        """Rebuild on this rank the error of the failed rank ``rank``."""
        error = self.make(f"rank {rank}: {self.args[0]}") if self.make in _PLAIN else self.make(*self.args)
        error.__dict__[_SHARED] = True
        return error


def all_gather(value: T) -> list[T]:
    """Gather an object from every rank.

    Args:
        value: This rank's object.

    Returns:
        The objects of all ranks, in the order of the ranks.

    Raises:
        JobError: If the connection to another rank is lost.
        Exception: The error that another rank sent with :func:`share_error`.
    """
    if world().size == 1:
        return [value]
    values = _all_gather(value)
    for rank, other in enumerate(values):
        if isinstance(other, Failure):
            raise other.error(rank)
    return cast("list[T]", values)


def _all_gather(value: object) -> list[object]:
    values: list[object] = [None] * world().size
    with _job_errors():
        dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def _job_errors() -> Iterator[None]:
    """Raise ``JobError`` if the connection to another rank is lost."""
    try:
        yield
    except (RuntimeError, EOFError) as error:
        reason = re.sub(r"^\[.*?\] *", "", first_line(error)).split(". ")[0]
        raise JobError(f"rank {world().rank}: lost the connection to another process of the job ({reason}).") from error


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Raise an error of one rank's ``with`` block on all ranks.

    Without an error, all ranks wait for each other at the end of the block.
    """
    if world().size == 1:
        yield
        return
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        if not is_shared(error):
            share_error(error)
        raise
    all_gather(None)


def share_error(error: Exception) -> None:
    """Send an error to the other ranks.

    The other ranks raise this error at their next :func:`all_gather`.
    """
    error.__dict__[_SHARED] = True
    _all_gather(Failure.of(error))


def is_shared(error: Exception) -> bool:
    """Return True if this error was already sent to all ranks."""
    return _SHARED in error.__dict__


def set_device(device: torch.device) -> None:
    """Set this process's device; check that all ranks use the same kind.

    Raises:
        ValueError: If ranks use different kinds of devices.
    """
    if world().size == 1:
        return
    kinds = all_gather(device.type)
    if len(set(kinds)) > 1:
        raise ValueError(
            "device: expected the same kind of device on all ranks, got "
            f"{', '.join(f'{k} on rank {r}' for r, k in enumerate(kinds))}; use --device cpu."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)


def first_given(value: T | None) -> T | None:
    """Return the value of the lowest rank whose value is not None."""
    return next((other for other in all_gather(value) if other is not None), None)


@contextlib.contextmanager
def local_main_first() -> Iterator[None]:
    """Run the ``with`` block on local rank 0 before the other ranks.

    Each machine has a local rank 0. For example, local rank 0 downloads files, and the other ranks of the same machine
    then find these files.
    """
    if world().size > 1 and world().local_rank != 0:
        all_gather(None)
    try:
        yield
    finally:
        if world().size > 1 and world().local_rank == 0:
            _all_gather(None)


class Sliceable(Protocol[Batch]):
    """Data that can be cut into batches."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Batch: ...


def local_batches(x: Sliceable[Batch], size: int, seed: int) -> Iterator[Batch | None]:
    """Yield this rank's batches of an evaluation, in order.

    Batch i goes to rank i modulo the number of ranks.

    With several ranks, each batch has its own stream of random numbers, so the results do not depend on the number of
    ranks. The first batch uses the same stream as a job with a single process.

    Args:
        x: All data to evaluate.
        size: Batch size.
        seed: Seed of the streams. The caller restores the generators.

    Yields:
        A batch of this rank; or None at the end, if other ranks have one batch more. Every rank gets the same number of items.
    """
    if world().size == 1:
        for start in range(0, len(x), size):
            yield x[start : start + size]
        return
    for number in local_indices(math.ceil(len(x) / size)):
        if number is not None:
            torch.manual_seed(stream_seed(seed, number))
        yield None if number is None else x[number * size : (number + 1) * size]


def local_indices(count: int) -> Iterator[int | None]:
    """Yield this rank's share of the indices in ``range(count)``.

    Index i goes to rank i modulo the number of ranks.

    Yields:
        An index of this rank; or None at the end, if other ranks have one index more. Every rank gets the same number of
        items.
    """
    for number in range(world().rank, math.ceil(count / world().size) * world().size, world().size):
        yield number if number < count else None


def merge_batches(parts: Sequence[T]) -> list[T]:
    """Gather the results of all ranks, and put them in data order.

    Args:
        parts: This rank's results, one for each item of :func:`local_batches` or :func:`local_indices` that is not None.

    Returns:
        The results for all batches or indices. Every rank gets all results.
    """
    if world().size == 1:
        return list(parts)
    ranks = all_gather(list(parts))
    return [ranks[i % world().size][i // world().size] for i in range(sum(map(len, ranks)))]


# Tensors. Each tensor has the same shape on every rank.


def all_reduce_sum(tensor: Tensor) -> None:
    """Replace each rank's tensor by the sum over ranks, in place.

    Raises:
        JobError: If the connection to another rank is lost.
    """
    with _job_errors():
        dist.all_reduce(tensor)


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replace tensors on every rank by those of rank 0, in place.

    Raises:
        JobError: If the connection to another rank is lost.
    """
    for tensor in tensors:
        whole = tensor.detach().contiguous()
        with _job_errors():
            dist.broadcast(whole, 0)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.copy_(whole)
