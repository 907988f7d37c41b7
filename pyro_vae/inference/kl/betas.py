"""KL weights during training, each a number or a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference.program.traces import Program
from pyro_vae.schedules import Constant, Schedule

#: KL weights: a number or schedule for all latent sites, or a mapping from names of sites to numbers or schedules.
Weights = float | Schedule | Mapping[str, float | Schedule]


class Betas:
    """Current KL weights: 0-dim tensors, set before each training step.

    Args:
        given: A number or schedule for all latent sites; or a dict that holds a number or schedule for each named site.
            Sites that are not in the dict keep weight 1.
        device: The device of the tensors.

    Raises:
        ValueError: If a weight is negative or not finite, or if the dict is empty.
    """

    def __init__(self, given: Weights, device: torch.device | None = None) -> None:
        sites = given if isinstance(given, Mapping) else {"": given}
        if not sites:
            raise ValueError(
                "beta: expected a KL weight, or a mapping from sites to KL weights, got an empty mapping; omit beta."
            )
        self.schedules: dict[str, Schedule] = {n: s if callable(s) else Constant(s) for n, s in sites.items()}
        self.values = {name: torch.tensor(float(s(0)), device=device) for name, s in self.schedules.items()}

    def apply(self, model: Program, guide: Program) -> tuple[Program, Program]:
        """Return model and guide with these KL weights applied."""
        if "" not in self.values:
            return scale_kl_pair(model, guide, self.values)
        return (model, guide) if self.is_one else scale_kl_pair(model, guide, self.values[""])

    @property
    def is_one(self) -> bool:
        """True if all KL weights are 1 at every step."""
        return all(isinstance(schedule, Constant) and schedule.value == 1.0 for schedule in self.schedules.values())

    def set(self, step: int) -> None:
        """Set all KL weights to their values at a training step.

        Raises:
            ValueError: If a schedule returns a negative or non-finite number.
        """
        for name, schedule in self.schedules.items():
            beta = float(schedule(step))
            if not (math.isfinite(beta) and beta >= 0):
                where = f" for site {name!r}" if name else ""
                raise ValueError(
                    f"beta: expected finite numbers of at least 0 from the schedule{where}, got {beta} at step {step}."
                )
            self.values[name].fill_(beta)

    @property
    def columns(self) -> dict[str, float]:
        """KL weights as history columns: ``beta``, and ``beta_SITE`` for named sites.

        ``beta`` is the KL weight of all sites without a weight of their own.
        """
        named = {f"beta_{name}": float(value) for name, value in self.values.items() if name}
        return {"beta": float(self.values[""]) if "" in self.values else 1.0, **named}

    @property
    def final(self) -> float | None:
        """Final KL weight that all sites share; None if sites differ.

        None also if the schedule states no final weight.
        """
        schedule = self.schedules.get("")
        return getattr(schedule, "end", getattr(schedule, "value", None))

    @property
    def steps(self) -> int:
        """Number of training steps until all schedules reach their final weight."""
        return max(getattr(schedule, "steps", 0) for schedule in self.schedules.values())
