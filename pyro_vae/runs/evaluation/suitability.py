"""Trials of estimators and checks on a model: do they suit it?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pyro
import torch

from pyro_vae.data import Inputs
from pyro_vae.models.protocol import PyroModel
from pyro_vae.runs.evaluation.checks import CHECKS, run_check
from pyro_vae.runs.evaluation.estimators import ESTIMATORS, Estimation, estimate_batch
from pyro_vae.system.randomness import own_randomness

#: Number of data in a trial, spread over the data set so that their labels differ.
NUM_TRIED = 20


def check_suitable(vae: PyroModel, inputs: Inputs, how: Estimation, checks: Sequence[str], where: str) -> None:
    """Refuse an estimator or checks that do not suit a model.

    Args:
        vae: The model.
        inputs: The evaluation data.
        how: The estimator.
        checks: Names from ``CHECKS``.
        where: The model's name in the error.

    Raises:
        ValueError: If the estimator or a check does not suit the model; the error lists estimators or checks that do.
    """
    if not how.row.suits_every_model:
        _check("estimator", [how.estimator], partial(estimator_obstacle, vae, inputs, how), ESTIMATORS, where)
    _check("checks", checks, partial(check_obstacle, vae, inputs), CHECKS, where)


def estimator_obstacle(vae: PyroModel, inputs: Inputs, how: Estimation, name: str) -> str | None:
    """Return why the named estimator does not suit the model, or None."""
    return _obstacle(vae, inputs, lambda few: estimate_batch(vae, few[:], how.least(name)))


def check_obstacle(vae: PyroModel, inputs: Inputs, name: str) -> str | None:
    """Return why the named check does not suit the model, or None."""
    return _obstacle(vae, inputs, lambda few: run_check(name, vae, few, 0, **CHECKS[name].least))


def _obstacle(vae: PyroModel, inputs: Inputs, attempt: Callable[[Inputs], object]) -> str | None:
    """Try a function on few data; return its error's text, or None.

    The text leaves out the remedy in the error, which is for callers from Python, not for users of the command line.
    """
    vae.eval()
    rows = torch.linspace(0, len(inputs) - 1, min(NUM_TRIED, len(inputs))).round().long()
    try:
        with own_randomness(0), pyro.get_param_store().scope(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself warns again
            attempt(Inputs(*inputs[rows]))
    except (ValueError, TypeError, NotImplementedError) as error:
        fault = str(error).partition("; ")[0].rstrip(".")
        argument, colon, rest = fault.partition(": ")
        return rest if colon and argument.isidentifier() else fault
    return None


def _check(
    argument: str, asked: Sequence[str], obstacle: Callable[[str], str | None], names: Iterable[str], where: str
) -> None:
    """Refuse names that do not suit the model; list suitable names."""
    refused = {name: reason for name in asked if (reason := obstacle(name)) is not None}
    if not refused:
        return
    suited = [name for name in names if name not in refused and (name in asked or obstacle(name) is None)]
    expected = f"{_either(suited)}, which suit {where}" if suited else f"none, since none suits {where}"
    remedy = "choose one that suits" if argument == "estimator" else f"remove {' and '.join(refused)}"
    got = " and ".join(f"{name} ({reason})" for name, reason in refused.items())
    raise ValueError(f"{argument}: expected {expected}, got {got}; {remedy}.")


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
