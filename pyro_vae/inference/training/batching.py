"""Batch sizes and the order of the rows of an epoch."""

from __future__ import annotations

import itertools
import math
from typing import Any

from pyro_vae import parallel
from pyro_vae.data import Data
from pyro_vae.data.batches import Order, order_of
from pyro_vae.inference.kl.total_correlation import TotalCorrelation
from pyro_vae.inference.training.options import FitOptions
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


def epoch_order(model: Any, data: Data, options: FitOptions) -> Order:
    """The order in which a model is given its training data; see :func:`pyro_vae.data.batches.order_of`.

    A model that classifies gets a label in every batch, also where there are fewer of them than batches: its classifier's
    term has the same weight in each batch that has one, and would be too small if others had none.

    Raises:
        ValueError: If ``labelled_per_batch`` does not suit the labels that the model is told.
    """
    labels = data.train.y if "y" in takes(model) else None
    size, per_batch = len(data.train.x), options.labelled_per_batch
    if per_batch is None and classifies(model) and labels is not None and labels.dim() == 1 and options.batch_size > 1:
        known = int((labels >= 0).sum())
        per_batch = 1 if 0 < known < math.ceil(size / options.batch_size) and known < size else None
    return order_of(labels, size, options.batch_size, per_batch)
