"""Estimate of log p(x) by annealing, for each datum."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from pyro_vae.evidence.estimates.estimate import Estimate

#: Up to this number of chains, the spread of log w judges a datum: so few chains have no tail for a Pareto fit.
MAX_CHAINS_JUDGED_BY_SPREAD = 20
#: Largest standard deviation of log w, nats, at which an error is reported with so few chains.
MAX_SPREAD_NATS = 1.0


@dataclass(frozen=True)
class AnnealedEstimate(Estimate):
    r"""Estimates of log p(x) by annealing, with diagnostics.

    .. math:: \widehat{\log p}(x) = \log \tfrac1C \textstyle\sum_c w_c

    The estimate is a stochastic lower bound, like every :class:`Estimate`. In place of K draws there are C chains, and w is the
    weight of a whole chain. ``elbo`` is the mean of log w, the bound from a single chain. ``distortion`` is the mean of
    -log p(x|z) at the end of the chains, close to the posterior mean of -log p(x|z); ``rate`` is -elbo - distortion, close to
    KL(p(z|x) || p(z)).

    With at most 20 chains no tail can be fitted: ``pareto_k`` is infinite, and each datum is judged by the standard deviation
    of log w over chains; log w is close to normal if there are many steps. An error is reported only if this standard deviation
    is at most 1 nat.

    Attributes, unless stated otherwise, are tensors of shape ``(B,)`` on the CPU.

    Attributes:
        acceptance: Mean acceptance probability of the moves.
        step_size: Geometric mean over the path of the moves' step sizes, in units of the metric's scales.
        spread: Standard deviation of log w over chains, nats; NaN for one chain.
        num_steps: Number of steps T from start to posterior, an integer.
    """

    acceptance: Tensor = field(kw_only=True)
    step_size: Tensor = field(kw_only=True)
    spread: Tensor = field(kw_only=True)
    num_steps: int = field(kw_only=True)

    @classmethod
    def from_chains(
        cls, log_w: Tensor, log_likelihood: Tensor, acceptance: Tensor, step_size: Tensor, num_steps: int
    ) -> Self:
        """Compute the estimate from the log weights of the chains.

        Args:
            log_w: Log weights, shape ``(C, B)``, nats, in the dtype of the model.
            log_likelihood: log p(x|z) at the end of the chains, shape ``(C, B)``, nats, in the dtype of the model.
            acceptance: Mean acceptance probability of the moves, shape ``(B,)``.
            step_size: Geometric mean of the step sizes, shape ``(B,)``.
            num_steps: Number of steps, T.

        Raises:
            ValueError: If a weight is NaN.
        """
        estimate = Estimate.from_weights(log_likelihood, log_w - log_likelihood, log_w)
        fields = {f.name: getattr(estimate, f.name) for f in dataclasses.fields(estimate)}
        num_chains, log_w = len(log_w), log_w.cpu().double()
        spread = log_w.std(0) if num_chains > 1 else torch.full_like(estimate.log_px, math.nan)
        annealed = cls(
            **fields,
            acceptance=acceptance.cpu().double(),
            step_size=step_size.cpu().double(),
            spread=spread,
            num_steps=num_steps,
        )
        if not 1 < num_chains <= MAX_CHAINS_JUDGED_BY_SPREAD:
            return annealed
        relative = log_w - annealed.log_px
        error, jackknife = relative.exp().std(0) / math.sqrt(num_chains), _jackknife(relative)
        good = annealed.reliable
        return dataclasses.replace(
            annealed,
            std_error=torch.where(good, error, math.nan),
            jackknife_error=torch.where(good, jackknife, math.nan),
            bias=torch.where(good, -error.square() / 2, math.nan),
        )

    @property
    def criterion(self) -> tuple[str, str]:
        """Name and limit of the quantity that decides ``reliable``."""
        if self.num_samples <= MAX_CHAINS_JUDGED_BY_SPREAD:
            return "the standard deviation of log w over chains", f"{MAX_SPREAD_NATS:g} nat"
        return super().criterion

    @property
    def threshold(self) -> float:
        """Largest Pareto k at which the estimate can be trusted.

        The threshold is infinite with at most 20 chains: then ``spread`` decides instead of Pareto k.
        """
        return math.inf if self.num_samples <= MAX_CHAINS_JUDGED_BY_SPREAD else super().threshold

    @property
    def reliable(self) -> Tensor:
        """True where the estimate can be trusted, shape ``(B,)``, bool.

        With at most 20 chains: ``spread`` is at most 1 nat. With more chains: Pareto k is at most the threshold.
        """
        few = (self.draws > 1) & (self.draws <= MAX_CHAINS_JUDGED_BY_SPREAD)
        return torch.where(few, self.spread <= MAX_SPREAD_NATS, super().reliable)


def _jackknife(log_w: Tensor) -> Tensor:
    """Compute the jackknife standard error of the log mean weight.

    The jackknife leaves out one chain at a time.

    Args:
        log_w: Log weights, shape ``(C, B)``.
    """
    w, num = log_w.exp(), len(log_w)
    rest = (w.sum(0) - w).clamp(min=0).log()
    return ((rest - rest.mean(0)).square().sum(0) * (num - 1) / num).sqrt()
