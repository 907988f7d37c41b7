"""The place of a process in a job that ``torchrun`` has started, and what it means for devices and random numbers."""

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

#: What a launcher tells a process of its place.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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
