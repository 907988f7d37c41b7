"""Which checks and estimators suit a model: each is tried on a few of its data before anything is made at length."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyro
import torch

from pyro_vae.data import Columns
from pyro_vae.diagnosis import CHECKS, made
from pyro_vae.estimation import ESTIMATORS, Estimation, estimate_batch
from pyro_vae.randomness import own_randomness

#: How many data a check is tried on, spread over all of them, so that they differ in their labels.
TRIED = 20

#: What suits whatever has a log p(x): draws from the guide.
ALWAYS = ("importance", "smoothed")


def check_suited(vae: Any, columns: Columns, how: Estimation, checks: Sequence[str], where: str) -> None:
    """Refuse what cannot be made of a model, before anything that takes time.

    Args:
        vae: The model.
        columns: What it is evaluated on.
        how: The estimator.
        checks: Of ``diagnosis.CHECKS``.
        where: What the sentence calls the model.

    Raises:
        ValueError: If the estimator or a check does not suit the model; it says which do.
    """
    if how.estimator not in ALWAYS:
        _check("estimator", [how.estimator], partial(estimator_refused, vae, columns, how), ESTIMATORS, where)
    _check("checks", checks, partial(check_refused, vae, columns), CHECKS, where)


def estimator_refused(vae: Any, columns: Columns, how: Estimation, name: str) -> str | None:
    """Why an estimator cannot be made of a model; None where it can."""
    least: dict[str, Any] = {"num_samples": 2, "num_chains": 2, "num_steps": 1, "refine_steps": 1}
    short = dataclasses.replace(how, estimator=name, target_se=None, compile=False, **least)
    return _refusal(vae, columns, lambda few: estimate_batch(vae, few[:], short))


def check_refused(vae: Any, columns: Columns, name: str) -> str | None:
    """Why a check cannot be made of a model; None where it can."""
    return _refusal(vae, columns, lambda few: made(name, vae, few, 0, **CHECKS[name].least))


def _refusal(vae: Any, columns: Columns, attempt: Callable[[Columns], Any]) -> str | None:
    """Why something cannot be made of a few data, without the advice for those who call it from Python; None where it can."""
    vae.eval()
    rows = torch.linspace(0, len(columns) - 1, min(TRIED, len(columns))).round().long()
    try:
        with own_randomness(0), pyro.get_param_store().scope(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when it is made
            attempt(Columns(*columns[rows]))
    except (ValueError, TypeError, NotImplementedError) as error:
        said = str(error).partition("; ")[0].rstrip(".")
        head, colon, tail = said.partition(": ")
        return tail if colon and head.isidentifier() else said
    return None


def _check(
    argument: str, asked: Sequence[str], refused: Callable[[str], str | None], known: Iterable[str], where: str
) -> None:
    got = {name: why for name in asked if (why := refused(name)) is not None}
    if not got:
        return
    suited = [name for name in known if name not in got and (name in asked or refused(name) is None)]
    expected = f"{_either(suited)}, which suit {where}" if suited else f"none with {where}, which none suits"
    mend = "take one of those" if argument == "estimator" else "leave it out" if len(got) == 1 else "leave them out"
    said = " and ".join(f"{name} ({why})" for name, why in got.items())
    raise ValueError(f"{argument}: expected {expected}, got {said}; {mend}.")


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
