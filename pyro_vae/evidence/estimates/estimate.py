"""An estimate of log p(x) for each datum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from pyro_vae.evidence.arviz_export import ArvizContainer, container
from pyro_vae.evidence.estimates.diagnostics import equal_range, jackknife, pareto_k_threshold, pareto_k_thresholds
from pyro_vae.evidence.estimates.moments import Moments
from pyro_vae.evidence.estimates.pareto import fit_tail
from pyro_vae.evidence.estimates.summary import Summary


@dataclass(frozen=True)
class Estimate:
    r"""Importance-sampling estimates of :math:`\log p(x)` with diagnostics.

    .. math:: \widehat{\log p}(x) = \log \tfrac1K \textstyle\sum_k w_k

    w_k is the importance weight of draw k; each of B data has K draws. The estimate is a stochastic lower bound, with a bias of
    about -Var(w) / (2 K p(x)^2). If different data have independent draws, the mean estimate over N data exceeds the true mean
    by more than log(1/a) / N with probability at most a, whatever the tail of the weights (Markov's inequality).

    Attributes, unless stated otherwise, are tensors of shape ``(B,)``, float64, on the CPU.

    Attributes:
        log_px: The estimate, nats, higher is better.
        std_error: Monte Carlo standard error of ``log_px`` by the delta method, sd(w) / (sqrt(K) mean(w)), nats; NaN where
            ``pareto_k`` is above its threshold, and at K = 1.
        jackknife_error: Jackknife estimate of the same error, which leaves out one of 50 blocks of draws at a time; NaN where
            ``std_error`` is NaN.
        smoothed: The estimate from Pareto-smoothed weights, nats: less noisy where ``pareto_k`` is large, but not a bound.
            Equal to ``log_px`` where there is no tail to fit.
        ess: Effective sample size, (sum w)^2 / sum w^2, between 1 and K.
        largest_share: Share of the largest weight in the sum, between 1/K and 1.
        pareto_k: Shape of the tail of the weights, see :func:`pareto_k`; minus infinity where all weights are equal.
        bias: Estimated bias of ``log_px``, -std_error^2 / 2, nats; NaN where ``std_error`` is NaN.
        elbo: Mean of log w, nats.
        elbo_std_error: Monte Carlo standard error of ``elbo``, nats; NaN at K = 1.
        rate: Mean of log q(z|x) - log p(z), nats.
        distortion: Mean of -log p(x|z), nats.
        draws: Number of draws K for each datum, int64.
        num_samples: Number of draws K, an integer; the largest K if K differs between data.
        num_pilot: Number of pilot draws for each datum, an integer; 0 without a pilot. Pilot draws only choose K; no estimate
            uses them.
    """

    log_px: Tensor
    std_error: Tensor
    jackknife_error: Tensor
    smoothed: Tensor
    ess: Tensor
    largest_share: Tensor
    pareto_k: Tensor
    bias: Tensor
    elbo: Tensor
    elbo_std_error: Tensor
    rate: Tensor
    distortion: Tensor
    draws: Tensor
    num_samples: int
    num_pilot: int = field(default=0, kw_only=True)

    @classmethod
    def from_weights(cls, log_likelihood: Tensor, log_ratio: Tensor, log_w: Tensor | None = None) -> Self:
        """Compute the estimate from the log weights of all draws, in float64.

        Args:
            log_likelihood: log p(x|z), shape ``(K, B)``, nats, in the dtype in which it was computed.
            log_ratio: log p(z) - log q(z|x), shape ``(K, B)``, nats.
            log_w: Log importance weights, shape ``(K, B)``, nats; None: ``log_likelihood`` + ``log_ratio``. See
                :meth:`Moments.add`.

        Returns:
            The estimate of each datum.

        Raises:
            ValueError: If a weight is NaN, or there are no weights.
        """
        moments = Moments(*log_likelihood.shape)
        moments.add(log_likelihood, log_ratio, log_w)
        return cls.from_moments(moments)

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """Compute the estimate from the moments of all draws.

        Args:
            moments: Moments of the log weights, to which every draw has been added.

        Returns:
            The estimate of each datum.

        Raises:
            ValueError: If draws are missing.
        """
        sums, num = moments.finish(), moments.num_samples
        equal = equal_range(sums.lowest, sums.highest, sums.eps) & (num > 1)
        tail = fit_tail(sums.top, num)
        log_px = sums.highest + sums.mean.log()
        k = torch.where(equal, -math.inf, tail.k)
        bad = k > pareto_k_threshold(num)  # all data at K = 1
        relative_variance = sums.squares / sums.mean.square() / max(num - 1, 1)  # Var(w) / p(x)^2
        std_error = torch.where(bad, math.nan, (relative_variance / num).sqrt())
        smoothed = torch.logaddexp(sums.body, tail.log_smoothed) - math.log(num)
        return cls(
            log_px=log_px.cpu(),
            std_error=std_error.cpu(),
            jackknife_error=torch.where(bad, math.nan, jackknife(sums.blocks, sums.block_sizes)).cpu(),
            smoothed=torch.where(equal | tail.k.isinf(), log_px, smoothed).cpu(),
            ess=(num / (1 + sums.squares / (num * sums.mean.square()))).cpu(),
            largest_share=(1 / (num * sums.mean)).cpu(),
            pareto_k=k.cpu(),
            bias=(-std_error.square() / 2).cpu(),
            elbo=(sums.elbo / num).cpu(),
            elbo_std_error=(sums.elbo_squares / (num - 1) / num).sqrt().cpu(),  # 0 / 0 at K = 1
            rate=(-sums.ratio / num).cpu(),
            distortion=(-sums.likelihood / num).cpu(),
            draws=torch.full(log_px.shape, num, dtype=torch.int64),
            num_samples=num,
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join the estimates of several batches.

        Args:
            parts: One estimate for each batch.

        Returns:
            One estimate of all data, in the order of the batches. A number that belongs to a whole batch, such as
            ``num_samples``, is the largest over the batches.

        Raises:
            ValueError: If ``parts`` is empty.
        """
        if not parts:
            raise ValueError("cat: expected at least one estimate, got none; estimate some data first.")
        joined: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(cls)):
            values = [getattr(part, name) for part in parts]
            joined[name] = torch.cat(values) if isinstance(values[0], Tensor) else max(values)
        return cls(**joined)

    def take(self, rows: Tensor) -> Self:
        """Return the estimate of the given data, in the given order.

        Args:
            rows: Positions of the data to take, int64.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        taken: dict[str, Any] = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **taken)

    @property
    def threshold(self) -> float:
        """Largest Pareto k at which ``num_samples`` draws can be trusted."""
        return pareto_k_threshold(self.num_samples)

    @property
    def thresholds(self) -> Tensor:
        """Largest Pareto k at which each datum's draws can be trusted.

        Shape ``(B,)``, float64.
        """
        return pareto_k_thresholds(self.draws)

    @property
    def criterion(self) -> tuple[str, str]:
        """Name and limit of the quantity that decides ``reliable``."""
        if bool((self.draws == self.num_samples).all()) and self.threshold > 0:
            return "Pareto k", f"{self.threshold:.2f}"
        return "Pareto k", "its threshold"

    @property
    def reliable(self) -> Tensor:
        """True where Pareto k is at most its threshold, shape ``(B,)``, bool."""
        return self.pareto_k <= self.thresholds

    def summary(self) -> Summary:
        """Average over data; data error, Monte Carlo error and bias are separate."""
        num = len(self.log_px)
        good = self.reliable
        all_good = bool(good.all())
        return Summary(
            log_px=float(self.log_px.mean()),
            std_error=float(self.log_px.std() / math.sqrt(num)) if num > 1 else None,
            mc_error=_error_of_mean(self.std_error) if all_good else None,
            mc_error_reliable=_error_of_mean(self.std_error[good]) if bool(good.any()) else None,
            jackknife_error=_error_of_mean(self.jackknife_error) if all_good else None,
            bias=float(self.bias.mean()) if all_good else None,
            lower_bound=float(self.log_px.mean()) - math.log(20) / num,
            elbo=float(self.elbo.mean()),
            elbo_std_error=float(self.elbo.std() / math.sqrt(num)) if num > 1 else None,
            elbo_mc_error=_error_of_mean(self.elbo_std_error) if self.num_samples > 1 else None,
            rate=float(self.rate.mean()),
            distortion=float(self.distortion.mean()),
            smoothed=float(self.smoothed.mean()),
            pareto_k_bad=int((~good).sum()),
            pareto_k_threshold=self.threshold if self.num_samples > 1 and math.isfinite(self.threshold) else None,
            criterion=self.criterion,
            num_samples=self.num_samples,
            num_data=num,
            draws=int(self.draws.sum()),
            pilot_draws=self.num_pilot * num,
        )

    def to_arviz(self) -> ArvizContainer:
        """Convert to the installed ArviZ's container, in a group ``evidence``.

        Returns:
            An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x), with dimension ``datum``.
        """
        import xarray

        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
        values = {name: ("datum", value.numpy()) for name, value in (tensors | {"threshold": self.thresholds}).items()}
        numbers = {name: value for name, value in fields.items() if name not in tensors}
        attributes = numbers | {"pareto_k_threshold": self.threshold, "units": "nats"}
        return container("evidence", xarray.Dataset(values, attrs=attributes))


def _error_of_mean(errors: Tensor) -> float:
    """Compute the error of a mean from its terms' independent errors."""
    return float(errors.square().sum().sqrt() / len(errors))
