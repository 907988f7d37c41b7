"""One process of a ``torchrun`` job: rank, output, device, random numbers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

#: The environment variables that a launcher sets.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """The rank of a process, and the size of its job.

    Attributes:
        rank: Number of this process in the job, from 0.
        size: Number of processes in the job.
        local_rank: Number of this process on its machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True for rank 0, which writes files and prints."""
        return self.rank == 0

    def rows(self, total: int) -> int:
        """Return this rank's number of rows in a batch of ``total`` rows.

        The numbers of two ranks differ by at most 1.
        """
        return (self.rank + 1) * total // self.size - self.rank * total // self.size

    def share(self, batch: Tensor) -> Tensor:
        """Return this rank's rows of a batch.

        If the batch has no row for this rank, the first row of the batch is returned; the caller gives this row weight 0.
        """
        start = self.rank * len(batch) // self.size
        return batch[start : start + self.rows(len(batch))] if self.rows(len(batch)) else batch[:1]

    def __str__(self) -> str:
        return "" if self.size == 1 else f", {self.size} processes"


_world = World()


def world() -> World:
    """Return the rank and the job size of this process.

    Inside :func:`process_group`, these are the numbers that the launcher has set. Outside, the rank is 0 and the size
    is 1.
    """
    return _world


def launcher_world() -> World:
    """Return the rank and the job size that the launcher has set.

    Unlike :func:`world`, this works before the process group exists.
    """
    if not all(os.environ.get(name) for name in VARIABLES) or not dist.is_available():
        return World()
    return World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextlib.contextmanager
def process_group() -> Iterator[World]:
    """Join the launcher's job inside the ``with`` block.

    Inside the block, ``pyro_vae.fit`` splits every batch among all processes.

    Without a launcher, or with only one process, nothing happens. An existing process group is used and stays open.

    Yields:
        The rank and the job size of this process.
    """
    global _world
    place = launcher_world()
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
            with contextlib.suppress(RuntimeError):  # another process has already ended
                dist.destroy_process_group()


@contextlib.contextmanager
def only_main_prints() -> Iterator[None]:
    """Silence all ranks except rank 0 inside the ``with`` block.

    After the block, every process of the job ignores SIGTERM and SIGINT. ``torchrun`` sends these signals as soon as
    one process has ended with an error. At that time, all processes already know the error and end by themselves.
    """
    place = launcher_world()
    if place.size == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not place.is_main:
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
    """Return the name of the device that this process uses.

    In a job, the process with local rank N uses CUDA device N, or the CPU.

    Args:
        text: The value of the flag ``--device``.

    Returns:
        A name for :func:`pyro_vae.system.devices.resolve_device`. Outside a job, this is ``text``.

    Raises:
        ValueError: In a job, if ``text`` is ``cuda:N``, which all processes would share, or ``mps``, which has no
            collectives.
    """
    if _world.size == 1:
        return text
    if re.fullmatch(r"cuda:\d+", text):
        raise ValueError(
            f"device: expected auto, cuda or cpu for a job of {_world.size} processes, got {text!r}; use --device cuda, which "
            "gives each local rank its own GPU."
        )
    if text == "mps":
        raise ValueError(
            f"device: expected auto, cuda or cpu for a job of {_world.size} processes, got 'mps'; use --device cpu."
        )
    if text == "cuda" or (text == "auto" and torch.cuda.is_available()):
        return f"cuda:{_world.local_rank}"
    return "cpu" if text == "auto" and torch.backends.mps.is_available() else text


def stream_seed(seed: int, number: int | None = None) -> int:
    """Return the seed for one of several streams of random numbers.

    The streams are numbered. The seed of stream 0 is ``seed`` itself.

    Args:
        seed: The seed of the run.
        number: Number of the stream; None for the rank of this process.
    """
    number = _world.rank if number is None else number
    if number == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest(), "big") >> 1
