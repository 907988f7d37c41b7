"""Objectives by name."""

from __future__ import annotations

import inspect
from typing import Any

import pyro

from pyro_vae.inference.objectives.enumerated import TraceEnumELBO
from pyro_vae.inference.objectives.graph import TraceGraphELBO
from pyro_vae.inference.objectives.importance import CIWAE, IWAE, MIWAE, PIWAE, VIMCO, Renyi
from pyro_vae.inference.objectives.mean_field import TraceMeanFieldELBO
from pyro_vae.inference.objectives.path_gradient import STL, DReG
from pyro_vae.inference.objectives.trace import TraceELBO
from pyro_vae.inference.objectives.wake_sleep import RWS, TVO
from pyro_vae.lookup import lookup

OBJECTIVES: dict[str, type[pyro.infer.ELBO]] = {
    "trace": TraceELBO,
    "mean-field": TraceMeanFieldELBO,
    "graph": TraceGraphELBO,
    "enum": TraceEnumELBO,
    "iwae": IWAE,
    "vimco": VIMCO,
    "renyi": Renyi,
    "dreg": DReG,
    "stl": STL,
    "miwae": MIWAE,
    "ciwae": CIWAE,
    "piwae": PIWAE,
    "rws": RWS,
    "tvo": TVO,
}


def default_objective(model: object) -> str:
    """Return the name of the objective for a model, or its class, where the user names none.

    Args:
        model: Its attribute ``objective`` decides; without one, or where that is None or empty, it is ``"trace"``.
    """
    return getattr(model, "objective", None) or "trace"


def options_of(name: str) -> list[str]:
    """The options that an objective takes.

    Raises:
        ValueError: If the name is unknown.
    """
    options: dict[str, None] = {}
    for cls in lookup("objective", name, OBJECTIVES).__mro__:
        if "__init__" in vars(cls):
            own = inspect.signature(cls).parameters.values()
            options |= dict.fromkeys(o.name for o in own if o.kind not in (o.VAR_POSITIONAL, o.VAR_KEYWORD))
            if all(o.kind is not o.VAR_KEYWORD for o in own):
                break
    return list(options)


def elbo(name: str, **options: Any) -> Any:
    """An objective by name.

    Args:
        name: A name from ``OBJECTIVES``; docs/objectives.md compares them. ``"trace"``, ``"mean-field"``, ``"graph"`` and
            ``"enum"`` are subclasses of Pyro's ``Trace_ELBO`` and its kin.
        **options: What its class takes: ``num_particles``, ``vectorize_particles``, and those of its own.

    Returns:
        A ``pyro.infer.ELBO`` with ``bound(model, guide, *args)``, shape ``(B,)``, nats.

    Raises:
        ValueError: If the name is unknown, or an option is out of its range.
        TypeError: If the class has no such option, or it is of another kind.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise TypeError(f"elbo({name!r}): unknown option {option!r}: expected one of {', '.join(known)}.")
    return OBJECTIVES[name](**options)
