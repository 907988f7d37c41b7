"""Several processes that train or evaluate as one, started by ``torchrun``: who they are, and what they tell each other.

In a process that no launcher has started there is one rank, and nothing here costs anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

#: What a launcher tells a process of its place.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TOLD = "_pyro_vae_told"


class JobError(ConnectionError):
    """The processes of a job do not act as one any more: one is gone, or has other parameters."""


@dataclass(frozen=True)
class World:
    """The place of a process in its job.

    Attributes:
        rank: Which it is, from 0.
        size: How many there are.
        local_rank: Which it is on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether it is the one that writes files and speaks."""
        return self.rank == 0

    def rows(self, total: int) -> int:
        """How many rows of a batch of ``total`` it has; ranks differ by at most one."""
        return (self.rank + 1) * total // self.size - self.rank * total // self.size

    def share(self, batch: Tensor) -> Tensor:
        """Its rows of a batch; of one that has none left for it the first, which then counts for nothing."""
        start = self.rank * len(batch) // self.size
        return batch[start : start + self.rows(len(batch))] if self.rows(len(batch)) else batch[:1]

    def __str__(self) -> str:
        return "" if self.size == 1 else f", {self.size} processes"


_world = World()


def world() -> World:
    """The place of this process."""
    return _world


def launched() -> World:
    """The place that a launcher such as ``torchrun`` has given to this process, which need not have joined yet."""
    if not all(os.environ.get(name) for name in VARIABLES) or not dist.is_available():
        return World()
    return World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Inside, this process is one of the job that its launcher has started, and ``pyro_vae.fit`` shares its batches.

    Without a launcher, or with one process, nothing is done. A process group that is there already is used, and left.
    """
    global _world
    place = launched()
    if place.size == 1:
        yield _world
        return
    ours = not dist.is_initialized()
    if ours:
        both = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo")
    before, _world = _world, place
    try:
        yield place
    finally:
        _world = before
        if ours:
            with contextlib.suppress(RuntimeError):  # of a job that has fallen apart
                dist.destroy_process_group()


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Inside, only rank 0 of a job prints; after, a process of a job cannot be told to end, since it does.

    ``torchrun`` ends all processes of a job as soon as one of them has left with an error, here after all have agreed to.
    """
    place = launched()
    if place.size == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not place.main:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        finally:
            for name in ("SIGTERM", "SIGINT"):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.stdout.flush()


def device_name(text: str) -> str:
    """What ``--device`` means for this process of a job: the CUDA device of its local rank, or the CPU.

    Raises:
        ValueError: If one device is named for all, or one that processes cannot share results through.
    """
    if _world.size == 1:
        return text
    if re.fullmatch(r"cuda:\d+", text):
        raise ValueError(
            f"device: expected auto, cuda or cpu for a job of {_world.size} processes, each of which takes the CUDA device of "
            f"its local rank, got {text!r}; use --device cuda."
        )
    if text == "mps":
        raise ValueError(
            f"device: expected auto, cuda or cpu for a job of {_world.size} processes, got 'mps'; use --device cpu."
        )
    if text == "cuda" or (text == "auto" and torch.cuda.is_available()):
        return f"cuda:{_world.local_rank}"
    return "cpu" if text == "auto" and torch.backends.mps.is_available() else text


def take_device(device: torch.device) -> None:
    """Make a device that of this process, and see that the others have one of the same kind; a collective.

    Raises:
        ValueError: If they have not.
    """
    if _world.size == 1:
        return
    kinds = gather(device.type)
    if len(set(kinds)) > 1:
        raise ValueError(
            f"device: expected one kind for all processes, got {', '.join(f'{k} on rank {r}' for r, k in enumerate(kinds))}; "
            "use --device cpu."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)


def stream(seed: int, number: int | None = None) -> int:
    """Seed of one of many streams of random numbers; that of number 0 is ``seed`` itself.

    Args:
        seed: The seed of all.
        number: Which stream; None: this rank's.
    """
    number = _world.rank if number is None else number
    if number == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest(), "big") >> 1


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
    if _world.size == 1:
        return [value]
    found = _gathered(value)
    for rank, one in enumerate(found):
        if isinstance(one, Failure):
            raise one.error(rank)
    return found


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * _world.size
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
        raise JobError(f"rank {_world.rank}: another process of the job is gone ({reason}).") from error


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, an error of one rank ends the part of all; with no error all leave at the same time."""
    if _world.size == 1:
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


def first(value: T | None) -> T | None:
    """What the first rank that has something gives here."""
    return next((one for one in gather(value) if one is not None), None)


@contextlib.contextmanager
def one_first() -> Iterator[None]:
    """One process of each machine goes ahead, such as to fetch what the others then find; they go in when it has left."""
    if _world.size > 1 and _world.local_rank != 0:
        gather(None)
    try:
        yield
    finally:
        if _world.size > 1 and _world.local_rank == 0:
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
    if _world.size == 1:
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
    for number in range(_world.rank, math.ceil(count / _world.size) * _world.size, _world.size):
        yield number if number < count else None


def collected(parts: Sequence[T]) -> list[T]:
    """What all ranks have made of the batches dealt to them, in the order of the data."""
    if _world.size == 1:
        return list(parts)
    found = gather(list(parts))
    return [found[i % _world.size][i // _world.size] for i in range(sum(map(len, found)))]


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
