"""The total mass of a distribution, by enumeration or quadrature, where it can be had."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

#: Cells (grid points x batch elements) beyond which a mass is not computed.
MOST_CELLS = 4_000_000


class NoMassError(Exception):
    """The mass of a distribution cannot be computed; the message says why."""


def total_mass(fn: Any) -> Tensor:
    r""":math:`\sum_y p(y)` or :math:`\int p(y)\, dy` of each independent element of a distribution.

    Args:
        fn: A distribution.

    Returns:
        Any shape; 1 where the distribution is one.

    Raises:
        NoMassError: If the distribution can be neither enumerated nor integrated.
    """
    fn = _elementary(fn)
    if getattr(fn, "has_enumerate_support", False):
        return _enumerated(fn)
    try:
        support = fn.support
    except (NotImplementedError, AttributeError) as error:
        raise NoMassError(f"{type(fn).__name__} does not name its support") from error
    if support is None or type(fn).__name__ in ("Delta", "Unit"):
        raise NoMassError(f"{type(fn).__name__} has no mass to sum")
    if support.is_discrete:
        return _counted(fn)
    size = fn.event_shape.numel()
    if size > 2:
        raise NoMassError(f"{type(fn).__name__} is a density in {size} dimensions at once, too many to integrate")
    return _integrated(fn, size)


def _elementary(fn: Any) -> Any:
    """Without wrappers that only regroup or mask; a subclass of one is left, since it may do more."""
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return fn


def _enumerated(fn: Any) -> Tensor:
    try:
        values = fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise NoMassError(f"{type(fn).__name__} does not enumerate its values") from error
    if values.shape[0] * max(1, fn.batch_shape.numel()) > MOST_CELLS:
        raise NoMassError(
            f"{type(fn).__name__} has {values.shape[0]} values for each of {fn.batch_shape.numel()} elements"
        )
    return fn.log_prob(values).double().exp().sum(0)


def _counted(fn: Any) -> Tensor:
    """Sum over 0, 1, 2, ... to well beyond what is drawn."""
    draws = fn.sample((200,))
    if fn.event_shape or bool((draws < 0).any()):
        raise NoMassError(f"{type(fn).__name__} is neither enumerable nor a distribution of counts")
    most = int(4 * draws.max()) + 100
    if most * max(1, fn.batch_shape.numel()) > MOST_CELLS:
        raise NoMassError(f"{type(fn).__name__} has too many values to sum")
    values = torch.arange(most, dtype=draws.dtype, device=draws.device)
    return fn.log_prob(values.reshape(-1, *(1,) * len(fn.batch_shape))).double().exp().sum(0)


def _integrated(fn: Any, size: int) -> Tensor:
    """Trapezoids on the unconstrained line or plane, placed by the distribution's own draws and dense at their center."""
    transform, places = _unconstrained(fn, size)
    elements = max(1, fn.batch_shape.numel())
    steps = 121 if size == 2 else next((n for n in (801, 401) if n * elements <= MOST_CELLS), 201)
    reach, axes = (5.0 if size == 2 else 8.0), (1,) * len(fn.batch_shape)
    if steps**size * elements > MOST_CELLS:
        raise NoMassError(f"{type(fn).__name__} has {elements} elements, too many to integrate; pass fewer data")
    grid = torch.linspace(-reach, reach, steps, dtype=torch.float64, device=places.device)
    points = torch.cartesian_prod(*[grid] * size).reshape(-1, size)
    factor = _spread(places)
    u = places.median(0).values + (factor @ points.sinh().reshape(-1, *axes, size, 1))[..., 0]
    stretch = points.cosh().log().sum(-1).reshape(-1, *axes) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    cells = _log_density(fn, transform, u.reshape(len(u), *fn.batch_shape, *fn.event_shape)) + stretch
    cells = torch.where(torch.isfinite(cells), cells, -torch.inf).exp().reshape(*(steps,) * size, *fn.batch_shape)
    width = 2 * reach / (steps - 1)
    coarse = cells[::2] if size == 1 else cells[::2, ::2]
    fine, rough = (part.sum(tuple(range(size))) * (k * width) ** size for part, k in ((cells, 1), (coarse, 2)))
    if not torch.allclose(fine, rough, rtol=2e-3, atol=1e-3):
        raise NoMassError(f"the integral of {type(fn).__name__} does not settle")
    return fine


def _unconstrained(fn: Any, size: int) -> tuple[Any, Tensor]:
    """The map from real vectors to the support, and 400 draws before it, shape ``(400, *batch, size)``."""
    support = fn.support
    if type(support).__name__ == "MixtureSameFamilyConstraint":
        support = support.base_constraint
    try:
        transform = biject_to(support)
        places = transform.inv(fn.sample((400,))).double()
    except NotImplementedError as error:
        raise NoMassError(f"{type(fn).__name__} has a support that is not mapped to real numbers") from error
    places = places.reshape(400, *fn.batch_shape, -1)
    if places.shape[-1] != size or not bool(torch.isfinite(places).all()):
        raise NoMassError(f"{type(fn).__name__} has a support of fewer dimensions than its values")
    return transform, places


def _log_density(fn: Any, transform: Any, u: Tensor) -> Tensor:
    """Log p of transform(u), Jacobian included; where rounding leaves the support, minus infinity."""
    inner = fn.sample()
    y = transform(u).to(inner.dtype)
    inside = fn.support.check(y)
    log_p = fn.log_prob(torch.where(inside.reshape(*inside.shape, *(1,) * len(fn.event_shape)), y, inner)).double()
    jacobian = transform.log_abs_det_jacobian(u, transform(u)).double()
    return torch.where(inside, log_p + jacobian.reshape(*log_p.shape, -1).sum(-1), -torch.inf)


def _spread(places: Tensor) -> Tensor:
    """A triangular factor of the draws' covariance, robust in one dimension; shape ``(*batch, size, size)``."""
    if places.shape[-1] == 1:
        quarters = places.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64, device=places.device), 0)
        return ((quarters[1] - quarters[0]) / 1.35).clamp(min=1e-12)[..., None]
    centered = (places - places.mean(0)).movedim(0, -1)
    covariance = centered @ centered.mT / places.shape[0]
    return torch.linalg.cholesky_ex(covariance)[0]
