"""The tail of importance weights: a generalized Pareto distribution fitted to the largest, for all data at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Fewer weights than this are no tail.
SMALLEST_TAIL = 5
#: Numbers that one fit holds at a time, besides its input; data are fitted in slices of that size.
_HELD = 4_000_000


class Tail(NamedTuple):
    """What the largest weights of each datum say, each of shape ``(B,)``, float64.

    Attributes:
        k: Shape of the generalized Pareto distribution; infinite where there is no tail to fit.
        log_sum: Log of the sum of the largest weights, nats.
        log_smoothed: The same with the weights above the cutoff put in order at the quantiles of the fit.
    """

    k: Tensor
    log_sum: Tensor
    log_smoothed: Tensor


def tail_length(num_samples: int) -> int:
    r"""How many of K weights are the tail: :math:`\lceil \min(K / 5,\ 3 \sqrt K) \rceil`.

    Args:
        num_samples: K.
    """
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def fit_tail(top: Tensor, num_samples: int) -> Tail:
    r"""Fit a generalized Pareto distribution to the largest of K weights, and smooth them by it.

    .. math:: P(w - u > t \mid w > u) = (1 + k t / \sigma)^{-1/k}

    where u, the cutoff, is the largest weight below the tail. Weights equal to the cutoff are not in the tail.

    Args:
        top: The ``tail_length(num_samples) + 1`` largest log weights, in falling order, shape ``(T + 1, B)``, nats.
        num_samples: K.

    Returns:
        The shape and the tail's sum, raw and smoothed; both are equal where there is no fit.

    Raises:
        ValueError: If ``top`` has another length.

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
    # As ArviZ: weights below the smallest normal number, relative to the largest, are no tail.
    lowest = torch.full_like(highest, math.log(torch.finfo(torch.float64).tiny))
    cutoff = torch.maximum(top[-1] - highest, lowest)
    above = (top - highest > cutoff).sum(0)
    for length in above.unique().tolist():
        data = (above == length).nonzero().flatten()
        if length < SMALLEST_TAIL:
            continue
        for part in data.split(max(1, _HELD // (length * _grid(length)))):
            excess = (top[:length, part] - highest[part]).exp() - cutoff[part].exp()
            k[part], sigma = _fit(excess.flip(0))
            inside = _smoothed(k[part], sigma, length) + cutoff[part].exp()
            rest = top[length:, part] - highest[part]
            whole = torch.cat([inside.log().clamp(max=0), rest]).logsumexp(0) + highest[part]
            smoothed[part] = torch.where(k[part].isfinite() & (sigma > 0), whole, log_sum[part])
    return Tail(k.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf), log_sum, smoothed)


def _grid(length: int) -> int:
    return 30 + int(math.sqrt(length))


def _fit(excess: Tensor) -> tuple[Tensor, Tensor]:
    r"""Shape and scale for excesses over the cutoff.

    The posterior mean of :math:`b = -k / \sigma` over a grid, under Zhang and Stephens's prior; then k as the mean of
    :math:`\log(1 - b t)`, drawn towards 1/2 as by ten more observations.

    Args:
        excess: In rising order, shape ``(n, B)``.
    """
    n, size = len(excess), _grid(len(excess))
    steps = torch.arange(1, size + 1, dtype=excess.dtype, device=excess.device)[:, None] - 0.5
    b = (1 - (size / steps).sqrt()) / (3 * excess[int(n / 4 + 0.5) - 1]) + 1 / excess[-1]  # (M, B)
    k = torch.log1p(-b[:, None] * excess).mean(1)
    log_likelihood = n * ((-b / k).log() - k - 1)
    weights = log_likelihood.softmax(0)
    weights = torch.where(weights >= 10 * torch.finfo(excess.dtype).eps, weights, 0)
    b = (torch.where(weights > 0, b, 0) * weights).sum(0) / weights.sum(0)
    k = torch.log1p(-b * excess).mean(0)
    return (n * k + 10 * 0.5) / (n + 10), -k / b


def _smoothed(k: Tensor, sigma: Tensor, length: int) -> Tensor:
    """Quantiles of the fitted distribution at (i - 1/2) / n, shape ``(n, B)``."""
    log_survival = torch.log1p(-(torch.arange(length, dtype=k.dtype, device=k.device)[:, None] + 0.5) / length)
    small = k.abs() < torch.finfo(k.dtype).eps
    safe = torch.where(small, 1, k)
    return sigma * torch.where(small, -log_survival, torch.expm1(-safe * log_survival) / safe)
