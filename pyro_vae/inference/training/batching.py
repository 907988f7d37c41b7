"""Check batch sizes; choose the order of the data in an epoch."""

from __future__ import annotations

import itertools
import math

from pyro.infer import ELBO

from pyro_vae import parallel
from pyro_vae.data import Data
from pyro_vae.data.batches import Order, order_of
from pyro_vae.inference.kl.total_correlation import TotalCorrelation
from pyro_vae.inference.training.options import FitOptions
from pyro_vae.models.protocol import PyroModel, classifies, takes


def check_batches(model: PyroModel, data: Data, objective: ELBO, options: FitOptions) -> None:
    """Refuse batches of one datum if the loss needs at least two.

    The total-correlation objective compares the codes of a batch with each other. With a single code, the total
    correlation is 0 and the rate cannot be split into parts. The classifier term of a partly labelled model has its
    full weight only if every batch has a label. Batches of one datum cannot ensure this.

    Args:
        model: The model.
        data: The model's data.
        objective: The objective.
        options: Options of the training.

    Raises:
        ValueError: If the loss needs at least two data, and a batch (perhaps the last batch of an epoch) holds one.
    """
    size = options.batch_size
    y = data.train.y if "y" in takes(model) and classifies(model) else None
    if size == 1 and y is not None and y.dim() == 1 and 0 < int((y >= 0).sum()) < len(y):
        raise ValueError(
            f"batch_size: expected at least 2 with {type(model).__name__} and partly labelled data, so that each batch has a "
            "label, got 1; use larger batches."
        )
    if not isinstance(objective, TotalCorrelation):
        return
    total, processes = epoch_order(model, data, options).total, parallel.world().size
    least = _smallest(total, size) // processes
    if least < 2 <= total // processes:
        better = next(n for n in itertools.count(size + 1) if _smallest(total, n) // processes >= 2)
        where = f" and {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"batch_size: expected batches of at least 2 data for a total correlation, got {size}{where}, which leaves "
            f"{least or 1} of {total:,} data alone in a batch; use {better}."
        )


def _smallest(total: int, size: int) -> int:
    """Return the size of an epoch's last batch, which is the smallest."""
    return (total - 1) % size + 1


def epoch_order(model: PyroModel, data: Data, options: FitOptions) -> Order:
    """Return the order of the training data; see :func:`pyro_vae.data.batches.order_of`.

    For a model that classifies, every batch contains a label, even if there are fewer labels than batches. The
    classifier term has the same weight in each batch with a label, so batches without labels would make the term too
    small.

    Raises:
        ValueError: If ``labelled_per_batch`` does not fit the labels of the training data.
    """
    labels = data.train.y if "y" in takes(model) else None
    size, per_batch = len(data.train.x), options.labelled_per_batch
    if per_batch is None and classifies(model) and labels is not None and labels.dim() == 1 and options.batch_size > 1:
        known = int((labels >= 0).sum())
        per_batch = 1 if 0 < known < math.ceil(size / options.batch_size) and known < size else None
    return order_of(labels, size, options.batch_size, per_batch)
