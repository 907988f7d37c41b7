"""What the ranks of a job tell each other: objects and tensors, in the same order on every rank."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_vae.parallel.processes import stream, world

T = TypeVar("T")

_TOLD = "_pyro_vae_told"


class JobError(ConnectionError):
    """The processes of a job do not act as one any more: one is gone, or has other parameters."""


# What ranks tell each other: objects, in the same order on every rank. One that fails tells so in place of the next object.


#: Errors of input or of the machine, which say on which rank they arose.
_PLAIN = (ValueError, TypeError, OSError, MemoryError, RuntimeError)


class Failure(NamedTuple):
    """What a rank tells in place of an object: how to make the error that ended its part."""

    kind: Any
    args: tuple[Any, ...]

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Such as any rank can make: of the package's own errors all, of others the text."""
        plain = next((kind for kind in _PLAIN if isinstance(error, kind)), RuntimeError)
        if type(error).__module__.startswith("pyro_vae.") and plain is RuntimeError:
            return cls(*error.__reduce__()[:2])
        text = str(error) if isinstance(error, plain) else f"{type(error).__name__}: {error}"
        return cls(plain, (text,))

    def error(self, rank: int) -> Exception:
        """The error as the others raise it."""
        error = self.kind(f"rank {rank}: {self.args[0]}") if self.kind in _PLAIN else self.kind(*self.args)
        error.__dict__[_TOLD] = True
        return error


def gather(value: T) -> list[T]:
    """What each rank gives here, in their order.

    Raises:
        JobError: If a rank is gone.
        Exception: What a rank has failed with.
    """
    if world().size == 1:
        return [value]
    found = _gathered(value)
    for rank, one in enumerate(found):
        if isinstance(one, Failure):
            raise one.error(rank)
    return found


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * world().size
    with _connected():
        dist.all_gather_object(found, value)
    return found


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, EOFError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^\[.*?\] *", "", line).split(". ")[0]
        raise JobError(f"rank {world().rank}: another process of the job is gone ({reason}).") from error


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, an error of one rank ends the part of all; with no error all leave at the same time."""
    if world().size == 1:
        yield
        return
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        if not told(error):
            tell(error)
        raise
    gather(None)


def tell(error: Exception) -> None:
    """Let the others fail with this error where they next gather."""
    error.__dict__[_TOLD] = True
    _gathered(Failure.of(error))


def told(error: Exception) -> bool:
    """Whether all ranks know of this error."""
    return _TOLD in error.__dict__


def take_device(device: torch.device) -> None:
    """Make a device that of this process, and see that the others have one of the same kind; a collective.

    Raises:
        ValueError: If they have not.
    """
    if world().size == 1:
        return
    kinds = gather(device.type)
    if len(set(kinds)) > 1:
        raise ValueError(
            f"device: expected one kind for all processes, got {', '.join(f'{k} on rank {r}' for r, k in enumerate(kinds))}; "
            "use --device cpu."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)


def first(value: T | None) -> T | None:
    """What the first rank that has something gives here."""
    return next((one for one in gather(value) if one is not None), None)


@contextlib.contextmanager
def one_first() -> Iterator[None]:
    """One process of each machine goes ahead, such as to fetch what the others then find; they go in when it has left."""
    if world().size > 1 and world().local_rank != 0:
        gather(None)
    try:
        yield
    finally:
        if world().size > 1 and world().local_rank == 0:
            _gathered(None)


def dealt(x: Any, size: int, seed: int) -> Iterator[Any]:
    """The batches of an evaluation that fall to this rank, in order: batch i to rank i modulo the number of ranks.

    In a job each batch has a stream of random numbers of its own, so that figures do not depend on how many ranks there
    are; that of the first batch is the one with which a single process begins.

    Args:
        x: Data, with ``len``, slices and ``split``.
        size: Data of a batch.
        seed: Seed of the draws; the caller keeps the generators.

    Yields:
        Batches, or None where others have one more: every rank gets equally many.
    """
    if world().size == 1:
        yield from x.split(size)
        return
    for number in turns(math.ceil(len(x) / size)):
        if number is not None:
            torch.manual_seed(stream(seed, number))
        yield None if number is None else x[number * size : (number + 1) * size]


def turns(count: int) -> Iterator[int | None]:
    """Which of ``count`` things fall to this rank: i to rank i modulo the number of ranks.

    Yields:
        Their numbers, then None where others have one more: every rank gets equally many.
    """
    for number in range(world().rank, math.ceil(count / world().size) * world().size, world().size):
        yield number if number < count else None


def collected(parts: Sequence[T]) -> list[T]:
    """What all ranks have made of the batches dealt to them, in the order of the data."""
    if world().size == 1:
        return list(parts)
    found = gather(list(parts))
    return [found[i % world().size][i // world().size] for i in range(sum(map(len, found)))]


# Tensors, of one shape on every rank.


def add_up(tensor: Tensor) -> None:
    """Put the sum over all ranks in place of this rank's tensor.

    Raises:
        JobError: If a rank is gone.
    """
    with _connected():
        dist.all_reduce(tensor)


@torch.no_grad()
def from_main(tensors: Iterable[Tensor]) -> None:
    """Put rank 0's values in place of this rank's.

    Raises:
        JobError: If a rank is gone.
    """
    for tensor in tensors:
        whole = tensor.detach().contiguous()
        with _connected():
            dist.broadcast(whole, 0)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.copy_(whole)
