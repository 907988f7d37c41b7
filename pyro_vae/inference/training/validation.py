"""Validation of an epoch, and the `after_epoch` hook of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.data import Data, Inputs, Stored, binarize
from pyro_vae.data.dataset import MEAN_ROWS
from pyro_vae.data.stored import rows_of
from pyro_vae.inference.program.data_plate import UnguidedSiteError
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.inference.weights.enumeration import EnumeratedTerms
from pyro_vae.inference.weights.log_weights import ProposalDraws, WeightTerms
from pyro_vae.models.protocol import training_inputs
from pyro_vae.system.randomness import own_randomness

EVALUATION_ROWS = 1000


def first_draw(
    model: Callable[..., Any], guide: Callable[..., Any], batch: tuple[Any, ...]
) -> WeightTerms | EnumeratedTerms:
    """The terms of one draw for each datum, what is enumerated in the model alone summed out.

    Raises:
        ValueError: If model and guide give none, see ``log_weights``.
    """
    try:
        return ProposalDraws(model, guide, batch, {}).first
    except UnguidedSiteError:
        return EnumeratedDraws(model, guide, batch, {}).first


@torch.no_grad()
def evaluate_terms(
    model: Any,
    data: Inputs | Tensor | Stored | tuple[Tensor | Stored, ...],
    seed: int,
    poll: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """One draw of log p(x|z) and of log p(z) - log q(z|x) for each datum, the same draw at every call.

    A site that is enumerated in the model alone is summed out of both, exactly, and then one of the guide's is summed under q;
    where the model has none such, those of the guide are drawn.

    Args:
        model: An object with Pyro functions ``model`` and ``guide``.
        data: What they take: data of shape ``(N, *data_shape)``, or several columns.
        seed: Seed of the draws; the caller's generators are left as they were.
        poll: Called before every batch; what it raises ends the evaluation.

    Returns:
        Two tensors of shape ``(N,)``, nats, float64, on the CPU.
    """
    columns = Inputs.of(data)
    was_training = model.training
    model.eval()
    parts = []
    try:
        with own_randomness(seed), pyro.validation_enabled(False):
            for batch in parallel.local_batches(columns, min(EVALUATION_ROWS, columns.chunk), seed):
                poll()
                if batch is not None:
                    first = first_draw(model.model, model.guide, batch)
                    parts.append([part[0].cpu().double() for part in (first.log_likelihood, first.log_ratio)])
    finally:
        model.train(was_training)
    likelihood, ratio = (torch.cat(part) for part in zip(*parallel.merge_batches(parts), strict=True))
    return likelihood, ratio


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
    columns = training_inputs(model, data.train)
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
