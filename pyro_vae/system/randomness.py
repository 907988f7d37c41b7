"""Seed torch's random generators for a block, and restore them afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


@contextmanager
def own_randomness(seed: int | None = None) -> Iterator[None]:
    """Seed torch's generators inside the ``with`` block; restore them afterwards.

    Args:
        seed: The seed; None: the block starts with the caller's state.
    """
    # manual_seed seeds the generators of all devices, so the state of every device in use is restored.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)


def seeded(seed: int | None) -> AbstractContextManager[None]:
    """Return :func:`own_randomness` with a seed; with None, change nothing."""
    return nullcontext() if seed is None else own_randomness(seed)


def device_state(device: torch.device) -> Tensor | None:
    """Return the state of a GPU's random generator; None for the CPU.

    For the state of the CPU's generator, call ``torch.get_rng_state``.
    """
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" and torch.backends.mps.is_available() else None


def set_device_state(device: torch.device, state: Tensor | None) -> None:
    """Restore a state that :func:`device_state` returned; ignore None."""
    if state is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    elif state is not None and device.type == "mps":
        torch.mps.set_rng_state(state.cpu())
