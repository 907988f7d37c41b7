"""Means of an estimate over a data set, with errors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    r"""Means of an :class:`Estimate` over N data, in nats per datum.

    K is the number of draws, k the Pareto k of a datum.

    Attributes:
        log_px: Mean of log p(x), higher is better.
        std_error: Standard error of ``log_px`` as an estimate of the population mean, from the scatter over data. None at
            N = 1.
        mc_error: Monte Carlo standard error of ``log_px`` for these data; None if any datum has k above the threshold.
        mc_error_reliable: Monte Carlo standard error of the mean over the data whose k is at most the threshold; None if
            there are no such data.
        jackknife_error: Jackknife estimate of ``mc_error``.
        bias: Estimated bias of ``log_px``, negative; None if k is above the threshold for any datum.
        lower_bound: ``log_px`` - log(20) / N. The mean of :math:`\log p(x)` over these data is above this bound with
            probability 0.95, whatever the tails of the weights (Markov's inequality for the product of the estimates).
        elbo: Mean ELBO.
        elbo_std_error: Standard error of ``elbo`` from its scatter over data. None at N = 1.
        elbo_mc_error: Monte Carlo standard error of ``elbo``. None at K = 1.
        rate: Mean KL(q(z|x) || p(z)), sampled.
        distortion: Mean -E_q log p(x|z).
        smoothed: Mean of log p(x) from Pareto-smoothed weights.
        pareto_k_bad: Number of data whose k is above the threshold.
        pareto_k_threshold: The threshold for K draws. None at K = 1.
        num_samples: Number of draws K for each datum; the largest K if K differs between data.
        num_data: Number of data, N.
        draws: Total number of draws.
        pilot_draws: Total number of pilot draws, which are used only to choose K.
        criterion: Name and limit of the quantity that decides if a datum is reliable.
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
        """Mean of log p(x) minus ELBO, which is KL(q(z|x) || p(z|x))."""
        return self.log_px - self.elbo

    @property
    def smoothed_change(self) -> float:
        """Mean of log p(x) from smoothed weights, minus that from raw weights."""
        return self.smoothed - self.log_px

    def verdict(self) -> str:
        """Say in one sentence if the Monte Carlo error can be trusted."""
        if self.num_samples < 2:
            return "one draw for each datum gives no error estimate: take at least 2 draws."
        quantity, limit = self.criterion
        if not self.pareto_k_bad:
            return (
                f"{quantity} is at most {limit} for all {self.num_data:,} data: the Monte Carlo error can be trusted."
            )
        return (
            f"{quantity} is above {limit} for {self.pareto_k_bad:,} of {self.num_data:,} data: their log p(x) is likely too "
            "low, by an unknown amount."
        )
