"""Stacking weights: the mixture of models with the largest log score."""

from __future__ import annotations

import torch
from torch import Tensor

#: Largest accepted distance of the mean log score from its maximum, nats.
TOLERANCE_NATS = 1e-8


def stacking_weights(log_px: Tensor) -> Tensor:
    r"""Find the mixture weights with the largest mean log score.

    A mixture of M models is scored on N data.

    .. math:: \max_w f(w) = \tfrac1N \textstyle\sum_i \log \sum_m w_m\, p_m(x_i), \quad w_m \ge 0, \ \sum_m w_m = 1

    :math:`p_m(x_i)` is the probability that model m gives to datum i. The problem is concave. It is solved by Newton steps
    inside the simplex with a logarithmic barrier :math:`\mu \sum_m \log w_m`. The optimum with the barrier is within
    :math:`\mu M` of the maximum. Only ratios of probabilities enter, so nothing underflows. The weights are chosen on these
    data and have no error bar. If two models give all data the same probability, their weights are not unique; the barrier
    makes these weights equal.

    Args:
        log_px: log p(x) of M models for N data that no model was fitted to, shape ``(M, N)``, nats, finite.

    Returns:
        Stacking weights, shape ``(M,)``, float64, positive, with sum 1. The mean log score of the mixture is within ``1e-8``
        nats of the maximum.

    References:
        Yao, Vehtari, Simpson, Gelman, "Using Stacking to Average Bayesian Predictive Distributions", 2018, eq. 4; Boyd,
        Vandenberghe, "Convex Optimization", 2004, section 11.3.
    """
    log_px = log_px.detach().cpu().double()
    models = len(log_px)
    p = (log_px - log_px.max(0).values).exp().T
    w = torch.full((models,), 1 / models, dtype=torch.float64)
    barrier = 0.1
    while barrier * models > TOLERANCE_NATS / 10:
        barrier /= 10
        for _ in range(100):
            direction, decrement = _newton(p, w, barrier)
            if decrement < 1e-15:  # f is about decrement / 2 below its maximum
                break
            w = _line_search(p, w, barrier, direction, decrement)
    return w / w.sum()


def _newton(p: Tensor, w: Tensor, barrier: float) -> tuple[Tensor, float]:
    """Return the Newton direction within the simplex and the derivative along it."""
    share = p / (p @ w)[:, None]
    gradient = share.mean(0) + barrier / w
    # In units of w, the barrier's part of the curvature is a multiple of the identity.
    scaled = share * w
    curvature = scaled.T @ scaled / len(p) + barrier * torch.eye(len(w), dtype=torch.float64)
    solved = torch.linalg.solve(curvature, torch.stack([w * gradient, w], dim=1))
    step = solved[:, 0] - solved[:, 1] * (w @ solved[:, 0]) / (w @ solved[:, 1])
    direction = w * step
    return direction, float(gradient @ direction)


def _line_search(p: Tensor, w: Tensor, barrier: float, direction: Tensor, decrement: float) -> Tensor:
    def objective(at: Tensor) -> float:
        return float((p @ at).log().mean() + barrier * at.log().sum())

    falling = direction < 0
    length = min(1.0, 0.99 * float((-w[falling] / direction[falling]).min())) if bool(falling.any()) else 1.0
    now = objective(w)
    while objective(w + length * direction) < now + 1e-4 * length * decrement and length > 1e-12:
        length /= 2
    return w + length * direction


def stacking_gap(log_px: Tensor, weights: Tensor) -> float:
    r"""Return an upper bound on the log score that ``weights`` lose.

    .. math:: \max_w f(w) - f(v) \le \max_m \tfrac1N \textstyle\sum_i p_m(x_i) / p_v(x_i) - 1

    f is the mean log score and p_v the mixture with weights v. The bound follows from concavity (the Frank-Wolfe gap) and holds
    for any weights v.

    Args:
        log_px: log p(x) of M models for N data, shape ``(M, N)``, nats.
        weights: Stacking weights v, shape ``(M,)``, with sum 1.

    Returns:
        Upper bound on the loss, nats, at least 0 up to rounding.
    """
    mixture = (log_px.double() + weights.double().log()[:, None]).logsumexp(0)
    return float((log_px.double() - mixture).exp().mean(1).max()) - 1
