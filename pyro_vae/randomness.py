"""Random numbers of one's own, with the caller's generators left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_randomness(seed: int | None = None) -> Iterator[None]:
    """Inside, torch's generators begin at ``seed``, or go on from where they are; after, they are as they were before.

    Args:
        seed: Where to begin; None: at the caller's state.
    """
    # manual_seed reaches every device, so every one in use is put back.
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
