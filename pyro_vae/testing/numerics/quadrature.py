r"""Trapezoidal quadrature of densities in one or more dimensions.

The grid in each dimension is :math:`u = m + s \sinh t`, with evenly spaced t, and median m and spread s of draws.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, biject_to

#: Largest number of cells (grid points x batch elements) of an integral.
MOST_CELLS = 4_000_000
#: Largest number of numbers in all evaluations of :func:`product_mass`: cells * D for each of the D integrals.
MOST_PARTS = 100_000_000
#: The grid's t runs from -REACH to REACH, so u runs from 1490 spreads of the draws below their median to 1490 above.
REACH = 8.0
#: Largest mass that may lie outside the grid or the range of floating-point numbers.
EDGE = 1e-3


class NoMassError(Exception):
    """Error for a distribution whose mass cannot be computed."""


def batch_of(fn: TorchDistributionMixin) -> torch.Size:
    """Return a distribution's batch shape as ``torch.Size``.

    Some of Pyro's distributions have a plain tuple.
    """
    return torch.Size(fn.batch_shape)


def _in_double(fn: TorchDistributionMixin) -> TorchDistributionMixin:
    """Return a copy in double precision, or the distribution if copying fails."""
    try:
        copied = _doubled(fn)
        copied.log_prob(copied.sample())
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError):
        return fn
    return copied


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(map(_doubled, value)) if type(value) in (list, tuple) else value
    if isinstance(value, Distribution) or (isinstance(value, Transform) and not isinstance(value, nn.Module)):
        copied = copy.copy(value)
        for name, held in vars(value).items():
            vars(copied)[name] = _doubled(held)
        return copied
    return value


class Density:
    """Density of a distribution whose values are transformed to real vectors.

    A bijection maps the support to vectors u of D real numbers; the density is that of u.

    Args:
        fn: A distribution whose events have D numbers.
        value: A value of the distribution, used in place of draws if it cannot be sampled.

    Attributes:
        places: 400 draws of u, shape ``(400, *batch, D)``.

    Raises:
        NoMassError: If the support cannot be mapped to D real numbers, or there is neither a draw nor a value.
    """

    def __init__(self, fn: TorchDistributionMixin, value: Tensor | None = None) -> None:
        fn = _in_double(fn)
        self.fn, self.batch, self.size = fn, batch_of(fn), torch.Size(fn.event_shape).numel()
        self.name = type(fn).__name__
        support = fn.support
        if type(support).__name__ == "MixtureSameFamilyConstraint":
            support = support.base_constraint
        try:
            self._transform = biject_to(support)
        except NotImplementedError as error:
            raise NoMassError(f"the support of {self.name} cannot be mapped to real numbers") from error
        draws = self._draws(value)
        self._inner = draws[0]
        self.places = self._unconstrained(draws)

    def _draws(self, value: Tensor | None) -> Tensor:
        shape = (*self.batch, *torch.Size(self.fn.event_shape))
        try:
            return self.fn.sample(torch.Size((400,)))
        except NotImplementedError as error:
            if value is None or value.shape != shape:
                raise NoMassError(f"{self.name} cannot be sampled") from error
            return value.detach().expand(400, *shape)

    def _unconstrained(self, draws: Tensor) -> Tensor:
        places = self._transform.inv(draws).double().reshape(400, *self.batch, -1)
        if places.shape[-1] != self.size:
            raise NoMassError(f"{self.name} has a support of fewer dimensions than its values")
        inside = torch.isfinite(places)
        if not bool(inside.double().mean(0).min() > 0.5):
            raise NoMassError(f"{self.name} draws values at the edge of its support")
        center = torch.where(inside, places, torch.nan).nanmedian(0).values
        places = torch.where(inside, places, center)
        # If sample returns the mean, draws have no spread; add noise, so that the grid has a width.
        return torch.where(places.std(0) > 1e-12, places, places + torch.randn_like(places))

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log density of u; -inf outside the support.

        Args:
            u: Real vectors, shape ``(..., *batch, D)``.

        Returns:
            Log density with respect to u, shape ``(..., *batch)``, nats.
        """
        event = torch.Size(self.fn.event_shape)
        u = u.reshape(*u.shape[:-1], *event)
        x = self._transform(u)
        y = x.to(self._inner.dtype)
        # At the edge of the support y does not map back to u: cells there would belong to another density.
        back = (self._transform.inv(y.double()) - u).abs() <= 0.1 + 1e-6 * u.abs()
        inside = self.fn.support.check(y)
        inside = inside & back.reshape(*inside.shape, -1).all(-1)
        valid = inside.reshape(*inside.shape, *(1,) * len(event))
        log_p = self.fn.log_prob(torch.where(valid, y, self._inner)).double()
        jacobian = self._transform.log_abs_det_jacobian(u, x).double()
        found = log_p + jacobian.reshape(*log_p.shape, -1).sum(-1)
        return torch.where(inside & torch.isfinite(found), found, -torch.inf)


