"""Batches that are too small for what is done with them."""

from __future__ import annotations

import itertools
from typing import Any

from pyro_vae import parallel
from pyro_vae.data import Data
from pyro_vae.inference.options import FitOptions
from pyro_vae.inference.total_correlation import TotalCorrelation
from pyro_vae.inference.training import epoch_order
from pyro_vae.models.protocol import classifies, takes


def check_batches(model: Any, data: Data, objective: Any, options: FitOptions) -> None:
    """Refuse batches of one datum where one alone means something else than one among others.

    A total correlation compares the codes of a batch: of one code it is 0, and its rate has no parts. A classifier's term
    weighs what it is said to where every batch has a label, which batches of one have or have not.

    Args:
        model: The model.
        data: Its data.
        objective: What is trained.
        options: Numbers and names.

    Raises:
        ValueError: If a batch, of an epoch the last one too, is as small.
    """
    size = options.batch_size
    y = data.train.y if "y" in takes(model) and classifies(model) else None
    if size == 1 and y is not None and y.dim() == 1 and 0 < int((y >= 0).sum()) < len(y):
        raise ValueError(
            f"batch_size: expected at least 2 with {type(model).__name__} and data of which some have no label, so that each "
            "batch has one that is known, got 1; take larger batches."
        )
    if not isinstance(objective, TotalCorrelation):
        return
    total, processes = epoch_order(model, data, options).total, parallel.world().size
    least = _smallest(total, size) // processes
    if least < 2 <= total // processes:
        better = next(n for n in itertools.count(size + 1) if _smallest(total, n) // processes >= 2)
        where = f"{processes} processes and " if processes > 1 else ""
        raise ValueError(
            f"batch_size: expected batches of at least 2 data, whose codes a total correlation compares, got {size}, which "
            f"with {where}{total:,} data leaves {least or 1} alone; take {better}."
        )


def _smallest(total: int, size: int) -> int:
    """The smallest batch of an epoch: the last one."""
    return (total - 1) % size + 1
