"""Objectives by name.

Each objective is a class. Its options are the parameters of the constructor (see :func:`options_of`). Attributes of the
class give the number of draws, the support for a KL weight, and the kind of gradient (see :class:`Bound`).
"""

from __future__ import annotations

from collections.abc import Callable

from pyro_vae.inference.objectives.bound import Bound, constructor_options
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
        The model's attribute ``objective``; ``"trace"`` if this attribute is missing, None or empty.
    """
    return getattr(model, "objective", None) or "trace"


def options_of(name: str) -> list[str]:
    """Return the names of an objective's options; see :func:`constructor_options`.

    Raises:
        ValueError: If ``name`` is unknown.
    """
    return constructor_options(lookup("objective", name, OBJECTIVES))


def elbo(name: str, **options: object) -> Bound:
    """Make an objective by its name.

    Args:
        name: A name from ``OBJECTIVES``; docs/objectives.md compares the objectives. The classes of ``"trace"``,
            ``"mean-field"``, ``"graph"`` and ``"enum"`` are subclasses of Pyro's ELBO classes with similar names.
        **options: Options of the objective, such as ``num_particles`` and ``vectorize_particles``.

    Returns:
        A ``pyro.infer.ELBO`` with a method ``bound(model, guide, *args)``, which returns the bound of each datum, shape
        ``(B,)``, nats, higher is better.

    Raises:
        ValueError: If ``name`` is unknown, or an option is out of range.
        TypeError: If an option is unknown or has the wrong type.
    """
    make: Callable[..., Bound] = lookup("objective", name, OBJECTIVES)
    return make(**options)
