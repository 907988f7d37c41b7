"""What is asked of the KL beyond a weight, by the names that the command line has for it."""

from __future__ import annotations

import math
from typing import Any

from pyro_vae.errors import check_number
from pyro_vae.inference.kl.floors import FreeBits, MinimumRate
from pyro_vae.inference.kl.targets import Capacity, TargetRate
from pyro_vae.inference.kl.total_correlation import TotalCorrelation
from pyro_vae.lookup import parse_numbers

#: The names; of each objective one at most.
CONTROLS = ("free_bits", "min_rate", "capacity", "target_rate", "total_correlation")


def controlled(
    objective: Any,
    *,
    free_bits: float | None = None,
    free_bits_per: str = "unit",
    min_rate: float | None = None,
    capacity: str | None = None,
    capacity_weight: float = 100.0,
    target_rate: float | None = None,
    total_correlation: float | None = None,
    num_data: int | None = None,
) -> Any:
    """An objective under what is asked of its KL; itself where nothing is.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``; any, where nothing is asked.
        free_bits: See :class:`pyro_vae.inference.FreeBits`.
        free_bits_per: ``"unit"`` or ``"site"``.
        min_rate: See :class:`pyro_vae.inference.MinimumRate`.
        capacity: ``"NATS"`` or ``"NATS:STEPS"``; see :class:`pyro_vae.inference.Capacity`.
        capacity_weight: Its weight.
        target_rate: See :class:`pyro_vae.inference.TargetRate`.
        total_correlation: The weight of :class:`pyro_vae.inference.TotalCorrelation`.
        num_data: N, the size of the training data, for the last.

    Raises:
        TypeError: If the objective has no KL for each site.
        ValueError: If two are asked for, or a number is out of its range.
    """
    values = (free_bits, min_rate, capacity, target_rate, total_correlation)
    asked = [name for name, value in zip(CONTROLS, values, strict=True) if value is not None]
    if len(asked) > 1:
        raise ValueError(f"{asked[1]}: expected without {asked[0]}, since both bend the KL, got both; drop one.")
    if free_bits is not None:
        return FreeBits(objective, free_bits, free_bits_per)
    if min_rate is not None:
        return MinimumRate(objective, min_rate)
    if target_rate is not None:
        return TargetRate(objective, target_rate)
    if total_correlation is not None:
        check_number(
            "total_correlation",
            total_correlation,
            lambda v: math.isfinite(v) and v >= 0,
            "a finite number of at least 0",
        )
        return TotalCorrelation(objective, total_correlation, num_data=num_data)
    return objective if capacity is None else _capacity(objective, capacity, capacity_weight)


def _capacity(objective: Any, text: str, weight: float) -> Capacity:
    nats, *steps = parse_numbers(
        "capacity", text, text.split(":"), (float, int), form="NATS or NATS:STEPS", example="25:5000", optional=1
    )
    return Capacity(objective, nats, int(steps[0]) if steps else 1, weight)
