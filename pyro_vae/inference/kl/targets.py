"""KL controls that hold the rate at a capacity or a target."""

from __future__ import annotations

import math

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.errors import check_count, check_nats
from pyro_vae.inference.kl.control import KLControl


class Capacity(KLControl):
    r"""A KL control that holds the rate at a growing capacity.

    .. math:: \text{distortion} + \gamma\, |R - C_t|, \qquad C_t = C \min(1, t / T)

    R is the rate and t the training step.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``.
        nats: C, the final capacity, nats per datum.
        steps: T, number of training steps until the capacity reaches C.
        weight: :math:`\gamma`, weight of the penalty.

    Raises:
        ValueError: If ``nats`` or ``weight`` is not positive, or ``steps`` is below 1.

    References:
        Burgess et al., "Understanding disentangling in beta-VAE", 2018, eq. 8.
    """

    name = "capacity"

    def __init__(self, objective: ELBO, nats: float, steps: int = 1, weight: float = 100.0) -> None:
        super().__init__(objective)
        check_nats("capacity", nats)
        check_nats("capacity_weight", weight)
        check_count("capacity", steps, 1, " step until the capacity is reached")
        self.nats, self.steps, self.weight = nats, steps, weight
        self.taken = torch.zeros(())

    def penalty(self, rates: Tensor) -> Tensor:
        """Return the penalty; each call with gradients enabled counts as a step.

        See :meth:`KLControl.penalty`.
        """
        self.taken = self.taken.to(rates.device)
        capacity = self.nats * (self.taken / self.steps).clamp(max=1)
        if torch.is_grad_enabled():
            self.taken.add_(1)
        return self.weight * (rates.sum() - capacity).abs()

    def _final_penalty(self, rate: float) -> float:
        return self.weight * abs(rate - self.nats)

    @property
    def columns(self) -> dict[str, float]:
        """History column: the capacity at the last training step."""
        return {"capacity": self.nats * min(1.0, max(0.0, float(self.taken) - 1) / self.steps)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that training needs to continue exactly."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state returned by :meth:`state_dict`."""
        self.taken.fill_(float(state["taken"]))


class TargetRate(KLControl):
    r"""A KL control that adjusts beta until the rate meets a target.

    .. math:: \text{distortion} + \beta_t R, \quad
        \beta_t = \frac{K_p}{1 + e^{e_t}} - K_i \textstyle\sum_{s \le t} e_s + \beta_{min}, \quad e_t = R^* - R_t

    :math:`R_t` is the rate at training step t. The KL weight :math:`\beta_t` (beta) is clipped to [beta_min, beta_max].
    While beta is clipped, the sum over s does not change. No gradient passes through beta.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``.
        nats: :math:`R^*`, the target rate, nats per datum.
        proportional: :math:`K_p`, the proportional gain.
        integral: :math:`K_i`, the integral gain.
        beta_min: Smallest KL weight.
        beta_max: Largest KL weight.

    Raises:
        ValueError: If ``nats`` is not positive, or 0 <= ``beta_min`` < ``beta_max`` does not hold.

    References:
        Shao et al., "ControlVAE: Controllable Variational Autoencoder", 2020, eq. 6-8 and algorithm 1.
    """

    name = "target rate"

    def __init__(
        self,
        objective: ELBO,
        nats: float,
        proportional: float = 0.01,
        integral: float = 0.001,
        beta_min: float = 0.0,
        beta_max: float = 100.0,
    ) -> None:
        super().__init__(objective)
        check_nats("target_rate", nats)
        if not 0 <= beta_min < beta_max or not math.isfinite(beta_max):
            raise ValueError(
                f"beta_max: expected a finite number above beta_min, and beta_min of at least 0, got beta_min {beta_min} and "
                f"beta_max {beta_max}."
            )
        self.nats, self.proportional, self.integral = nats, proportional, integral
        self.beta_min, self.beta_max = beta_min, beta_max
        self.total = torch.zeros(())
        self.beta = torch.tensor(float(beta_min))

    def penalty(self, rates: Tensor) -> Tensor:
        """Return the penalty; a call with gradients enabled first updates beta.

        See :meth:`KLControl.penalty`.
        """
        rate = rates.sum()
        self.total, self.beta = self.total.to(rate), self.beta.to(rate)
        if torch.is_grad_enabled():
            self._control(rate.detach())
        return self.beta * rate

    def _final_penalty(self, rate: float) -> float:
        # An exact penalty: the controller's KL weight is never larger than beta_max.
        return self.beta_max * abs(rate - self.nats)

    def _control(self, rate: Tensor) -> None:
        error = self.nats - rate
        total = self.total - self.integral * error
        beta = self.proportional * torch.sigmoid(-error) + total + self.beta_min
        inside = (beta >= self.beta_min) & (beta <= self.beta_max)
        # In place, since a captured training step reads these tensor objects.
        self.total.copy_(torch.where(inside, total, self.total))
        self.beta.copy_(beta.clamp(self.beta_min, self.beta_max))

    @property
    def columns(self) -> dict[str, float]:
        """History column: the KL weight at the last training step."""
        return {"beta": float(self.beta)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that training needs to continue exactly."""
        return {"total": self.total, "beta": self.beta}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state returned by :meth:`state_dict`."""
        self.total.copy_(state["total"])
        self.beta.copy_(state["beta"])
