"""Table of the KL controls; the keys are the names of flags."""

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
    """A KL control and its flags.

    Attributes:
        kind: Class of the control. If ``kind.takes_beta`` is False, no KL weight can be set.
        make: Function that wraps an objective in the control. Its arguments are the objective, the value of the
            control's flag and, if there is a second flag, the value of that flag.
        option: Name of a second flag that only this control uses, or "".
    """

    kind: type[KLControl]
    make: Callable[..., KLControl]
    option: str = ""


#: The KL controls; the keys are flags. At most one of these flags can be set.
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
    """Wrap an objective in the KL control selected by flags, if any.

    Args:
        objective: With a KL control, ``elbo("trace")`` or ``elbo("mean-field")``; without one, every objective.
        num_data: N, the size of the training data; only :class:`TotalCorrelation` uses this number.
        **values: Values of the flags in ``FLAGS``, by name; None: the flag is not set.

    Returns:
        The KL control, or ``objective`` itself if no control is selected.

    Raises:
        TypeError: If the objective has no separate KL for each site, or a flag is unknown.
        ValueError: If two controls are selected, a second flag is set without its control, or a number is out of range.
    """
    for name in values:
        if name not in FLAGS:
            raise TypeError(str(unknown("control of the KL", name, FLAGS)))
    _refuse_idle_options(values)
    chosen = [name for name in CONTROLS if values.get(name) is not None]
    if len(chosen) > 1:
        raise ValueError(
            f"{chosen[1]}: cannot be combined with {chosen[0]}, since both flags control the KL; remove one of the two."
        )
    for name in chosen:
        control = CONTROLS[name]
        objective = control.make(objective, values[name], *(values[k] for k in values if k == control.option))
    if num_data is not None and isinstance(objective, TotalCorrelation):
        objective.num_data = num_data
    return objective


def _refuse_idle_options(values: Mapping[str, float | str | None]) -> None:
    """Refuse an option whose KL control is not selected."""
    for name, control in CONTROLS.items():
        if values.get(name) is None and control.option in values:
            *_, parameter = inspect.signature(control.make).parameters.values()
            value = values[control.option]
            if value != parameter.default:
                got = f"{value:g}" if isinstance(value, float) else repr(value)
                flag = name.replace("_", "-")
                idle = control.option.replace("_", "-")
                raise ValueError(f"{control.option}: {got} has no effect without --{flag}; remove --{idle}.")