def line_mass(density: Density) -> Tensor:
    """Integrate a one-dimensional density; return its mass, with the batch shape."""
    cells = max(1, density.batch.numel())
    steps = next((n for n in (801, 401, 201) if n * cells <= MOST_CELLS), 0)
    if not steps:
        raise NoMassError(f"{density.name} has {cells} elements, too many to integrate; pass fewer data")
    center, spread = _center(density.places)
    return _along(density, center, spread, 0, steps, density.places).exp()


def plane_mass(density: Density) -> Tensor:
    """Integrate a two-dimensional density; return its mass, with the batch shape."""
    steps, reach, batch = 121, 5.0, density.batch
    if steps**2 * max(1, batch.numel()) > MOST_CELLS:
        raise NoMassError(f"{density.name} has {batch.numel()} elements, too many to integrate; pass fewer data")
    grid = torch.linspace(-reach, reach, steps, dtype=torch.float64, device=density.places.device)
    points = torch.cartesian_prod(grid, grid).reshape(-1, *(1,) * len(batch), 2)
    centered = (density.places - density.places.mean(0)).movedim(0, -1)
    factor = torch.linalg.cholesky_ex(centered @ centered.mT / centered.shape[-1])[0]
    u = density.places.median(0).values + (factor @ points.sinh()[..., None])[..., 0]
    stretch = points.cosh().log().sum(-1) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    cells = (density(u) + stretch).exp().reshape(steps, steps, *batch)
    width = 2 * reach / (steps - 1)
    fine, rough = cells.sum((0, 1)) * width**2, cells[::2, ::2].sum((0, 1)) * (2 * width) ** 2
    rim = (cells[[0, -1]].sum((0, 1)) + cells[:, [0, -1]].sum((0, 1))) * width
    if not torch.allclose(fine, rough, rtol=2e-3, atol=1e-3) or not bool((rim < EDGE).all()):
        raise NoMassError(f"the integral of {density.name} does not converge")
    return fine


def product_mass(density: Density) -> Tensor:
    r"""Integrate a density with independent coordinates; return its mass.

    If :math:`\log p(u) = c + \sum_j g_j(u_j)`, the mass is, at any point m,

    .. math:: p(m) \prod_j \int p(m_1, \dots, u_j, \dots, m_D) / p(m)\, du_j

    which takes one integral for each coordinate. The mass has the batch shape.

    Raises:
        NoMassError: If the coordinates are dependent, or the grids have too many cells.
    """
    steps = 201
    if steps * max(1, density.batch.numel()) * density.size**2 > MOST_PARTS:
        raise NoMassError(
            f"{density.name} is a density in {density.size} dimensions, too many to integrate; pass fewer data"
        )
    if not _is_sum(density):
        raise NoMassError(f"{density.name} is a density in {density.size} dependent dimensions, too many to integrate")
    center, spread = _center(density.places)
    at_center = density(center)
    parts = [_along(density, center, spread, j, steps) - at_center for j in range(density.size)]
    return (at_center + torch.stack(parts).sum(0)).exp()


