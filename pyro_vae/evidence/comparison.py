"""Paired comparison of models by log p(x) of the same data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy import stats
from torch import Tensor

from pyro_vae.evidence.arviz_export import ArvizContainer, elpd_data
from pyro_vae.evidence.stacking import stacking_weights
from pyro_vae.lookup import unknown


class Pointwise(Protocol):
    """Protocol of an estimate for N data that can be compared.

    :class:`Estimate` satisfies the protocol. All tensors have shape ``(N,)``.
    """

    @property
    def log_px(self) -> Tensor:
        """Log p(x) of each datum, nats."""

    @property
    def std_error(self) -> Tensor:
        """Monte Carlo standard error of ``log_px``, nats; NaN where unknown."""

    @property
    def reliable(self) -> Tensor:
        """True where the estimate can be trusted, bool."""


@dataclass(frozen=True)
class Difference:
    r"""Difference in log p(x) between one model and the reference model.

    Both are estimated on the same N data. Values are in nats per datum; a positive difference means that this model is better.

    Attributes:
        name: Name of this model.
        log_px: Mean log p(x) of this model.
        difference: ``log_px`` minus the mean log p(x) of the reference.
        std_error: Standard error of ``difference`` for the population of the data, :math:`sd(d_i) / \sqrt N`, where :math:`d_i`
            is the difference for datum i. Scatter that both models share cancels. The Monte Carlo error is included, because it
            adds to the scatter.
        lower: Lower end of the confidence interval for the mean difference in the population.
        upper: Upper end of the interval.
        mc_error: Monte Carlo standard error of ``difference`` if the draws of the two estimates are independent; for dependent
            draws, at most :math:`\sqrt2` times as large. None if the error of any datum is unknown for either model.
        bias: Estimated bias of ``difference``: half the mean over data of the reference's squared Monte Carlo error minus that
            of this model; None if ``mc_error`` is None.
        better: Share of the data to which this model gives the larger probability; ties count half.
        unreliable: Number of data for which the estimate of this model or of the reference cannot be trusted.
        weight: Stacking weight of this model.
    """

    name: str
    log_px: float
    difference: float
    std_error: float
    lower: float
    upper: float
    mc_error: float | None
    bias: float | None
    better: float
    unreliable: int
    weight: float


@dataclass(frozen=True)
class Comparison:
    """Models compared on the same data, the best first.

    Attributes:
        rows: One difference for each of M models, sorted by falling mean log p(x).
        reference: Name of the model that all models are compared with.
        level: Probability that all intervals contain the true differences at once.
        num_data: Number of data, N.
        log_px: log p(x) of each datum, models in the order of ``rows``, shape ``(M, N)``, nats, float64.
        std_error: Monte Carlo standard errors of ``log_px``, shape ``(M, N)``, nats; NaN where unknown.
        reliable: True where an estimate can be trusted, shape ``(M, N)``, bool.
        evidence: Name of the compared quantity, such as ``log p(x|y)`` for models that are given labels.
    """

    rows: tuple[Difference, ...]
    reference: str
    level: float
    num_data: int
    log_px: Tensor
    std_error: Tensor
    reliable: Tensor
    evidence: str = "log p(x)"

    def __getitem__(self, name: str) -> Difference:
        for row in self.rows:
            if row.name == name:
                return row
        raise unknown("model", name, [row.name for row in self.rows])

    @property
    def stacked(self) -> float:
        """Mean log score of the stacked mixture, nats.

        At least the mean log score of the best model.
        """
        weights = torch.tensor([row.weight for row in self.rows], dtype=torch.float64)
        return float((self.log_px + weights.log()[:, None]).logsumexp(0).mean())

    def table(self) -> str:
        """Return the comparison as a text table.

        One line for each model, then a sentence for each model with estimates that cannot be trusted.
        """
        width = max(12, *(len(row.name) for row in self.rows))
        head = (
            f"{self.num_data:,} data; difference to {self.reference} in nats per datum, higher is better; all "
            f"{100 * self.level:g} % intervals hold together"
        )
        columns = (
            f"{'':<{width}} {self.evidence:>11} {'difference':>11} {'interval':>21} {'Monte Carlo':>12} {'weight':>7}"
        )
        lines = [head, columns, *(_line(row, row.name == self.reference, width) for row in self.rows)]
        return "\n".join([*lines, *self._warnings()])

    def _warnings(self) -> list[str]:
        doubted = {row.name: int((~good).sum()) for row, good in zip(self.rows, self.reliable, strict=True)}
        return [
            f"{name}: {self.evidence} of {count:,} of {self.num_data:,} data cannot be trusted and is likely too low; the "
            "intervals do not include this error"
            for name, count in doubted.items()
            if count
        ]

    def to_arviz(self) -> dict[str, ArvizContainer]:
        """Convert each model's values to the ``ELPDData`` that ``arviz.compare`` takes.

        ArviZ names these values leave-one-out; here they are log p(x) of data that no model was fitted to. No Pareto-smoothed
        leave-one-out is run, because importance draws are not posterior draws. ``arviz.compare`` computes exp(log p(x)), which
        underflows below -745 nats; the stacking weights of this class do not underflow.

        Returns:
            ``ELPDData`` of each model, by the name of the model: the sum over data, nats, with its standard error.
        """
        rows = zip(self.rows, self.log_px, ~self.reliable, strict=True)
        return {row.name: elpd_data(values.numpy(), int(bad.sum())) for row, values, bad in rows}


def compare(
    estimates: Mapping[str, Pointwise] | Sequence[Pointwise],
    *,
    reference: str | None = None,
    level: float = 0.95,
    data_keys: Mapping[str, object] | None = None,
    evidence: str = "log p(x)",
) -> Comparison:
    r"""Compare models by log p(x) of the same data, datum by datum.

    .. math:: d_i = \log p_m(x_i) - \log p_r(x_i), \quad
        \bar d \pm t_{N-1}(1 - \tfrac{1 - c}{2 J}) \, \mathrm{sd}(d_i) / \sqrt N

    The difficulty of a datum cancels in the difference, so the difference has a far smaller error than either mean. All J
    intervals hold at once with probability c (Bonferroni). With a named reference, J is the number of other models. Without
    one, J is the number of pairs of models, because the same data pick the best model.

    The intervals are for E[d] over the population of the data. They do not account for the bias of the estimates, which is
    reported separately: an estimate of log p(x) is a lower bound, and a model with a bad proposal looks worse than it is.

    Args:
        estimates: Estimate of each model by the name of the model, or a list of estimates: at least two, of the same data in
            the same order. Listed estimates are named ``"1"``, ``"2"`` and so on.
        reference: Name of the model to compare with; None: the model with the largest mean.
        level: c, between 0 and 1.
        data_keys: Fingerprint of each estimate's data and their binarization, by the name of the model; a value of any type
            that has ``==``. Different fingerprints are refused. None: only the numbers of data are compared.
        evidence: Name of the estimated quantity.

    Returns:
        Differences, intervals and stacking weights.

    Raises:
        ValueError: If there are fewer than two models or data, the data are not the same, a value is not finite, or a name
            or level is wrong.

    References:
        Yao, Vehtari, Simpson, Gelman, "Using Stacking to Average Bayesian Predictive Distributions", 2018.
    """
    if not isinstance(estimates, Mapping):
        estimates = {str(number): estimate for number, estimate in enumerate(estimates, 1)}
    _check(estimates, reference, level, data_keys)
    means = {name: float(estimate.log_px.detach().cpu().double().mean()) for name, estimate in estimates.items()}
    names = sorted(estimates, key=lambda name: -means[name])
    if reference is None:
        reference, num_intervals = names[0], len(names) * (len(names) - 1) // 2
    else:
        num_intervals = len(names) - 1
    log_px = torch.stack([estimates[name].log_px.detach().cpu().double() for name in names])
    errors = torch.stack([estimates[name].std_error.detach().cpu().double() for name in names])
    reliable = torch.stack([estimates[name].reliable.detach().cpu() for name in names])
    quantile = float(stats.t.ppf(1 - (1 - level) / (2 * num_intervals), log_px.shape[1] - 1))
    weights, at = stacking_weights(log_px).tolist(), names.index(reference)
    rows = []
    for k, name in enumerate(names):
        pair_errors = torch.zeros_like(errors[[k, at]]) if k == at else errors[[k, at]]  # no error against itself
        rows.append(_difference(name, log_px[[k, at]], pair_errors, reliable[[k, at]], quantile, weights[k]))
    return Comparison(tuple(rows), reference, level, log_px.shape[1], log_px, errors, reliable, evidence)


def _difference(
    name: str, log_px: Tensor, errors: Tensor, reliable: Tensor, quantile: float, weight: float
) -> Difference:
    """Compare one model with the reference.

    Args:
        name: Name of the model.
        log_px: log p(x) of the model and of the reference, shape ``(2, N)``.
        errors: Monte Carlo standard errors of ``log_px``, shape ``(2, N)``.
        reliable: True where a value of ``log_px`` can be trusted, shape ``(2, N)``.
        quantile: Half the width of the interval, in units of the standard error.
        weight: Stacking weight of the model.
    """
    d = log_px[0] - log_px[1]
    num, mean = len(d), float(d.mean())
    error = float(d.std()) / math.sqrt(num)
    known = not bool(errors.isnan().any())
    return Difference(
        name=name,
        log_px=float(log_px[0].mean()),
        difference=mean,
        std_error=error,
        lower=mean - quantile * error,
        upper=mean + quantile * error,
        mc_error=float(errors.square().sum().sqrt()) / num if known else None,
        bias=float((errors[1].square() - errors[0].square()).mean()) / 2 if known else None,
        better=float((d > 0).double().mean() + (d == 0).double().mean() / 2),
        unreliable=int((~reliable).any(0).sum()),
        weight=weight,
    )


def _check(
    estimates: Mapping[str, Pointwise], reference: str | None, level: float, data_keys: Mapping[str, object] | None
) -> None:
    """Refuse estimates that cannot be compared."""
    names = list(estimates)
    if len(names) < 2:
        raise ValueError(f"estimates: expected at least two to compare, got {len(names)}.")
    if reference is not None and reference not in names:
        raise unknown("reference", reference, names)
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}.")
    first = len(estimates[names[0]].log_px)
    for name, estimate in estimates.items():
        if len(estimate.log_px) != first:
            raise ValueError(
                f"estimates: expected the same data, got {first:,} for {names[0]!r} and {len(estimate.log_px):,} for "
                f"{name!r}; evaluate both on one test set."
            )
    if data_keys is not None:
        _check_same_keys(names, data_keys)
    if first < 2:
        raise ValueError(f"estimates: expected at least two data for a standard error, got {first}.")
    for name, estimate in estimates.items():
        if bad := int((~estimate.log_px.isfinite()).sum()):
            raise ValueError(
                f"log p(x) of {name!r}: expected finite values, got {bad:,} infinite or NaN values; compare on data "
                "with finite values only."
            )


def _check_same_keys(names: list[str], data_keys: Mapping[str, object]) -> None:
    """Refuse estimates whose data have different fingerprints."""
    first = names[0]
    for name in names:
        if name not in data_keys:
            raise ValueError(f"data_keys: expected a key for each estimate, got none for {name!r}; add its key.")
        if data_keys[name] != data_keys[first]:
            raise ValueError(
                f"estimates: expected one test set with one binarization, got {data_keys[first]} for {first!r} and "
                f"{data_keys[name]} for {name!r}; evaluate both on the same data."
            )


def _line(row: Difference, is_reference: bool, width: int) -> str:
    log_px = f"{row.name:<{width}} {row.log_px:11.3f}"
    if is_reference:
        return f"{log_px} {'reference':>11} {'':>21} {'':>12} {row.weight:7.3f}"
    interval = f"{row.lower:.3f} to {row.upper:.3f}"
    mc = "unknown" if row.mc_error is None else f"{row.mc_error:.4f}"
    return f"{log_px} {row.difference:11.3f} {interval:>21} {mc:>12} {row.weight:7.3f}"
