"""The controls of the KL, by their flags."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pyro.infer import ELBO

from pyro_vae.errors import check_number
from pyro_vae.inference.kl.control import KLControl
from pyro_vae.inference.kl.floors import FreeBits, MinimumRate
from pyro_vae.inference.kl.targets import Capacity, TargetRate
from pyro_vae.inference.kl.total_correlation import TotalCorrelation
from pyro_vae.lookup import parse_numbers, unknown


def _capacity(objective: ELBO, text: str, weight: float = 100.0) -> Capacity:
    nats, *steps = parse_numbers(
        "capacity", text, text.split(":"), (float, int), form="NATS or NATS:STEPS", example="25:5000", optional=1
    )
    return Capacity(objective, nats, int(steps[0]) if steps else 1, weight)


def _total_correlation(objective: ELBO, weight: float) -> TotalCorrelation:
    check_number("total_correlation", weight, lambda v: math.isfinite(v) and v >= 0, "a finite number of at least 0")
    return TotalCorrelation(objective, weight)


class Control(NamedTuple):
    """A control of the KL.

    Attributes:
        kind: Its class. Unless ``kind.takes_beta``, it excludes a weight of the KL.
        make: Wraps an objective; takes the value of the flag, then that of the option.
        option: The flag that goes with it alone, or "".
    """

    kind: type[KLControl]
    make: Callable[..., KLControl]
    option: str = ""


#: The controls by flag. Each excludes the others.
CONTROLS = {
    "free_bits": Control(FreeBits, FreeBits, "free_bits_per"),
    "min_rate": Control(MinimumRate, MinimumRate),
    "capacity": Control(Capacity, _capacity, "capacity_weight"),
    "target_rate": Control(TargetRate, TargetRate),
    "total_correlation": Control(TotalCorrelation, _total_correlation),
}

#: The flags of the controls and of their options.
FLAGS = (*CONTROLS, *(control.option for control in CONTROLS.values() if control.option))


def controlled(objective: ELBO, *, num_data: int | None = None, **values: float | str | None) -> ELBO:
    """Wrap an objective in the control that flags ask for, if any.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``; any, if no control is asked for.
        num_data: N, the size of the training data, for a total correlation.
        **values: Values by name, of ``FLAGS``. None: not asked for.

    Raises:
        TypeError: If the objective has no KL for each site, or a flag is unknown.
        ValueError: If two controls are asked for, an option without its control, or a number is out of range.
    """
    for name in values:
        if name not in FLAGS:
            raise TypeError(str(unknown("control of the KL", name, FLAGS)))
    _refuse_idle_options(values)
    chosen = [name for name in CONTROLS if values.get(name) is not None]
    if len(chosen) > 1:
        raise ValueError(f"{chosen[1]}: expected without {chosen[0]}, since both control the KL, got both; drop one.")
    for name in chosen:
        control = CONTROLS[name]
        objective = control.make(objective, values[name], *(values[k] for k in values if k == control.option))
    if num_data is not None and isinstance(objective, TotalCorrelation):
        objective.num_data = num_data
    return objective


def _refuse_idle_options(values: Mapping[str, float | str | None]) -> None:
    """Refuse an option whose control is not asked for."""
    for name, control in CONTROLS.items():
        if values.get(name) is None and control.option in values:
            *_, parameter = inspect.signature(control.make).parameters.values()
            value = values[control.option]
            if value != parameter.default:
                got = f"{value:g}" if isinstance(value, float) else repr(value)
                flag = name.replace("_", "-")
                raise ValueError(f"{control.option}: expected with --{flag}, got {got} alone; drop it.")
