"""Statistical tests with a reliable level: exact bounds and t tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    r"""Holm's method: hypotheses rejected at a family-wise level.

    In ascending order, p-values are rejected while :math:`p_{(j)} \le \alpha / (m - j + 1)`.

    Args:
        p_values: The m p-values.
        level: Probability of any false rejection.

    Returns:
        True for each rejected hypothesis, in the given order.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    rejected = [False] * len(p_values)
    for rank, j in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[j] > level / (len(p_values) - rank):
            break
        rejected[j] = True
    return rejected


def student_p(values: Tensor, mean: float = 0.0) -> float:
    r"""Two-sided p-value of Student's t test that independent values have this mean.

    :math:`t` is converted to a normal deviate, :math:`z = \frac{8\nu+1}{8\nu+3} \sqrt{\nu \log(1 + t^2/\nu)}`.

    Args:
        values: Shape ``(n,)``, n >= 2.
        mean: The mean under the hypothesis.

    References:
        Wallace, "Bounds on normal approximations to Student's and the chi-square distributions", 1959.
    """
    values = values.double()
    degrees = len(values) - 1
    error = values.std() / math.sqrt(len(values))
    t = (values.mean() - mean) / error.clamp(min=1e-300)
    z = (8 * degrees + 1) / (8 * degrees + 3) * (degrees * torch.log1p(t.square() / degrees)).sqrt()
    return float(torch.special.erfc(z / math.sqrt(2)))


def markov_p(log_e: Tensor) -> float:
    r"""p-value by Markov's inequality: :math:`P(\prod_i e_i \ge 1/a) \le a`.

    Args:
        log_e: Logs of the factors :math:`e_i`. Under the hypothesis, the factors are independent, and each has a mean of at
            most 1; then the mean of their product is at most 1 too.
    """
    return math.exp(-max(0.0, float(log_e.double().sum())))


def choice_p(log_w: Tensor, score: Tensor) -> float:
    r"""Two-sided p-value that column 0 was chosen by :math:`w_j / \sum_j w_j`.

    With :math:`T = \sum_i s_{i0}` Chernoff's bound :math:`P(T \ge t) \le \inf_\lambda e^{-\lambda t}
    \prod_i \sum_j p_{ij} e^{\lambda s_{ij}}` holds at any number of rows and any tail.

    Args:
        log_w: Log weights, shape ``(n, m)``; column 0 has the chosen candidates.
        score: A number for each candidate, shape ``(n, m)``. Its sum over chosen candidates is the test statistic T.
    """
    log_p = log_w.double().log_softmax(1)
    p = log_p.exp()
    score = torch.where(p > 0, score.double(), 0.0)
    centered = score - (p * score).sum(1, keepdim=True)
    spread = float((p * centered.square()).sum().sqrt())
    observed = float(centered[:, 0].sum())
    if spread == 0 or not math.isfinite(spread):
        return 1.0 if observed == 0 or not math.isfinite(spread) else 0.0
    exponents = []
    for rate in torch.logspace(-2, 1.5, 40, dtype=torch.float64) / spread:
        signed = rate * math.copysign(1.0, observed)
        exponents.append(float((log_p + signed * centered).logsumexp(1).sum() - signed * observed))
    return min(1.0, 2 * math.exp(min(0.0, *exponents)))
