"""Statistical tests: Holm's method, t tests, and bounds by Markov and Chernoff."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    r"""Decide by Holm's method which of several hypotheses to reject.

    The p-values are sorted in ascending order. Hypotheses are rejected while :math:`p_{(j)} \le \alpha / (m - j + 1)`.

    Args:
        p_values: The m p-values.
        level: Family-wise level alpha, the probability that at least one true hypothesis is rejected.

    Returns:
        True for each rejected hypothesis, in the order of ``p_values``.

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
    r"""Return the two-sided p-value of Student's t test.

    The hypothesis is that ``values`` have the expectation ``mean``. The t statistic with
    :math:`\nu = n - 1` degrees of freedom is converted to a normal deviate,
    :math:`z = \frac{8\nu+1}{8\nu+3} \sqrt{\nu \log(1 + t^2/\nu)}`.

    Args:
        values: Independent values, shape ``(n,)``, n >= 2.
        mean: The expectation under the hypothesis.

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
    r"""Return a p-value by Markov's inequality: :math:`P(\prod_i e_i \ge 1/a) \le a`.

    The hypothesis is that the factors :math:`e_i \ge 0` are independent and that each has a mean of at most 1. Then the mean
    of their product is at most 1 too.

    Args:
        log_e: Logs of the factors, shape ``(n,)``.
    """
    return math.exp(-max(0.0, float(log_e.double().sum())))


def choice_p(log_w: Tensor, score: Tensor) -> float:
    r"""Return a two-sided p-value for choices in proportion to weights.

    In each row i one of m candidates was chosen and put in column 0. The hypothesis is that candidate j was chosen with
    probability :math:`p_{ij} = w_{ij} / \sum_l w_{il}`. The test statistic is :math:`T = \sum_i s_{i0}`, the sum of the
    chosen candidates' scores. Chernoff's bound, for any number of rows and however heavy the tails, is

    .. math:: P(T \ge t) \le \inf_\lambda e^{-\lambda t} \prod_i \sum_j p_{ij} e^{\lambda s_{ij}}

    Args:
        log_w: Logs of the weights :math:`w_{ij}`, shape ``(n, m)``.
        score: Scores :math:`s_{ij}` of the candidates, shape ``(n, m)``.
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
