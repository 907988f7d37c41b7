"""Total mass of a distribution, by enumeration or quadrature."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.testing.numerics.quadrature import (
    MOST_CELLS,
    Density,
    NoMassError,
    batch_of,
    line_mass,
    plane_mass,
    product_mass,
)


def total_mass(fn: TorchDistributionMixin, value: Tensor | None = None) -> Tensor:
    r"""Return a distribution's total mass, :math:`\sum_y p(y)` or :math:`\int p(y)\, dy`.

    Args:
        fn: A distribution.
        value: A value of the distribution. If the distribution cannot be sampled, the integration grid is placed around it.

    Returns:
        Total mass, 1 if ``fn`` is normalized. It has the batch shape that ``fn`` has once ``.to_event``, masks and ``.expand``
        are undone.

    Raises:
        NoMassError: If the distribution can be neither enumerated nor integrated.
    """
    fn = elementary(fn)
    if getattr(fn, "has_enumerate_support", False):
        return _enumerated(fn)
    try:
        support = fn.support
    except (NotImplementedError, AttributeError) as error:
        raise NoMassError(f"{type(fn).__name__} defines no support") from error
    if support is None or type(fn).__name__ in ("Delta", "Unit"):
        raise NoMassError(f"{type(fn).__name__} has no mass to sum")
    if support.is_discrete:
        return _counted(fn)
    density = Density(fn, value)
    return {1: line_mass, 2: plane_mass}.get(density.size, product_mass)(density)


def elementary(fn: TorchDistributionMixin) -> TorchDistributionMixin:
    """Undo ``.to_event``, ``.mask`` and ``.expand``; return the inner distribution."""
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return fn


def _enumerated(fn: TorchDistributionMixin) -> Tensor:
    try:
        values = fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise NoMassError(f"{type(fn).__name__} does not enumerate its values") from error
    if values.shape[0] * max(1, batch_of(fn).numel()) > MOST_CELLS:
        raise NoMassError(
            f"{type(fn).__name__} has {values.shape[0]} values for each of {batch_of(fn).numel()} elements"
        )
    return fn.log_prob(values).double().exp().sum(0)


def _counted(fn: TorchDistributionMixin) -> Tensor:
    """Sum a distribution of counts from 0 to beyond the largest draw."""
    draws = fn.sample((200,))
    if fn.event_shape or bool((draws < 0).any()):
        raise NoMassError(f"{type(fn).__name__} is neither enumerable nor a distribution of counts")
    most = int(4 * draws.max()) + 100
    if most * max(1, batch_of(fn).numel()) > MOST_CELLS:
        raise NoMassError(f"{type(fn).__name__} has too many values to sum")
    values = torch.arange(most, dtype=draws.dtype, device=draws.device)
    return fn.log_prob(values.reshape(-1, *(1,) * len(batch_of(fn)))).double().exp().sum(0)
