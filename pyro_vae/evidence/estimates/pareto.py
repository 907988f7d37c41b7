"""Generalized Pareto fit to the largest importance weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Fewest weights above the cutoff to which a tail is fitted.
MIN_TAIL_DRAWS = 5
#: Largest number of values in the grid of one fit. If there are more data, they are fitted in slices.
_MAX_GRID_NUMBERS = 4_000_000


class Tail(NamedTuple):
    """Pareto fit to the largest importance weights of each datum.

    All attributes have shape ``(B,)``, float64.

    Attributes:
        k: Shape of the generalized Pareto distribution; infinite where there is no tail to fit.
        log_sum: Log of the sum of the largest weights, unsmoothed, nats.
        log_smoothed: Log of the sum of the largest weights after smoothing, nats. Each weight above the cutoff is replaced by
            the quantile of the fit that has its rank.
    """

    k: Tensor
    log_sum: Tensor
    log_smoothed: Tensor


def tail_length(num_samples: int) -> int:
    r"""Return the number T of weights in the tail.

    .. math:: T = \lceil \min(K / 5,\ 3 \sqrt K) \rceil

    Args:
        num_samples: Number of draws, K.
    """
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def fit_tail(top: Tensor, num_samples: int) -> Tail:
    r"""Fit a generalized Pareto distribution to the largest weights and smooth them.

    .. math:: P(w - u > t \mid w > u) = (1 + k t / \sigma)^{-1/k}

    w is a weight, k the shape and :math:`\sigma` the scale. The tail is the T = ``tail_length(num_samples)`` largest weights;
    the cutoff u is the largest weight below the tail. Weights equal to the cutoff do not belong to the tail.

    Args:
        top: The T + 1 largest log weights of each datum, in falling order, shape ``(T + 1, B)``, nats.
        num_samples: Number of draws, K.

    Returns:
        The shape k and the sum of the largest weights, raw and smoothed. The two sums are equal where nothing was fitted.

    Raises:
        ValueError: If ``top`` does not have T + 1 rows.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto Smoothed Importance Sampling", 2024, section 2; Zhang, Stephens, "A New
        and Efficient Estimation Method for the Generalized Pareto Distribution", 2009.
    """
    if len(top) != min(num_samples, tail_length(num_samples) + 1):
        raise ValueError(f"top: expected the {tail_length(num_samples) + 1} largest weights, got {len(top)}.")
    top = top.double()
    log_sum = top.logsumexp(0)
    k, smoothed = torch.full_like(log_sum, math.inf), log_sum.clone()
    highest = top[0]
    # Like ArviZ: weights below the smallest normal number, relative to the largest, do not belong to the tail.
    lowest = torch.full_like(highest, math.log(torch.finfo(torch.float64).tiny))
    cutoff = torch.maximum(top[-1] - highest, lowest)
    above = (top - highest > cutoff).sum(0)
    for length in above.unique().tolist():
        data = (above == length).nonzero().flatten()
        if length < MIN_TAIL_DRAWS:
            continue
        for part in data.split(max(1, _MAX_GRID_NUMBERS // (length * _grid_size(length)))):
            excess = (top[:length, part] - highest[part]).exp() - cutoff[part].exp()
            k[part], sigma = _fit_shape_and_scale(excess.flip(0))
            tail = _quantiles(k[part], sigma, length) + cutoff[part].exp()
            rest = top[length:, part] - highest[part]
            whole = torch.cat([tail.log().clamp(max=0), rest]).logsumexp(0) + highest[part]
            smoothed[part] = torch.where(k[part].isfinite() & (sigma > 0), whole, log_sum[part])
    return Tail(k.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf), log_sum, smoothed)


def _grid_size(length: int) -> int:
    return 30 + int(math.sqrt(length))


def _fit_shape_and_scale(excess: Tensor) -> tuple[Tensor, Tensor]:
    r"""Estimate the Pareto shape k and scale sigma from the tail.

    :math:`b = -k / \sigma` is estimated by a posterior mean over a grid, under the prior of Zhang and Stephens. k is the mean
    of :math:`\log(1 - b t)` over the excesses t, shrunk towards 1/2 with the weight of ten observations.

    Args:
        excess: Weight minus cutoff, in rising order, shape ``(n, B)``.

    Returns:
        k and sigma, each of shape ``(B,)``.
    """
    n, size = len(excess), _grid_size(len(excess))
    steps = torch.arange(1, size + 1, dtype=excess.dtype, device=excess.device)[:, None] - 0.5
    b = (1 - (size / steps).sqrt()) / (3 * excess[int(n / 4 + 0.5) - 1]) + 1 / excess[-1]  # (M, B)
    k = torch.log1p(-b[:, None] * excess).mean(1)
    log_likelihood = n * ((-b / k).log() - k - 1)
    weights = log_likelihood.softmax(0)
    weights = torch.where(weights >= 10 * torch.finfo(excess.dtype).eps, weights, 0)
    b = (torch.where(weights > 0, b, 0) * weights).sum(0) / weights.sum(0)
    k = torch.log1p(-b * excess).mean(0)
    return (n * k + 10 * 0.5) / (n + 10), -k / b


def _quantiles(k: Tensor, sigma: Tensor, length: int) -> Tensor:
    """Return the quantiles of the fit at (i - 1/2) / n.

    i runs from 1 to the length n of the tail. The quantiles have shape ``(n, B)``.
    """
    log_survival = torch.log1p(-(torch.arange(length, dtype=k.dtype, device=k.device)[:, None] + 0.5) / length)
    small = k.abs() < torch.finfo(k.dtype).eps
    safe = torch.where(small, 1, k)
    return sigma * torch.where(small, -log_survival, torch.expm1(-safe * log_survival) / safe)
