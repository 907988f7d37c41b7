"""Scores of a model: accuracy, exact log p(x), squared error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.models.protocol import (
    PyroModel,
    call_with_inputs,
    classifies,
    evaluation_inputs,
    has_bound,
    knows_log_px,
    reconstructs,
)
from pyro_vae.runs.directory import Json
from pyro_vae.system.randomness import own_randomness

Figure = dict[str, float | int | None]


@torch.no_grad()
def scores(model: PyroModel, split: Split, seed: int = 0) -> dict[str, Figure]:
    """Compute the scores that apply to a model.

    - ``accuracy``, if the model has ``classify``: the share of correct labels among the data with a known label.
    - ``exact_log_px``, if the model has ``log_px``: log p(x), nats per datum.
    - ``squared_error``, if the model's objective is not a bound: the squared distance between a datum and its reconstruction,
      summed over pixels.

    Args:
        model: The model, in eval mode.
        split: The data, with their labels.
        seed: Seed of the draws, if the model classifies or reconstructs by sampling.

    Returns:
        For each score, by name, a dict with ``value``, the mean over data; ``std_error``, the standard error over data, None
        for a single datum; and ``num_data``. A non-finite mean becomes None, with a warning.
    """
    inputs, found = evaluation_inputs(model, split), {}
    size = min(1000, inputs.chunk)
    if classifies(model) and split.y is not None and bool((split.y >= 0).any()):
        with own_randomness(seed):
            guesses = torch.cat([model.classify(part[0]).argmax(-1).cpu() for part in inputs.split(size)])
        known = split.y.cpu() >= 0
        found["accuracy"] = _mean((guesses == split.y.cpu())[known].double())
    if knows_log_px(model):
        values = [call_with_inputs(model.log_px, part).cpu().double() for part in inputs.split(size)]
        found["exact_log_px"] = _mean(torch.cat(values), "log_px")
    if not has_bound(model) and reconstructs(model):
        with own_randomness(seed):
            errors = [
                (call_with_inputs(model.reconstruct, part) - part[0]).square().flatten(1).sum(1)
                for part in inputs.split(size)
            ]
        found["squared_error"] = _mean(torch.cat(errors).cpu().double(), "reconstruct")
    return found


def _mean(values: Tensor, method: str = "") -> Figure:
    """Compute the mean and its standard error; warn of non-finite values."""
    count = len(values)
    if bad := int((~values.isfinite()).sum()):
        warnings.warn(
            f"{method}: expected finite numbers from the trained model, got non-finite ones for {bad:,} of {count:,} data; "
            "the mean is left out.",
            stacklevel=3,
        )
        return {"value": None, "std_error": None, "num_data": count}
    error = float(values.std() / math.sqrt(count)) if count > 1 else None
    return {"value": float(values.mean()), "std_error": error, "num_data": count}


def score_lines(test: Json) -> Iterator[str]:
    """Yield a line for the terminal for each score."""
    if (found := test.get("accuracy")) is not None:
        yield f"accuracy {found['value']:.2%}{_error(found, 100, ' %')} over {found['num_data']:,} labels"
    if (found := test.get("exact_log_px")) is not None:
        yield f"log p(x), exactly: {_value(found, 3)} nats{_error(found)}"
    if (found := test.get("squared_error")) is not None:
        yield f"squared error of the reconstruction, summed over pixels: {_value(found, 4)}{_error(found)}"


def _value(figure: Figure, digits: int) -> str:
    return "unknown" if figure["value"] is None else f"{figure['value']:.{digits}f}"


def _error(figure: Figure, factor: float = 1.0, unit: str = "") -> str:
    error = figure["std_error"]
    return "" if error is None else f" (standard error over data {factor * error:.3g}{unit})"
