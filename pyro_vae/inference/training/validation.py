"""Validation after each epoch, and a model's ``after_epoch`` hook."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.data import Data, Inputs, Split, Stored, binarize
from pyro_vae.data.dataset import MEAN_ROWS
from pyro_vae.data.stored import rows_of
from pyro_vae.inference.program.checks import UnguidedSiteError
from pyro_vae.inference.program.traces import Args, Program
from pyro_vae.inference.training.history import Row
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.inference.weights.log_weights import ProposalDraws
from pyro_vae.inference.weights.terms import EnumeratedTerms, WeightTerms
from pyro_vae.models.protocol import PyroModel, evaluation_inputs, has_bound, method_of, training_inputs
from pyro_vae.system.randomness import own_randomness

EVALUATION_ROWS = 1000


def validate(
    model: PyroModel, split: Split, objective: ELBO, beta: float | None, seed: int, poll: Callable[[], None]
) -> Row:
    """Evaluate a model on validation data.

    Args:
        model: The model.
        split: The validation data.
        objective: The objective. It may define a score that selects the best epoch.
        beta: The final KL weight; None if latent sites have separate KL weights.
        seed: Seed of the draws.
        poll: Function called before every batch. If it raises an exception, the evaluation ends.

    Returns:
        The validation columns of the history, nats per datum.
    """
    likelihood, ratio = evaluate_terms(model, evaluation_inputs(model, split), seed, poll)
    value = likelihood + ratio
    name = "validation_elbo" if has_bound(model) else "validation_objective"
    distortion, rate = -float(likelihood.mean()), -float(ratio.mean())
    return {
        name: float(value.mean()),
        f"{name}_std_error": float(value.std() / math.sqrt(len(value))) if len(value) > 1 else math.nan,
        "validation_rate": rate,
        "validation_distortion": distortion,
        **_selection(objective, 1.0 if beta is None else beta, distortion, rate),
    }


def _selection(objective: ELBO, beta: float, distortion: float, rate: float) -> Row:
    """Return the score that selects the best epoch, as a history column.

    The result is empty if the ELBO itself selects the best epoch.
    """
    if hasattr(objective, "selection"):
        return {"validation_objective": objective.selection(distortion, rate, beta)}
    return {} if beta == 1 else {"validation_objective": -distortion - beta * rate}


def first_draw(model: Program, guide: Program, batch: Args) -> WeightTerms | EnumeratedTerms:
    """Draw once for each datum; return the terms of the importance weights.

    Sites that are enumerated in the model, but not in the guide, are summed out.

    Raises:
        ValueError: If model and guide have no importance weights; see ``log_weights``.
    """
    try:
        return ProposalDraws(model, guide, batch, {}).first
    except UnguidedSiteError:
        return EnumeratedDraws(model, guide, batch, {}).first


@torch.no_grad()
def evaluate_terms(
    model: PyroModel,
    data: Inputs | Tensor | Stored | tuple[Tensor | Stored, ...],
    seed: int,
    poll: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Draw log p(x|z) and log p(z) - log q(z|x) for each datum.

    The same seed gives the same draws at every call.

    A site that is enumerated in the model, but not in the guide, is summed out of both terms exactly. In a model with
    such a site, sites enumerated in the guide are summed under q. In every other model, sites enumerated in the guide
    are drawn.

    Args:
        model: An object with Pyro functions ``model`` and ``guide``.
        data: The inputs of model and guide: one tensor of shape ``(N, *data_shape)``, or a tuple of several inputs.
        seed: Seed of the draws. The caller's random generators do not change.
        poll: Function called before every batch. If it raises an exception, the evaluation ends.

    Returns:
        log p(x|z) and log p(z) - log q(z|x), each of shape ``(N,)``, nats, float64, on the CPU.
    """
    inputs = Inputs.of(data)
    was_training = model.training
    model.eval()
    parts = []
    try:
        with own_randomness(seed), pyro.validation_enabled(False):
            for batch in parallel.local_batches(inputs, min(EVALUATION_ROWS, inputs.chunk), seed):
                poll()
                if batch is not None:
                    first = first_draw(model.model, model.guide, batch)
                    parts.append([part[0].cpu().double() for part in (first.log_likelihood, first.log_ratio)])
    finally:
        model.train(was_training)
    likelihood, ratio = (torch.cat(part) for part in zip(*parallel.merge_batches(parts), strict=True))
    return likelihood, ratio


@torch.no_grad()
def after_epoch(model: PyroModel, data: Data, seed: int) -> None:
    """Call the ``after_epoch`` method of a model, if it has one.

    The method gets training data whose row numbers are evenly spaced, and the model is in evaluation mode. Buffers that
    the method fills are saved and loaded together with the parameters, and kept for the best epoch.

    Args:
        model: The model.
        data: The model's data. At most 10,000 training data, and at most 1 GiB, are used.
        seed: Seed of the binarization, the same at every epoch. Only used for data that are binarized when a batch is
            drawn.
    """
    hook = method_of(model, "after_epoch")
    if hook is None:
        return
    inputs = training_inputs(model, data.train)
    size = len(inputs)
    count = min(size, MEAN_ROWS, 32 * rows_of(data.train.x.shape))
    x, *others = inputs[torch.arange(count) * size // count]
    if data.redraw:
        x = binarize(x, "static", torch.Generator(x.device).manual_seed(seed))
    was_training = model.training
    model.eval()
    try:
        hook(x, *others)
    finally:
        model.train(was_training)
