"""What a model finds of its training data once an epoch has moved its parameters."""

from __future__ import annotations

from typing import Any

import torch

from pyro_vae.data import Data, binarize
from pyro_vae.data.split import MEAN_ROWS
from pyro_vae.data.stored import rows_of
from pyro_vae.models.protocol import told


@torch.no_grad()
def after_epoch(model: Any, data: Data, seed: int) -> None:
    """Give a model that has a method ``after_epoch`` some evenly spaced training data, in evaluation mode.

    What it keeps of them in buffers is saved with the epoch's parameters, chosen with them and loaded with them.

    Args:
        model: The model.
        data: Its data, of which at most 10,000 training data, and 1 GiB, are taken.
        seed: Of their binarization, where batches are binarized when they are drawn: the same at every epoch.
    """
    if not hasattr(model, "after_epoch"):
        return
    columns = told(model, data.train)
    size = len(columns)
    count = min(size, MEAN_ROWS, 32 * rows_of(data.train.x.shape))
    x, *others = columns[torch.arange(count) * size // count]
    if data.redraw:
        x = binarize(x, "static", torch.Generator(x.device).manual_seed(seed))
    was_training = model.training
    model.eval()
    try:
        model.after_epoch(x, *others)
    finally:
        model.train(was_training)
