"""Diagnostics of importance weights and of latent units."""

from __future__ import annotations

import math

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from pyro_vae.evidence.estimates.pareto import fit_tail, tail_length


def pareto_k(log_w: Tensor) -> Tensor:
    r"""Fit the tail shape k of each datum's importance weights w.

    .. math:: P(w - u > t \mid w > u) = (1 + k t / \sigma)^{-1/k}

    A generalized Pareto distribution with scale :math:`\sigma` is fitted to the :math:`\min(K/5, 3\sqrt K)` largest of a
    datum's K weights, those above a cutoff u. The weights have about 1/k finite moments: at k >= 1/2 their variance is
    infinite, and so is the usual standard error.

    Args:
        log_w: Log importance weights, shape ``(K, B)``, nats.

    Returns:
        Tail shape k, shape ``(B,)``, float64. It is ``inf`` if K is too small for a fit: at most 20 draws, so that the tail has
        fewer than five. Weights that are all equal give ``inf`` too: check :func:`equal_weights` first.

    Raises:
        ValueError: If ``log_w`` is not two-dimensional.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto Smoothed Importance Sampling", 2024, section 2.4; Zhang, Stephens,
        "A New and Efficient Estimation Method for the Generalized Pareto Distribution", 2009.
    """
    if log_w.dim() != 2:
        raise ValueError(f"log_w: expected shape (K, B), got {tuple(log_w.shape)}.")
    kept = tail_length(len(log_w)) + 1
    return fit_tail(log_w.detach().cpu().double().topk(min(kept, len(log_w)), 0).values, len(log_w)).k


def pareto_k_threshold(num_samples: int) -> float:
    r"""Largest k at which an estimate from K draws can be trusted.

    .. math:: \min(1 - 1 / \log_{10} K,\ 0.7)

    Args:
        num_samples: Number of draws, K.

    Returns:
        The threshold; minus infinity at K = 1, where no estimate can be trusted.

    References:
        Vehtari et al., "Pareto Smoothed Importance Sampling", 2024, section 3.2.4.
    """
    if num_samples < 2:
        return -math.inf
    return min(1 - 1 / math.log10(num_samples), 0.7)


def pareto_k_thresholds(num_samples: Tensor) -> Tensor:
    """Compute :func:`pareto_k_threshold` for each datum.

    Args:
        num_samples: Number of draws K for each datum, shape ``(B,)``.

    Returns:
        Thresholds, shape ``(B,)``, float64.
    """
    limit = (1 - 1 / num_samples.double().clamp(min=2).log10()).clamp(max=0.7)
    return torch.where(num_samples < 2, -math.inf, limit)


def equal_weights(log_w: Tensor) -> Tensor:
    """Find the data whose weights are all equal up to rounding.

    The weights are equal if the guide is the exact posterior. The estimate is then exact, and there is no tail to fit. Each log
    weight is a sum over pixels, so the tolerance is 1,000 units in the last place (in the dtype of ``log_w``) of max(1, abs(log
    w)), and at most 0.01 nats. With weights this close, the error of the estimate is below 0.01 / sqrt(K).

    Args:
        log_w: Log importance weights, shape ``(K, B)``, nats, in the dtype in which they were computed.

    Returns:
        True for data with equal weights, shape ``(B,)``, bool; False at K = 1, where equality says nothing.
    """
    if len(log_w) < 2:
        return torch.zeros(log_w.shape[1], dtype=torch.bool, device=log_w.device)
    low, high = log_w.min(0).values, log_w.max(0).values
    return equal_range(low, high, torch.finfo(log_w.dtype).eps)


def equal_range(low: Tensor, high: Tensor, eps: float) -> Tensor:
    """Find the data whose smallest and largest log weights are equal.

    Equal means equal up to rounding, see :func:`equal_weights`.

    Args:
        low: Smallest log weight of each datum, shape ``(B,)``, nats.
        high: Largest log weight of each datum, shape ``(B,)``, nats.
        eps: Machine epsilon of the dtype in which the log weights were computed.

    Returns:
        True for data with equal weights, shape ``(B,)``, bool.
    """
    size = torch.maximum(low.abs(), high.abs()).clamp(min=1)
    return (high - low) <= (1000 * eps * size).clamp(max=0.01)


