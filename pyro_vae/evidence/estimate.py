"""An estimate of log p(x) for each datum, and its summary over a data set."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evidence.diagnostics import equal_weights, pareto_k, pareto_k_threshold
from pyro_vae.imports import import_arviz


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
        ess: Effective sample size, (sum w)^2 / sum w^2, between 1 and K.
        largest_share: The share of the largest weight, between 1/K and 1.
        pareto_k: Shape of the weights' tail, see :func:`pareto_k`; minus infinity where all weights are equal.
        bias: Estimate of the bias of ``log_px``, -std_error^2 / 2, nats; NaN where ``std_error`` is.
        elbo: Mean of log w, nats.
        elbo_std_error: Its Monte Carlo standard error, nats; NaN at K = 1.
        rate: Mean of log q(z|x) - log p(z), nats.
        distortion: Mean of -log p(x|z), nats.
        num_samples: K.
    """

    log_px: Tensor
    std_error: Tensor
    ess: Tensor
    largest_share: Tensor
    pareto_k: Tensor
    bias: Tensor
    elbo: Tensor
    elbo_std_error: Tensor
    rate: Tensor
    distortion: Tensor
    num_samples: int

    @classmethod
    def from_weights(cls, log_likelihood: Tensor, log_ratio: Tensor) -> Estimate:
        """Reduce log weights over draws, in float64 on the CPU.

        Args:
            log_likelihood: log p(x|z), shape ``(K, B)``, nats, in the dtype in which it was computed.
            log_ratio: log p(z) - log q(z|x), likewise.

        Raises:
            ValueError: If a weight is NaN.
        """
        equal = equal_weights(log_likelihood + log_ratio).cpu()
        likelihood, ratio = log_likelihood.detach().cpu().double(), log_ratio.detach().cpu().double()
        log_w = likelihood + ratio
        if bool(log_w.isnan().any()):
            raise ValueError(f"log weights: expected numbers, got NaN for {int(log_w.isnan().any(0).sum())} data.")
        num = len(log_w)
        log_px = log_w.logsumexp(0) - math.log(num)
        w = (log_w - log_px).exp()  # mean 1
        variance = w.var(0) if num > 1 else torch.full_like(log_px, math.nan)
        k = torch.where(equal, -math.inf, pareto_k(log_w).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf))
        std_error = torch.where(k > pareto_k_threshold(num), math.nan, (variance / num).sqrt())
        return cls(
            log_px=log_px,
            std_error=std_error,
            ess=w.sum(0).square() / w.square().sum(0),
            largest_share=w.max(0).values / w.sum(0),
            pareto_k=k,
            bias=-std_error.square() / 2,
            elbo=log_w.mean(0),
            elbo_std_error=log_w.std(0) / math.sqrt(num) if num > 1 else torch.full_like(log_px, math.nan),
            rate=-ratio.mean(0),
            distortion=-likelihood.mean(0),
            num_samples=num,
        )

    @classmethod
    def cat(cls, parts: Sequence[Estimate]) -> Estimate:
        """The estimates of several batches as one.

        Raises:
            ValueError: If there are none, or they differ in ``num_samples``.
        """
        if len({part.num_samples for part in parts}) != 1:
            raise ValueError("cat: expected estimates with one num_samples, got none or several.")
        names = [f.name for f in dataclasses.fields(cls) if f.name != "num_samples"]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**joined, num_samples=parts[0].num_samples)

    @property
    def threshold(self) -> float:
        """The largest k at which ``num_samples`` draws can be trusted."""
        return pareto_k_threshold(self.num_samples)

    @property
    def reliable(self) -> Tensor:
        """Where k is at most the threshold: shape ``(B,)``, bool."""
        return self.pareto_k <= self.threshold

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
            bias=float(self.bias.mean()) if trusted else None,
            lower_bound=float(self.log_px.mean()) - math.log(20) / num,
            elbo=float(self.elbo.mean()),
            elbo_std_error=float(self.elbo.std() / math.sqrt(num)) if num > 1 else None,
            elbo_mc_error=_pooled(self.elbo_std_error) if self.num_samples > 1 else None,
            rate=float(self.rate.mean()),
            distortion=float(self.distortion.mean()),
            pareto_k_bad=int((~good).sum()),
            pareto_k_threshold=self.threshold if self.num_samples > 1 else None,
            num_samples=self.num_samples,
            num_data=num,
        )

    def to_arviz(self) -> Any:
        """The pointwise values as what the installed ArviZ calls its container, in a group ``evidence``.

        Returns:
            An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x), with dimension ``datum``.
        """
        import xarray

        values = {
            f.name: ("datum", getattr(self, f.name).numpy())
            for f in dataclasses.fields(self)
            if f.name != "num_samples"
        }
        attributes = {"num_samples": self.num_samples, "pareto_k_threshold": self.threshold, "units": "nats"}
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
        bias: Estimate of its bias, negative; None if k is above the threshold for any datum.
        lower_bound: :math:`\log p(x)` averaged over these data is above this with probability 0.95, whatever the tails:
            the mean less log(20) / N (Markov's inequality for the product of the estimates).
        elbo: Mean ELBO.
        elbo_std_error: Its standard error over data. None at N = 1.
        elbo_mc_error: Its Monte Carlo standard error. None at K = 1.
        rate: Mean KL(q(z|x) || p(z)), sampled.
        distortion: Mean -E_q log p(x|z).
        pareto_k_bad: For how many data k is above the threshold.
        pareto_k_threshold: The threshold at this K. None at K = 1.
        num_samples: K.
        num_data: N.
    """

    log_px: float
    std_error: float | None
    mc_error: float | None
    mc_error_reliable: float | None
    bias: float | None
    lower_bound: float
    elbo: float
    elbo_std_error: float | None
    elbo_mc_error: float | None
    rate: float
    distortion: float
    pareto_k_bad: int
    pareto_k_threshold: float | None
    num_samples: int
    num_data: int

    @property
    def gap(self) -> float:
        """Log p(x) - ELBO, the mean KL from the guide to the posterior."""
        return self.log_px - self.elbo
