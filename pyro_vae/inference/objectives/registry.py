"""Objectives by name.

Each name has a class. The parameters of the class's constructor are the options of the objective (see :func:`options_of`).
Class attributes give the number of draws, support for a KL weight, and the kind of gradient (see :class:`Bound`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from pyro_vae.inference.objectives.bound import Bound
from pyro_vae.inference.objectives.enumerated import TraceEnumELBO
from pyro_vae.inference.objectives.graph import TraceGraphELBO
from pyro_vae.inference.objectives.importance import CIWAE, IWAE, MIWAE, PIWAE, VIMCO, Renyi
from pyro_vae.inference.objectives.mean_field import TraceMeanFieldELBO
from pyro_vae.inference.objectives.path_gradient import STL, DReG
from pyro_vae.inference.objectives.trace import TraceELBO
from pyro_vae.inference.objectives.wake_sleep import RWS, TVO
from pyro_vae.lookup import lookup

OBJECTIVES: dict[str, type[Bound]] = {
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
    """Return the name of a model's default objective.

    Args:
        model: A model or a model class.

    Returns:
        The attribute ``objective`` of the model; ``"trace"`` if the attribute is missing, None or empty.
    """
    return getattr(model, "objective", None) or "trace"


def options_of(name: str) -> list[str]:
    """Names of an objective's options.

    If a constructor has ``**options``, the options of the next base class are included.

    Raises:
        ValueError: If ``name`` is unknown.
    """
    options: dict[str, None] = {}
    for cls in lookup("objective", name, OBJECTIVES).__mro__:
        if "__init__" in vars(cls):
            own = inspect.signature(cls).parameters.values()
            options |= dict.fromkeys(o.name for o in own if o.kind not in (o.VAR_POSITIONAL, o.VAR_KEYWORD))
            if all(o.kind is not o.VAR_KEYWORD for o in own):
                break
    return list(options)


def elbo(name: str, **options: object) -> Bound:
    """Make an objective by its name.

    Args:
        name: A name from ``OBJECTIVES``; docs/objectives.md compares the objectives. ``"trace"``, ``"mean-field"``,
            ``"graph"`` and ``"enum"`` are subclasses of the Pyro objectives with these names.
        **options: Options of the objective, such as ``num_particles`` and ``vectorize_particles``.

    Returns:
        A ``pyro.infer.ELBO`` with a method ``bound(model, guide, *args)``, which returns the bound of each datum, shape
        ``(B,)``, nats, higher is better.

    Raises:
        ValueError: If ``name`` is unknown, or an option is out of range.
        TypeError: If an option is unknown or has the wrong type.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise TypeError(f"elbo({name!r}): unknown option {option!r}; expected one of {', '.join(known)}.")
    make: Callable[..., Bound] = OBJECTIVES[name]
    return make(**options)