def jackknife(blocks: Tensor, sizes: Tensor) -> Tensor:
    r"""Estimate the standard error of a log mean weight by the jackknife.

    .. math:: \hat\theta_{-g} = \log \frac{\sum_{h \ne g} S_h}{K - n_g}, \quad
        \tau_g = h_g \hat\theta - (h_g - 1)\, \hat\theta_{-g}, \quad h_g = K / n_g, \quad
        \mathrm{se}^2 = \frac1G \textstyle\sum_g \frac{(\tau_g - \hat\theta_J)^2}{h_g - 1}

    with :math:`\hat\theta_J = G \hat\theta - \sum_g (1 - n_g / K)\, \hat\theta_{-g}`. The K draws are split into G blocks.
    Block g has :math:`n_g` draws, whose weights sum to :math:`S_g`; :math:`\hat\theta` is the log mean weight of all draws, and
    :math:`\hat\theta_{-g}` that of all draws outside block g. For blocks of equal size this is the usual jackknife.

    Args:
        blocks: Log of the sum of the weights in each block, log S, shape ``(G, B)``, nats.
        sizes: Number of draws in each block, n, shape ``(G,)``.

    Returns:
        Standard error of the log mean weight, shape ``(B,)``, nats; NaN for a single block.

    References:
        Busing, Meijer, van der Leeden, "Delete-m Jackknife for Unequal m", 1999, eq. 8.
    """
    nothing = torch.full_like(blocks[:1], -math.inf)
    before = torch.cat([nothing, blocks[:-1].logcumsumexp(0)])
    after = torch.cat([blocks.flip(0)[:-1].logcumsumexp(0).flip(0), nothing])
    n = sizes.to(blocks)[:, None]
    total, share = n.sum(), n / n.sum()
    whole = blocks.logsumexp(0) - total.log()
    without = torch.logaddexp(before, after) - (total - n).log()
    # Subtract the estimate from all draws, so that a large log p(x) costs no digits.
    left = without - whole
    center = -((1 - share) * left).sum(0)
    pseudo = -(1 / share - 1) * left
    return ((pseudo - center).square() / (1 / share - 1)).mean(0).sqrt()


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    r"""Find the latent units whose posterior mean varies with the data.

    .. math:: \mathrm{Var}_x(E_{q(z_j|x)}[z_j]) > 0.01

    Args:
        means: Posterior means of Z latent units for N data, shape ``(N, Z)``.
        threshold: Variance above which a unit counts as active.

    Returns:
        True for active units, shape ``(Z,)``, bool.

    References:
        Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2016, section 5.2.
    """
    return means.var(0) > threshold


def kl_per_unit(q: Distribution, p: Distribution) -> Tensor | None:
    r"""Compute the KL from posterior to prior of each latent unit.

    .. math:: KL(q(z_j | x) \,\|\, p(z_j)), \quad \textstyle\sum_j KL_j = KL(q(z | x) \,\|\, p(z))

    The KL is exact, not sampled, and at least 0. Its sum over units is the rate. A unit with KL near 0 carries no information
    about the data.

    Args:
        q: q(z|x) for B data and Z units, batch shape ``(B,)``, event shape ``(Z,)``.
        p: p(z), event shape ``(Z,)``.

    Returns:
        KL of each datum and unit, shape ``(B, Z)``, nats; None if the units depend on each other under q or p (the rate is then
        no sum over units), or if the KL has no known closed form.
    """
    one_q, one_p = units_of(q), units_of(p)
    if one_q is None or one_p is None:
        return None
    try:
        return kl_divergence(one_q, one_p)
    except NotImplementedError:
        return None


def units_of(distribution: Distribution) -> Distribution | None:
    """Return a distribution's units as a batch of scalar distributions.

    Return None if the units are not independent, or have no density.
    """
    if not (isinstance(distribution, Independent) and distribution.reinterpreted_batch_ndims == 1):
        return None
    base = distribution.base_dist
    return None if base.event_shape or isinstance(base, Delta) else base