def _is_sum(density: Density) -> bool:
    """Return True if the coordinates are independent.

    They are if swapping coordinates between two draws does not change the sum of the two log densities.
    """
    one, other = density.places[::2], density.places[1::2]
    swapped = torch.rand(len(one), density.size, device=one.device) < 0.5
    swapped = swapped.reshape(len(one), *(1,) * len(density.batch), density.size)
    pairs = density(one), density(other)
    mixed = density(torch.where(swapped, other, one)), density(torch.where(swapped, one, other))
    change = (pairs[0] + pairs[1] - mixed[0] - mixed[1]).abs()
    size = torch.stack([*pairs, *mixed]).abs().amax()
    return bool((change <= 1e-5 * (1 + size)).all())  # parameters in single precision round, whatever the value


def _center(places: Tensor) -> tuple[Tensor, Tensor]:
    """Return each coordinate's median and spread, both of shape ``(*batch, D)``."""
    quarters = places.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64, device=places.device), 0)
    return places.median(0).values, ((quarters[1] - quarters[0]) / 1.35).clamp(min=1e-12)


def _along(
    density: Density,
    center: Tensor,
    spread: Tensor,
    j: int,
    steps: int,
    draws: Tensor | None = None,
) -> Tensor:
    """Integrate along coordinate j; return the log of the integral.

    The other coordinates stay at ``center``. The result has the batch shape.
    """
    t = torch.linspace(-REACH, REACH, steps, dtype=torch.float64, device=center.device)
    t = t.reshape(-1, *(1,) * len(density.batch))
    u = center.expand(steps, *center.shape).clone()
    u[..., j] = center[..., j] + spread[..., j] * t.sinh()
    cells = density(u) + spread[..., j].log() + t.cosh().log()
    if draws is not None:
        _check_resolved(density, cells, draws, center, spread)
    top = cells.amax(0)
    top = torch.where(torch.isfinite(top), top, 0.0)
    masses = (cells - top).exp() * (2 * REACH / (steps - 1))
    fine, rough = masses.sum(0), 2 * masses[::2].sum(0)
    if not torch.allclose(fine, rough, rtol=2e-3, atol=1e-3) or not bool(fine.isfinite().all()):
        raise NoMassError(f"the integral of {density.name} does not converge")
    if not bool((_beyond(masses) + _beyond(masses.flip(0)) <= EDGE * fine).all()):
        raise NoMassError(
            f"{density.name} exceeds the range of its floating-point numbers, or is too wide to integrate"
        )
    return top + fine.log()


def _check_resolved(density: Density, cells: Tensor, draws: Tensor, center: Tensor, spread: Tensor) -> None:
    """Refuse a density that has a peak between two grid points."""
    t = ((draws - center) / spread).asinh()[..., 0]
    last = len(cells) - 1
    place = ((t + REACH) * last / (2 * REACH)).clamp(0, last - 1e-9)
    below = place.floor().long()
    share = place - below
    between = (1 - share) * cells.gather(0, below) + share * cells.gather(0, below + 1)
    at_draws = density(draws) + spread[..., 0].log() + t.cosh().log()
    if bool((at_draws > between.nan_to_num(nan=-torch.inf) + 1).any()):
        raise NoMassError(f"{density.name} has peaks or edges too narrow to integrate")


def _beyond(masses: Tensor) -> Tensor:
    """Return the mass before the first nonzero cell, by a geometric series."""
    place = torch.arange(len(masses), device=masses.device).reshape(-1, *(1,) * (masses.dim() - 1))
    empty = (masses == 0) & (place < masses.argmax(0))
    first = (torch.where(empty, place, -1).amax(0, keepdim=True) + 1).clamp(max=len(masses) - 5)
    edge, inner = masses.gather(0, first)[0], masses.gather(0, first + 4)[0]
    ratio = (edge / inner) ** 0.25
    return torch.where(ratio < 1, edge * ratio / (1 - ratio), torch.inf).nan_to_num(nan=torch.inf)
