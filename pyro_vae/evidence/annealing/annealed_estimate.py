"""What the weights of annealed chains say of log p(x), and whether it can be trusted."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from pyro_vae.evidence.estimates.estimate import Estimate

#: Up to so many chains there is no tail to fit a Pareto shape to.
FEW_CHAINS = 20
#: With so few, the largest standard deviation of log w over chains, nats, at which their error is given.
LARGEST_SPREAD = 1.0


@dataclass(frozen=True)
class AnnealedEstimate(Estimate):
    r"""Annealed log p(x) with what is needed to judge it; tensors of shape ``(B,)``, CPU.

    A stochastic lower bound, as every :class:`Estimate`; K is the number of chains, and w the weight of a whole chain. ``elbo``
    is the mean of log w, the bound of a single chain. ``distortion`` is -log p(x|z) where the chains end, near the
    posterior's, and ``rate`` is -elbo - distortion, near KL(p(z|x) || p(z)).

    Up to 20 chains no tail can be fitted: ``pareto_k`` is infinite, and a datum is judged by the standard deviation of log w,
    which is normal where the steps are many. Its error is given if that is at most 1 nat.

    Attributes:
        acceptance: Mean probability with which a move was taken.
        step_size: Step size of the moves, in units of the metric's scales: the geometric mean over the path.
        spread: Standard deviation of log w over chains, nats; NaN for one chain.
        num_steps: T, the steps from the start to the posterior.
    """

    acceptance: Tensor = field(kw_only=True)
    step_size: Tensor = field(kw_only=True)
    spread: Tensor = field(kw_only=True)
    num_steps: int = field(kw_only=True)

    @classmethod
    def from_chains(
        cls, log_w: Tensor, log_likelihood: Tensor, acceptance: Tensor, step_size: Tensor, num_steps: int
    ) -> Self:
        """Reduce the chains' log weights.

        Args:
            log_w: Log weights, shape ``(C, B)``, nats, in the dtype of the model.
            log_likelihood: log p(x|z) where the chains end, likewise.
            acceptance: Shape ``(B,)``.
            step_size: Shape ``(B,)``.
            num_steps: T.

        Raises:
            ValueError: If a weight is NaN.
        """
        estimate = Estimate.from_weights(log_likelihood, log_w - log_likelihood, log_w)
        known = {f.name: getattr(estimate, f.name) for f in dataclasses.fields(estimate)}
        wide, spread = log_w.cpu().double(), torch.full_like(estimate.log_px, math.nan)
        if len(log_w) > 1:
            spread = wide.std(0)
        found = cls(
            **known,
            acceptance=acceptance.cpu().double(),
            step_size=step_size.cpu().double(),
            spread=spread,
            num_steps=num_steps,
        )
        if not 1 < len(log_w) <= FEW_CHAINS:
            return found
        error = (wide - found.log_px).exp().std(0) / math.sqrt(len(log_w))
        jackknife, good = _jackknife(wide - found.log_px), found.reliable
        return dataclasses.replace(
            found,
            std_error=torch.where(good, error, math.nan),
            jackknife_error=torch.where(good, jackknife, math.nan),
            bias=torch.where(good, -error.square() / 2, math.nan),
        )

    @property
    def criterion(self) -> tuple[str, str]:
        """By what ``reliable`` judges, and its limit, in words."""
        if self.num_samples <= FEW_CHAINS:
            return "the standard deviation of log w over chains", f"{LARGEST_SPREAD:g} nat"
        return super().criterion

    @property
    def threshold(self) -> float:
        """The largest k at which so many chains can be trusted; infinity where they are judged by their spread."""
        return math.inf if self.num_samples <= FEW_CHAINS else super().threshold

    @property
    def reliable(self) -> Tensor:
        """Where k is at most the threshold or, up to 20 chains, ``spread`` at most 1 nat: shape ``(B,)``, bool."""
        few = (self.draws > 1) & (self.draws <= FEW_CHAINS)
        return torch.where(few, self.spread <= LARGEST_SPREAD, super().reliable)


def _jackknife(log_w: Tensor) -> Tensor:
    """Standard error of the log of the mean of w by leaving out one chain at a time; log w of shape ``(C, B)``."""
    w, num = log_w.exp(), len(log_w)
    rest = (w.sum(0) - w).clamp(min=0).log()
    return ((rest - rest.mean(0)).square().sum(0) * (num - 1) / num).sqrt()
