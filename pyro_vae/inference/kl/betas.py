"""Weights of the KL during training, each on a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference.program.traces import Program
from pyro_vae.schedules import Constant, Schedule

#: Weights of the KL: a number or schedule for all sites, or one for each of some sites.
Weights = float | Schedule | Mapping[str, float | Schedule]


class Betas:
    """Live weights of the KL: 0-dim tensors, set before each step.

    Args:
        given: A number or schedule for all sites, or one for each named site; other sites keep weight 1.
        device: The device of the tensors.

    Raises:
        ValueError: If a weight is negative or not finite, or the mapping is empty.
    """

    def __init__(self, given: Weights, device: torch.device | None = None) -> None:
        sites = given if isinstance(given, Mapping) else {"": given}
        if not sites:
            raise ValueError(
                "beta: expected a weight, or one for each of some sites, got an empty mapping; leave it out."
            )
        self.schedules: dict[str, Schedule] = {n: s if callable(s) else Constant(s) for n, s in sites.items()}
        self.values = {name: torch.tensor(float(s(0)), device=device) for name, s in self.schedules.items()}

    def apply(self, model: Program, guide: Program) -> tuple[Program, Program]:
        """Return model and guide under these weights."""
        if "" not in self.values:
            return scale_kl_pair(model, guide, self.values)
        return (model, guide) if self.is_one else scale_kl_pair(model, guide, self.values[""])

    @property
    def is_one(self) -> bool:
        """True if the weight of all sites is 1 throughout."""
        return all(isinstance(schedule, Constant) and schedule.value == 1.0 for schedule in self.schedules.values())

    def set(self, step: int) -> None:
        """Set the weights to those of a step.

        Raises:
            ValueError: If a schedule gives a negative number or one that is not finite.
        """
        for name, schedule in self.schedules.items():
            beta = float(schedule(step))
            if not (math.isfinite(beta) and beta >= 0):
                where = f" for site {name!r}" if name else ""
                raise ValueError(
                    f"beta: expected finite numbers of at least 0 from its schedule{where}, got {beta} at step {step}."
                )
            self.values[name].fill_(beta)

    @property
    def columns(self) -> dict[str, float]:
        """Columns of the history: ``beta``, and ``beta_SITE`` for each named site.

        ``beta`` is the weight of all other sites.
        """
        named = {f"beta_{name}": float(value) for name, value in self.values.items() if name}
        return {"beta": float(self.values[""]) if "" in self.values else 1.0, **named}

    @property
    def final(self) -> float | None:
        """Final weight of all sites; None if it differs or is unknown."""
        schedule = self.schedules.get("")
        return getattr(schedule, "end", getattr(schedule, "value", None))

    @property
    def steps(self) -> int:
        """Number of steps until all weights are final."""
        return max(getattr(schedule, "steps", 0) for schedule in self.schedules.values())
