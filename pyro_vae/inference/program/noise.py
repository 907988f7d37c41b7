r"""Draws as functions of given standard normal noise.

.. math:: z = f(\epsilon; x), \quad \epsilon \sim N(0, I)

A distribution is *made of normals* if it is a normal, a multivariate normal or a transform of one. A draw is then a function
of standard normal numbers. If the caller supplies these numbers, a draw depends on its datum and its index alone, not on the
other draws of the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions.multivariate_normal import _batch_mv

from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import Site


class Noise(Protocol):
    """Function that returns standard normal numbers for each draw and datum."""

    def __call__(self, name: str, start: int, num: int, like: NoiseShape, /) -> Tensor:
        """Return the noise of one site.

        Args:
            name: Name of the site.
            start: Index of the first draw.
            num: K, the number of draws.
            like: Size, dtype and device of the noise for one draw of one datum.

        Returns:
            Standard normal numbers, shape ``(K, B, like.width)``.
        """


class NoiseShape(NamedTuple):
    """Size, dtype and device of the noise for one site.

    Attributes:
        width: Number of standard normal numbers for one draw of one datum.
        dtype: Dtype of the numbers.
        device: Device of the numbers.
    """

    width: int
    dtype: torch.dtype
    device: torch.device


#: Distributions made of normals. A subclass counts too, unless it overrides ``sample`` or ``rsample``.
_NORMALS = (Normal, MultivariateNormal, LowRankMultivariateNormal)


def noise_like(distribution: TorchDistributionMixin) -> Tensor | None:
    """Return an uninitialized tensor, shaped like the noise of one draw.

    Args:
        distribution: Distribution of a site.

    Returns:
        Tensor of shape ``(*batch_shape, ...)``; None if the distribution is not made of normals.
    """
    if isinstance(distribution, Independent | MaskedDistribution):
        return noise_like(distribution.base_dist)
    if isinstance(distribution, Delta):
        return distribution.v.new_empty((*distribution.batch_shape, 0))
    if isinstance(distribution, TransformedDistribution):
        return noise_like(distribution.base_dist) if _draws_as(distribution, TransformedDistribution) else None
    if not any(isinstance(distribution, kind) and _draws_as(distribution, kind) for kind in _NORMALS):
        return None
    shape: tuple[int, ...] = distribution.batch_shape + distribution.event_shape
    if isinstance(distribution, LowRankMultivariateNormal):
        shape = (*distribution.batch_shape, distribution.cov_factor.shape[-1] + distribution.event_shape[0])
    return distribution.loc.new_empty(()).expand(shape)


def _draws_as(distribution: Distribution, kind: type[Distribution]) -> bool:
    ours = type(distribution)
    return ours.rsample is kind.rsample and ours.sample is kind.sample


def from_noise(distribution: TorchDistributionMixin, noise: Tensor) -> Tensor:
    r"""Compute a draw from given standard normal numbers.

    .. math:: z = \mu + L \epsilon

    Here mu is the mean, and L is a square root of the covariance: ``rsample`` uses the same formula. If the
    distribution is transformed, its transforms are then applied to z.

    Args:
        distribution: A Normal, MultivariateNormal, LowRankMultivariateNormal or Delta. It may be wrapped in an Independent,
            a mask or a TransformedDistribution.
        noise: Standard normal numbers, shape ``(sample..., *noise_like(distribution).shape)``.

    Returns:
        The draw, shape ``(sample..., batch..., event...)``.

    Raises:
        TypeError: If the distribution is not made of normals.
    """
    if noise_like(distribution) is None:
        raise TypeError(
            f"distribution: expected a normal, a multivariate normal or a transform of one, got {type(distribution).__name__}; "
            "draw with its sample method."
        )
    if isinstance(distribution, Independent | MaskedDistribution):
        return from_noise(distribution.base_dist, noise)
    if isinstance(distribution, Delta):
        return distribution.v.expand(noise.shape[:-1] + distribution.event_shape)
    if isinstance(distribution, TransformedDistribution):
        value = from_noise(distribution.base_dist, noise)
        for transform in distribution.transforms:
            value = transform(value)
        return value
    if isinstance(distribution, Normal):
        return distribution.loc + distribution.scale * noise
    if isinstance(distribution, MultivariateNormal):
        return distribution.loc + _batch_mv(distribution._unbroadcasted_scale_tril, noise)
    factor = distribution._unbroadcasted_cov_factor
    common, own = noise.split([factor.shape[-1], distribution.event_shape[0]], -1)
    return distribution.loc + _batch_mv(factor, common) + distribution._unbroadcasted_cov_diag.sqrt() * own


class SiteNoise:
    """Function that draws one site of a guide from given noise.

    Args:
        noise: Function that returns the standard normal numbers.
        data_plate: The data plate.
        start: Index of the first draw.
        num: K, the number of draws.

    Attributes:
        shapes: Size, dtype and device of the noise of each site, by site name.
    """

    def __init__(self, noise: Noise, data_plate: DataPlate, start: int, num: int) -> None:
        self.noise, self.data_plate, self.start, self.num = noise, data_plate, start, num
        self.shapes: dict[str, NoiseShape] = {}

    def __call__(self, name: str, distribution: Distribution, particles: bool) -> Tensor | None:
        """Draw one site K times.

        Args:
            name: Name of the site.
            distribution: Distribution of the site.
            particles: True if the batch shape already has the particle axis, an axis for the K draws; if False, this
                axis is added left of the batch shape.

        Returns:
            Draws with a particle axis of length K. None if the distribution is not made of normals, if its batch shape
            lacks the data plate, or if ``particles`` is True and its batch shape lacks the particle axis.
        """
        empty = noise_like(distribution)
        batch = len(distribution.batch_shape)
        nesting, dim = self.data_plate.nesting, self.data_plate.dim
        if empty is None or batch < -dim or empty.shape[batch + dim] != self.data_plate.size:
            return None
        shape = list(empty.shape)
        lead = shape[: max(0, batch - nesting)]  # the particle axis, if present
        if lead not in ([], [self.num]) or (particles and self.num > 1 and not lead):
            return None
        inner = [1] * (nesting - batch) + shape[len(lead) :]
        rest = inner[: nesting + dim] + inner[nesting + dim + 1 :]
        like = NoiseShape(torch.Size(rest).numel(), empty.dtype, empty.device)
        self.shapes[name] = like
        drawn = self.noise(name, self.start, self.num, like)
        drawn = drawn.reshape(self.num, self.data_plate.size, *rest).movedim(1, 1 + nesting + dim)
        return from_noise(distribution, drawn.reshape(shape) if particles else drawn)


class NoiseMessenger(Messenger):
    """Messenger that draws the latent sites of a guide from given noise.

    Sites that are not made of normals are drawn with torch's random generator.

    Args:
        draw: A :class:`SiteNoise`, or a function with the same arguments and return value.
    """

    def __init__(self, draw: Callable[[str, Distribution, bool], Tensor | None]) -> None:
        super().__init__()
        self.draw = draw

    def _pyro_sample(self, msg: Site) -> None:
        if msg["done"] or msg["is_observed"] or msg["infer"].get("_deterministic", False):
            return
        if not isinstance(msg["fn"], Distribution) or msg["args"] or msg["kwargs"]:
            return
        value = self.draw(msg["name"], msg["fn"], True)
        if value is not None:
            msg["value"], msg["done"] = value, True
