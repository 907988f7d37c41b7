"""The true terms of a model on data that it is not trained on: one draw for each datum, always the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.data import Columns, Stored
from pyro_vae.inference.enumerated import EnumeratedDraws
from pyro_vae.inference.enumerated_terms import EnumeratedTerms
from pyro_vae.inference.layout import UnguidedSiteError
from pyro_vae.inference.weights import ProposalDraws, WeightTerms
from pyro_vae.randomness import own_randomness

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
    data: Columns | Tensor | Stored | tuple[Tensor | Stored, ...],
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
    columns = Columns.of(data)
    was_training = model.training
    model.eval()
    parts = []
    try:
        with own_randomness(seed), pyro.validation_enabled(False):
            for batch in parallel.dealt(columns, min(EVALUATION_ROWS, columns.chunk), seed):
                poll()
                if batch is not None:
                    first = first_draw(model.model, model.guide, batch)
                    parts.append([part[0].cpu().double() for part in (first.log_likelihood, first.log_ratio)])
    finally:
        model.train(was_training)
    likelihood, ratio = (torch.cat(part) for part in zip(*parallel.collected(parts), strict=True))
    return likelihood, ratio
