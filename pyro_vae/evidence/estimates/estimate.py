"""An estimate of log p(x) for each datum, and its summary over a data set."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Self

import torch
from torch import Tensor

from pyro_vae.evidence.estimates.diagnostics import equal_range, jackknife, pareto_k_threshold, pareto_k_thresholds
from pyro_vae.evidence.estimates.moments import Moments
from pyro_vae.evidence.estimates.pareto import fit_tail
from pyro_vae.system.imports import import_arviz


@dataclass(frozen=True)
class Estimate:
    r"""Importance-sampled :math:`\log p(x_i)` with what is needed to judge it; tensors of shape ``(B,)``, float64, CPU.

    .. math:: \widehat{\log p}(x) = \log \tfrac1K \textstyle\sum_k w_k

    A stochastic lower bound: biased by about -Var(w) / (2 K p(x)^2). With draws independent between data the mean over
    N data exceeds the true mean by more than log(1/a) / N with probability at most a, whatever the tail (Markov).

    Attributes:
        log_px: The estimate, nats, higher is better.
        std_error: Its Monte Carlo standard error by the delta method, sd(w) / (sqrt(K) mean(w)), nats; NaN where k is
            above the threshold, and at K = 1.
        jackknife_error: The same by leaving out one of 50 blocks of draws at a time; NaN where ``std_error`` is.
        smoothed: The estimate from Pareto-smoothed weights, nats: less noisy where k is large, and no bound; ``log_px``
            where there is no tail to fit.
        ess: Effective sample size, (sum w)^2 / sum w^2, between 1 and K.
        largest_share: The share of the largest weight, between 1/K and 1.
        pareto_k: Shape of the weights' tail, see :func:`pareto_k`; minus infinity where all weights are equal.
        bias: Estimate of the bias of ``log_px``, -std_error^2 / 2, nats; NaN where ``std_error`` is.
        elbo: Mean of log w, nats.
        elbo_std_error: Its Monte Carlo standard error, nats; NaN at K = 1.
        rate: Mean of log q(z|x) - log p(z), nats.
        distortion: Mean of -log p(x|z), nats.
        draws: K of each datum, int64.
        num_samples: K; where data have their own, the largest.
        num_pilot: Draws of each datum in the pilot that chose K, which enter nothing else; 0 where there was none.
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
        """Reduce log weights over draws, in float64.

        Args:
            log_likelihood: log p(x|z), shape ``(K, B)``, nats, in the dtype in which it was computed.
            log_ratio: log p(z) - log q(z|x), likewise.
            log_w: Log weights, where they are not the sum of the two; see :meth:`Moments.add`.

        Raises:
            ValueError: If a weight is NaN, or there are none.
        """
        moments = Moments(*log_likelihood.shape)
        moments.add(log_likelihood, log_ratio, log_w)
        return cls.from_moments(moments)

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """The estimate from draws that were reduced as they came.

        Args:
            moments: Of all K draws.

        Raises:
            ValueError: If draws are missing.
        """
        found, num = moments.finish(), moments.num_samples
        equal = equal_range(found.lowest, found.highest, found.eps) if num > 1 else found.mean < 0
        tail = fit_tail(found.top, num)
        log_mean = found.highest + found.mean.log()
        unknown = torch.full_like(log_mean, math.nan)
        k = torch.where(equal, -math.inf, tail.k)
        bad = k > pareto_k_threshold(num)
        spread = found.squares / found.mean.square() / max(num - 1, 1)  # Var(w) / p^2
        std_error = torch.where(bad, unknown, (spread / num).sqrt()) if num > 1 else unknown
        smoothed = torch.logaddexp(found.body, tail.log_smoothed) - math.log(num)
        values = {
            "log_px": log_mean,
            "std_error": std_error,
            "jackknife_error": torch.where(bad, unknown, jackknife(found.blocks, found.block_sizes))
            if num > 1
            else unknown,
            "smoothed": torch.where(equal | tail.k.isinf(), log_mean, smoothed),
            "ess": num / (1 + found.squares / (num * found.mean.square())),
            "largest_share": 1 / (num * found.mean),
            "pareto_k": k,
            "bias": -std_error.square() / 2,
            "elbo": found.elbo / num,
            "elbo_std_error": (found.elbo_squares / (num - 1) / num).sqrt() if num > 1 else unknown,
            "rate": -found.ratio / num,
            "distortion": -found.likelihood / num,
            "draws": torch.full(log_mean.shape, num, dtype=torch.int64),
        }
        on_cpu: dict[str, Any] = {name: value.cpu() for name, value in values.items()}
        return cls(**on_cpu, num_samples=num)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The estimates of several batches as one; of numbers that are one for a batch, the largest.

        Raises:
            ValueError: If there are none.
        """
        if not parts:
            raise ValueError("cat: expected at least one estimate, got none; estimate some data first.")
        joined: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(cls)):
            values = [getattr(part, name) for part in parts]
            joined[name] = torch.cat(values) if isinstance(values[0], Tensor) else max(values)
        return cls(**joined)

    def take(self, rows: Tensor) -> Self:
        """The estimates of some data, or of all in another order.

        Args:
            rows: Their places, int64.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        taken: dict[str, Any] = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **taken)

    @property
    def threshold(self) -> float:
        """The largest k at which ``num_samples`` draws can be trusted."""
        return pareto_k_threshold(self.num_samples)

    @property
    def thresholds(self) -> Tensor:
        """The largest k at which the draws of each datum can be trusted: shape ``(B,)``, float64."""
        return pareto_k_thresholds(self.draws)

    @property
    def criterion(self) -> tuple[str, str]:
        """By what ``reliable`` judges, and its limit, in words."""
        if bool((self.draws == self.num_samples).all()) and self.threshold > 0:
            return "Pareto k", f"{self.threshold:.2f}"
        return "Pareto k", "its threshold"

    @property
    def reliable(self) -> Tensor:
        """Where k is at most the threshold: shape ``(B,)``, bool."""
        return self.pareto_k <= self.thresholds

    def summary(self) -> Summary:
        """Means over data, with the error of the data, of Monte Carlo, and the bias apart."""
        num = len(self.log_px)
        good = self.reliable
        trusted = bool(good.all())
        return Summary(
            log_px=float(self.log_px.mean()),
            std_error=float(self.log_px.std() / math.sqrt(num)) if num > 1 else None,
            mc_error=_pooled(self.std_error) if trusted else None,
            mc_error_reliable=_pooled(self.std_error[good]) if bool(good.any()) else None,
            jackknife_error=_pooled(self.jackknife_error) if trusted else None,
            bias=float(self.bias.mean()) if trusted else None,
            lower_bound=float(self.log_px.mean()) - math.log(20) / num,
            elbo=float(self.elbo.mean()),
            elbo_std_error=float(self.elbo.std() / math.sqrt(num)) if num > 1 else None,
            elbo_mc_error=_pooled(self.elbo_std_error) if self.num_samples > 1 else None,
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

    def to_arviz(self) -> Any:
        """The pointwise values as what the installed ArviZ calls its container, in a group ``evidence``.

        Returns:
            An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x), with dimension ``datum``.
        """
        import xarray

        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
        values = {name: ("datum", value.numpy()) for name, value in (tensors | {"threshold": self.thresholds}).items()}
        others = {name: value for name, value in fields.items() if name not in tensors}
        attributes = others | {"pareto_k_threshold": self.threshold, "units": "nats"}
        dataset = xarray.Dataset(values, attrs=attributes)
        if int(version("arviz").split(".")[0]) < 1:
            arviz = import_arviz()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the group is not one of ArviZ's own
                return arviz.InferenceData(evidence=dataset)
        return xarray.DataTree.from_dict({"evidence": dataset})


def _pooled(errors: Tensor) -> float:
    """Standard error of a mean of independent estimates."""
    return float(errors.square().sum().sqrt() / len(errors))


@dataclass(frozen=True)
class Summary:
    r"""An estimate's means over N data, nats per datum; every error names its source.

    Attributes:
        log_px: Mean of log p(x).
        std_error: Its standard error as an estimate of the population's mean: the scatter of the data. None at N = 1.
        mc_error: Its Monte Carlo standard error for these data; None if k is above the threshold for any of them.
        mc_error_reliable: The Monte Carlo standard error of the mean over the data whose k is at most the threshold;
            None if there are none.
        jackknife_error: As ``mc_error``, by the jackknife.
        bias: Estimate of its bias, negative; None if k is above the threshold for any datum.
        lower_bound: :math:`\log p(x)` averaged over these data is above this with probability 0.95, whatever the tails:
            the mean less log(20) / N (Markov's inequality for the product of the estimates).
        elbo: Mean ELBO.
        elbo_std_error: Its standard error over data. None at N = 1.
        elbo_mc_error: Its Monte Carlo standard error. None at K = 1.
        rate: Mean KL(q(z|x) || p(z)), sampled.
        distortion: Mean -E_q log p(x|z).
        smoothed: Mean of log p(x) from Pareto-smoothed weights.
        pareto_k_bad: For how many data k is above the threshold.
        pareto_k_threshold: The threshold at this K. None at K = 1.
        num_samples: K; where data have their own, the largest.
        num_data: N.
        draws: Draws in all.
        pilot_draws: Draws in all of a pilot, which enter nothing else.
        criterion: By what it is judged whether a datum can be trusted, and the limit, in words.
    """

    log_px: float
    std_error: float | None
    mc_error: float | None
    mc_error_reliable: float | None
    jackknife_error: float | None
    bias: float | None
    lower_bound: float
    elbo: float
    elbo_std_error: float | None
    elbo_mc_error: float | None
    rate: float
    distortion: float
    smoothed: float
    pareto_k_bad: int
    pareto_k_threshold: float | None
    num_samples: int
    num_data: int
    draws: int
    pilot_draws: int
    criterion: tuple[str, str] = ("Pareto k", "its threshold")

    @property
    def gap(self) -> float:
        """Log p(x) - ELBO, the mean KL from the guide to the posterior."""
        return self.log_px - self.elbo

    @property
    def smoothed_change(self) -> float:
        """What smoothing the weights changes: the smoothed mean of log p(x) less the raw one."""
        return self.smoothed - self.log_px

    def verdict(self) -> str:
        """Whether the Monte Carlo error can be trusted, in one sentence."""
        if self.num_samples < 2:
            return "one draw for each datum tells nothing of its error: take at least 2."
        what, limit = self.criterion
        if not self.pareto_k_bad:
            return f"{what} is at most {limit} for all {self.num_data:,} data: the Monte Carlo error can be trusted."
        return (
            f"{what} is above {limit} for {self.pareto_k_bad:,} of {self.num_data:,} data: their log p(x) is likely too low, "
            "and how far is not known."
        )
