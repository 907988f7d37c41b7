"""Which checks and estimators suit a model: each is tried on a few of its data before anything is made at length."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
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
    vae.eval()
    rows = torch.linspace(0, len(columns) - 1, min(TRIED, len(columns))).round().long()
    few = Columns(*columns[rows])
    if how.estimator not in ALWAYS:
        _check("estimator", [how.estimator], ESTIMATORS, lambda name: _estimate(name, vae, few, how), where)
    _check("checks", checks, CHECKS, lambda name: made(name, vae, few, 0, **CHECKS[name].least), where)


def _estimate(name: str, vae: Any, few: Columns, how: Estimation) -> None:
    least: dict[str, Any] = {
        "num_samples": 2,
        "target_se": None,
        "num_chains": 2,
        "num_steps": 1,
        "refine_steps": 1,
        "compile": False,
    }
    estimate_batch(vae, few[:], dataclasses.replace(how, estimator=name, **least))


def _check(
    argument: str, asked: Sequence[str], known: Iterable[str], attempt: Callable[[str], Any], where: str
) -> None:
    refused = {name: why for name in asked if (why := _refusal(name, attempt)) is not None}
    if not refused:
        return
    suited = [name for name in known if name not in refused and (name in asked or _refusal(name, attempt) is None)]
    got = " and ".join(f"{name} ({why})" for name, why in refused.items())
    if not suited:
        raise ValueError(
            f"{argument}: expected what can be made of {where}, got {got}; nothing of it can, leave it out."
        )
    one_of = " or ".join(filter(None, (", ".join(suited[:-1]), suited[-1])))
    mend = "leave it out" if argument == "checks" and len(refused) == 1 else "leave them out"
    mend = "take one of those" if argument == "estimator" else mend
    raise ValueError(f"{argument}: expected {one_of}, which suit {where}, got {got}; {mend}.")


def _refusal(name: str, attempt: Callable[[str], Any]) -> str | None:
    """Why something cannot be made, without the advice for those who call it from Python; None where it can."""
    try:
        with own_randomness(0), pyro.get_param_store().scope(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when it is made
            attempt(name)
    except (ValueError, TypeError, NotImplementedError) as error:
        said = str(error).partition("; ")[0].rstrip(".")
        head, colon, tail = said.partition(": ")
        return tail if colon and head.isidentifier() else said
    return None
